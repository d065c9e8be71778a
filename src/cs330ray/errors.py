"""What can go wrong, one class a consequence.

A message reads: place, rule, value, next step. People get it as one line and exit code 2.
"""


class Cs330rayError(Exception):
    """Any error that a person can act on; the command line prints it as one line and exits with code 2."""

    def __str__(self) -> str:
        """The message in one line, whatever it quotes: what cannot be printed is escaped as in Python."""
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in super().__str__())


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


class Diverged(Exception):  # noqa: N818 - the field's word
    """A loss stopped being finite; the trial is recorded as failed and not tried again."""
