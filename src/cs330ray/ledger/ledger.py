"""The ledger: the record of every study, in one database, as its readers see it.

An Optuna study per cell, so that Optuna's own tools open it, and our tables beside it. Reading writes nothing: not into
the database, and not beside it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sql
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import schema
from cs330ray.ledger.database import Access, Database, url_of
from cs330ray.ledger.records import (
    Asking,
    Kept,
    Loss,
    Row,
    Trial,
    cause_in,
    from_json,
    nodes_in,
    row_of,
    started_at_s,
    trial_of,
)
from cs330ray.ledger.tables import (
    ATTEMPTS,
    CHECKPOINTS,
    ENDS,
    LOOKS,
    LOSSES,
    METRICS,
    ROWS,
    SCORES,
    SESSIONS,
    STORES,
    STUDIES,
    SUPERSEDED,
    UNTESTED,
    of_trial,
)
from cs330ray.ledger.trials import stored
from cs330ray.ledger.trials.held import Held
from cs330ray.spec import places
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study, fresh_seed
from cs330ray.trial.contract import Item, Metric
from cs330ray.words import redacted


class Ledger:
    """A connection for reading to the ledger at `url`, for example `sqlite:////home/me/runs/ledger.db`.

    An SQLite ledger is read as it was when it was opened. Its paths are relative to `home`, by default the directory of
    its file.
    """

    def __init__(self, url: str, home: Path | None = None, *, access: Access = "read") -> None:
        self.database = Database(url, access)
        beside = self.database.file.parent if self.database.file is not None else places.home()
        self.home = (beside if home is None else home).resolve()
        self._ids: dict[tuple[str, str], int] = {}  # (study, cell) -> Optuna's study id
        self._trials: dict[tuple[str, str], Held] = {}  # (study, cell) -> its trials, as far as they were read

    @classmethod
    def at(cls, home: Path, *, access: Access = "read") -> Self:
        """Open the ledger of the home directory `home`, to read it as it is or to follow it. Raises LedgerError."""
        return cls(url_of(home), home, access=access)

    def find(self, name: str) -> Study | None:
        """The study `name`, or None."""
        found = self.database.select(sql.select(STUDIES.c.spec).where(STUDIES.c.name == name))
        return _study(found[0].spec) if found else None

    def study(self, name: str) -> Study:
        """The study `name`. Raises SpecError where there is none."""
        study = self.find(name)
        if study is None:
            known = ", ".join(self.names()) or "none yet"
            place = self.database.file or redacted(self.database.url).split("///")[-1]
            raise SpecError(f"{name}: a study in {place} is needed (there: {known}); see `cs330ray list`")
        return study

    def uid(self, name: str) -> str:
        """What tells this study from an earlier, deleted one of the same name."""
        return str(self.database.select(sql.select(STUDIES.c.uid).where(STUDIES.c.name == name))[0].uid)

    def asking(self, study: Study) -> Asking:
        """Tell how a recorded study asks: studies of before version 3 go on with draws of each cell's own."""
        if STUDIES.c.asking in self.database.lacks:
            return "own"
        found = self.database.select(sql.select(STUDIES.c.asking).where(STUDIES.c.name == study.name))
        return "common" if found[0].asking == "common" else "own"

    def names(self) -> list[str]:
        """The names of all studies, oldest first."""
        return [row.name for row in self.database.select(sql.select(STUDIES.c.name).order_by(STUDIES.c.wall_s))]

    def metrics(self, study: Study, trainable: str) -> dict[str, Metric]:
        """What the metrics of a trainable mean, as recorded."""
        where = (METRICS.c.study == study.name) & (METRICS.c.trainable == trainable)
        found = self.database.select(sql.select(METRICS).where(where))
        return {row.metric: Metric(**from_json(row.description)) for row in found}

    def looks(self, study: Study) -> list[str]:
        """What was seen at each recorded look at a study's cells, as JSON, the first first."""
        if LOOKS in self.database.lacks:
            return []
        where = LOOKS.c.study == study.name
        return [row.seen for row in self.database.select(sql.select(LOOKS).where(where).order_by(LOOKS.c.look))]

    def goals(self, study: Study) -> list[str]:
        """Which way is better, `max` or `min`, for each objective."""
        metrics = self.metrics(study, study.trainables()[0])
        return [metrics[name].goal for name in study.objective]

    def worked_s(self, study: Study) -> float:
        """Seconds that all sessions have worked on a study."""
        total = sql.func.sum(SESSIONS.c.seen_s - SESSIONS.c.started_s).label("total")
        return float(self.database.select(sql.select(total).where(SESSIONS.c.study == study.name))[0].total or 0.0)

    def history(self, study: Study, cell: Cell) -> list[FrozenTrial]:
        """A cell's trials as Optuna holds them, by number; those that somebody added with Optuna's tools are not ours.

        Ours carry their seed and never wait; one that has ended in Optuna has a start or an end in our tables.
        """
        return list(self.held(study, cell).ours.values())

    def standing(self, study: Study, cell: Cell) -> list[FrozenTrial]:
        """The trials of a cell that none continues, each in the place of the first that it goes back to."""
        return list(self.held(study, cell).standing.values())

    def foreign(self, study: Study, cell: Cell) -> list[int]:
        """The numbers of the trials that somebody added to a cell with Optuna's own tools."""
        return self.held(study, cell).foreign()

    def entered(self, study: Study, cell: Cell, number: int) -> FrozenTrial:
        """One of a cell's trials as Optuna holds it. Raises LedgerError where it is not there."""
        found = self.held(study, cell).ours.get(number)
        if found is None:
            raise LedgerError(
                f"{study.name}: expected trial {number} of {cell.label}, got none; see `cs330ray restore --help`"
            )
        return found

    def in_optuna(self, study: Study, cell: Cell) -> list[FrozenTrial]:
        """All trials that Optuna holds of a cell, by number: ours, and those added with Optuna's own tools."""
        return sorted(self.held(study, cell).known.values(), key=lambda trial: trial.number)

    def held(self, study: Study, cell: Cell) -> Held:
        """The trials of a cell, read as far as they have changed."""
        return self._read(study, cell, running=True)

    def _read(self, study: Study, cell: Cell, *, running: bool) -> Held:
        """Read what is new of a cell's trials; of those that run nothing but their end, unless `running`."""
        held = self._trials.setdefault((study.name, cell.key), Held())
        study_id = self._find_optuna_id(study, cell)
        if study_id is None:
            return held
        changed, before = stored.refresh(self.database, study_id, held, running=running), len(held.own)
        if held.unknown():  # it may have a row in our tables by now
            for table in (ENDS, ATTEMPTS):
                where = (table.c.study == study.name) & (table.c.cell == cell.key)
                held.own |= {row.trial for row in self.database.select(sql.select(table.c.trial).where(where))}
        if changed or len(held.own) > before:
            held.arrange()
        return held

    def trials(self, study: Study, cell: Cell, some: Collection[int] | None = None) -> list[Trial]:
        """A cell's trials, by number; of a cell under a fresh seed, those that were taken up.

        With `some`, of a search, only those numbers and who continues them.
        """
        if cell.fresh is None:
            held = self.held(study, cell)
            history, successors = list(held.ours.values()), held.successors
            if some is not None:
                some = {*some, *(successors[number] for number in some if number in successors)}
                history = [held.ours[number] for number in sorted(some) if number in held.ours]
            ends = {row.trial: row for row in self._ends(study, cell, some)}
            return [
                trial_of(
                    study,
                    cell,
                    frozen,
                    int(frozen.user_attrs["seed"]),
                    started_at_s(frozen),
                    ends.get(frozen.number),
                    successors.get(frozen.number),
                )
                for frozen in history
            ]
        ends = {row.trial: row for row in self._ends(study, cell)}
        starts = {row.trial: row.wall_s for row in self._of_cell(ATTEMPTS, study, cell) if row.attempt == 0}
        began_s = {number: end.wall_s for number, end in ends.items()} | starts  # some end before they could say so
        searched = {trial.number: trial for trial in self.history(study, cell.searched)} if began_s else {}
        seed = fresh_seed(study.seed, cell.fresh, cell.replicate)
        return [
            trial_of(study, cell, searched[number], seed, began_s[number], ends.get(number), None)
            for number in sorted(began_s)
        ]

    def _ends(self, study: Study, cell: Cell, some: Collection[int] | None = None) -> Sequence[sql.Row[Any]]:
        where = (ENDS.c.study == study.name) & (ENDS.c.cell == cell.key)
        return self.database.select(
            self.database.all_of(ENDS).where(where if some is None else where & ENDS.c.trial.in_(some))
        )

    def lost(self, study: Study, cell: Cell) -> frozenset[int]:
        """Find the trials of a cell whose end says nothing of their parameters: lost, or given up; their numbers."""
        where = (ENDS.c.study == study.name) & (ENDS.c.cell == cell.key) & (ENDS.c.state == "FAIL")
        failed = self.database.select(self.database.all_of(ENDS).where(where))
        return frozenset(int(row.trial) for row in failed if cause_in(row) in ("lost", "stopped"))

    def most_begun(self, study: Study) -> int:
        """Count the trials that the cell with most of them has begun, those that one continues not."""
        return max(len(self.standing(study, cell)) for cell in study.cells)

    def lineage(self, study: Study, cell: Cell, number: int) -> list[int]:
        """A trial and those that it continues, oldest first; a run of confirmation continues none."""
        return self.held(study, cell).line(number) if cell.fresh is None else [number]

    def lines(self, study: Study, cell: Cell, numbers: Collection[int]) -> set[int]:
        """Trials of a search and all that they continue."""
        held = self.held(study, cell)
        return {each for number in numbers for each in held.line(number)}

    def rows(self, study: Study, cell: Cell, number: int, after: int = -1) -> list[Row]:
        """The rows of a trial beyond step `after`, in order."""
        where = of_trial(ROWS, study, cell, number) & (ROWS.c.step > after)
        found = self.database.select(sql.select(ROWS).where(where).order_by(ROWS.c.step))
        return [row_of(row) for row in found]

    def superseded(self, study: Study, cell: Cell, number: int) -> int:
        """Count the rows of a trial that its later starts have set aside."""
        count = sql.func.count().label("rows")
        found = self.database.select(
            sql.select(count).select_from(SUPERSEDED).where(of_trial(SUPERSEDED, study, cell, number))
        )
        return int(found[0].rows) if found else 0

    def rows_by_trial(self, study: Study, cell: Cell) -> dict[int, list[Row]]:
        """The rows of all trials of a cell, in order, by trial number."""
        where = (ROWS.c.study == study.name) & (ROWS.c.cell == cell.key)
        found: dict[int, list[Row]] = {}
        for row in self.database.select(sql.select(ROWS).where(where).order_by(ROWS.c.trial, ROWS.c.step)):
            found.setdefault(int(row.trial), []).append(row_of(row))
        return found

    def last_step(self, study: Study, cell: Cell, number: int) -> int:
        """The step of a trial's last row, 0 where it has none."""
        last = sql.func.max(ROWS.c.step).label("last")
        return int(self.database.select(sql.select(last).where(of_trial(ROWS, study, cell, number)))[0].last or 0)

    def last_steps(self, study: Study, cell: Cell) -> dict[int, int]:
        """The step of the last row of each trial of a cell that has one, by trial number."""
        last = sql.func.max(ROWS.c.step).label("last")
        where = (ROWS.c.study == study.name) & (ROWS.c.cell == cell.key)
        found = self.database.select(sql.select(ROWS.c.trial, last).where(where).group_by(ROWS.c.trial))
        return {row.trial: int(row.last) for row in found}

    def first_past(self, study: Study, cell: Cell, step: int, metric: str) -> dict[int, Row]:
        """The first row of each trial of a cell at or past `step` that holds `metric`, by trial number.

        Where a trial continues another, the first of them that has such a row counts for both.
        """
        where = (ROWS.c.study == study.name) & (ROWS.c.cell == cell.key) & (ROWS.c.step >= step)
        first = sql.select(ROWS.c.trial, sql.func.min(ROWS.c.step).label("step")).where(where).group_by(ROWS.c.trial)
        at = first.subquery()
        query = sql.select(ROWS).join(at, (ROWS.c.trial == at.c.trial) & (ROWS.c.step == at.c.step)).where(where)
        reached = {int(row.trial): row_of(row) for row in self.database.select(query)}
        found = {number: row for number, row in reached.items() if metric in row.metrics}
        if lacking := reached.keys() - found.keys():
            for row in self.database.select(sql.select(ROWS).where(where).order_by(ROWS.c.trial, ROWS.c.step)):
                if row.trial in lacking and metric in (later := row_of(row)).metrics:
                    found[int(row.trial)] = later
                    lacking.remove(row.trial)
        held = self.held(study, cell)
        return {n: row for n, row in found.items() if not found.keys() & held.line(n)[:-1]}

    def values(self, study: Study, cell: Cell, number: int) -> tuple[float, ...] | None:
        """A trial's objectives in the last row that holds them, its own or of those that it continues, or None."""
        for each in reversed(self.lineage(study, cell, number)):
            if (found := worth(study, self.rows(study, cell, each))) is not None:
                return found
        return None

    def checkpoint(self, study: Study, cell: Cell, number: int) -> str | None:
        """Where a trial's newest recorded checkpoint lies, a directory or the address of its copy, or None."""
        found = self.kept(study, cell, number)
        return found.path if found else None

    def kept(self, study: Study, cell: Cell, number: int) -> Kept | None:
        """A trial's newest recorded checkpoint, or None."""
        where = of_trial(CHECKPOINTS, study, cell, number)
        found = self.database.select(sql.select(CHECKPOINTS).where(where).order_by(CHECKPOINTS.c.step.desc()).limit(1))
        return Kept(self._placed(found[0].path), int(found[0].step), str(found[0].digest)) if found else None

    def checkpoint_at(self, study: Study, cell: Cell, number: int, step: int) -> str | None:
        """Where a trial's recorded checkpoint of one step lies, or None."""
        where = of_trial(CHECKPOINTS, study, cell, number) & (CHECKPOINTS.c.step == step)
        found = self.database.select(sql.select(CHECKPOINTS.c.path).where(where))
        return self._placed(found[0].path) if found else None

    def checkpoints(self, study: Study, cell: Cell) -> dict[int, str]:
        """Where the newest checkpoint of each trial of a cell that has one lies."""
        found = sorted(self._of_cell(CHECKPOINTS, study, cell), key=lambda row: (row.trial, row.step))
        return {int(row.trial): self._placed(row.path) for row in found}

    def folder(self, study: Study) -> str | None:
        """The study's folder in stores of checkpoints, or None where it never had one.

        It is its own: others of this name, here before or in another ledger, have other folders. A backup keeps it.
        """
        found = self.database.select(sql.select(STORES.c.name).where(STORES.c.study == study.name))
        return str(found[0].name) if found else None

    def attempts(self, study: Study, cell: Cell, number: int) -> list[dict[str, Any]]:
        """On what a trial ran, one dictionary a start."""
        where = of_trial(ATTEMPTS, study, cell, number)
        found = self.database.select(sql.select(ATTEMPTS).where(where).order_by(ATTEMPTS.c.attempt))
        return [from_json(row.circumstances) for row in found]

    def attempts_by_trial(self, study: Study, cell: Cell) -> dict[int, list[dict[str, Any]]]:
        """On what the trials of a cell ran, one dictionary a start, by trial number."""
        found: dict[int, list[dict[str, Any]]] = {}
        for row in sorted(self._of_cell(ATTEMPTS, study, cell), key=lambda row: (row.trial, row.attempt)):
            found.setdefault(int(row.trial), []).append(from_json(row.circumstances))
        return found

    def begun(self, study: Study, cell: Cell, number: int) -> bool:
        """Whether a trial was ever started, by what is recorded of it."""
        return any(
            self.database.select(sql.select(table.c.attempt).where(of_trial(table, study, cell, number)).limit(1))
            for table in (ATTEMPTS, LOSSES)
        )

    def losses(self, study: Study, cell: Cell, number: int) -> list[Loss]:
        """List the losses of a trial's workers, oldest first."""
        where = of_trial(LOSSES, study, cell, number)
        found = self.database.select(self.database.all_of(LOSSES).where(where).order_by(LOSSES.c.attempt))
        return [Loss(str(row.reason), nodes_in(row)) for row in found]

    def test_metrics(self, study: Study, cell: Cell, number: int) -> dict[str, float]:
        """What a confirmation reached on the test split; empty where it has not been scored."""
        found = self.database.select(sql.select(SCORES.c.metrics).where(of_trial(SCORES, study, cell, number)))
        return {str(name): float(value) for name, value in from_json(found[0].metrics).items()} if found else {}

    def untested(self, study: Study, cell: Cell, number: int) -> tuple[str, str] | None:
        """Why a confirmation's test failed, and its traceback, or None."""
        found = self.database.select(sql.select(UNTESTED).where(of_trial(UNTESTED, study, cell, number)))
        return (str(found[0].reason), str(found[0].traceback)) if found else None

    def test_items(self, study: Study, cell: Cell, number: int) -> dict[str, list[Item]]:
        """The items behind each of those metrics."""
        found = self.database.select(sql.select(SCORES.c.scored).where(of_trial(SCORES, study, cell, number)))
        return {
            name: [Item(unit, score) for unit, score in zip(held["units"], held["scores"], strict=True)]
            for name, held in (from_json(found[0].scored) if found else {}).items()
        }

    def _of_cell(self, table: sql.Table, study: Study, cell: Cell) -> Sequence[sql.Row[Any]]:
        return self.database.select(
            self.database.all_of(table).where((table.c.study == study.name) & (table.c.cell == cell.key))
        )

    def _find_optuna_id(self, study: Study, cell: Cell) -> int | None:
        key = (study.name, cell.key)
        if key not in self._ids and (found := stored.find(self.database, " ".join(key))) is not None:
            self._ids[key] = found
        return self._ids.get(key)

    def _placed(self, path: str) -> str:
        """Find where a recorded checkpoint lies: at an address in a store, or under the home as it is called now."""
        return path if "://" in path else str(self.home / schema.relative(path))


def worth(study: Study, rows: Sequence[Row]) -> tuple[float, ...] | None:
    """The objectives in the last of some rows that holds them, or None."""
    for row in reversed(rows):
        if all(name in row.metrics for name in study.objective):
            return tuple(row.metrics[name] for name in study.objective)
    return None


def directions(goals: Sequence[str]) -> list[StudyDirection]:
    """Goals `max` and `min` in Optuna's words."""
    return [StudyDirection.MAXIMIZE if goal == "max" else StudyDirection.MINIMIZE for goal in goals]


def _study(text: str) -> Study:
    return parse(from_json(text), "ledger")
