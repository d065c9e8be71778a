"""What can go wrong, one class a consequence.

A message reads: place, rule, value, next step. People get it as one line and exit code 2.
"""

LONGEST = 2000  # characters of a message


class Cs330rayError(Exception):
    """Any error that a person can act on; the command line prints it as one line and exits with code 2."""

    def __str__(self) -> str:
        """The message in one line, whatever it quotes: escaped as in Python; one that is endless without its middle."""
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class SpecError(Cs330rayError):
    """What was asked for cannot be meant; nothing was started."""


class DataError(Cs330rayError):
    """Data are missing or are not what they should be; nothing was started."""


class LedgerError(Cs330rayError):
    """The record cannot be trusted or written; the service stops and overwrites nothing."""


class CheckpointError(Cs330rayError):
    """A checkpoint is not whole; it is never loaded."""


class StudyError(Cs330rayError):
    """The study cannot go on; it stopped, and what was recorded stays."""


class ContractError(Cs330rayError):
    """A trainable breaks a promise of `trial.Trainable`; its trial is recorded as failed and not tried again."""


class ProcessFailed(Exception):  # noqa: N818 - what it is, not what went wrong
    """A process of one's own failed (`why`); `tail` is the end of its stderr. Its trial is recorded as failed."""

    def __init__(self, why: str, tail: str) -> None:
        super().__init__(why, tail)
        self.why, self.tail = why, tail

    def __str__(self) -> str:
        return self.why


class WorkerLost(Exception):  # noqa: N818 - what it is, not what went wrong
    """A process of a trial is gone or silent; the trial is taken up again from its newest checkpoint."""


class WorkerSpent(WorkerLost):
    """A worker in which a trial left threads or processes; it takes no other, and the next one gets a fresh worker."""


class Diverged(Exception):  # noqa: N818 - the field's word
    """A loss stopped being finite; the trial is recorded as failed and not tried again."""


class NodeUnfit(WorkerLost):
    """A node differs from the others (`node`, `why`); it gets no trials, and the one that came to it goes elsewhere."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node, self.why = node, why
