"""The mirror: make MLflow agree with the ledger, from where it left off, as often as one likes.

Nothing here is needed to run a study: MLflow slow, down or gone costs the picture alone.
"""

import os
import signal
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import filelock
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cs330ray.analysis.answer import of_cells
from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.standing import Standing, standings
from cs330ray.clock import wall_s
from cs330ray.errors import Cs330rayError
from cs330ray.ledger.confirm import Confirmed
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row, Trial
from cs330ray.mirror import captions
from cs330ray.mirror.captions import UNMARKED
from cs330ray.mirror.description import Answer
from cs330ray.mirror.experiments import all_pages, delete_runs, delete_study, tracking_uri
from cs330ray.mirror.names import Key, key_of, renamed, spoken
from cs330ray.mirror.runs import METRICS_PER_BATCH, STUDY, Runs
from cs330ray.spec.places import MLFLOW
from cs330ray.spec.study import Cell, Study
from cs330ray.words import first_line, redacted

LAST = "mirror.last"  # who was last at work on a study here
POLL_S = 1.0
SHARE = 0.01  # of a core, that following a study may cost
LONGEST_S = 30.0  # from one pass to the next all the same
PATIENCE_S = 30.0  # while MLflow does not answer
LAST_S = 120.0  # a last pass may take so long: nobody waits for it

FAULTS = (
    MlflowException,
    OSError,
    ValueError,
    ImportError,
    SQLAlchemyError,
    sqlite3.Error,
)  # all that MLflow answers a bad address with


class MirrorError(Cs330rayError):
    """MLflow cannot be reached or does not answer; the ledger is whole, and `cs330ray sync` catches up."""


class Mirror:
    """One study's mirror."""

    def __init__(self, ledger: Ledger, study: str, home: Path) -> None:
        self._ledger = ledger
        self._name = study
        self._home = home
        self._picture: _Picture | None = None
        self._mark = uuid.uuid4().hex
        self._remarks: dict[str, None] = {}  # said, and not to be said again

    def sync(self) -> int:
        """Make MLflow agree with the ledger; how many changes that took. Raises MirrorError."""
        with self._at_work() as picture:
            return picture.show(self._ledger.study(self._name))

    def attach(self, files: Sequence[Path]) -> None:
        """Make MLflow agree, with `files` on the study's run and the first of them in its description."""
        with self._at_work() as picture:
            picture.show(self._ledger.study(self._name))
            picture.runs.attach(STUDY, files)
            picture.show(self._ledger.study(self._name))

    @property
    def is_new(self) -> bool:
        """Whether MLflow is still to be read."""
        return self._picture is None

    def remarks(self) -> list[str]:
        """What was shown in another way than it stands in the ledger, or left out; each line once."""
        picture = self._picture
        lines = (
            [] if picture is None else [*renamed(sorted(picture.odd_names), picture.declared), *picture.runs.remarks]
        )
        new = list(dict.fromkeys(f"{self._name}: {line}" for line in lines if line not in self._remarks))
        self._remarks |= dict.fromkeys(lines)
        return new

    @contextmanager
    def _at_work(self) -> Iterator["_Picture"]:
        try:
            with _one_at_a_time(self._home / self._name / "mirror.lock"):
                self._forget_if_another_wrote(self._home / self._name / LAST)
                if self._picture is None:
                    with _one_at_a_time(self._home / f"{MLFLOW}.lock"):  # the first one makes MLflow's tables
                        self._forget_former(self._home / self._name / "mirror.uids")
                        runs = Runs(self._home, self._name, self._ledger.uid(self._name))
                    self._picture = _Picture(self._ledger, runs)
                yield self._picture
        except FAULTS as error:
            self._picture = None  # what MLflow holds is read anew after a fault
            reason = redacted(first_line(error))[:200]
            at = redacted(tracking_uri(self._home))
            raise MirrorError(
                f"{at}: MLflow must answer, but {reason}; the ledger is whole, try again later"
            ) from error

    def _forget_former(self, shown: Path) -> None:
        """Delete the runs of identities that the study had here before its ledger was restored."""
        uid = self._ledger.uid(self._name)
        former = [line for line in shown.read_text().split() if line != uid] if shown.exists() else []
        shown.write_text("\n".join([*former, uid]))  # before a run is made: one that is cut off is found again
        for other in former:
            delete_runs(self._name, other, self._home)
        shown.write_text(uid)

    def _forget_if_another_wrote(self, last: Path) -> None:
        """Read MLflow anew where another mirror has been at work since this one's last pass."""
        if not last.exists() or last.read_text() != self._mark:
            self._picture = None
            last.write_text(self._mark)


def was_shown(home: Path, study: str) -> bool:
    """Whether a mirror has been at work on a study here."""
    return (home / study / LAST).exists()


@dataclass
class _Picture:
    """What MLflow is to show of a study: study > cell > trial > its confirmations. Each method counts its changes."""

    ledger: Ledger
    runs: Runs
    done: set[Key] = field(default_factory=set)  # nothing more will happen to these
    odd_names: set[str] = field(default_factory=set)  # of metrics, as the ledger has them and MLflow does not
    declared: frozenset[str] = frozenset()  # metrics of the study's trainables

    def show(self, study: Study) -> int:
        self.declared = frozenset(name for each in study.trainables() for name in self.ledger.metrics(study, each))
        cells = standings(self.ledger, study)
        answer = Answer(study, cells)
        if answer.over:
            answer = replace(answer, claim=of_cells(self.ledger, Replicates(study, cells)))
        tags = {"objective": ", ".join(study.objective), "digest": study.digest}
        changes, self.runs.repaired = self.runs.repaired, 0
        changes += self.runs.ensure(STUDY, answer.title, None, tags)
        for cell in cells:
            changes += self._cell(cell, star=len(cells) > 1 and cell is answer.first)
        changes += self._describe(answer)
        return changes + self.runs.conclude(STUDY, "COMPLETE" if answer.over else "RUNNING", wall_s())

    def _describe(self, answer: Answer) -> int:
        """Say on the experiment and on the study's run what the study has come to."""
        attached = self.runs.tag_of(STUDY, "attached")
        report = self.runs.address(STUDY, f"/artifacts/{attached}") if attached else None
        note = answer.note(lambda trial: self.runs.address(key_of("trial", trial.cell.key, trial.number)), report)
        names = captions.figure_names(answer.study)
        return self.runs.measure(STUDY, answer.figures(), names) + self.runs.describe(note, answer.short)

    def _cell(self, cell: Standing, *, star: bool) -> int:
        key = key_of("cell", cell.cell.key)
        tags = captions.best_tags(cell) | _replicate(cell.study, cell.cell)
        changes = self.runs.ensure(key, captions.cell_name(cell, star=star), STUDY, tags)
        for trial in cell.trials:
            changes += self._trial(cell.study, cell.cell, trial, captions.trial_name(cell, trial), key)
            changes += self._marks(cell, trial)
        changes += self._checkpoints(cell.study, cell.cell, cell.trials)
        changes += sum(self._confirmed(cell.study, cell.cell, one) for one in cell.candidates)
        changes += self.runs.measure(key, captions.figures(cell), captions.figure_names(cell.study))
        ended_s = max((trial.ended_s or 0.0 for trial in cell.trials), default=0.0) or wall_s()
        return changes + self.runs.conclude(key, "COMPLETE" if cell.over else "RUNNING", ended_s)

    def _marks(self, cell: Standing, trial: Trial) -> int:
        """Say of a trial what rank it has among the best, and take that from one that had it."""
        key, marks = key_of("trial", cell.cell.key, trial.number), captions.marks(cell, trial)
        said = {tag: text for tag, text in marks.items() if text != UNMARKED or self.runs.tag_of(key, tag) is not None}
        return self.runs.tag(key, said)

    def _checkpoints(self, study: Study, cell: Cell, trials: Sequence[Trial]) -> int:
        """Say of each trial that has ended where its last checkpoint lies, if it is still kept."""
        held = self.ledger.checkpoints(study, cell)
        return sum(
            self.runs.tag(key_of("trial", cell.key, trial.number), {"checkpoint": str(held.get(trial.number, "none"))})
            for trial in trials
            if trial.state != "RUNNING"
        )

    def _confirmed(self, study: Study, cell: Cell, one: Confirmed) -> int:
        """Show each fresh run under the trial that it confirms, and on that trial the means so far."""
        parent, changes = key_of("trial", cell.key, one.searched.number), 0
        for run in one.runs:
            overtaken = not one.current and run.trial.state == "RUNNING"  # nothing will end it
            trial = (
                replace(run.trial, state="PRUNED", reason="not among the candidates now") if overtaken else run.trial
            )
            changes += self._trial(study, run.trial.cell, trial, captions.fresh_name(study, run), parent)
            changes += self._checkpoints(study, run.trial.cell, [trial])
        if one.values:
            changes += self.runs.tag(parent, captions.means(study, one) | {"confirmed_seeds": str(len(one.values))})
        return changes

    def _trial(self, study: Study, cell: Cell, trial: Trial, name: str, parent: Key) -> int:
        key = key_of("trial", cell.key, trial.number)
        if key in self.done:
            return self.runs.name(key, name)
        changes = self.runs.ensure(
            key, name, parent, self._tags(study, cell, trial), trial.started_s, {**cell.fixed, **trial.params}
        )
        aside = 0 if cell.command is None else self.ledger.superseded(study, cell, trial.number)
        if rows := self._unsent(study, cell, trial, key, aside):
            changes += self._rows(key, rows)
            changes += self.runs.tag(key, {"set_aside": str(aside)}) if aside else 0
        if trial.state == "COMPLETE" and cell.fresh is not None and self.runs.tag_of(key, "tested_step") is None:
            changes += self._test(study, key, trial)
        changes += self.runs.conclude(key, trial.state, trial.ended_s)
        if trial.ended_s is not None:
            self.done.add(key)
        return changes

    def _tags(self, study: Study, cell: Cell, trial: Trial) -> dict[str, str]:
        tags = {"state": trial.state, "seed": str(trial.seed), **_replicate(study, cell)}
        if trial.continues is not None:
            tags["continues"] = str(trial.continues)
        if cell.fresh is not None:
            tags |= {"fresh_seed": str(cell.fresh), "confirms": str(trial.number)}
        if trial.reason:
            tags["reason"] = redacted(trial.reason)  # one that an earlier version recorded
        for on in self.ledger.attempts(study, cell, trial.number)[-1:]:
            tags |= {name: str(on[name]) for name in ("host", "device", "code", "data")}
        return tags

    def _unsent(self, study: Study, cell: Cell, trial: Trial, key: Key, aside: int) -> list[Row]:
        """The rows after those that MLflow holds; all where its word of that cannot be true."""
        sent = self.runs.step_of(key, "mirrored_step")
        if sent is not None and sent > self.ledger.last_step(study, cell, trial.number):
            sent = None
        if aside != (self.runs.step_of(key, "set_aside") or 0):  # it began again: its rows are others
            sent = None
        return self.ledger.rows(study, cell, trial.number, after=-1 if sent is None else sent)

    def _rows(self, key: Key, rows: list[Row]) -> int:
        """Send rows in batches; each batch ends with the tag that says how far it came."""
        batch: list[Metric] = []
        for index, row in enumerate(rows):
            batch += self._points(row.metrics, int(row.wall_s * 1000), row.step)
            if len(batch) >= METRICS_PER_BATCH or index == len(rows) - 1:
                self.runs.log(key, metrics=batch)
                self.runs.tag(key, {"mirrored_step": str(row.step)})
                batch = []
        return len(rows)

    def _test(self, study: Study, key: Key, trial: Trial) -> int:
        """Send what a confirmation reached on test, at its last step."""
        step = self.ledger.last_step(study, trial.cell, trial.number)
        reached = self.ledger.test_metrics(study, trial.cell, trial.number)
        at_ms = int((trial.ended_s or wall_s()) * 1000)
        self.runs.log(key, metrics=self._points(reached, at_ms, step))
        self.runs.tag(key, {"tested_step": str(step)})
        return len(reached)

    def _points(self, metrics: Mapping[str, float], at_ms: int, step: int) -> list[Metric]:
        points = [Metric(spoken(name, self.declared), value, max(at_ms, 0), step) for name, value in metrics.items()]
        self.odd_names.update(name for name, point in zip(metrics, points, strict=True) if name != point.key)
        return points


def _replicate(study: Study, cell: Cell) -> dict[str, str]:
    """The tag of which replicate a run is, where there are several."""
    return {"replicate": str(cell.replicate)} if study.repeat.searches > 1 else {}


def attach(ledger: Ledger, study: str, home: Path, files: Sequence[Path]) -> None:
    """Put files, such as a report, on the study's run in MLflow in place of earlier ones of their names.

    The description leads to the first. Raises MirrorError; the files stand where they are.
    """
    Mirror(ledger, study, home).attach(files)


def forget(study: str, uid: str, home: Path) -> int:
    """Delete a study's runs from MLflow, and what its experiment says of it; how many. Raises MirrorError."""
    try:
        return delete_study(study, uid, home)
    except FAULTS as error:
        raise MirrorError(
            f"{redacted(tracking_uri(home))}: MLflow must answer, but {type(error).__name__}; its runs stay"
        ) from error


def pages(home: Path) -> dict[str, str]:
    """Where MLflow's server shows each study that is mirrored, the newest first. Raises MirrorError."""
    try:
        return all_pages(home)
    except FAULTS as error:
        raise MirrorError(f"{redacted(tracking_uri(home))}: MLflow must answer, but {type(error).__name__}") from error


def follow(ledger: Ledger, study: str, home: Path, *, until_eof: bool = False) -> bool:
    """Keep the mirror up to date until SIGTERM or Ctrl-C, then once more; whether MLflow agrees at the end.

    With `until_eof` the end of stdin ends it instead: a pipe closes with the process that holds it, however that one
    died, and not before it has written its last words, as where a whole tree of processes is sent the signal.
    """
    leaving = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if until_eof else lambda *_: leaving.set())
    if until_eof:
        threading.Thread(target=_leave_at_eof, args=(leaving,), daemon=True).start()
    os.nice(15)  # as the trials, which Ray runs so
    mirror, again_s = Mirror(ledger, study, home), POLL_S
    while True:
        last, began_s, is_first = leaving.is_set(), time.process_time(), mirror.is_new
        try:
            mirror.sync()
            spent_s = 0.0 if is_first else time.process_time() - began_s  # the first opens MLflow
            agrees, again_s, wait_s = True, POLL_S, min(max(POLL_S, spent_s / SHARE), LONGEST_S)
        except MirrorError as error:
            print(error, flush=True)  # noqa: T201 - into mirror.log
            agrees, again_s = False, min(2 * again_s, PATIENCE_S)
            wait_s = again_s
        for line in mirror.remarks():
            print(line, flush=True)  # noqa: T201
        if last:
            return agrees
        leaving.wait(wait_s)


def _leave_at_eof(leaving: threading.Event) -> None:
    sys.stdin.buffer.read()
    leaving.set()
    time.sleep(LAST_S)
    os._exit(1)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the mirror of a study, so that two never make one run twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=60):
            yield
    except filelock.Timeout as error:
        raise MirrorError(f"{path}: one mirror at a time, but another is at work; try again later") from error
