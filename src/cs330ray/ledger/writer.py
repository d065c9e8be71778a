"""Writing the ledger: what a driver records of a study. A row is written once; the first writer wins.

But for how long sessions and attempts have been under way, which is written again as time passes.
"""

import datetime
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy as sql
from optuna.trial import FrozenTrial, TrialState

from cs330ray.clock import wall_s
from cs330ray.errors import SpecError
from cs330ray.ledger import backup, lease, schema
from cs330ray.ledger.database import Access
from cs330ray.ledger.ledger import Ledger, directions, worth
from cs330ray.ledger.records import (
    Ending,
    Loss,
    Row,
    cause_in,
    from_json,
)
from cs330ray.ledger.shared.home import must_be_free
from cs330ray.ledger.tables import (
    ATTEMPTS,
    CHECKPOINTS,
    ENDS,
    LEASES,
    LOOKS,
    LOSSES,
    METRICS,
    ROWS,
    SCORES,
    SESSIONS,
    STORES,
    STUDIES,
    SUPERSEDED,
    TABLES,
    TESTS,
    UNTESTED,
    of_trial,
)
from cs330ray.ledger.trials import stored
from cs330ray.ledger.trials.held import Held
from cs330ray.spec import growth, places
from cs330ray.spec.study import Cell, Study
from cs330ray.trial.contract import Metric, Scores

HELD_S = 5.0  # so long a driver takes what it read of Optuna's trials for what is there
REST = 100  # times as long as one reading of them took it rests at least


@dataclass(frozen=True)
class Compared:
    """A study beside the recorded one of its name."""

    recorded: Study | None  # None where there is none
    grown: Sequence[str]  # what has grown, in words


class Writer(Ledger):
    """A connection to the ledger at `url` for the one that writes; the ledger is made where there is none."""

    def __init__(self, url: str, home: Path | None = None, *, access: Access = "write") -> None:
        super().__init__(url, home, access=access)
        self.is_driver = False  # nobody else writes this study
        self._read_s: dict[tuple[str, str], float] = {}  # of a cell: when a driver reads its trials again

    @classmethod
    def at(cls, home: Path, *, access: Access = "write") -> Self:
        """Open the ledger of the home directory `home`, made where there is none. Raises SpecError or LedgerError.

        One that a job of Slurm works on is refused.
        """
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(
                f"{home}: a directory for studies is needed, but {error.strerror}; set CS330RAY_HOME"
            ) from None
        if backup.file_of(home) is not None:
            must_be_free(home)
        return super().at(home, access=access)

    def held(self, study: Study, cell: Cell) -> Held:
        """The trials of a cell. A driver holds what it writes itself, and reads what others add after HELD_S.

        Reading rests a hundred times as long as it took, so that it is a hundredth of a core.
        """
        if not self.is_driver:
            return super().held(study, cell)
        key, now = (study.name, cell.key), time.monotonic()
        if now >= self._read_s.get(key, -math.inf):
            self._read(study, cell, running=key not in self._read_s)
            self._read_s[key] = now + max(HELD_S, REST * (time.monotonic() - now))
        return self._trials[key]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Make one transaction of all that is written inside; where that fails, what is held is read again."""
        try:
            with self.database.at_once():
                yield
        except BaseException:
            self._ids, self._trials, self._read_s = {}, {}, {}
            raise

    def upgrade(self, study: str, says: Callable[[str], None], waits: Callable[[], None] = lambda: None) -> None:
        """Take an older ledger to the newest version, for the driver of `study`, after a backup.

        Raises SpecError where another driver is at work in the ledger; `waits` is called while that is found out.
        """
        self.database.look_again()
        if not self.database.is_old:
            return
        lease.nobody_works(self.database, study, "upgraded", says, waits)
        kept = backup.before_upgrade(self.database.file, self.database.version)
        said = f"; as it was it is kept as {kept}" if kept else ""
        before = self.database.version
        self.database.upgrade()
        says(f"{study}: the ledger is upgraded from version {before} to {self.database.version}{said}")

    def open(
        self, study: Study, metrics: Mapping[str, Mapping[str, Metric]], compared: Compared | None = None
    ) -> Sequence[str]:
        """Enter a study with the metrics of its trainables, or take it up again; what has grown, in words.

        What its file leaves open is settled here, once, and recorded: `study` of its name gives it.

        `compared` is what `compare` said, if it was asked; it is asked again where the record has changed since. Raises
        SpecError where another study has its name. The study itself is written last: it is there whole or not.
        """
        if compared is None or self.find(study.name) != compared.recorded:
            compared = self.compare(study)
        if compared.recorded is not None:
            study = growth.as_recorded(compared.recorded, study)
        for trainable, described in metrics.items():
            self._describe_metrics(study, trainable, described)
        spec = study.model_dump_json()
        if compared.recorded is None:
            row = {"name": study.name, "uid": uuid.uuid4().hex, "digest": study.digest, "spec": spec}
            self.database.insert(STUDIES, [{**row, "asking": "common", "wall_s": wall_s()}])
        else:
            self.database.execute(STUDIES.update().where(STUDIES.c.name == study.name).values(spec=spec))
        return compared.grown

    def write_look(self, study: Study, number: int, seen: str) -> None:
        """Record a look at a study's cells: what was seen, as JSON."""
        self.database.insert(LOOKS, [{"study": study.name, "look": number, "seen": seen, "wall_s": wall_s()}])

    def _refuse_trials_of_unknown_steps(self, old: Study) -> None:
        for cell in old.cells:
            if any("steps" not in trial.user_attrs for trial in self.history(old, cell)):
                raise SpecError(
                    f"{old.name}: budget.steps: trials must say how many steps they had, but these are of an earlier "
                    f"version; keep {old.budget.steps}, or `--fork NAME`"
                )

    def delete(self, name: str) -> None:
        """Remove a study and all that was recorded of it."""
        self.study(name)
        self.forget(name)
        self.database.execute(STUDIES.delete().where(STUDIES.c.name == name))

    def forget(self, name: str) -> None:
        """Remove all that is recorded under a name, but the study itself."""
        with self.database.guarded():
            for of_cell in optuna.get_all_study_names(self.database.storage):
                if of_cell.startswith(f"{name} "):
                    optuna.delete_study(study_name=of_cell, storage=self.database.storage)
        for table in TABLES.sorted_tables:
            if "study" in table.c and table is not LEASES:
                self.database.execute(table.delete().where(table.c.study == name))
        self._ids, self._trials, self._read_s = {}, {}, {}

    def _describe_metrics(self, study: Study, trainable: str, metrics: Mapping[str, Metric]) -> None:
        """Record goal, range and unit of each metric of a trainable."""
        rows = [
            {"study": study.name, "trainable": trainable, "metric": name, "description": json.dumps(vars(metric))}
            for name, metric in metrics.items()
        ]
        if self.metrics(study, trainable) == metrics:
            return
        self.database.insert(METRICS, rows)
        for row in rows:  # bounds and units may be corrected; a goal that has changed was refused
            keys = (column == row[column.name] for column in METRICS.primary_key.columns)
            self.database.execute(METRICS.update().where(*keys).values(description=row["description"]))

    def seen(self, study: Study, session: str, worked_s: float) -> None:
        """Note that a session has worked on a study for so many seconds by now."""
        now = wall_s()
        self.database.insert(SESSIONS, [{"study": study.name, "session": session, "started_s": now, "seen_s": now}])
        where = (SESSIONS.c.study == study.name) & (SESSIONS.c.session == session)
        self.database.execute(SESSIONS.update().where(where).values(seen_s=SESSIONS.c.started_s + worked_s))

    def enter(self, study: Study, cell: Cell, trial: FrozenTrial, seed: int, *, continues: int | None = None) -> int:
        """Enter a trial whole, in one transaction; its number. It `continues` a trial of fewer steps, or none."""
        of_another = {} if continues is None else {"continues": continues}
        marks = {key: trial.user_attrs[key] for key in ("start",) if key in trial.user_attrs}
        whole = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"seed": seed, "steps": study.budget.steps, **of_another, **marks},
            system_attrs=trial.system_attrs,
        )
        whole.datetime_start = datetime.datetime.fromtimestamp(wall_s())  # as Optuna keeps it: naive, local
        entered = stored.enter(self.database, self._optuna_id(study, cell), whole)
        self.held(study, cell).put(entered)
        return int(entered.number)

    def retarget(self, study: Study, cell: Cell, number: int) -> None:
        """Give an interrupted trial the steps that the study has by now."""
        marked = stored.mark(self.database, self._known(study, cell, number), "steps", study.budget.steps)
        self.held(study, cell).put(marked)

    def write_rows(self, study: Study, cell: Cell, number: int, rows: Sequence[Row]) -> None:
        """Record rows of a trial; those already there stay as they are."""
        place = {"study": study.name, "cell": cell.key, "trial": number}
        written = [
            {**place, "step": row.step, "metrics": json.dumps(dict(row.metrics)), "wall_s": row.wall_s} for row in rows
        ]
        self.database.insert(ROWS, written)

    def supersede(self, study: Study, cell: Cell, number: int, after_step: int) -> int:
        """Set aside the rows of a trial after a step, which its next attempt makes otherwise; how many.

        They stay in a table of their own, by the attempt that made them. Checkpoints after that step are forgotten.
        """
        rows = self.rows(study, cell, number, after=after_step)
        attempt = len(self.attempts(study, cell, number)) - 1
        place = {"study": study.name, "cell": cell.key, "trial": number}
        aside = [
            {
                **place,
                "attempt": attempt,
                "step": row.step,
                "metrics": json.dumps(dict(row.metrics)),
                "wall_s": row.wall_s,
            }
            for row in rows
        ]
        gone = [
            table.delete().where(of_trial(table, study, cell, number), table.c.step > after_step)
            for table in (ROWS, CHECKPOINTS)
        ]
        with self.at_once():
            self.database.replace(gone, SUPERSEDED, aside)
            if aside and cell.fresh is None:
                without = stored.forget_reports(self.database, self._known(study, cell, number), after_step)
                self.held(study, cell).put(without)
        return len(aside)

    def report(self, study: Study, cell: Cell, number: int, step: int, value: float) -> None:
        """Tell Optuna what the one objective was at a step: it is told of rungs and ends."""
        reported = stored.report(self.database, self._known(study, cell, number), step, value)
        self.held(study, cell).put(reported)

    def write_checkpoint(self, study: Study, cell: Cell, number: int, step: int, path: str, digest: str) -> None:
        """Record a checkpoint of a trial."""
        place = {"study": study.name, "cell": cell.key, "trial": number, "step": step}
        self.database.insert(
            CHECKPOINTS, [{**place, "path": self._recorded(path), "digest": digest, "wall_s": wall_s()}]
        )

    def forget_checkpoints(self, study: Study, cell: Cell, number: int) -> None:
        """Note that a trial's checkpoints are there no more."""
        self.database.execute(CHECKPOINTS.delete().where(of_trial(CHECKPOINTS, study, cell, number)))

    def make_folder(self, study: Study) -> str:
        """Name the study's folder in stores, once; it."""
        self.database.insert(STORES, [{"study": study.name, "name": f"{study.name}-{uuid.uuid4().hex[:12]}"}])
        return str(self.folder(study))

    def write_attempt(
        self, study: Study, cell: Cell, number: int, circumstances: Mapping[str, Any], *, attempt: int | None = None
    ) -> None:
        """Record on what a trial was started or taken up again: host, device, code, data, versions.

        It is `attempt`, by default the number of those that are recorded.
        """
        if attempt is None:
            attempt = len(self.attempts(study, cell, number))
        place = {"study": study.name, "cell": cell.key, "trial": number, "attempt": attempt}
        self.database.insert(
            ATTEMPTS, [{**place, "circumstances": json.dumps(dict(circumstances)), "wall_s": wall_s()}]
        )
        if cell.fresh is None:
            self.held(study, cell).is_ours(number)

    def write_under_way(self, study: Study, cell: Cell, number: int, seconds: float, *, since: int) -> None:
        """Note how many seconds a trial has been under way in its newest attempt, if that is `since` or a later one.

        Of one that has not reported its start, nothing is noted.
        """
        where = of_trial(ATTEMPTS, study, cell, number) & (ATTEMPTS.c.attempt >= since)
        newest = sql.select(ATTEMPTS).where(where).order_by(ATTEMPTS.c.attempt.desc()).limit(1)
        with self.at_once():
            for row in self.database.select(newest):
                text = json.dumps({**from_json(row.circumstances), "under_way_s": seconds})
                same = of_trial(ATTEMPTS, study, cell, number) & (ATTEMPTS.c.attempt == row.attempt)
                self.database.execute(ATTEMPTS.update().where(same).values(circumstances=text))

    def write_loss(self, study: Study, cell: Cell, number: int, loss: Loss) -> list[Loss]:
        """Record that a trial's worker was lost; all its losses by now."""
        so_far = self.losses(study, cell, number)
        place = {"study": study.name, "cell": cell.key, "trial": number, "attempt": len(so_far)}
        nodes = json.dumps(sorted(loss.nodes))
        self.database.insert(LOSSES, [{**place, "reason": loss.reason, "nodes": nodes, "wall_s": wall_s()}])
        return [*so_far, loss]

    def end(self, study: Study, cell: Cell, number: int, ending: Ending) -> Ending:
        """End a trial, once; the ending that stands: the first given, FAIL where a COMPLETE one has no finite value."""
        rows = self.rows(study, cell, number)
        values = worth(study, rows) or self.values(study, cell, number)  # of those that it continues
        if ending.state != "FAIL" and values is None:
            ending = Ending("FAIL", f"no row holds {', '.join(study.objective)}", cause="unscored")
        elif ending.state != "FAIL" and not all(math.isfinite(value) for value in values or ()):
            unscored = f"{', '.join(study.objective)} must be finite, but got {values}"
            ending = Ending("FAIL", unscored, cause="unscored")
        place = {"study": study.name, "cell": cell.key, "trial": number}
        row = {**place, **vars(ending), "worth": json.dumps(values), "wall_s": wall_s()}
        with self.at_once():
            if not self.database.insert(ENDS, [row]):
                (held,) = self._ends(study, cell, [number])
                ending, values = Ending(held.state, held.reason, held.traceback, cause_in(held)), from_json(held.worth)
            if cell.fresh is None:  # no sampler sees a confirmation
                self._tell(study, cell, number, ending, values, rows)
        return ending

    def heal(self, study: Study, cell: Cell) -> list[int]:
        """Make good what a crash cut off between our tables and Optuna's; the numbers of the interrupted trials."""
        interrupted, ends = [], {row.trial: row for row in self._ends(study, cell)}
        for trial in self.history(study, cell):
            end = ends.get(trial.number)
            if trial.state.is_finished() and end is None:
                by_hand = Ending("FAIL", "ended with Optuna's own tools", cause="stopped")
                self.end(study, cell, trial.number, by_hand)
            elif end is None:
                interrupted.append(trial.number)
            elif not trial.state.is_finished():
                ending = Ending(end.state, end.reason, end.traceback, cause_in(end))
                rows = self.rows(study, cell, trial.number)
                self._tell(study, cell, trial.number, ending, from_json(end.worth), rows)
        return interrupted

    def _tell(
        self,
        study: Study,
        cell: Cell,
        number: int,
        ending: Ending,
        values: Sequence[float] | None,
        rows: Sequence[Row],
    ) -> None:
        """Give Optuna the end that our table holds, unless it has one.

        Its last value of the one objective is that by which samplers judge a trial that was pruned.
        """
        name = study.objective[0]
        last = next((row for row in reversed(rows) if name in row.metrics), None)
        values, trial = None if ending.state == "FAIL" else values, self._known(study, cell, number)
        with self.at_once():
            ended = stored.end(self.database, trial, TrialState[ending.state], values)
            held = self.held(study, cell)
            held.is_ours(number)
            if ended is None:  # somebody was quicker, with Optuna's own tools
                self._read_s.pop((study.name, cell.key), None)
                return
            held.put(ended)
            if last is not None and len(study.objective) == 1:
                self.report(study, cell, number, last.step, last.metrics[name])
            marked = stored.mark(self.database, self._known(study, cell, number), "reason", ending.reason)
            held.put(marked)

    def _known(self, study: Study, cell: Cell, number: int) -> FrozenTrial:
        """A trial as Optuna holds it, though somebody has ended it there before we took it up. Raises LedgerError."""
        found = self.held(study, cell).get(number)
        return found if found is not None else self.entered(study, cell, number)  # which says what is missing

    def write_scores(self, study: Study, cell: Cell, number: int, scores: Scores) -> None:
        """Record what a confirmation reached on the test split."""
        items = {
            name: {"units": [item.unit for item in found], "scores": [item.score for item in found]}
            for name, found in scores.items.items()
        }
        place = {"study": study.name, "cell": cell.key, "trial": number}
        row = {**place, "metrics": json.dumps(dict(scores.metrics)), "scored": json.dumps(items), "wall_s": wall_s()}
        self.database.insert(SCORES, [row])

    def write_untested(self, study: Study, cell: Cell, number: int, reason: str, traceback: str) -> None:
        """Record that a confirmation's test failed, and why."""
        place = {"study": study.name, "cell": cell.key, "trial": number}
        self.database.insert(UNTESTED, [{**place, "reason": reason, "traceback": traceback, "wall_s": wall_s()}])

    def write_opening(self, trainable: str, config: str, checkpoint: str) -> str:
        """Record that a lone trial is about to be scored on the test split; the opening's name."""
        row = {"opening": uuid.uuid4().hex, "trainable": trainable, "config": config}
        row |= {"checkpoint": self._recorded(checkpoint)}
        self.database.insert(TESTS, [{**row, "metrics": "{}", "wall_s": wall_s()}])
        return row["opening"]

    def write_opened(self, opening: str, metrics: Mapping[str, float]) -> None:
        """Record what an opening of the test split showed."""
        self.database.execute(
            TESTS.update().where(TESTS.c.opening == opening).values(metrics=json.dumps(dict(metrics)))
        )

    def _optuna_id(self, study: Study, cell: Cell) -> int:
        if self._find_optuna_id(study, cell) is None:
            stored.make(self.database, f"{study.name} {cell.key}", directions(self.goals(study)))
        found = self._find_optuna_id(study, cell)
        assert found is not None
        return found

    def compare(self, study: Study) -> Compared:
        """Compare a study with the recorded one of its name; what has grown, in words. Raises SpecError."""
        recorded = self.find(study.name)
        if recorded is None:
            self._must_have_a_place(study.name)
            return Compared(None, ())
        study = growth.as_recorded(recorded, study)
        grown = growth.growth(recorded, study, self.most_begun(recorded))
        if study.budget.steps > recorded.budget.steps:
            self._refuse_trials_of_unknown_steps(recorded)
        return Compared(recorded, grown)

    def _must_have_a_place(self, name: str) -> None:
        """Check that a new study has a folder of its own in the home. Raises SpecError."""
        if places.is_own(name):
            raise SpecError(f"name: the home keeps files of its own under {name!r}; choose another")
        for other in self.names():
            if places.is_one_folder(self.home, name, other):
                raise SpecError(
                    f"{name}: expected a folder of its own, but this disk takes it for that of {other}; choose a name "
                    "that differs in more than its case"
                )

    def _recorded(self, path: str) -> str:
        """Name the place of a checkpoint as the ledger keeps it: relative to the home, or an address in a store."""
        if "://" in path:
            return path
        place = Path(path).absolute()
        return str(place.relative_to(self.home)) if place.is_relative_to(self.home) else schema.relative(str(place))
