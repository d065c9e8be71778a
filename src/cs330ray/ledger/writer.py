"""Writing the ledger: what a driver records of a study. A row is written once; the first writer wins.

But for how long sessions and attempts have been under way, which is written again as time passes.
"""

import datetime
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
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
from cs330ray.ledger.ledger import Ledger, directions
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
from cs330ray.spec import growth, places
from cs330ray.spec.study import Cell, Study
from cs330ray.trial.contract import Metric, Scores

HELD_S = 5.0  # so long a driver takes what it read of Optuna's trials for what is there
REPORTS = sql.table("trial_intermediate_values", sql.column("trial_id"), sql.column("step"))  # Optuna's


@dataclass(frozen=True)
class Compared:
    """A study beside the recorded one of its name."""

    recorded: Study | None  # None where there is none
    grown: Sequence[str]  # what has grown, in words


class Writer(Ledger):
    """A connection to the ledger at `url` for the one that writes; the ledger is made where there is none."""

    def __init__(self, url: str, home: Path | None = None, *, access: Access = "write") -> None:
        super().__init__(url, home, access=access)
        self._trial_ids: dict[tuple[str, str, int], int] = {}
        self.is_driver = False  # nobody else writes this study
        self._held: dict[tuple[str, str], tuple[float, list[FrozenTrial]]] = {}  # of a cell: since when, what

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

    def in_optuna(self, study: Study, cell: Cell) -> list[FrozenTrial]:
        """All trials that Optuna holds of a cell; a driver reads them again when it has changed one, or after HELD_S.

        Only what others add with Optuna's own tools may be seen so much later.
        """
        if not self.is_driver:
            return super().in_optuna(study, cell)
        key, now = (study.name, cell.key), time.monotonic()
        if key not in self._held or now - self._held[key][0] > HELD_S:
            self._held[key] = (now, super().in_optuna(study, cell))
        return self._held[key][1]

    def _changed(self, study: Study, cell: Cell) -> None:
        """Note that what Optuna holds of a cell is another now."""
        self._held.pop((study.name, cell.key), None)

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
        self._ids, self._trial_ids, self._readers, self._own, self._held = {}, {}, {}, {}, {}

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
        with self.database.guarded():
            trial_id = self.database.storage.create_new_trial(self._optuna_id(study, cell), whole)
            number = self.database.storage.get_trial(trial_id).number
        self._trial_ids[study.name, cell.key, number] = trial_id
        self._changed(study, cell)
        return int(number)

    def retarget(self, study: Study, cell: Cell, number: int) -> None:
        """Give an interrupted trial the steps that the study has by now."""
        with self.database.guarded():
            self.database.storage.set_trial_user_attr(self._trial_id(study, cell, number), "steps", study.budget.steps)
        self._changed(study, cell)

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
        self.database.replace(gone, SUPERSEDED, aside)
        if aside and cell.fresh is None:
            self._forget_reports(study, cell, number, after_step)
        return len(aside)

    def _forget_reports(self, study: Study, cell: Cell, number: int, after_step: int) -> None:
        """Take from Optuna what it was told of a trial after a step, for which it has no call of its own."""
        where = (REPORTS.c.trial_id == self._trial_id(study, cell, number)) & (REPORTS.c.step > after_step)
        self.database.execute(REPORTS.delete().where(where))
        self._changed(study, cell)

    def report(self, study: Study, cell: Cell, number: int, step: int, value: float) -> None:
        """Tell Optuna what the one objective was at a step: it is told of rungs and ends, a transaction each."""
        with self.database.guarded():
            self.database.storage.set_trial_intermediate_value(self._trial_id(study, cell, number), step, value)
        self._changed(study, cell)

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

    def write_attempt(self, study: Study, cell: Cell, number: int, circumstances: Mapping[str, Any]) -> None:
        """Record on what a trial was started or taken up again: host, device, code, data, versions."""
        place = {
            "study": study.name,
            "cell": cell.key,
            "trial": number,
            "attempt": len(self.attempts(study, cell, number)),
        }
        self.database.insert(
            ATTEMPTS, [{**place, "circumstances": json.dumps(dict(circumstances)), "wall_s": wall_s()}]
        )

    def write_under_way(self, study: Study, cell: Cell, number: int, seconds: float, *, since: int) -> None:
        """Note how many seconds a trial has been under way in its newest attempt, if that is `since` or a later one.

        Of one that has not reported its start, nothing is noted.
        """
        where = of_trial(ATTEMPTS, study, cell, number) & (ATTEMPTS.c.attempt >= since)
        newest = sql.select(ATTEMPTS).where(where).order_by(ATTEMPTS.c.attempt.desc()).limit(1)
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
        values = self.values(study, cell, number)
        if ending.state != "FAIL" and values is None:
            ending = Ending("FAIL", f"no row holds {', '.join(study.objective)}", cause="unscored")
        elif ending.state != "FAIL" and not all(math.isfinite(value) for value in values or ()):
            unscored = f"{', '.join(study.objective)} must be finite, but got {values}"
            ending = Ending("FAIL", unscored, cause="unscored")
        place = {"study": study.name, "cell": cell.key, "trial": number}
        row = {**place, **vars(ending), "worth": json.dumps(values), "wall_s": wall_s()}
        self.database.insert(ENDS, [row])
        if cell.fresh is None:  # no sampler sees a confirmation
            self._tell(study, cell, number)
        (held,) = self._ends(study, cell, [number])
        return Ending(held.state, held.reason, held.traceback, cause_in(held))

    def heal(self, study: Study, cell: Cell) -> list[int]:
        """Make good what a crash cut off between our tables and Optuna's; the numbers of the interrupted trials."""
        interrupted, ended = [], {row.trial for row in self._ends(study, cell)}
        for trial in self.history(study, cell):
            if trial.state.is_finished():
                if trial.number not in ended:
                    by_hand = Ending("FAIL", "ended with Optuna's own tools", cause="stopped")
                    self.end(study, cell, trial.number, by_hand)
                continue
            if not self._tell(study, cell, trial.number):
                interrupted.append(trial.number)
        return interrupted

    def _tell(self, study: Study, cell: Cell, number: int) -> bool:
        """Give Optuna the end that our table holds; whether there is one."""
        found = self.database.select(self.database.all_of(ENDS).where(of_trial(ENDS, study, cell, number)))
        if not found:
            return False
        trial_id = self._trial_id(study, cell, number)
        with self.database.guarded():
            if not self.database.storage.get_trial(trial_id).state.is_finished():
                self._report_last(study, cell, number)
                self.database.storage.set_trial_user_attr(trial_id, "reason", found[0].reason)
                values = None if found[0].state == "FAIL" else from_json(found[0].worth)
                self.database.storage.set_trial_state_values(trial_id, TrialState[found[0].state], values)
        self._changed(study, cell)
        return True

    def _report_last(self, study: Study, cell: Cell, number: int) -> None:
        """Tell Optuna the last value of the one objective, by which its samplers judge a trial that was pruned."""
        if len(study.objective) > 1:
            return
        for row in reversed(self.rows(study, cell, number)):
            if study.objective[0] in row.metrics:
                self.report(study, cell, number, row.step, row.metrics[study.objective[0]])
                return

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
        found = self._find_optuna_id(study, cell)
        if found is None:
            optuna.create_study(
                storage=self.database.storage,
                study_name=f"{study.name} {cell.key}",
                directions=directions(self.goals(study)),
            )
            found = self._find_optuna_id(study, cell)
        assert found is not None
        return found

    def _trial_id(self, study: Study, cell: Cell, number: int) -> int:
        key = (study.name, cell.key, number)
        if key not in self._trial_ids:
            self._trial_ids[key] = self.database.storage.get_trial_id_from_study_id_trial_number(
                self._optuna_id(study, cell), number
            )
        return self._trial_ids[key]

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
