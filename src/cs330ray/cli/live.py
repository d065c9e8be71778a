"""What a person sees of a running study: a live table at a terminal, a line a trial in a log file."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cs330ray.spec.study import Cell, Study
from cs330ray.words import duration, number, params, plural, printable, redacted

if TYPE_CHECKING:
    from cs330ray.ledger.records import Ending, Row, Trial

REFRESH_S = 0.25


class StudyConsole:
    """Shows a study while it runs; a `service.listener.Listener` by shape."""

    def __init__(self, study: Study, goals: Sequence[str]) -> None:
        self._study = study
        self._goals = goals
        self._ended: dict[tuple[str, int], tuple[str, float | None]] = {}  # state and first objective
        self._at_start = 0  # how many had ended in earlier sessions
        self._running: dict[tuple[str, int], dict[str, Any]] = {}
        self._began = time.monotonic()
        self._drawn = 0.0
        self._to_confirm = self._confirmed = 0  # runs of confirmation, in this session
        self._began_to_confirm = 0.0
        self._cost = ""  # so far and in all, in words
        self.out = Console(highlight=False)
        self._live: Live | None = None

    def __enter__(self) -> "StudyConsole":
        if self.out.is_terminal:
            self._live = Live(self._picture(), console=self.out, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    # The listener ------------------------------------------------------------------------------------------------

    def says(self, line: str) -> None:
        """Print a line that stays."""
        self.out.print(printable(redacted(line)), soft_wrap=True, markup=False)

    def had_ended(self, trials: "Sequence[Trial]") -> None:
        """Count the trials that ended in earlier sessions."""
        for trial in trials:
            self._ended[trial.cell.key, trial.number] = (trial.state, trial.values[0] if trial.values else None)
        self._at_start = len(self._ended)

    def took_up(self, cell: Cell, number: int, params: Mapping[str, Any], resumed_from_step: int | None) -> None:
        """Show a trial as running."""
        searched = {name: value for name, value in params.items() if name in cell.space}
        self._running[cell.key, number] = {"cell": cell, "params": searched, "step": 0, "value": None}
        if resumed_from_step is not None and resumed_from_step < self._study.budget.steps:
            self.says(f"trial {number}{_of(cell)} goes on from its checkpoint at step {resumed_from_step}")

    def reached(self, cell: Cell, number: int, row: "Row") -> None:
        """Show how far a trial is."""
        entry = self._running.get((cell.key, number))
        if entry is not None:
            entry["step"] = row.step
            entry["value"] = row.metrics.get(self._study.objective[0], entry["value"])

    def ended(
        self,
        cell: Cell,
        number: int,
        params: Mapping[str, Any],
        ending: "Ending",
        values: tuple[float, ...] | None,
    ) -> None:
        """Count a trial, and leave a line of it."""
        self._running.pop((cell.key, number), None)
        value = values[0] if values and ending.state != "FAIL" else None
        if cell.fresh is None:
            self._ended[cell.key, number] = (ending.state, value)
        else:
            self._confirmed += 1
        self.says(self._line(cell, number, ending, values, params))

    def lost(self, cell: Cell, number: int, times: int) -> None:
        """Say that a worker was lost."""
        self._running.pop((cell.key, number), None)
        where = "from its newest checkpoint, if it has one"
        self.says(f"trial {number}{_of(cell)} lost its worker ({times} so far); it starts again {where}")

    def confirms(self, runs: int, replicate: int) -> None:
        """Say that a replicate's confirmation begins."""
        self._to_confirm += runs
        self._began_to_confirm = time.monotonic()
        which = "the search" if self._study.repeat.searches == 1 else f"the search of replicate {replicate}"
        self.says(f"{self._study.name}: {which} is over; {plural(runs, 'run')} of confirmation to come")

    def foresees(self, cost: str) -> None:
        """Show what the study has cost, and will cost, below the table."""
        self._cost = cost

    def ticked(self) -> None:
        """Draw the table again, now and then."""
        if self._live is not None and time.monotonic() - self._drawn > REFRESH_S:
            self._drawn = time.monotonic()
            self._live.update(self._picture(), refresh=True)

    # The picture -------------------------------------------------------------------------------------------------

    def _line(
        self, cell: Cell, number_: int, ending: "Ending", values: tuple[float, ...] | None, searched: Mapping[str, Any]
    ) -> str:
        total = self._study.budget.trials * len(self._study.cells)
        shown = " ".join(
            f"{name}={number(value)}" for name, value in zip(self._study.objective, values or (), strict=False)
        )
        reason = f" [{ending.reason}]" if ending.reason else ""
        count = f"{len(self._ended)}/{total}" if cell.fresh is None else f"{self._confirmed}/{self._to_confirm}"
        return f"{count:>7}  trial {number_:<3}{_of(cell)} {ending.state:<8} {shown}  {params(searched)}{reason}"

    def _best(self) -> float | None:
        complete = [value for state, value in self._ended.values() if state == "COMPLETE" and value is not None]
        if not complete:
            return None
        return max(complete) if self._goals[0] == "max" else min(complete)

    def _left_s(self) -> float | None:
        """Seconds left, from the share of all steps done in this session; pruned trials make it an upper bound."""
        under_way: float = sum(entry["step"] for entry in self._running.values()) / self._study.budget.steps
        several = self._study.repeat.searches > 1
        if self._to_confirm and not several:
            runs = self._confirmed + under_way
            spent_s = time.monotonic() - self._began_to_confirm
            return spent_s * (self._to_confirm - runs) / runs if runs > 0 else None
        total = self._study.budget.trials * len(self._study.cells)
        confirm = self._study.confirm
        if confirm is not None:  # a front of unknown size counts as three
            most = min(confirm.most(len(self._study.objective)) or 3, self._study.budget.trials)
            total += most * confirm.seeds * len(self._study.cells)
        done = len(self._ended) - self._at_start + (self._confirmed if several else 0) + under_way
        if done <= 0:
            return None
        return (time.monotonic() - self._began) * (total - self._at_start - done) / done

    def _picture(self) -> Group:
        study, best, left = self._study, self._best(), self._left_s()
        states = [state for state, _ in self._ended.values()]
        total = study.budget.trials * len(study.cells)
        counts = "  ".join(
            f"{states.count(state)} {state}" for state in ("COMPLETE", "PRUNED", "FAIL") if state in states
        )
        headline = Text.assemble(
            (f"{study.name}  ", "bold"),
            f"{len(states)}/{total} trials  {counts}  ",
            f"{self._confirmed}/{self._to_confirm} confirmed  " if self._to_confirm else "",
            f"best {study.objective[0]} {number(best)}  " if best is not None else "",
            f"{duration(time.monotonic() - self._began)} so far",
            f", about {duration(left)} left" if left is not None else "",
        )
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("trial", "step", study.objective[0], "parameters"):
            table.add_column(column, justify="left" if column == "parameters" else "right", style="cyan")
        for (_, trial), entry in sorted(self._running.items(), key=lambda item: item[0]):
            value = "" if entry["value"] is None else number(entry["value"])
            cell = f"{entry['cell'].label}  " if len(study.cells) > 1 else ""
            fresh = "" if entry["cell"].fresh is None else f", fresh seed {entry['cell'].fresh}"
            shown = printable(cell + params(entry["params"]))
            table.add_row(f"{trial}{fresh}", f"{entry['step']}/{study.budget.steps}", value, Text(shown))
        return Group(headline, table, *([Text(self._cost, style="dim")] if self._cost else []))


def _of(cell: Cell) -> str:
    return (f" of {cell.label}" if cell.values or cell.replicate else "") + (
        f" on fresh seed {cell.fresh}" if cell.fresh is not None else ""
    )
