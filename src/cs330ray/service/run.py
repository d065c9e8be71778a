"""Run a study: check it, prepare its data, open the ledger, and let Tune run the trials until the budget is spent.

The same call runs, resumes and extends a study. What imports Ray is entered inside: `quiet` comes first.
"""

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cs330ray.analysis.claims import seen
from cs330ray.checkpoints import copies
from cs330ray.checkpoints.copies import Copies
from cs330ray.checkpoints.store import Store, StoreFault
from cs330ray.errors import SpecError, StudyError
from cs330ray.ledger import confirm, lines
from cs330ray.ledger.backup import Backups
from cs330ray.ledger.lease import held
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.process import mirrored
from cs330ray.quiet import quiet
from cs330ray.service import unchanged
from cs330ray.service.listener import Listener, Silent
from cs330ray.service.messages import NodeTerms, Terms
from cs330ray.service.queue import Queue
from cs330ray.service.recorder import Recorder, why_to_stop
from cs330ray.service.search import points, samplers
from cs330ray.service.session import Interrupted, Session, leave_if
from cs330ray.service.thin import thin
from cs330ray.service.workers import leftovers
from cs330ray.spec import growth
from cs330ray.spec.places import checkpoints_of, copies_of
from cs330ray.spec.study import Cell, Study
from cs330ray.trial import named
from cs330ray.trial.starts import starts
from cs330ray.words import plural

if TYPE_CHECKING:
    from cs330ray.service.machines.setup import Ground

BATCH_S = 0.5  # rows are sent together for so long
RAY_DEATHS_ALLOWED = 10  # in one call


@dataclass(frozen=True)
class Outcome:
    """What a call of `run` did."""

    seconds: float
    start_s: float  # until the first trial was under way
    interrupted: bool
    ledger: Ledger  # what it has read already


def run(study: Study, home: Path, listener: Listener | None = None, *, mirror: bool = True) -> Outcome:
    """Run, resume or extend a checked study under `home`; what was done. Raises SpecError, DataError or LedgerError."""
    quiet()  # before what imports Ray
    from cs330ray.service.machines.setup import survey

    listener = listener or Silent()
    began = time.monotonic()
    ground = survey(study, home, listener.says)
    with _interruptible() as interrupted:
        ledger = Writer.at(home)
        compared = ledger.compare(study)  # what is refused leaves no trace, not even of a lease
        unchanged.check(ledger, study)
        _folder(study, home)
        try:
            with held(ledger.database, study.name, listener.says, lambda: leave_if(interrupted)) as lease:
                ledger.is_driver = True
                ledger.upgrade(study.name, listener.says, lambda: leave_if(interrupted))
                if (recorded := ledger.find(study.name)) is not None:
                    seen.record(ledger, recorded)  # as it stands, before it grows
                metrics = named.metrics(study)
                for line in [*ledger.open(study, metrics, compared), *lines.announced(ledger, study)]:
                    listener.says(f"grown: {line}")
                for line in lines.left_alone(ledger, study):
                    listener.says(line)
                file, study = study, ledger.study(study.name)  # as it is recorded: what the file leaves open is settled
                for line in [*growth.kept(file, study), *unchanged.data_said(ledger, study, ground.data)]:
                    listener.says(line)
                if study.searched and ledger.asking(study) == "own":
                    listener.says(f"{study.name}: it asks as it began, each cell with draws of its own")
                listener.had_ended(
                    [end for cell in study.cells for end in lines.finished(study, ledger.trials(study, cell))]
                )
                _announce(study, ground, listener)
                session = Session(ledger, study, lease, listener, interrupted)
                _conduct(session, home, ground, mirror=mirror)
                seen.record(ledger, study)
        except Interrupted:
            return Outcome(time.monotonic() - began, 0.0, True, ledger)
    return Outcome(time.monotonic() - began, session.start_s(began), False, ledger)


def _conduct(session: Session, home: Path, ground: "Ground", *, mirror: bool) -> None:
    """Run the trials with what runs beside them: the mirror, and backups. Raises Interrupted."""
    study, backups, deaths = session.study, Backups(home), 0
    backups.make()
    with mirrored(study.name, home, session, wanted=mirror, leaves=session.is_interrupted) as beside:
        session.tends = [lambda: beside.tend() if session.is_under_way else None, backups.tend]
        session.stops = beside.let_go  # its last pass takes as long as Ray's end
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


def _tuned(session: Session, home: Path, ground: "Ground") -> bool:
    """Make good what was cut off and run what is left; False where the Ray that was started for it died before."""
    from cs330ray.service.machines.own_ray import OwnRay

    study, ledger = session.study, session.ledger
    lines.enter(ledger, study)
    interrupted = [(cell, number) for cell in study.cells for number in ledger.heal(study, cell)]
    place = functools.partial(checkpoints_of, home, study.name)
    there = _copies(ledger, study, ground.store)
    for cell in study.cells:
        thin(ledger, study, cell, place, copies=there)
    if (failure := why_to_stop(ledger, study)) is not None:
        raise failure
    spent = all(len(ledger.standing(study, cell)) >= study.budget.trials for cell in study.cells)
    to_confirm = any(confirm.pending(ledger, study, replicate) for replicate in range(study.repeat.searches))
    if spent and not interrupted and not to_confirm:
        return True
    folder = home / study.name
    leftovers.remove(leftovers.of_trials(folder))  # of a driver that was killed
    terms = _terms(study, home, ground, ledger.folder(study) if ground.store else None)
    firsts = {cell.key: starts(study, cell) for cell in study.cells}
    queue = Queue(
        ledger,
        study,
        terms,
        lease=session.lease,
        listener=session,
        interrupted=interrupted,
        starts=firsts,
        slots=ground.slots,
    )
    recorder = Recorder(ledger, study, session, place, there, session.to_end)
    session.tick()  # a Ctrl-C that came before need not wait for Ray
    own = OwnRay(ground.machine)
    try:
        with own:
            from cs330ray.service.tune import hand_over  # Tune takes its time, in which Ray starts

            points.prepare(study)
            try:
                whole = hand_over(session, ground, own, recorder, queue)
            except BaseException:
                session.stops()
                raise
    finally:
        leftovers.remove([*own.left, *leftovers.of_trials(folder)])
    if whole and queue.ran_out is not None:
        _say_what_ran_out(session, queue, queue.ran_out)
    return whole


def _say_what_ran_out(session: Session, queue: Queue, budget: str) -> None:
    queue.meter.read()
    session.says(f"{session.study.name}: {budget} is spent before all trials have ended; raise it to resume")
    if budget == "budget.cost":
        session.says(f"{session.study.name}: {queue.meter.said}")


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


def _terms(study: Study, home: Path, ground: "Ground", folder: str | None = None) -> Callable[[Cell, int], Terms]:
    """Say on what terms a trial of a cell runs; with the study's `folder` in the store, if there is one."""
    from cs330ray.service.machines.nodes import preparations

    code = {name: named.code_digest(name, study.command) for name in study.trainables()}
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
            node=NodeTerms(ground.nodes.wanted, {key: prepares[key][1]}, study.command)
            if ground.nodes is not None
            else None,
        )

    return terms


def _announce(study: Study, ground: "Ground", listener: Listener) -> None:
    gpus, workers = ground.machine.gpus_per_worker(study), study.resources.workers
    on = f"{gpus:g} GPU and {study.resources.cpus:g} CPU" if gpus else f"{study.resources.cpus:g} CPU"
    on = f"{workers} times {on}" if workers > 1 else on
    without = "; no GPU here, so resources.gpus counts as 0" if study.resources.gpus and not gpus else ""
    cells, searches = len(study.compared), study.repeat.searches
    budget = f"{study.budget.trials} trials, {study.budget.steps} steps each"
    budget = f"{searches} replicates of {budget}" if searches > 1 else budget
    listener.says(f"{study.name}: {plural(cells, 'cell')} of {budget}; {ground.slots} at once, {on} per trial{without}")
    if study.budget.cost is not None:
        listener.says(f"{study.name}: at most {study.budget.cost} in all sessions, confirmation and tests included")
    for line in samplers.said(study):
        listener.says(f"{study.name}: {line}")
    if study.confirm is not None:
        seeds = plural(study.confirm.seeds, "fresh seed")
        tests = all(getattr(named.of(cell), "tests", True) for cell in study.compared)
        then = "and test" if tests else "on validation alone: nothing here reads a test split"
        listener.says(f"{study.name}: then {_who(study)} of each cell again on {seeds}, {then}")


def _who(study: Study) -> str:
    most = study.confirm.most(len(study.objective)) if study.confirm else None
    beside = " and what [start] gives" if study.start else ""
    if len(study.objective) == 1:
        return (f"the best {most}" if most != 1 else "the best one") + beside
    return ("the front" if most is None else f"{most} of the front") + beside


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
    """Turn the first SIGINT, SIGTERM or SIGHUP into a flag; a second one is not held back.

    SIGHUP stays ignored where it is, as under `nohup`.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]

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
