"""The names that the record has of its own beside metrics and parameters, and what those of the same name become."""

from collections.abc import Collection, Mapping
from typing import Any

TRIAL = (
    "cell",
    "replicate",
    "trial",
    "state",
    "reason",
    "seed",
    "steps",
    "seconds",
    "superseded",
)  # of the search
RUN = ("cell", "replicate", "trial", "fresh", "seed", "state", "reason")  # of a run of confirmation
ROW = ("cell", "replicate", "trial", "step", "wall_s")  # of a row of a trial
DRAWN = ("best", "jitter", "line", "rows")  # what figures add to them
TAKEN = frozenset({*TRIAL, *RUN, *ROW})
TAKEN_PARAMETERS = TAKEN - {"cell"}  # which MANN has had from the first; frames call it `param.cell`


def beside(values: Mapping[str, Any], taken: Collection[str], kind: str) -> dict[str, Any]:
    """The values by name, or as `kind.NAME` where that name is taken: `metric.step`, `param.seed`, `test.val_loss`."""
    return {(f"{kind}.{name}" if name in taken else name): value for name, value in values.items()}
