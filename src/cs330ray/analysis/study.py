"""A study read for what it says, without drawing: its trials, rows and confirmation as frames, and who is best."""

from functools import cached_property

import pandas as pd

from cs330ray.analysis import confirmed, frames, replicates, standing
from cs330ray.analysis.claims import claim, seen
from cs330ray.analysis.claims.claim import Claim
from cs330ray.analysis.claims.seen import Seen
from cs330ray.analysis.comparison import Comparison
from cs330ray.analysis.frames import Best
from cs330ray.analysis.replicates import Replicates, Sources
from cs330ray.analysis.standing import Standing
from cs330ray.ledger.confirm import Confirmed
from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Cell, Study


class Snapshot:
    """A study as the ledger held it when each part was first asked for; it only reads.

    `trials`, `rows`, `confirmed` and `runs` are frames, `best` the configuration to use, `seen` the look at the cells
    that the answer rests on, `comparison` that of the candidates of a single cell. All are of the one `replicate`,
    where that is named.
    """

    def __init__(self, ledger: Ledger, study: Study, replicate: int | None = None) -> None:
        self.ledger = ledger
        self.study = study
        self.name = study.name
        self.replicate = replicate

    @cached_property
    def cells(self) -> list[Cell]:
        """The searches that it shows: every cell in every replicate, or in the one."""
        return self.study.cells if self.replicate is None else self.study.replicate(self.replicate)

    @cached_property
    def goals(self) -> dict[str, str]:
        """Each objective's goal, `max` or `min`."""
        return dict(zip(self.study.objective, self.ledger.goals(self.study), strict=True))

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial of the search: see `frames.trials`."""
        return frames.trials(self.ledger, self.study, self.cells)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row a row of a trial of the search: see `frames.rows`."""
        return frames.rows(self.ledger, self.study, self.cells)

    @cached_property
    def confirmed(self) -> pd.DataFrame:
        """A row a candidate and objective: see `frames.confirmed`."""
        return frames.confirmed(self.ledger, self.standings)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run of confirmation: see `frames.runs`."""
        return frames.runs(self.standings)

    @cached_property
    def standings(self) -> list[Standing]:
        """How each search stands, in the order of the file: who is best in it, ranked, on the front and chosen."""
        return list(self.replicates.standings)

    @cached_property
    def replicates(self) -> Replicates:
        """How the cells stand over the replicates: what is compared, and which choice is to be used."""
        return replicates.read(self.ledger, self.study, self.replicate)

    @cached_property
    def candidates(self) -> dict[str, list[Confirmed]]:
        """The candidates of each cell with what is known of them, by cell key; see `service.confirm`."""
        return {cell.cell.key: list(cell.candidates) for cell in self.standings}

    @cached_property
    def choices(self) -> dict[str, Confirmed]:
        """The confirmed choice of each cell that has one, by cell key."""
        return standing.choices(self.standings)

    @cached_property
    def starts(self) -> pd.DataFrame:
        """A row a start of a trial or of a run of confirmation: see `frames.starts`."""
        return frames.starts(self.ledger, self.study, self.cells)

    @cached_property
    def best(self) -> Best | None:
        """The configuration to use, by confirmation where it is over; None before a trial is COMPLETE."""
        return frames.best(self.ledger, self.replicates)

    @cached_property
    def comparison(self) -> Comparison | None:
        """The candidates of the one cell compared, as configurations; None below two, and where cells are compared."""
        return confirmed.compared(self.ledger, self.study) if len(self.study.cells) == 1 else None

    @cached_property
    def claim(self) -> Claim | None:
        """Which cells are told apart, by the look that the answer rests on; None before a replicate is whole."""
        return claim.claim(self.seen.look) if self.seen is not None and self.seen.look.cells else None

    @cached_property
    def seen(self) -> Seen | None:
        """The look at the cells that is to be repeated; None before a replicate is whole."""
        return seen.seen(self.ledger, self.replicates)

    @cached_property
    def sources(self) -> Sources | None:
        """Where the scatter of the results comes from; None without two whole replicates or two fresh seeds."""
        return self.replicates.sources(self.ledger)
