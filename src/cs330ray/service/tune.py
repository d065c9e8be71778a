"""Ray Tune, as far as it is driven: it starts the trials that the queue names, and hands their news to the recorder.

Each class here forwards and keeps nothing that the ledger does not hold. Called once for every Ray that is started.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import psutil
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cs330ray.checkpoints import store as stores
from cs330ray.errors import NodeUnfit, WorkerLost, WorkerSpent
from cs330ray.files import Scratch
from cs330ray.service.machines.nodes import Nodes
from cs330ray.service.machines.own_ray import OwnRay, RayDied
from cs330ray.service.machines.setup import Ground
from cs330ray.service.messages import Assignment, as_config, assigned, news_of
from cs330ray.service.queue import Queue
from cs330ray.service.recorder import Recorder
from cs330ray.service.session import Session
from cs330ray.service.watch import Watch
from cs330ray.service.workers import leftovers
from cs330ray.service.workers.actor import TrialActor
from cs330ray.spec.study import Study
from cs330ray.words import first_line, redacted

REASON_LENGTH = 200


class _Over(Exception):  # noqa: N818 - not an error
    """All trials have ended. Leaves Tune, which would otherwise write a last state of all of them, 7 KB each."""


def hand_over(session: Session, ground: Ground, own: OwnRay, recorder: Recorder, queue: Queue) -> bool:
    """Have Tune run what the queue names until all is over; False where `own`, the Ray for it, died before.

    Raises Interrupted after a signal, and what stops the study.
    """
    study = session.study
    try:
        raylet = own.raylet(session.tick)
    except RayDied:
        return False
    ray.air._internal.usage.tag_callbacks = lambda _: False  # counts for telemetry, for which it imports MLflow
    queue.start_clock()
    scratch = Scratch("tune")
    watch = Watch(study, queue, recorder)
    tick = functools.partial(_tick, session, ground, watch, recorder, queue, raylet)
    try:
        with warnings.catch_warnings(), contextlib.suppress(_Over):
            warnings.simplefilter("ignore")
            tune.run(
                tune.with_parameters(TrialActor, store_url=stores.wanted()) if ground.store else TrialActor,
                name=study.name,
                search_alg=ForwardingSearcher(queue, ground),
                scheduler=ForwardingScheduler(queue, recorder, watch, ground, study),
                callbacks=[ForwardingCallback(queue, recorder, watch, tick, ground.nodes)],
                num_samples=-1,
                max_concurrent_trials=ground.slots,
                resources_per_trial=ground.request(study),
                reuse_actors=True,
                max_failures=0,
                raise_on_failed_trial=False,
                storage_path=str(scratch.path),
                verbose=0,
            )
    except RayDied:
        return False
    except tune.TuneError:
        if session.ledger.database.failure is not None:
            raise session.ledger.database.failure from None
        raise
    finally:
        scratch.remove()
    return True


def _tick(
    session: Session, ground: Ground, watch: Watch, recorder: Recorder, queue: Queue, raylet: psutil.Process | None
) -> None:
    """Let time pass. Raises _Over or RayDied, Interrupted, or why the study stops."""
    if recorder.failure is not None:
        raise recorder.failure
    session.tick()  # a Ctrl-C that reached Ray too is first of all a Ctrl-C
    if raylet is not None and not _lives(raylet):  # Ray itself would say so after 15 s, and wait for ever
        raise RayDied
    for cell, number in session.given_up():
        watch.give_up(cell, number)
    queue.meter.look()
    watch.look()
    if queue.is_over:
        raise _Over
    if ground.nodes is not None:
        ground.nodes.look()


def _lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


class ForwardingSearcher(tune.search.Searcher):
    """Tune's way to the next trial: the queue's."""

    def __init__(self, queue: Queue, ground: Ground) -> None:
        super().__init__()
        self._queue, self._ground = queue, ground
        self._live: dict[str, Assignment] = {}  # the trials under way, by Tune's names

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, as Tune's configuration of it; None while the last ones run, then FINISHED."""
        if self._live and len(self._live) >= self._ground.room():  # where nothing runs, Tune would wait and not tick
            return None
        trial = self._queue.next()
        if trial is None:
            return str(self.FINISHED) if self._queue.is_over else None
        self._live[trial_id] = trial
        return as_config(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Forget a trial; the recorder has told the ledger."""
        if trial_id in self._live:
            self._queue.left(self._live.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""


class ForwardingScheduler(FIFOScheduler):
    """Tune's scheduler: first come, first served; whether a trial stops is the recorder's word."""

    def __init__(self, queue: Queue, recorder: Recorder, watch: Watch, ground: Ground, study: Study) -> None:
        super().__init__()
        self._queue, self._recorder, self._watch, self._ground, self._study = queue, recorder, watch, ground, study

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Keep the trial off nodes that have turned out to be unfit since Tune was started."""
        trial.update_resources(self._ground.request(self._study))
        self._watch.added(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """STOP where the pruner or the watch said so, else CONTINUE."""
        ends = _pass_on(self._queue, self._recorder, self._watch, trial, result)
        leaves = self._watch.heard(trial, news_of(result), ends=ends)
        return str(TrialScheduler.STOP if ends or leaves else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note that the worker of a trial failed, while Tune still says which one it was."""
        self._watch.failed(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune starts what waits, in order, by itself; to look for it here would be a walk over all trials."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""


class ForwardingCallback(tune.Callback):
    """Tune's callback: forwards the last results, which schedulers never see, and lost workers."""

    def __init__(
        self, queue: Queue, recorder: Recorder, watch: Watch, tick: Callable[[], None], nodes: Nodes | None = None
    ) -> None:
        self._queue, self._recorder, self._watch, self._tick = queue, recorder, watch, tick
        self._nodes = nodes  # of a cluster

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Record the result; the scheduler has done so already unless it is the last."""
        _pass_on(self._queue, self._recorder, self._watch, trial, result)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that the trial has its worker."""
        self._watch.started(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that the worker was lost, and queue the trial again.

        One that came to an unfit node, or to a worker that was spent or died while it left another trial, lost nothing;
        one that was ended from here has its end.
        """
        error, assignment = _error_of(trial), assigned(trial.config)
        ended, again = self._watch.left(trial)
        if not isinstance(error, WorkerLost):  # its process is gone, and not what that has started
            leftovers.remove(leftovers.of_trials(assignment.terms.home))
        if assignment.beside:
            self._left_together(assignment, error, None if ended else _why(trial), began=not again)
            return
        if ended or isinstance(error, WorkerSpent):
            if again or not ended:
                self._queue.again(assignment)
            return
        if self._nodes is not None and isinstance(error, NodeUnfit):
            self._nodes.exclude(error.node, error.why)
        elif not self._recorder.lose(assignment, _why(trial), self._nodes.live() if self._nodes else None):
            return
        self._queue.again(assignment)

    def _left_together(self, assignment: Assignment, error: Exception | None, why: str | None, *, began: bool) -> None:
        """Queue trials again whose worker is gone, or never began with them; `why` where that is to be said."""
        going_on = self._recorder.still_open(assignment)
        if self._nodes is not None and isinstance(error, NodeUnfit):
            self._nodes.exclude(error.node, error.why)
        if not began or isinstance(error, NodeUnfit | WorkerSpent):  # nothing has become of them
            for each in reversed(going_on):
                self._queue.again(each)
            return
        if why is not None:
            self._recorder.parted(assignment, f"their worker is gone ({why})")
        self._queue.part(going_on)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Let go of what Tune keeps of a trial's results to the end: the ledger holds all there is."""
        _, again = self._watch.left(trial)
        assignment = assigned(trial.config)
        if assignment.beside and self._recorder.has_pruned(assignment):
            for each in reversed(self._recorder.still_open(assignment)):
                self._queue.again(each)
        elif assignment.beside:
            self._queue.part(self._recorder.still_open(assignment))
        elif again:
            self._queue.again(assignment)
        for kept in (trial.metric_analysis, trial.metric_n_steps, trial.last_result):
            kept.clear()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let time pass; where that ends the study, no trial is left in its worker."""
        try:
            self._tick()
        except RayDied:
            raise
        except Exception:
            self._watch.let_go()
            raise


def _pass_on(queue: Queue, recorder: Recorder, watch: Watch, trial: Any, result: Mapping[str, Any]) -> bool:
    """Pass on a result of a trial, which the recorder takes once; whether the trial stops."""
    if watch.has_ended(trial):  # what was on its way when its worker was ended comes too late
        return True
    assignment, news = assigned(trial.config), news_of(result)
    for member, of_member in zip(assignment.members, news.members, strict=True):
        if of_member.start is not None:
            queue.began(member)
    if news.unequal:
        queue.fuse = 1
    return recorder.take(trial.trial_id, int(result["training_iteration"]), assignment, news)


def _error_of(trial: Any) -> Exception | None:
    """What left the actor of a trial, where it could be kept."""
    file = Path(trial.pickled_error_file) if trial.pickled_error_file else None
    if file is None or not file.exists():
        return None
    error = ray.cloudpickle.loads(file.read_bytes())  # written by Tune in this process, a moment ago
    return cast("Exception", getattr(error, "cause", error))


def _why(trial: Any) -> str:
    """What is known of a lost worker, in one line."""
    if isinstance(error := _error_of(trial), WorkerLost):
        return redacted(first_line(error))[:REASON_LENGTH]
    file = Path(trial.error_file) if trial.error_file else None
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.read_text(errors="replace")) if file is not None and file.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Failure #")]
    causes = [line for line in lines if "Error" in line or "exit" in line.lower()]
    return redacted((causes or lines or ["no word of it"])[0])[:REASON_LENGTH]
