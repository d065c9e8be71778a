"""What one controller can do: the driver's own work on asks, rows and ends, and the slots that it keeps busy.

    python benchmarks/controller.py [--postgres] [--processor] [--trials 20000] [--smallest]

Real are the queue, the sampler, the recorder, the watch, the meter, the session, the lease, the ledger on its disk and
the three classes through which Tune speaks to them. Simulated are Tune's own loop, which here only makes the calls that
Tune would make, Ray with its processes and its network, and training: a worker has its next row so long after the one
before was taken, and leaves an empty folder for a checkpoint. The mirror and backups are left out. What Tune itself
takes for a trial is measured by `benchmarks/scale.py` and `benchmarks/scaling.py`, on a real Ray.

The driver is one thread, so that time is that of a clock which runs while it works and is set forward when it waits.
All its work counts as it was, with other work on the machine; only its idle time is skipped. On a machine that
has other work `--processor` counts the driver's processor time instead, which leaves out its waits for the disk and
for a database server. Efficiency is the share
of slot seconds in which a worker trains, from when every slot has had a trial until no more are asked.
`slots_at_10s_trials` is on paper: nine tenths of 10 s over the seconds that the driver works for a trial.

Prints a table, and as its last line JSON. `rows_per_s` and `ends_per_s` are of messages with a row and with an end,
each with what Tune's loop lets pass after it; `ask_ms` is the processor time of an ask and of entering its trial.
"""

import argparse
import contextlib
import heapq
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests/postgres.py starts a server

from cs330ray.quiet import quiet  # noqa: E402

quiet()  # before Ray

from benchmarks import sleeper  # noqa: E402
from cs330ray.ledger import lease  # noqa: E402
from cs330ray.ledger.records import Ending, Kept, Row  # noqa: E402
from cs330ray.ledger.writer import Writer  # noqa: E402
from cs330ray.service.listener import Silent  # noqa: E402
from cs330ray.service.messages import Circumstances, News, Start, Terms, as_result, assigned  # noqa: E402
from cs330ray.service.queue import Queue  # noqa: E402
from cs330ray.service.recorder import Recorder  # noqa: E402
from cs330ray.service.session import Session  # noqa: E402
from cs330ray.service.tune import (  # noqa: E402
    ForwardingCallback,
    ForwardingScheduler,
    ForwardingSearcher,
    _Over,
    _tick,
)
from cs330ray.service.watch import Watch  # noqa: E402
from cs330ray.spec.places import checkpoints_of  # noqa: E402
from cs330ray.spec.reading import parse  # noqa: E402
from cs330ray.spec.study import Cell, Study  # noqa: E402

TRIAL_S, ROWS = 10.0, 3
WINDOW = 50  # asks of which the median is told
SHARE = 0.9  # of the driver's time, on paper
SPACE: dict[str, Any] = {
    "x": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "inner_steps": {"low": 1, "high": 8},
    "body": ["course", "pooled"],
}


class Clock:
    """Seconds that pass while the driver works, or its processor seconds; what it would wait is skipped."""

    def __init__(self, *, processor: bool = False) -> None:
        self.processor, self.skipped_s = processor, 0.0
        self.passed_s = time.thread_time if processor else time.perf_counter

    def now(self) -> float:
        return self.passed_s() + self.skipped_s

    def wait_until(self, then: float) -> None:
        self.skipped_s += max(then - self.now(), 0.0)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done meanwhile is not the driver's."""
        began_s = self.passed_s()
        yield
        self.skipped_s -= self.passed_s() - began_s

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """For all that asks for the time, but for threads that sleep."""
        before, time.monotonic = time.monotonic, self.now
        try:
            yield
        finally:
            time.monotonic = before


@dataclass
class Spent:
    """What the driver spent on one kind of call: seconds and processor seconds of each."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        yield
        self.wall_s.append(time.perf_counter() - wall_s)
        self.cpu_s.append(time.thread_time() - cpu_s)

    def per_s(self, *, processor: bool) -> float:
        taken_s = self.cpu_s if processor else self.wall_s
        return round(len(taken_s) / sum(taken_s), 1)


class Ground:
    """So many slots on one machine."""

    nodes = None

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def room(self) -> float:
        return self.slots

    def request(self, study: Study) -> None:
        """What a slot has."""


class Simulated:
    """Tune's loop over slots whose workers answer at their times."""

    def __init__(self, ledger: Writer, study: Study, slots: int, clock: Clock) -> None:
        self.clock, self.slots, self.free = clock, slots, slots
        self.spent = {kind: Spent() for kind in ("ask", "start", "row", "checkpoint", "end")}
        self.begins_s: list[float] = []
        self.ends_s: list[float] = []
        self.at_trial: Callable[[int], None] = lambda _: None
        self._due: list[tuple[float, int, Any, News, Sequence[tuple[float, News]], float]] = []
        self._order, self._names = itertools.count(), itertools.count()
        self._all_asked_s = 0.0
        ground: Any = Ground(slots)
        with lease.held(ledger.database, study.name) as held:
            ledger.is_driver = True
            session = Session(ledger, study, held, Silent(), lambda: False)
            queue = Queue(ledger, study, _terms(ledger), lease=held, listener=session, slots=slots)
            recorder = Recorder(ledger, study, session, lambda c, n: checkpoints_of(ledger.home, study.name, c, n))
            watch = Watch(study, queue, recorder)
            self.searcher = ForwardingSearcher(queue, ground)
            self.scheduler = ForwardingScheduler(queue, recorder, watch, ground, study)
            self.callback = ForwardingCallback(
                queue, recorder, watch, lambda: _tick(session, ground, watch, recorder, queue, None)
            )
            queue.start_clock()
            with clock.everywhere(), contextlib.suppress(_Over):
                while True:
                    self._step()

    def _step(self) -> None:
        """Ask while a slot is free, as Tune does, and then take the next thing that happens."""
        while self.free and self._asked():
            pass
        if not self._due:
            self.callback.on_step_end(0, [])
            return
        due_s, _, trial, news, more, told_s = heapq.heappop(self._due)
        self.clock.wait_until(due_s)
        if news.checkpoint is not None:
            with self.clock.stopped():
                Path(news.checkpoint.path).mkdir(parents=True)
        kind = "start" if news.start else "end" if news.end else "row" if news.rows else "checkpoint"
        with self.spent[kind].measured():
            self._result(trial, news)
            self.callback.on_step_end(0, [])
        self._goes_on(trial, more, told_s)

    def _asked(self) -> bool:
        name = str(next(self._names))
        with self.spent["ask"].measured():
            config = self.searcher.suggest(name)
            if not isinstance(config, dict):
                is_asked = False
            else:
                is_asked = True
                self._started(name, config)
        if not is_asked:
            self.spent["ask"].wall_s.pop()
            self.spent["ask"].cpu_s.pop()
            self._all_asked_s = self._all_asked_s or self.clock.now()
        return is_asked

    def _started(self, name: str, config: dict[str, Any]) -> None:
        trial = SimpleNamespace(
            trial_id=name,
            config=config,
            temporary_state=SimpleNamespace(ray_actor="worker"),
            update_resources=lambda _: None,
            iteration=0,
            metric_analysis={},
            metric_n_steps={},
            last_result={},
        )
        self.scheduler.on_trial_add(None, trial)
        self.callback.on_trial_start(0, [], trial)
        self.free -= 1
        self.begins_s.append(self.clock.now())
        self._goes_on(trial, _told(trial), 0.0)
        self.at_trial(len(self.begins_s))

    def _goes_on(self, trial: Any, told: Sequence[tuple[float, News]], told_s: float) -> None:
        """Have the worker tell the next thing: it trains on when the one before was taken, as Tune has it."""
        if told:
            (after_s, news), *more = told
            due_s = self.clock.now() + after_s - told_s
            heapq.heappush(self._due, (due_s, next(self._order), trial, news, more, after_s))

    def _result(self, trial: Any, news: News) -> None:
        trial.iteration += 1
        result = {**as_result(news), "training_iteration": trial.iteration}
        if not result["done"]:
            assert self.scheduler.on_trial_result(None, trial, result) == "CONTINUE"
            self.callback.on_trial_result(0, [], trial, result)
            return
        self.searcher.on_trial_complete(trial.trial_id, result)
        self.callback.on_trial_result(0, [], trial, result)
        self.callback.on_trial_complete(0, [], trial)
        self.free += 1
        self.ends_s.append(self.clock.now())

    @property
    def efficiency(self) -> float:
        """The share of slot seconds in which a worker trains, in the steady state."""
        since, until = self.begins_s[self.slots - 1], self._all_asked_s
        trained_s = sum(max(min(at + TRIAL_S, until) - max(at, since), 0.0) for at in self.begins_s)
        return round(trained_s / (self.slots * (until - since)), 3)

    @property
    def on_paper(self) -> int:
        """How many slots of such trials the driver can feed, by the clock that is simulated."""
        return round(SHARE * TRIAL_S * 1000 / (self.cpu_ms if self.clock.processor else self.driver_ms))

    @property
    def driver_ms(self) -> float:
        """What the driver works for a trial, in milliseconds."""
        return 1000 * sum(sum(spent.wall_s) for spent in self.spent.values()) / len(self.begins_s)

    @property
    def cpu_ms(self) -> float:
        return 1000 * sum(sum(spent.cpu_s) for spent in self.spent.values()) / len(self.begins_s)


def _terms(ledger: Writer) -> Callable[[Cell, int], Terms]:
    def terms(cell: Cell, number: int) -> Terms:
        home = checkpoints_of(ledger.home, "controller", cell, number)
        return Terms(home, None, 60.0, 0.5, 0, 1.0, 0.0, 1, None, "code", "data", None)

    return terms


def _told(trial: Any) -> list[tuple[float, News]]:
    """What a worker sends of a trial, and how many seconds after it has begun."""
    told = assigned(trial.config)
    on = Circumstances(
        "host", "processor", 1, "3.12", {"torch": "2.13.0"}, ["node"], 1, told.seed, "code", "data", dict(told.config)
    )
    news = [(0.0, News(start=Start(None, time.time(), on)))]
    for step in range(1, ROWS + 1):
        row = Row(step, {"val_loss": told.config["x"] / step}, time.time())
        news.append((TRIAL_S * step / ROWS, News(rows=[row])))
    kept = Kept(str(told.terms.home / f"step-{ROWS}"), ROWS, "digest")
    return [*news, (TRIAL_S, News(checkpoint=kept)), (TRIAL_S, News(end=Ending("COMPLETE")))]


def study(kind: str, trials: int, name: str = "controller") -> Study:
    raw = {"name": name, "trainable": "benchmarks.sleeper", "objective": ["val_loss"], "search": SPACE}
    return parse(raw | {"sampler": {"kind": kind}, "budget": {"trials": trials, "steps": ROWS}}, "here")


def simulated(kind: str, trials: int, slots: int, home: Path, *, processor: bool = False) -> Simulated:
    """A study of trials of 10 s in a new ledger."""
    ledger, asked = Writer.at(home), study(kind, trials)
    ledger.open(asked, {"benchmarks.sleeper": sleeper.METRICS})
    return Simulated(ledger, ledger.study(asked.name), slots, Clock(processor=processor))


def line(name: str, done: Simulated) -> str:
    each = "  ".join(f"{kind} {statistics.median(each.wall_s) * 1000:6.2f}" for kind, each in done.spent.items())
    return (
        f"{name:<28} efficiency {done.efficiency:5.3f}  driver {done.driver_ms:6.1f} ms a trial "
        f"(processor {done.cpu_ms:6.1f}), on paper {done.on_paper:>5} slots; medians, ms: {each}"
    )


def reading_s(home: Path) -> dict[str, float]:
    """Seconds that `list` and `show` take, their start included."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "CS330RAY_HOME": str(home), "PYTHONPATH": path}
    taken = {}
    for words in (["list"], ["show", "controller"]):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "cs330ray", *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        taken[f"{words[0]}_s"] = round(time.perf_counter() - began, 2)
    return taken


def measure(homes: Callable[[str], Path], trials: int, *, smallest: bool, processor: bool) -> dict[str, Any]:
    many, most = (40, 8) if smallest else (trials, 1000)
    before_bytes = psutil.Process().memory_info().rss
    done = simulated("random", many, most, homes("many"), processor=processor)
    growth_mb = (psutil.Process().memory_info().rss - before_bytes) / 1e6
    print(line(f"random, {many} on {most}", done), flush=True)
    window = max(many // 20, 1)
    for kind, spent in done.spent.items():
        first, last = (statistics.median(some) * 1000 for some in (spent.wall_s[:window], spent.wall_s[-window:]))
        print(f"    {kind:<12} first {window}: {first:6.2f} ms, last: {last:6.2f} ms")
    figures: dict[str, Any] = {
        "asks_per_s": done.spent["ask"].per_s(processor=processor),
        "rows_per_s": done.spent["row"].per_s(processor=processor),
        "ends_per_s": done.spent["end"].per_s(processor=processor),
        "slots_at_10s_trials": done.on_paper,
        "ask_ms": {},
        "efficiency": {str(most): done.efficiency},
        "driver_growth_mb": round(growth_mb, 1),
        **reading_s(homes("many")),
    }
    for slots in (4,) if smallest else (64, 256):
        done = simulated("random", 8 * slots, slots, homes(f"slots {slots}"), processor=processor)
        figures["efficiency"][str(slots)] = done.efficiency
        print(line(f"random, {8 * slots} on {slots}", done), flush=True)
    sizes, slots = ((20, 30), 2) if smallest else ((200, 2000), 64)  # of gp see asking.py: it is all Optuna's
    done = simulated("tpe", max(sizes), slots, homes("tpe"), processor=processor)
    print(line(f"tpe, {max(sizes)} on {slots}", done), flush=True)
    cpu_s = done.spent["ask"].cpu_s
    figures["ask_ms"]["tpe"] = {
        str(size): round(1000 * statistics.median(cpu_s[max(size - WINDOW, 0) : size]), 1) for size in sizes
    }
    return figures


@contextlib.contextmanager
def ledgers(folder: Path, *, postgres: bool) -> Iterator[Callable[[str], Path]]:
    """Homes by name, each with a ledger of its own: a file, or a database of a server that is started for them."""
    if not postgres:
        yield lambda name: folder / name
        return
    from tests.postgres import programs, serving

    binaries = programs()
    if binaries is None:
        raise SystemExit("no PostgreSQL server is installed: apt-get install postgresql")
    made: dict[str, str] = {}
    with serving(binaries) as server:

        def home(name: str) -> Path:
            if name not in made:
                made[name] = server.create(name)
            os.environ["CS330RAY_LEDGER"] = made[name]
            return folder / name

        yield home


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--postgres", action="store_true", help="ledgers in a PostgreSQL that is started for them")
    given.add_argument("--processor", action="store_true", help="count the driver's processor time alone")
    given.add_argument("--trials", type=int, default=20_000, help="of the study on 1,000 slots")
    given.add_argument("--smallest", action="store_true", help="few trials: shows only that it runs")
    arguments = given.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ledgers(Path(folder), postgres=arguments.postgres) as homes,
    ):
        figures = measure(homes, arguments.trials, smallest=arguments.smallest, processor=arguments.processor)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
