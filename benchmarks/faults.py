"""The fault campaign: a study of small real trials runs while a seeded adversary strikes, and an auditor counts.

    python benchmarks/faults.py [--rounds 8] [--seed 0] [--kinds driver,worker] [--fused] [--keep-homes] [--smallest]

Some trials leave a thread and processes running, so that a home is only clean where each is ended.
First the study runs undisturbed: the reference. Then it runs in one home after another, each as a command in a process
of its own, and is struck at random moments; a command that ended is started again, until it has ended well; then the
home is audited. A strike counts, as a round, when a trial was running or a write in flight. At the end stands a table
of the strikes by kind and phase and, as the last line, one JSON object; the exit status is 1 where anything was wrong.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import adversary, auditor
from benchmarks.adversary import ANEW, COUNTED, RESTARTS, STRIKES, MlflowServer, Moment, Target

ROOT = Path(__file__).parents[1]
NAME = "struck"
STUDY = f"""
name = "{NAME}"
trainable = "benchmarks.restless"
objective = ["val_accuracy"]
[fixed]
dataset = "glyphs"
filters = 8
tasks = 2
queries = 5
eval_every_steps = 5
eval_queries = 5
val_tasks = 10
test_tasks = 20
test_shots = [1]
[compare]
shots = [1, 2]
[search]
lr = {{ low = 5e-4, high = 3e-2, log = true }}
ways = [3, 5]
[sampler]
kind = "tpe"
startup = 1
[prune]
kind = "asha"
min_steps = 50
reduction = 2
[budget]
trials = 2
steps = 150
[resources]
slots = 1
checkpoint = "1s"
keep = 1
[confirm]
top = 1
seeds = 2
[repeat]
searches = 2
"""
SMALLEST = (
    STUDY.replace("steps = 150", "steps = 100")
    .replace("searches = 2", "searches = 1")
    .replace("shots = [1, 2]", "shots = [1]")
    .replace("seeds = 2", "seeds = 1")
)
FUSED = (  # MAML, since nobody else's trials train together; a cell's trials are drawn together, and one is pruned
    STUDY.replace("benchmarks.restless", "maml")
    .replace("tasks = 2\nqueries", "tasks = 4\nqueries")
    .replace("eval_queries = 5\n", "")
    .replace("\nlr = ", "\nouter_lr = ")
    .replace("ways = [3, 5]", "inner_lr = { low = 0.02, high = 1.0, log = true }")
    .replace("startup = 1", "startup = 3")
    .replace("trials = 2", "trials = 3")
    .replace("slots = 1", "slots = 1\nfuse = 4")
    .replace("seeds = 2", "seeds = 4")
)
STUCK_S = 120.0  # a command that neither ends nor records anything for so long is stuck
SYNC_S = 60.0  # so long may MLflow take to come back
POLL_S = 0.03
PAUSE_S = (0.2, 4.0)  # from a recovery to the next strike
OUTAGE_S = (2.0, 4.0)
LINE_LENGTH = 300
DISK_BYTES = 48 * 1024**2
RAY = """
import sys, ray
context = ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False,
                   object_store_memory=128 * 1024**2)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def say(line: str) -> None:
    print(line, flush=True)


@dataclass
class Tally:
    """What the campaign has counted so far."""

    phases: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # kind -> phase -> strikes
    restarts: Counter[str] = field(default_factory=Counter)  # by kind: the command ended and was started again
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: Counter[str] = field(default_factory=Counter)
    tracebacks: int = 0
    behind: int = 0  # homes whose command said that MLflow was behind
    homes: int = 0

    @property
    def rounds(self) -> int:
        return sum(sum(phases.values()) for phases in self.phases.values())

    def figures(self) -> dict[str, Any]:
        times = [seconds for of_kind in self.recovery_s.values() for seconds in of_kind]
        recovery = {"median": round(statistics.median(times), 1), "worst": round(max(times), 1)} if times else {}
        counts = {kind: self.wrong[kind] for kind in auditor.KINDS}
        return {"rounds": self.rounds, **counts, "wrong": sum(counts.values()), "recovery_s": recovery}

    def table(self) -> Iterator[str]:
        columns = [*COUNTED, "strikes", "restarts", "median s", "worst s"]
        yield f"{'':<14}" + "".join(f"{column:>17}" for column in columns)
        for kind, phases in self.phases.items():
            times = self.recovery_s.get(kind, [])
            spent = [f"{statistics.median(times):.1f}", f"{max(times):.1f}"] if times else ["", ""]
            numbers = [*(phases[phase] for phase in COUNTED), sum(phases.values()), self.restarts[kind], *spent]
            yield f"{kind:<14}" + "".join(f"{number:>17}" for number in numbers)
        whole = sum(self.phases.values(), Counter())
        yield f"{'all':<14}" + "".join(f"{n:>17}" for n in [*(whole[p] for p in COUNTED), self.rounds])


class Command:
    """`cs330ray run` in a session of its own, started as often as need be."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._words, self._environment, self._path = words, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0  # where in the log its last start is

    def start(self) -> int:
        with self._path.open("ab") as log:
            self._began = log.tell()
            self._process = subprocess.Popen(
                self._words, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit status, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def leave(self) -> None:
        """Kill it, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def text(self) -> str:
        """What it has said since its last start."""
        return self._path.read_bytes()[self._began :].decode(errors="replace")


class Campaign:
    """A campaign under `work`, which whoever makes it clears away."""

    def __init__(self, work: Path, *, study: str, rounds: int, seed: int, kinds: Sequence[str], ray: str = "") -> None:
        self.tally = Tally()
        self._work, self._rounds, self._kinds = work, rounds, list(kinds)
        self._adversary = random.Random(seed)
        self.tally.phases |= {kind: Counter() for kind in kinds}
        self._file = work / "struck.toml"
        self._file.write_text(study)
        self._mounts = any(kind in adversary.MOUNTING for kind in kinds)
        self._clock = work / "clock"
        given = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
        self._auth = given if ray else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._ray = ray  # the address of a Ray that all homes share; else every second one has its own
        self._every_home_shares = bool(ray)
        self._server = MlflowServer(work / "server", _free_port(), self._environment()) if "mlflow" in kinds else None
        self._ends: list[Callable[[], object]] = []  # of all that was started
        self._kept = work.with_name(f"{work.name}-kept")

    def run(self, *, keep_homes: bool = False) -> Tally:
        """Run until so many strikes have counted; nothing that it started is left."""
        try:
            return self._run(keep_homes=keep_homes)
        finally:
            for end in reversed(self._ends):
                end()

    def _run(self, *, keep_homes: bool) -> Tally:
        if self._server is not None:
            self._server.start()
            self._ends.append(self._server.kill)
        if not self._ray and self._rounds:
            self._ray = self._start_ray()
        reference = self._reference()
        while self.tally.rounds < self._rounds:
            self._home(self.tally.homes, reference, keep_homes=keep_homes)
            self.tally.homes += 1
        return self.tally

    # Surroundings ------------------------------------------------------------------------------------------------

    def _environment(self, **more: str) -> dict[str, str]:
        """The caller's environment without what would steer Ray, MLflow or the service."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "CS330RAY_")) or name == "CS330RAY_DATA"
        }
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CS330RAY_CLOCK": str(self._clock)} | more

    def _start_ray(self) -> str:
        """Start a Ray that homes share; its address. It ends with this process, which holds its standard input."""
        (self._work / "r").mkdir()
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", **self._auth}
        self._clock.write_text("0")
        process = subprocess.Popen(
            [sys.executable, "-c", RAY], env=self._environment(RAY_TMPDIR=str(self._work / "r"), **quiet),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        self._ends.append(process.communicate)  # the end of its standard input ends it
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the Ray that homes share did not start"
        return address

    def _target(self, number: int) -> Target:
        """Home `number`: on a Ray of its own or the shared one, with MLflow's server or without, on which disk."""
        folder = self._work / f"{number:03d}"
        for name in ("runs", "r", "t"):
            (folder / name).mkdir(parents=True)
        target = Target(
            folder,
            NAME,
            own_ray=number % 2 == 0 and not self._every_home_shares,
            server=self._server if number % 4 in (0, 3) else None,
            disk=None,
            clock=self._clock,
        )
        if self._mounts and target.own_ray and number % 3 < 2:  # a node of a cluster needs 1 GiB for checkpoints
            target.disk = target.runs if number % 3 else target.checkpoints
            target.disk.mkdir(parents=True, exist_ok=True)
            small = f"size={DISK_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tmpfs", target.disk], check=True)
        self._clock.write_text("0")
        return target

    def _command(self, target: Target, *words: str) -> Command:
        environment = self._environment(CS330RAY_HOME=str(target.runs), TMPDIR=str(target.folder / "t"))
        if target.own_ray:
            environment["RAY_TMPDIR"] = str(target.folder / "r")
        else:
            environment |= {"RAY_ADDRESS": self._ray, **self._auth}
        if target.server is not None:
            environment["MLFLOW_TRACKING_URI"] = target.server.uri
        command = Command([sys.executable, "-m", "cs330ray", *words], environment, target.folder / "log")
        self._ends.append(command.leave)
        return command

    # Homes -------------------------------------------------------------------------------------------------------

    def _reference(self) -> Path:
        """The study undisturbed: its home."""
        began = time.monotonic()
        target = self._target(0)
        target.server = None
        command = self._command(target, "run", str(self._file))
        target.driver = command.start()
        while (code := command.ended()) is None:
            time.sleep(POLL_S)
        if code != 0:
            raise SystemExit(f"the undisturbed study ended with {code}:\n{command.text()}")
        for line in self._audit(target, None).lines.values():
            raise SystemExit(f"the undisturbed study is wrong: {line}")
        kept = self._work / "reference"
        shutil.copytree(target.runs, kept)
        self._clear(target)
        say(f"reference: {time.monotonic() - began:.0f} s")
        return kept

    def _home(self, number: int, reference: Path, *, keep_homes: bool) -> None:
        target = self._target(number)
        command = self._command(target, "run", str(self._file))
        siege = _Siege(target, command, self.tally)
        words = [f"home {number}: {'own' if target.own_ray else 'shared'} Ray"]
        words += ["MLflow's server"] if target.server else []
        words += [f"tmpfs under {target.disk.relative_to(target.folder)}"] if target.disk else []
        say(", ".join(words))
        target.stop = self._command(target, "stop", NAME).start
        target.driver = command.start()
        while siege.ended_well() is False:
            if self.tally.rounds < self._rounds:
                self._strike(target, siege)
            else:
                siege.tend_until_the_end()
        wrong = list(siege.findings) + self._catch_up(target, command)
        audited = self._audit(target, reference)
        for kind, line in wrong + [(kind, line) for (kind, _), line in audited.lines.items()]:
            self.tally.wrong[kind] += 1
            say(f"WRONG in home {number}: {line[:LINE_LENGTH]}")
        if wrong or audited.lines or keep_homes:
            kept = self._kept / target.folder.name
            shutil.copytree(target.folder, kept, symlinks=True, ignore=shutil.ignore_patterns("sockets"))
            if target.server is not None:
                shutil.copy(target.server.database, kept / "mlflow-of-the-server.db")
            say(f"home {number} is kept: {kept}")
        say(f"home {number}: audited after {siege.struck} strikes, {sum(audited.counts().values())} findings")
        self._clear(target)

    def _audit(self, target: Target, reference: Path | None) -> auditor.Findings:
        return auditor.audit(
            target.runs,
            NAME,
            mlflow=target.server.database if target.server else None,
            reference=reference,
            marks=[str(target.folder)],
            foreign_ray="" if target.own_ray or self._every_home_shares else str(self._work / "r"),
        )

    def _clear(self, target: Target) -> None:
        kill_all([str(target.folder)])
        unmount_under(target.folder)
        shutil.rmtree(target.folder)

    def _catch_up(self, target: Target, command: Command) -> list[tuple[str, str]]:
        """Run the command that a study prints when MLflow is behind; a finding where that does not help."""
        if "MLflow is behind" not in command.text():
            return []
        self.tally.behind += 1
        sync = self._command(target, "sync", NAME)
        until = time.monotonic() + SYNC_S
        while True:
            sync.start()
            while sync.ended() is None:
                time.sleep(POLL_S)
            if sync.ended() == 0:
                return []
            if time.monotonic() > until:
                return [("mirror_wrong", f"mirror_wrong: `cs330ray sync` does not catch up: {sync.text().strip()}")]
            time.sleep(2)

    # Strikes -----------------------------------------------------------------------------------------------------

    def _strike(self, target: Target, siege: "_Siege") -> None:
        """Wait for a moment that counts, strike, lift, and tend the command until it records again."""
        if not siege.tend_for(self._adversary.uniform(*PAUSE_S)):
            return
        kind = self._choose(target)
        aim = self._adversary.choices(["any", "checkpoint write", "ledger write"], [3, 1, 1])[0]
        outage_s = self._adversary.uniform(*OUTAGE_S)
        seen = siege.moment_for(aim)
        if seen is None:
            return
        moment, phase = seen
        struck_s = time.monotonic()
        outage = STRIKES[kind](target, moment, outage_s)
        if outage is None:  # not there just now
            return
        self.tally.phases[kind][phase] += 1
        siege.struck += 1
        try:
            siege.hold_for(outage.seconds)
        finally:
            outage.lift()
        starts = siege.starts
        took_s = siege.tend_until_it_records(moment, anew=kind in ANEW, since_s=struck_s)
        self.tally.restarts[kind] += siege.starts - starts
        if took_s is not None:
            self.tally.recovery_s[kind].append(took_s)
        then = f"next row after {took_s:.1f} s" if took_s is not None else "nothing was left to record"
        again = f", started again {siege.starts - starts} times" if siege.starts > starts else ""
        if kind in RESTARTS and siege.starts == starts and took_s is not None:
            say(f"NOTE: {kind} did not end the command; its last words: {siege.last_words()}")
        say(f"[{self.tally.rounds:>3}/{self._rounds}] {kind} during {phase}: {then}{again}")

    def _choose(self, target: Target) -> str:
        """One of the kinds that this home allows, rather one that was seldom chosen."""
        kinds = [
            kind
            for kind in self._kinds
            if (kind != "raylet" or target.own_ray)
            and (kind != "mlflow" or target.server is not None)
            and (kind != "disk-full" or target.disk is not None)
        ]
        weights = [1 / (1 + sum(self.tally.phases[kind].values())) ** 2 for kind in kinds]
        return self._adversary.choices(kinds, weights)[0]


class _Siege:
    """Tends the command of one home: starts it again when it has ended, and notices when it is stuck."""

    def __init__(self, target: Target, command: Command, tally: Tally) -> None:
        self._target, self._command, self._tally = target, command, tally
        self.findings: list[tuple[str, str]] = []
        self.struck = 0
        self.starts = 0
        self._recorded = -1
        self._since_s = time.monotonic()  # the last record
        self._over = False

    def ended_well(self) -> bool:
        return self._over

    def tend(self) -> Moment | None:
        """Look once after the command; what the ledger holds, None where it cannot be read just now."""
        code = self._command.ended()
        if code == 0:
            self._over = True
        elif code is not None:
            if "Traceback (most recent call last)" in self._command.text():
                self._tally.tracebacks += 1
                say(f"a command ended with {code} and a traceback: {self._command.text().strip().splitlines()[-1]}")
            elif code not in (130, -signal.SIGKILL):
                say(f"a command ended with {code}: {self._command.text().strip().splitlines()[-1:]}")
            if time.monotonic() - self._since_s < STUCK_S:
                self._start_again()
        moment = adversary.observe(self._target.ledger)
        if moment is not None and moment.recorded > self._recorded:
            self._recorded, self._since_s = moment.recorded, time.monotonic()
        if not self._over and time.monotonic() - self._since_s > STUCK_S:
            line = f"lost: the command neither ends nor records anything for {STUCK_S:.0f} s"
            self.findings.append(("lost", line))
            say(f"STUCK: {line}; its last words: {self._command.text().strip().splitlines()[-1:]}")
            kill_all([str(self._target.folder)])
            self._over = len(self.findings) > 1  # given up
            self._since_s = time.monotonic()
        return moment

    def _start_again(self) -> None:
        self.starts += 1
        self._target.driver = self._command.start()

    def last_words(self) -> list[str]:
        return self._command.text().strip().splitlines()[-3:]

    def tend_for(self, seconds: float) -> bool:
        """Tend the command for a while; whether it still runs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._over:
            self.tend()
            time.sleep(POLL_S)
        return not self._over

    def tend_until_the_end(self) -> None:
        while not self._over:
            self.tend()
            time.sleep(POLL_S)

    def hold_for(self, seconds: float) -> None:
        """Let an outage last; what ends in it is started again only afterwards."""
        time.sleep(seconds)

    def moment_for(self, aim: str) -> tuple[Moment, str] | None:
        """Wait for a moment that counts, and for what is aimed at if that comes soon; None where there was none."""
        until = time.monotonic() + 20
        aimed_until = time.monotonic() + 4
        while not self._over and time.monotonic() < until:
            moment = self.tend()
            if moment is None or self._command.ended() is not None:
                continue
            if aim != "any" and time.monotonic() < aimed_until:
                if not self._comes(aim):
                    continue
                return moment, aim
            phase = self._target.phase(moment)
            if phase in COUNTED:
                return moment, phase
            time.sleep(POLL_S)
        return None

    def _comes(self, aim: str) -> bool:
        """Whether what is aimed at happens within a tenth of a second."""
        comes: Callable[[], bool] = (
            (lambda: adversary.writes_a_checkpoint(self._target.checkpoints))
            if aim == "checkpoint write"
            else (lambda: self._target.ledger.is_file() and adversary.writes_the_ledger(self._target.ledger))
        )
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            if comes():
                return True
        return False

    def tend_until_it_records(self, before: Moment, *, anew: bool, since_s: float) -> float | None:
        """Seconds from a strike to the next row or end; None where the command ended well without one.

        Where the worker dies, what the old one had on its way at the strike does not count.
        """
        recorded, starts = before.recorded, self.starts
        while True:
            moment = self.tend()
            if self.starts > starts:
                anew = True
            if moment is not None:
                if moment.recorded > recorded and (not anew or moment.worker != before.worker):
                    return time.monotonic() - since_s
                if anew and moment.worker == before.worker:
                    recorded = moment.recorded
            if self._over:
                return None
            time.sleep(POLL_S)


def kill_all(marks: Sequence[str]) -> None:
    """Kill every process with such a mark, until there is none."""
    while found := list(auditor.processes(marks)):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)


def unmount_under(folder: Path) -> None:
    """Take every mount under `folder` away, the newest first."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in places if Path(place).is_relative_to(folder)]):
        subprocess.run(["umount", "--lazy", place], check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary directory; whatever was started or mounted under it ends with it."""
    work = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))  # short: Ray's sockets lie under it
    try:
        yield work
    finally:
        kill_all([str(work)])
        if Path("/proc/mounts").is_file():
            unmount_under(work)
        shutil.rmtree(work, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=8, help="strikes that count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(STRIKES), help="of strikes, with commas between")
    parser.add_argument("--fused", action="store_true", help="trials train together, up to four at a time")
    parser.add_argument("--keep-homes", action="store_true", help="those where nothing was wrong, too")
    parser.add_argument("--smallest", action="store_true", help="one kill of a small study: shows only that it runs")
    given = parser.parse_args(arguments)
    study, rounds, kinds = FUSED if given.fused else STUDY, given.rounds, given.kinds.split(",")
    if given.smallest:
        study, rounds, kinds = SMALLEST, 1, ["driver"]
    if unknown := [kind for kind in kinds if kind not in STRIKES]:
        parser.error(f"--kinds: some of {','.join(STRIKES)} are needed, but got {unknown}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for number in (signal.SIGINT, signal.SIGHUP):  # under `nohup`, or behind `&`, what is started would ignore them
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # what is started has the system's own again
    skipped = adversary.skipped(kinds)
    for kind, reason in skipped.items():
        say(f"{kind}: skipped, {reason}")
    began = time.monotonic()
    with workplace() as work:
        kinds = [kind for kind in kinds if kind not in skipped]
        campaign = Campaign(work, study=study, rounds=rounds, seed=given.seed, kinds=kinds)
        tally = campaign.run(keep_homes=given.keep_homes)
    for line in tally.table():
        say(line)
    say(f"{tally.homes} homes in {time.monotonic() - began:.0f} s; {tally.behind} commands said that MLflow was behind")
    say(f"{tally.tracebacks} commands ended with a traceback")
    figures = tally.figures()
    say(json.dumps(figures))
    return 1 if figures["wrong"] or tally.tracebacks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
