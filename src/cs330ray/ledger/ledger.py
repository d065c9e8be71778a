"""The ledger: the one truth of every study, in one database.

An Optuna study per cell, so that Optuna's own tools open it, and our tables beside it. A row is written once. Only the
controller of a study writes; anyone may read.
"""

import datetime
import json
import math
import os
import uuid
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import filelock
import optuna
import sqlalchemy as sql
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from cs330ray.clock import wall_s
from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import backup
from cs330ray.ledger.records import (
    Ending,
    Kept,
    Loss,
    Row,
    Trial,
    cause_in,
    continues,
    from_json,
    nodes_in,
    started_at_s,
    trial_of,
)
from cs330ray.spec import growth
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study, fresh_seed
from cs330ray.trial.contract import Item, Metric, Scores
from cs330ray.words import redacted, typed_first_line

optuna.logging.set_verbosity(optuna.logging.WARNING)

OPEN_S = 60
LOCK = 330_330  # PostgreSQL's name for the lock under which the tables are made
ENGINE: Mapping[str, Mapping[str, Any]] = {  # a connection that the server has closed meanwhile is made anew
    "sqlite": {"connect_args": {"timeout": 60}},
    "postgresql": {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True},
}

TABLES = sql.MetaData()


def _table(name: str, keys: Sequence[str], *columns: sql.Column[Any]) -> sql.Table:
    """A table of ours, keyed by texts and, under the names `trial`, `step` and `attempt`, by integers."""
    integers = {"trial", "step", "attempt"}
    key_columns = [sql.Column(key, sql.Integer if key in integers else sql.Text, primary_key=True) for key in keys]
    return sql.Table(f"cs330ray_{name}", TABLES, *key_columns, *columns)


def _text(name: str) -> sql.Column[Any]:
    return sql.Column(name, sql.Text, nullable=False)


def _later(name: str) -> sql.Column[Any]:
    """A column that older ledgers lack; see `missing_columns`."""
    return sql.Column(name, sql.Text, nullable=True)


def _time(name: str = "wall_s") -> sql.Column[Any]:
    return sql.Column(name, sql.Double, nullable=False)


TRIAL = ("study", "cell", "trial")
STUDIES = _table("studies", ["name"], _text("uid"), _text("digest"), _text("spec"), _time())
METRICS = _table("metrics", ["study", "trainable", "metric"], _text("description"))
SESSIONS = _table("sessions", ["study", "session"], _time("started_s"), _time("seen_s"))
LEASES = _table("leases", ["study"], _text("owner"), _text("holder"), sql.Column("beats", sql.Integer, nullable=False))
STORES = _table("stores", ["study"], _text("name"))
ROWS = _table("rows", [*TRIAL, "step"], _text("metrics"), _time())
CHECKPOINTS = _table("checkpoints", [*TRIAL, "step"], _text("path"), _text("digest"), _time())
ATTEMPTS = _table("attempts", [*TRIAL, "attempt"], _text("circumstances"), _time())
LOSSES = _table("losses", [*TRIAL, "attempt"], _text("reason"), _time(), _later("nodes"))
ENDS = _table(
    "ends", TRIAL, _text("state"), _text("reason"), _text("traceback"), _text("worth"), _time(), _later("cause")
)
SCORES = _table("scores", TRIAL, _text("metrics"), _text("scored"), _time())
UNTESTED = _table("untested", TRIAL, _text("reason"), _text("traceback"), _time())
TESTS = _table(
    "tests", ["opening"], _text("trainable"), _text("config"), _text("checkpoint"), _text("metrics"), _time()
)


@dataclass(frozen=True)
class Compared:
    """A study beside the recorded one of its name."""

    recorded: Study | None  # None where there is none
    grown: Sequence[str]  # what has grown, in words


class Ledger:
    """A connection to the ledger at `url`, for example `sqlite:////home/me/runs/ledger.db`."""

    def __init__(self, url: str) -> None:
        address = _address(url)
        self.url = address.render_as_string(hide_password=False)
        self.failure: LedgerError | None = None  # the first, for those whom Tune wraps it from
        with self._guarded():
            self._engine = _engine(address)
            weakref.finalize(self, self._engine.dispose)  # a server counts the connections that are left open
            with _alone(self._engine):
                self._must_not_be_lost()
                self._must_be_ours()
                if self._engine.dialect.name == "sqlite":
                    with self._engine.connect() as connection:
                        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                self.storage = optuna.storages.RDBStorage(
                    self.url, engine_kwargs=dict(ENGINE[address.get_backend_name()])
                )
                weakref.finalize(self, self.storage.engine.dispose)
                TABLES.create_all(self._engine)
                add_columns(self._engine)
                self._lacks = frozenset(missing_columns(self._engine))
        self._ids: dict[tuple[str, str], int] = {}  # (study, cell) -> Optuna's study id
        self._trial_ids: dict[tuple[str, str, int], int] = {}
        self._readers: dict[tuple[str, str], optuna.Study] = {}

    def _must_not_be_lost(self) -> None:
        """Refuse to begin anew where there was a ledger: SQLite takes an empty file for an empty database."""
        file = Path(self._engine.url.database or "")
        if self._engine.dialect.name != "sqlite" or file.name != backup.LEDGER or not backup.backups(file.parent):
            return
        if not file.exists() or file.stat().st_size == 0:
            raise LedgerError(backup.damaged(file, "it is empty" if file.exists() else "it is gone"))

    def _must_be_ours(self) -> None:
        """Refuse a database of another program, MLflow for one, before a table is made in it. Raises LedgerError."""
        tables = set(sql.inspect(self._engine).get_table_names())
        if "alembic_version" in tables and "version_info" not in tables:  # the second is Optuna's
            raise LedgerError(
                f"{redacted(self.url)}: the ledger needs a database of its own, but another program keeps its tables "
                "here; set CS330RAY_LEDGER"
            )

    @classmethod
    def at(cls, home: Path) -> Self:
        """The ledger of the home directory `home`, made when it is not there yet."""
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(
                f"{home}: a directory for studies is needed, but {error.strerror}; set CS330RAY_HOME"
            ) from None
        return cls(os.environ.get("CS330RAY_LEDGER") or f"sqlite:///{home.resolve()}/ledger.db")

    # Studies ---------------------------------------------------------------------------------------------------

    def compare(self, study: Study) -> Compared:
        """Compare a study with the recorded one of its name; what has grown, in words. Raises SpecError."""
        recorded = self.find(study.name)
        if recorded is None:
            return Compared(None, ())
        grown = growth.growth(recorded, study)
        if study.budget.steps > recorded.budget.steps:
            self._refuse_trials_of_unknown_steps(recorded)
        return Compared(recorded, grown)

    def open(
        self, study: Study, metrics: Mapping[str, Mapping[str, Metric]], compared: Compared | None = None
    ) -> Sequence[str]:
        """Enter a study with the metrics of its trainables, or take it up again; what has grown, in words.

        `compared` is what `compare` said, if it was asked; it is asked again where the record has changed since. Raises
        SpecError where another study has its name. The study itself is written last: it is there whole or not.
        """
        if compared is None or self.find(study.name) != compared.recorded:
            compared = self.compare(study)
        for trainable, described in metrics.items():
            self._describe_metrics(study, trainable, described)
        spec = study.model_dump_json()
        if compared.recorded is None:
            row = {"name": study.name, "uid": uuid.uuid4().hex, "digest": study.digest, "spec": spec}
            self._insert(STUDIES, [{**row, "wall_s": wall_s()}])
        else:
            self._execute(STUDIES.update().where(STUDIES.c.name == study.name).values(spec=spec))
        return compared.grown

    def _refuse_trials_of_unknown_steps(self, old: Study) -> None:
        for cell in old.cells:
            if any("steps" not in trial.user_attrs for trial in self.history(old, cell)):
                raise SpecError(
                    f"{old.name}: budget.steps: trials must say how many steps they had, but these are of an earlier "
                    f"version; keep {old.budget.steps}, or `--fork NAME`"
                )

    def find(self, name: str) -> Study | None:
        """The study `name`, or None."""
        found = self._select(sql.select(STUDIES.c.spec).where(STUDIES.c.name == name))
        return _study(found[0].spec) if found else None

    def study(self, name: str) -> Study:
        """The study `name`. Raises SpecError where there is none."""
        study = self.find(name)
        if study is None:
            known = ", ".join(self.names()) or "none yet"
            place = redacted(self.url).split("///")[-1]
            raise SpecError(f"{name}: a study in {place} is needed (there: {known}); see `cs330ray list`")
        return study

    def uid(self, name: str) -> str:
        """What tells this study from an earlier, deleted one of the same name."""
        return str(self._select(sql.select(STUDIES.c.uid).where(STUDIES.c.name == name))[0].uid)

    def names(self) -> list[str]:
        """The names of all studies, oldest first."""
        return [row.name for row in self._select(sql.select(STUDIES.c.name).order_by(STUDIES.c.wall_s))]

    def delete(self, name: str) -> None:
        """Remove a study and all that was recorded of it."""
        study = self.study(name)
        for summary in optuna.get_all_study_summaries(self.storage):
            if summary.study_name.startswith(f"{name} "):
                optuna.delete_study(study_name=summary.study_name, storage=self.storage)
        for table in (METRICS, SESSIONS, STORES, ROWS, CHECKPOINTS, ATTEMPTS, LOSSES, ENDS, SCORES, UNTESTED):
            self._execute(table.delete().where(table.c.study == study.name))
        self._execute(STUDIES.delete().where(STUDIES.c.name == study.name))
        self._ids, self._trial_ids, self._readers = {}, {}, {}

    def _describe_metrics(self, study: Study, trainable: str, metrics: Mapping[str, Metric]) -> None:
        """Record goal, range and unit of each metric of a trainable."""
        rows = [
            {"study": study.name, "trainable": trainable, "metric": name, "description": json.dumps(vars(metric))}
            for name, metric in metrics.items()
        ]
        self._insert(METRICS, rows)

    def metrics(self, study: Study, trainable: str) -> dict[str, Metric]:
        """What the metrics of a trainable mean, as recorded."""
        where = (METRICS.c.study == study.name) & (METRICS.c.trainable == trainable)
        found = self._select(sql.select(METRICS).where(where))
        return {row.metric: Metric(**from_json(row.description)) for row in found}

    def goals(self, study: Study) -> list[str]:
        """Which way is better, `max` or `min`, for each objective."""
        metrics = self.metrics(study, study.trainables()[0])
        return [metrics[name].goal for name in study.objective]

    # Sessions --------------------------------------------------------------------------------------------------

    def seen(self, study: Study, session: str, worked_s: float) -> None:
        """Note that a session has worked on a study for so many seconds by now."""
        now = wall_s()
        self._insert(SESSIONS, [{"study": study.name, "session": session, "started_s": now, "seen_s": now}])
        where = (SESSIONS.c.study == study.name) & (SESSIONS.c.session == session)
        self._execute(SESSIONS.update().where(where).values(seen_s=SESSIONS.c.started_s + worked_s))

    def worked_s(self, study: Study) -> float:
        """Seconds that all sessions have worked on a study."""
        total = sql.func.sum(SESSIONS.c.seen_s - SESSIONS.c.started_s).label("total")
        return float(self._select(sql.select(total).where(SESSIONS.c.study == study.name))[0].total or 0.0)

    # Leases: who runs a study; the rule is in `lease` -----------------------------------------------------------

    def take(self, study: str, owner: str, holder: str, instead_of: tuple[str, int] | None) -> bool:
        """Take a study that nobody holds, or from `instead_of` = (owner, beats) if that is still so; whether it was."""
        if instead_of is None:
            self._insert(LEASES, [{"study": study, "owner": owner, "holder": holder, "beats": 0}])
            found = self.holder(study)
            return found is not None and found.owner == owner
        where = (LEASES.c.study == study) & (LEASES.c.owner == instead_of[0]) & (LEASES.c.beats == instead_of[1])
        return self._execute(LEASES.update().where(where).values(owner=owner, holder=holder, beats=0)) == 1

    def beat(self, study: str, owner: str) -> bool:
        """Say that the owner of a lease lives; whether it is the owner still."""
        where = (LEASES.c.study == study) & (LEASES.c.owner == owner)
        return self._execute(LEASES.update().where(where).values(beats=LEASES.c.beats + 1)) == 1

    def holder(self, study: str) -> Any:
        """The lease of a study with `owner`, `holder` and `beats`, or None."""
        found = self._select(sql.select(LEASES).where(LEASES.c.study == study))
        return found[0] if found else None

    def free(self, study: str, owner: str) -> None:
        """Let a lease go."""
        self._execute(LEASES.delete().where((LEASES.c.study == study) & (LEASES.c.owner == owner)))

    # Trials ----------------------------------------------------------------------------------------------------

    def enter(self, study: Study, cell: Cell, trial: FrozenTrial, seed: int, *, continues: int | None = None) -> int:
        """Enter a trial whole, in one transaction; its number. It `continues` a trial of fewer steps, or none."""
        of_another = {} if continues is None else {"continues": continues}
        whole = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"seed": seed, "steps": study.budget.steps, **of_another},
            system_attrs=trial.system_attrs,
        )
        whole.datetime_start = datetime.datetime.fromtimestamp(wall_s())  # as Optuna keeps it: naive, local
        with self._guarded():
            trial_id = self.storage.create_new_trial(self._optuna_id(study, cell), whole)
            number = self.storage.get_trial(trial_id).number
        self._trial_ids[study.name, cell.key, number] = trial_id
        return int(number)

    def history(self, study: Study, cell: Cell) -> list[FrozenTrial]:
        """A cell's trials as Optuna holds them, by number."""
        with self._guarded():
            if self._find_optuna_id(study, cell) is None:
                return []
            key = (study.name, cell.key)
            if key not in self._readers:  # an Optuna study keeps finished trials in memory; the storage does not
                self._readers[key] = optuna.load_study(study_name=" ".join(key), storage=self.storage)
            return self._readers[key].get_trials(deepcopy=False)

    def trials(self, study: Study, cell: Cell, some: Collection[int] | None = None) -> list[Trial]:
        """A cell's trials, by number; of a cell under a fresh seed, those that were taken up.

        With `some`, of a search, only those numbers and who continues them.
        """
        if cell.fresh is None:
            history = self.history(study, cell)
            successors = {continues(frozen): frozen.number for frozen in history}
            if some is not None:
                some = {*some, *(successors[number] for number in some if number in successors)}
                history = [frozen for frozen in history if frozen.number in some]
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
        searched = self.history(study, cell.searched) if began_s else []
        seed = fresh_seed(study.seed, cell.fresh)
        return [
            trial_of(study, cell, searched[number], seed, began_s[number], ends.get(number), None)
            for number in sorted(began_s)
        ]

    def _ends(self, study: Study, cell: Cell, some: Collection[int] | None = None) -> Sequence[sql.Row[Any]]:
        where = (ENDS.c.study == study.name) & (ENDS.c.cell == cell.key)
        return self._select(self._all_of(ENDS).where(where if some is None else where & ENDS.c.trial.in_(some)))

    def lost(self, study: Study, cell: Cell) -> frozenset[int]:
        """Find the trials of a cell that ended since their workers were lost; their numbers."""
        where = (ENDS.c.study == study.name) & (ENDS.c.cell == cell.key) & (ENDS.c.state == "FAIL")
        failed = self._select(self._all_of(ENDS).where(where))
        return frozenset(int(row.trial) for row in failed if cause_in(row) == "lost")

    def lineage(self, study: Study, cell: Cell, number: int) -> list[int]:
        """A trial and those that it continues, oldest first; a run of confirmation continues none."""
        found = [number]
        if cell.fresh is None:
            history = self.history(study, cell)
            while (before := continues(history[found[0]])) is not None:
                found.insert(0, before)
        return found

    def retarget(self, study: Study, cell: Cell, number: int) -> None:
        """Give an interrupted trial the steps that the study has by now."""
        with self._guarded():
            self.storage.set_trial_user_attr(self._trial_id(study, cell, number), "steps", study.budget.steps)

    def write_rows(self, study: Study, cell: Cell, number: int, rows: Sequence[Row]) -> None:
        """Record rows of a trial; those already there stay as they are."""
        place = {"study": study.name, "cell": cell.key, "trial": number}
        written = [
            {**place, "step": row.step, "metrics": json.dumps(dict(row.metrics)), "wall_s": row.wall_s} for row in rows
        ]
        self._insert(ROWS, written)

    def report(self, study: Study, cell: Cell, number: int, step: int, value: float) -> None:
        """Report an intermediate value of the one objective to Optuna."""
        with self._guarded():
            self.storage.set_trial_intermediate_value(self._trial_id(study, cell, number), step, value)

    def rows(self, study: Study, cell: Cell, number: int, after: int = -1) -> list[Row]:
        """The rows of a trial beyond step `after`, in order."""
        where = _of_trial(ROWS, study, cell, number) & (ROWS.c.step > after)
        found = self._select(sql.select(ROWS).where(where).order_by(ROWS.c.step))
        return [Row(row.step, from_json(row.metrics), row.wall_s) for row in found]

    def rows_by_trial(self, study: Study, cell: Cell) -> dict[int, list[Row]]:
        """The rows of all trials of a cell, in order, by trial number."""
        where = (ROWS.c.study == study.name) & (ROWS.c.cell == cell.key)
        found: dict[int, list[Row]] = {}
        for row in self._select(sql.select(ROWS).where(where).order_by(ROWS.c.trial, ROWS.c.step)):
            found.setdefault(int(row.trial), []).append(Row(row.step, from_json(row.metrics), row.wall_s))
        return found

    def last_step(self, study: Study, cell: Cell, number: int) -> int:
        """The step of a trial's last row, 0 where it has none."""
        last = sql.func.max(ROWS.c.step).label("last")
        return int(self._select(sql.select(last).where(_of_trial(ROWS, study, cell, number)))[0].last or 0)

    def last_steps(self, study: Study, cell: Cell) -> dict[int, int]:
        """The step of the last row of each trial of a cell that has one, by trial number."""
        last = sql.func.max(ROWS.c.step).label("last")
        where = (ROWS.c.study == study.name) & (ROWS.c.cell == cell.key)
        found = self._select(sql.select(ROWS.c.trial, last).where(where).group_by(ROWS.c.trial))
        return {row.trial: int(row.last) for row in found}

    def values_at(self, study: Study, cell: Cell, step: int, metric: str) -> dict[int, float]:
        """What the trials of a cell had reached at `step`, by trial number."""
        where = (ROWS.c.study == study.name) & (ROWS.c.cell == cell.key) & (ROWS.c.step == step)
        found = [(row.trial, from_json(row.metrics)) for row in self._select(sql.select(ROWS).where(where))]
        return {number: float(metrics[metric]) for number, metrics in found if metric in metrics}

    def values(self, study: Study, cell: Cell, number: int) -> tuple[float, ...] | None:
        """A trial's objectives in the last row that holds them, its own or of those that it continues, or None."""
        for each in reversed(self.lineage(study, cell, number)):
            for row in reversed(self.rows(study, cell, each)):
                if all(name in row.metrics for name in study.objective):
                    return tuple(row.metrics[name] for name in study.objective)
        return None

    def write_checkpoint(self, study: Study, cell: Cell, number: int, step: int, path: str, digest: str) -> None:
        """Record a checkpoint of a trial."""
        place = {"study": study.name, "cell": cell.key, "trial": number, "step": step}
        self._insert(CHECKPOINTS, [{**place, "path": path, "digest": digest, "wall_s": wall_s()}])

    def checkpoint(self, study: Study, cell: Cell, number: int) -> str | None:
        """Where a trial's newest recorded checkpoint lies, a directory or the address of its copy, or None."""
        found = self.kept(study, cell, number)
        return found.path if found else None

    def kept(self, study: Study, cell: Cell, number: int) -> Kept | None:
        """A trial's newest recorded checkpoint, or None."""
        where = _of_trial(CHECKPOINTS, study, cell, number)
        found = self._select(sql.select(CHECKPOINTS).where(where).order_by(CHECKPOINTS.c.step.desc()).limit(1))
        return Kept(str(found[0].path), int(found[0].step), str(found[0].digest)) if found else None

    def checkpoints(self, study: Study, cell: Cell) -> dict[int, str]:
        """Where the newest checkpoint of each trial of a cell that has one lies."""
        found = sorted(self._of_cell(CHECKPOINTS, study, cell), key=lambda row: (row.trial, row.step))
        return {int(row.trial): str(row.path) for row in found}

    def forget_checkpoints(self, study: Study, cell: Cell, number: int) -> None:
        """Note that a trial's checkpoints are there no more."""
        self._execute(CHECKPOINTS.delete().where(_of_trial(CHECKPOINTS, study, cell, number)))

    def folder(self, study: Study) -> str | None:
        """The study's folder in stores of checkpoints, or None where it never had one.

        It is its own: others of this name, here before or in another ledger, have other folders. A backup keeps it.
        """
        found = self._select(sql.select(STORES.c.name).where(STORES.c.study == study.name))
        return str(found[0].name) if found else None

    def make_folder(self, study: Study) -> str:
        """Name the study's folder in stores, once; it."""
        self._insert(STORES, [{"study": study.name, "name": f"{study.name}-{uuid.uuid4().hex[:12]}"}])
        return str(self.folder(study))

    def write_attempt(self, study: Study, cell: Cell, number: int, circumstances: Mapping[str, Any]) -> None:
        """Record on what a trial was started or taken up again: host, device, code, data, versions."""
        place = {
            "study": study.name,
            "cell": cell.key,
            "trial": number,
            "attempt": len(self.attempts(study, cell, number)),
        }
        self._insert(ATTEMPTS, [{**place, "circumstances": json.dumps(dict(circumstances)), "wall_s": wall_s()}])

    def attempts(self, study: Study, cell: Cell, number: int) -> list[dict[str, Any]]:
        """On what a trial ran, one dictionary a start."""
        where = _of_trial(ATTEMPTS, study, cell, number)
        found = self._select(sql.select(ATTEMPTS).where(where).order_by(ATTEMPTS.c.attempt))
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
            self._select(sql.select(table.c.attempt).where(_of_trial(table, study, cell, number)).limit(1))
            for table in (ATTEMPTS, LOSSES)
        )

    def write_loss(self, study: Study, cell: Cell, number: int, loss: Loss) -> list[Loss]:
        """Record that a trial's worker was lost; all its losses by now."""
        so_far = self.losses(study, cell, number)
        place = {"study": study.name, "cell": cell.key, "trial": number, "attempt": len(so_far)}
        nodes = json.dumps(sorted(loss.nodes))
        self._insert(LOSSES, [{**place, "reason": loss.reason, "nodes": nodes, "wall_s": wall_s()}])
        return [*so_far, loss]

    def losses(self, study: Study, cell: Cell, number: int) -> list[Loss]:
        """List the losses of a trial's workers, oldest first."""
        where = _of_trial(LOSSES, study, cell, number)
        found = self._select(self._all_of(LOSSES).where(where).order_by(LOSSES.c.attempt))
        return [Loss(str(row.reason), nodes_in(row)) for row in found]

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
        self._insert(ENDS, [row])
        if cell.fresh is None:  # no sampler sees a confirmation
            self._tell(study, cell, number)
        (held,) = self._ends(study, cell, [number])
        return Ending(held.state, held.reason, held.traceback, cause_in(held))

    def heal(self, study: Study, cell: Cell) -> list[int]:
        """Make good what a crash cut off between our tables and Optuna's; the numbers of the interrupted trials."""
        interrupted = []
        for trial in self.history(study, cell):
            if trial.state.is_finished():
                continue
            for row in self.rows(study, cell, trial.number):
                if len(study.objective) == 1 and study.objective[0] in row.metrics:
                    self.report(study, cell, trial.number, row.step, row.metrics[study.objective[0]])
            if not self._tell(study, cell, trial.number):
                interrupted.append(trial.number)
        return interrupted

    def _tell(self, study: Study, cell: Cell, number: int) -> bool:
        """Give Optuna the end that our table holds; whether there is one."""
        found = self._select(self._all_of(ENDS).where(_of_trial(ENDS, study, cell, number)))
        if not found:
            return False
        trial_id = self._trial_id(study, cell, number)
        with self._guarded():
            if not self.storage.get_trial(trial_id).state.is_finished():
                self.storage.set_trial_user_attr(trial_id, "reason", found[0].reason)
                values = None if found[0].state == "FAIL" else from_json(found[0].worth)
                self.storage.set_trial_state_values(trial_id, TrialState[found[0].state], values)
        return True

    # Scores of the test split ------------------------------------------------------------------------------------

    def write_scores(self, study: Study, cell: Cell, number: int, scores: Scores) -> None:
        """Record what a confirmation reached on the test split."""
        items = {
            name: {"units": [item.unit for item in found], "scores": [item.score for item in found]}
            for name, found in scores.items.items()
        }
        place = {"study": study.name, "cell": cell.key, "trial": number}
        row = {**place, "metrics": json.dumps(dict(scores.metrics)), "scored": json.dumps(items), "wall_s": wall_s()}
        self._insert(SCORES, [row])

    def test_metrics(self, study: Study, cell: Cell, number: int) -> dict[str, float]:
        """What a confirmation reached on the test split; empty where it has not been scored."""
        found = self._select(sql.select(SCORES.c.metrics).where(_of_trial(SCORES, study, cell, number)))
        return {str(name): float(value) for name, value in from_json(found[0].metrics).items()} if found else {}

    def write_untested(self, study: Study, cell: Cell, number: int, reason: str, traceback: str) -> None:
        """Record that a confirmation's test failed, and why."""
        place = {"study": study.name, "cell": cell.key, "trial": number}
        self._insert(UNTESTED, [{**place, "reason": reason, "traceback": traceback, "wall_s": wall_s()}])

    def untested(self, study: Study, cell: Cell, number: int) -> tuple[str, str] | None:
        """Why a confirmation's test failed, and its traceback, or None."""
        found = self._select(sql.select(UNTESTED).where(_of_trial(UNTESTED, study, cell, number)))
        return (str(found[0].reason), str(found[0].traceback)) if found else None

    def test_items(self, study: Study, cell: Cell, number: int) -> dict[str, list[Item]]:
        """The items behind each of those metrics."""
        found = self._select(sql.select(SCORES.c.scored).where(_of_trial(SCORES, study, cell, number)))
        return {
            name: [Item(unit, score) for unit, score in zip(held["units"], held["scores"], strict=True)]
            for name, held in (from_json(found[0].scored) if found else {}).items()
        }

    # Openings of the test split ----------------------------------------------------------------------------------

    def write_opening(self, trainable: str, config: str, checkpoint: str) -> str:
        """Record that a lone trial is about to be scored on the test split; the opening's name."""
        row = {"opening": uuid.uuid4().hex, "trainable": trainable, "config": config, "checkpoint": checkpoint}
        self._insert(TESTS, [{**row, "metrics": "{}", "wall_s": wall_s()}])
        return row["opening"]

    def write_opened(self, opening: str, metrics: Mapping[str, float]) -> None:
        """Record what an opening of the test split showed."""
        self._execute(TESTS.update().where(TESTS.c.opening == opening).values(metrics=json.dumps(dict(metrics))))

    # Below the surface -------------------------------------------------------------------------------------------

    def _all_of(self, table: sql.Table) -> sql.Select[Any]:
        """Select the columns of a table that this ledger has."""
        return sql.select(*(column for column in table.columns if column not in self._lacks))

    def _of_cell(self, table: sql.Table, study: Study, cell: Cell) -> Sequence[sql.Row[Any]]:
        return self._select(self._all_of(table).where((table.c.study == study.name) & (table.c.cell == cell.key)))

    def _find_optuna_id(self, study: Study, cell: Cell) -> int | None:
        key = (study.name, cell.key)
        if key not in self._ids:
            try:
                self._ids[key] = self.storage.get_study_id_from_name(f"{study.name} {cell.key}")
            except KeyError:
                return None
        return self._ids[key]

    def _optuna_id(self, study: Study, cell: Cell) -> int:
        found = self._find_optuna_id(study, cell)
        if found is None:
            optuna.create_study(
                storage=self.storage, study_name=f"{study.name} {cell.key}", directions=directions(self.goals(study))
            )
            found = self._find_optuna_id(study, cell)
        assert found is not None
        return found

    def _trial_id(self, study: Study, cell: Cell, number: int) -> int:
        key = (study.name, cell.key, number)
        if key not in self._trial_ids:
            self._trial_ids[key] = self.storage.get_trial_id_from_study_id_trial_number(
                self._optuna_id(study, cell), number
            )
        return self._trial_ids[key]

    def _insert(self, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        if rows:
            self._execute(insert(table).on_conflict_do_nothing(), rows)

    def _execute(self, statement: sql.Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Execute a statement in a transaction of its own; how many rows it touched."""
        with self._guarded(), self._engine.begin() as connection:
            return int(connection.execute(statement, rows).rowcount)

    def _select(self, statement: sql.Select[Any]) -> Sequence[sql.Row[Any]]:
        with self._guarded(), self._engine.connect() as connection:
            return connection.execute(statement).all()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sql.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            reason = redacted(typed_first_line(cause))
            file = self._engine.url.database if self.url.startswith("sqlite:") else None
            if file and ("malformed" in reason or "not a database" in reason):
                self.failure = LedgerError(backup.damaged(Path(file), reason))
            else:
                self.failure = LedgerError(
                    f"{redacted(self.url)}: the ledger must be readable and writable, but {reason}; nothing was "
                    "overwritten"
                )
            raise self.failure from error


def _address(url: str) -> sql.URL:
    """The address of a ledger, its driver named. Raises LedgerError where no such ledger can be."""
    said = f"{redacted(url)}: the ledger must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        address = sql.make_url(url)
    except (sql.exc.ArgumentError, ValueError):
        raise LedgerError(f"{said}, but that is neither; set CS330RAY_LEDGER") from None
    if address.get_backend_name() not in ENGINE:
        raise LedgerError(f"{said}, but got {address.drivername}; set CS330RAY_LEDGER")
    if "@" in (address.host or ""):
        raise LedgerError(f"{said}, where an @ of the password is written %40; set CS330RAY_LEDGER")
    return address.set(drivername="postgresql+psycopg") if address.drivername == "postgresql" else address


def _engine(address: sql.URL) -> sql.Engine:
    try:
        return sql.create_engine(address, **ENGINE[address.get_backend_name()])
    except ImportError as error:
        raise LedgerError(
            f"{redacted(str(address))}: the ledger's driver must be installed, but there is no {error.name}; "
            "pip install 'cs330ray[postgres]' brings psycopg"
        ) from None


@contextmanager
def _alone(engine: sql.Engine) -> Iterator[None]:
    """Hold a new ledger while its tables are made: two processes that both find none would both make them."""
    place = engine.url.database
    try:
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{OPEN_S}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
                yield
        elif place:
            with filelock.FileLock(f"{place}.lock", timeout=OPEN_S):
                yield
        else:
            yield
    except filelock.Timeout:
        raise LedgerError(
            f"{place}.lock: the ledger must open within {OPEN_S} s, but another process holds it"
        ) from None
    except OSError as error:
        raise LedgerError(
            f"{place}: the ledger must be readable and writable, but {error.strerror or error}; nothing was overwritten"
        ) from None


def directions(goals: Sequence[str]) -> list[StudyDirection]:
    """Goals `max` and `min` in Optuna's words."""
    return [StudyDirection.MAXIMIZE if goal == "max" else StudyDirection.MINIMIZE for goal in goals]


def _of_trial(table: sql.Table, study: Study, cell: Cell, number: int) -> sql.ColumnElement[bool]:
    return (table.c.study == study.name) & (table.c.cell == cell.key) & (table.c.trial == number)


def _study(text: str) -> Study:
    return parse(from_json(text), "ledger")


# Ledgers of before -------------------------------------------------------------------------------------------------
#
# Their ends have no `cause` and their losses no `nodes`: both stand in the words of the reason alone, and are read from
# there. A row that was written before the column was added keeps NULL there.

LATER = (ENDS.c.cause, LOSSES.c.nodes)


def missing_columns(engine: sql.Engine) -> list[sql.Column[Any]]:
    """List the columns that a ledger of before lacks; it is only read."""
    inspector = sql.inspect(engine)
    held = {table.name: {column["name"] for column in inspector.get_columns(table.name)} for table in (ENDS, LOSSES)}
    return [column for column in LATER if column.name not in held[column.table.name]]


def add_columns(engine: sql.Engine) -> None:
    """Add the columns that a ledger of before lacks; for the holder of the lock alone."""
    missing = missing_columns(engine)
    if missing:
        with engine.begin() as connection:
            for column in missing:
                connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} TEXT")
