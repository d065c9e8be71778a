"""What a trainable raises, BaseException included, as the end of its trial: in this process or in one of a team."""

from cs330ray.errors import ContractError
from cs330ray.ledger.records import Ending
from cs330ray.trial.environment import cause_of, reason_of, traceback_of


class Failed(Exception):  # noqa: N818 - the end of a trial
    """How a trial ended in another process; `kind` is the type of what was raised there."""

    def __init__(self, ending: Ending, kind: str) -> None:
        super().__init__(ending, kind)
        self.ending, self.kind = ending, kind


def failed_by(error: BaseException) -> Failed:
    """Make of what was raised here what another process can read, whatever its class."""
    return Failed(ending_of(error), type(error).__name__)


def ending_of(error: BaseException) -> Ending:
    """End a trial by what was raised; without a traceback where that would be of our code alone."""
    if isinstance(error, Failed):
        return error.ending
    text = "" if isinstance(error, ContractError) else traceback_of(error)
    return Ending("FAIL", reason_of(error), text, cause_of(error))
