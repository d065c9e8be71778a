"""Run a study: check it, prepare its data, open the ledger, and let Tune run the trials until the budget is spent.

The same call runs, resumes and extends a study.
"""

import contextlib
import functools
import logging
import shutil
import signal
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray
from ray import tune

from cs330ray.checkpoints import copies
from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.copies import Copies
from cs330ray.checkpoints.store import Store, StoreFault
from cs330ray.clock import wall_s
from cs330ray.errors import SpecError, StudyError
from cs330ray.ledger import confirm, lines
from cs330ray.ledger.backup import Backups
from cs330ray.ledger.lease import Lease, held
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import standing
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.process import mirrored
from cs330ray.service.ask import LedgerSearcher
from cs330ray.service.listener import Listener
from cs330ray.service.machines.machine import Machine
from cs330ray.service.machines.nodes import preparations
from cs330ray.service.machines.setup import Ground, survey
from cs330ray.service.messages import NodeTerms, Terms
from cs330ray.service.prune import ForwardingScheduler
from cs330ray.service.recorder import ForwardingCallback, Recorder, why_to_stop
from cs330ray.service.thin import thin
from cs330ray.service.workers.actor import TrialActor
from cs330ray.spec.places import checkpoints_of, copies_of
from cs330ray.spec.study import Cell, Study
from cs330ray.trial import named
from cs330ray.words import plural

BATCH_S = 0.5  # rows are sent together for so long
RAY_DEATHS_ALLOWED = 10  # in one call
OBJECT_STORE_BYTES = 128 * 1024**2  # results are small; nothing is put into the store


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C or SIGTERM; the ledger is consistent and the same command goes on."""


@dataclass(frozen=True)
class Outcome:
    """What a call of `run` did."""

    seconds: float
    start_s: float  # until the first trial was under way
    interrupted: bool
    ledger: Ledger  # what it has read already


def run(study: Study, home: Path, listener: Listener | None = None, *, mirror: bool = True) -> Outcome:
    """Run, resume or extend a checked study under `home`; what was done. Raises SpecError, DataError or LedgerError."""
    listener = listener or Listener()
    began = time.monotonic()
    ground = survey(study, home, listener.says)
    with _interruptible() as interrupted:
        ledger = Writer.at(home)
        compared = ledger.compare(study)  # what is refused leaves no trace, not even of a lease
        _folder(study, home)
        try:
            with held(ledger.database, study.name, listener.says, lambda: _leave_if(interrupted)) as lease:
                ledger.upgrade(study.name, listener.says, lambda: _leave_if(interrupted))
                metrics = {name: named.load(name).METRICS for name in study.trainables()}
                for line in [*ledger.open(study, metrics, compared), *lines.announced(ledger, study)]:
                    listener.says(f"grown: {line}")
                listener.had_ended(
                    [end for cell in study.cells for end in lines.finished(study, ledger.trials(study, cell))]
                )
                _announce(study, ground, listener)
                session = _Session(ledger, study, lease, listener, interrupted)
                _conduct(session, home, ground, mirror=mirror)
        except Interrupted:
            return Outcome(time.monotonic() - began, 0.0, True, ledger)
    return Outcome(time.monotonic() - began, session.start_s(began), False, ledger)


def _conduct(session: "_Session", home: Path, ground: Ground, *, mirror: bool) -> None:
    """Run the trials with what runs beside them: the mirror, and backups. Raises Interrupted."""
    study, backups, deaths = session.study, Backups(home), 0
    backups.make()
    with mirrored(study.name, home, session, wanted=mirror) as beside:
        session.tends = [beside.tend, backups.tend]
        try:
            while not _tuned(session, home, ground):
                deaths += 1
                if deaths > RAY_DEATHS_ALLOWED:
                    raise StudyError(
                        f"{study.name}: Ray must live on this machine, but it died {deaths} times; see whether memory "
                        "is short (resources.slots), then the same command goes on"
                    )
                session.says(f"{study.name}: Ray on this machine died; another one is started")
        finally:
            session.seen()
            backups.make()


def _leave_if(interrupted: Callable[[], bool]) -> None:
    if interrupted():
        raise Interrupted


class _RayDied(Exception):  # noqa: N818 - not an error: another is started
    """The Ray that this process had started is gone."""


class _Over(Exception):  # noqa: N818 - not an error
    """All trials have ended. Leaves Tune, which would otherwise write a last state of all of them, 7 KB each."""


class _Session(Listener):
    """Passes on what happens, keeps time, and stops the loop when a signal came."""

    def __init__(
        self, ledger: Writer, study: Study, lease: Lease, listener: Listener, interrupted: Callable[[], bool]
    ) -> None:
        self.name = uuid.uuid4().hex
        self.ledger, self.study, self.lease, self.listener = ledger, study, lease, listener
        self.tends: Sequence[Callable[[], None]] = ()  # what is looked after as time passes
        self.began: Callable[[Cell, int], None] = lambda *_: None  # what hears that a trial is under way
        self._interrupted = interrupted
        self._began_s = time.monotonic()
        self._seen_s = 0.0
        self._searches = True
        self._first: float | None = None

    def start_s(self, began: float) -> float:
        """Seconds from `began` to the first sign of a trial."""
        return (self._first or time.monotonic()) - began

    def tick(self) -> None:
        """Note the time now and then. Raises Interrupted after a signal, LedgerError where the lease is lost."""
        _leave_if(self._interrupted)
        self.lease.check()
        if time.monotonic() - self._seen_s > 5:
            self._seen_s = time.monotonic()
            self.seen()
        for tend in self.tends:
            tend()
        self.listener.ticked()

    def seen(self) -> None:
        """Count the time from the first trial until now as the search's; confirmation's is nobody's."""
        if self._searches and self._first is not None:
            self.ledger.seen(self.study, self.name, time.monotonic() - self._first)

    def says(self, line: str) -> None:
        self.listener.says(line)

    def took_up(self, cell: Cell, number: int, *rest: Any) -> None:
        self.began(cell, number)
        if self._first is None:  # its first rows may have taken a while
            ago_s = wall_s() - self.ledger.attempts(self.study, cell, number)[-1]["began_s"]
            self._first = time.monotonic() - min(max(ago_s, 0.0), time.monotonic() - self._began_s)
        self.listener.took_up(cell, number, *rest)

    def reached(self, *args: Any) -> None:
        self.listener.reached(*args)

    def ended(self, *args: Any) -> None:
        self.listener.ended(*args)

    def lost(self, *args: Any) -> None:
        self.listener.lost(*args)

    def confirms(self, runs: int) -> None:
        self.seen()
        self._searches = False
        self.listener.confirms(runs)
        found = confirm.confirmed(self.ledger, self.study)
        most = self.study.confirm.most(len(self.study.objective)) if self.study.confirm else None
        for cell in self.study.cells:
            number = len(found[cell.key])
            if most is not None and number < most:
                self.says(f"{cell.title}: {number} of at most {most} to confirm: so many configurations are COMPLETE")


def _tuned(session: _Session, home: Path, ground: Ground) -> bool:
    """Run the trials; False where the Ray that was started for them died before they were over."""
    try:
        _tune(session, home, ground)
    except _RayDied:
        return False
    return True


def _tune(session: _Session, home: Path, ground: Ground) -> None:
    """Make good what was cut off, and run what is left to be run."""
    study, ledger = session.study, session.ledger
    lines.enter(ledger, study)
    interrupted = [(cell, number) for cell in study.cells for number in ledger.heal(study, cell)]
    place = functools.partial(checkpoints_of, home, study.name)
    there = _copies(ledger, study, ground.store)
    for cell in study.cells:
        thin(ledger, study, cell, place, copies=there)
    if (failure := why_to_stop(ledger, study)) is not None:
        raise failure
    spent = all(len(standing(ledger.history(study, cell))) >= study.budget.trials for cell in study.cells)
    if spent and not interrupted and not confirm.pending(ledger, study):
        return
    recorder = Recorder(ledger, study, session, place, there)
    searcher = LedgerSearcher(
        ledger,
        study,
        _terms(study, home, ground, ledger.folder(study) if ground.store else None),
        interrupted,
        session.confirms,
        session.lease.fence,
        ground.room,
    )
    session.began = searcher.began
    _hand_to_tune(session, ground, recorder, searcher)
    if searcher.ran_out_of_time:
        session.says(f"{study.name}: budget.time is spent before all trials were started; raise it to go on")


def _hand_to_tune(session: _Session, ground: Ground, recorder: Recorder, searcher: LedgerSearcher) -> None:
    """Have Tune run what the searcher names until there is no more. Raises _RayDied, or why the study stops."""
    study, nodes = session.study, ground.nodes

    def tick() -> None:
        if recorder.failure is not None:
            raise recorder.failure
        session.tick()  # a Ctrl-C that reached Ray too is first of all a Ctrl-C
        if raylet is not None and not _lives(raylet):  # Ray itself would say so after 15 s, and wait for ever
            raise _RayDied
        if searcher.is_over:
            raise _Over
        if nodes is not None:
            nodes.look()

    session.tick()  # a Ctrl-C need not wait for Ray
    raylet = _start_ray(ground.machine)
    searcher.start_clock()
    scratch = tempfile.mkdtemp(prefix="cs330ray-tune-")
    try:
        with warnings.catch_warnings(), contextlib.suppress(_Over):
            warnings.simplefilter("ignore")
            tune.run(
                tune.with_parameters(TrialActor, store_url=stores.wanted()) if ground.store else TrialActor,
                name=study.name,
                search_alg=searcher,
                scheduler=ForwardingScheduler(recorder, functools.partial(ground.request, study)),
                callbacks=[ForwardingCallback(recorder, searcher.again, tick, nodes)],
                num_samples=-1,
                max_concurrent_trials=ground.slots,
                resources_per_trial=ground.request(study),
                reuse_actors=True,
                max_failures=0,
                raise_on_failed_trial=False,
                storage_path=scratch,
                verbose=0,
            )
    except tune.TuneError:
        if session.ledger.database.failure is not None:
            raise session.ledger.database.failure from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if raylet is not None:
            ray.shutdown()


def _copies(ledger: Writer, study: Study, store: Store | None) -> Callable[[Cell, int], Copies] | None:
    """The copies of each trial's checkpoints in a store, whose folder for the study is made."""
    if store is None:
        return None
    folder = ledger.make_folder(study)
    held = [place for cell in study.cells for place in ledger.checkpoints(study, cell).values()]
    try:
        if any(place.startswith(f"{store.address}/{folder}/") for place in held):
            copies.must_be_seen(store, folder)
        copies.mark(store, folder)
    except StoreFault as fault:
        raise StudyError(
            f"{study.name}: checkpoints must be kept, but {fault}; mend the store, and the same command goes on"
        ) from None
    return lambda cell, number: Copies(store, copies_of(folder, cell, number))


def _terms(study: Study, home: Path, ground: Ground, folder: str | None = None) -> Callable[[Cell, int], Terms]:
    """Say on what terms a trial of a cell runs; with the study's `folder` in the store, if there is one."""
    code = {name: named.code_digest(name) for name in study.trainables()}
    prepares = preparations(study)

    def terms(cell: Cell, number: int) -> Terms:
        key = cell.searched.key
        return Terms(
            home=checkpoints_of(home, study.name, cell, number),
            place=copies_of(folder, cell, number) if folder else None,
            checkpoint_s=study.resources.checkpoint,
            batch_s=BATCH_S,
            prune_every=study.prune.min_steps if study.prune.kind != "none" and cell.fresh is None else 0,
            cpus=study.resources.cpus,
            gpus=ground.machine.gpus_per_worker(study),
            workers=study.resources.workers,
            memory_gib=study.resources.memory,
            code=code[cell.trainable],
            data=ground.data[key],
            node=NodeTerms(ground.nodes.wanted, {key: prepares[key][1]}) if ground.nodes is not None else None,
        )

    return terms


def _start_ray(machine: Machine) -> psutil.Process | None:
    """Start Ray on this machine; its raylet, without which no worker starts. None where there is a Ray already."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(
        address="local",
        num_cpus=int(machine.cpus),
        num_gpus=int(machine.gpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    with contextlib.suppress(ValueError):  # not the main thread
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself, and would abort on it
            signal.signal(number, handler)
    return next(child for child in psutil.Process().children() if child.name() == "raylet")


def _lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def _announce(study: Study, ground: Ground, listener: Listener) -> None:
    gpus, workers = ground.machine.gpus_per_worker(study), study.resources.workers
    on = f"{gpus:g} GPU and {study.resources.cpus:g} CPU" if gpus else f"{study.resources.cpus:g} CPU"
    on = f"{workers} times {on}" if workers > 1 else on
    without = "; no GPU here, so resources.gpus counts as 0" if study.resources.gpus and not gpus else ""
    cells = len(study.cells)
    budget = f"{study.budget.trials} trials, {study.budget.steps} steps each"
    listener.says(f"{study.name}: {plural(cells, 'cell')} of {budget}; {ground.slots} at once, {on} per trial{without}")
    random = {"tpe": study.sampler.startup, "nsga2": study.sampler.population}.get(study.sampler.kind, 0)
    if 2 * random > study.budget.trials and any(cell.space for cell in study.cells):
        listener.says(
            f"{study.name}: the first {random} trials of a cell are drawn at random ({study.sampler.kind}), "
            f"so that with {study.budget.trials} the search is mostly random"
        )
    if study.confirm is not None:
        seeds = plural(study.confirm.seeds, "fresh seed")
        listener.says(f"{study.name}: then {_who(study)} of each cell again on {seeds}, and test")


def _who(study: Study) -> str:
    most = study.confirm.most(len(study.objective)) if study.confirm else None
    if len(study.objective) == 1:
        return f"the best {most}" if most != 1 else "the best one"
    return "the front" if most is None else f"{most} of the front"


def _folder(study: Study, home: Path) -> None:
    folder = home / study.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"{folder}: a directory for the study is needed, but {error.strerror}; set CS330RAY_HOME"
        ) from None


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one is not held back."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number in before:
            signal.signal(number, note)
    except ValueError:  # not the main thread: signals go elsewhere
        pass
    try:
        yield lambda: bool(came)
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)
