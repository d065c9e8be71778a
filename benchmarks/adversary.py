"""The adversary of the fault campaign: what it sees of a study from outside, and every way it strikes.

It reads the ledger and the disk and sends signals; like the auditor it shares no code with the service.
"""

import contextlib
import ctypes
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

COUNTED = ("training", "confirming", "checkpoint write", "ledger write")  # what a strike has to hit in order to count
LOSSES_SPARED = 2  # a trial whose worker is lost more than three times fails, as it should: its worker is spared then
CLONE_NEWNS = 0x00020000
CLOCK = Path(__file__).parents[1] / "src" / "cs330ray" / "clock.py"


@dataclass(frozen=True)
class Moment:
    """What the ledger holds just now."""

    recorded: int = 0  # rows and ends
    worker: int = 0  # the process of the last attempt
    running: tuple[str, int] | None = None  # (cell, trial) of that attempt, if it has not ended
    losses: int = 0  # how often its worker was lost
    checkpoint: Path | None = None  # its newest


def observe(ledger: Path) -> Moment | None:
    """Look into a ledger; None where it cannot be read just now."""
    if not ledger.is_file():
        return Moment()
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(ledger, timeout=1)) as connection:
        return _moment(connection, ledger.parent)
    return None


def _moment(connection: sqlite3.Connection, home: Path) -> Moment:
    def one(query: str, *values: object) -> tuple | None:
        return connection.execute(query, values).fetchone()

    (tables,) = one("select count(*) from sqlite_master where name = 'cs330ray_ends'") or (0,)
    if not tables:
        return Moment()
    (recorded,) = one("select (select count(*) from cs330ray_rows) + (select count(*) from cs330ray_ends)") or (0,)
    last = one("select cell, trial, circumstances from cs330ray_attempts order by rowid desc limit 1")
    if last is None:
        return Moment(recorded)
    cell, trial, circumstances = last
    pid = json.loads(circumstances)["pid"]
    if one("select 1 from cs330ray_ends where cell = ? and trial = ?", cell, trial):
        return Moment(recorded, pid)
    (losses,) = one("select count(*) from cs330ray_losses where cell = ? and trial = ?", cell, trial) or (0,)
    newest = one(
        "select path from cs330ray_checkpoints where cell = ? and trial = ? order by step desc limit 1", cell, trial
    )
    return Moment(recorded, pid, (cell, trial), losses, home / newest[0] if newest else None)


def writes_a_checkpoint(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written, or was when its process died."""
    for cell in _entries(checkpoints):
        for trial in _entries(cell):
            if any(entry.name.startswith(".partial-") for entry in _entries(trial)):
                return True
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def writes_the_ledger(ledger: Path) -> bool:
    """Whether somebody writes into the ledger at this moment."""
    with contextlib.closing(sqlite3.connect(ledger, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("begin immediate")
            connection.execute("rollback")
        except sqlite3.OperationalError as error:
            return "locked" in str(error)
    return False


# Targets -------------------------------------------------------------------------------------------------------------


@dataclass
class MlflowServer:
    """The campaign's MLflow server, which it may kill and start again."""

    folder: Path
    port: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        words += ["--default-artifact-root", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                words, env={**self.environment, **quiet}, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Target:
    """A study under attack: where its home lies, and what runs it."""

    folder: Path  # of all that is its own
    study: str
    own_ray: bool
    server: MlflowServer | None
    disk: Path | None  # the small file system under the home, or under its checkpoints
    clock: Path
    stop: Callable[[], object] = lambda: None  # runs `cs330ray stop`
    driver: int = 0

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def ledger(self) -> Path:
        return self.runs / "ledger.db"

    @property
    def checkpoints(self) -> Path:
        return self.runs / self.study / "checkpoints"

    def phase(self, moment: Moment) -> str:
        """What goes on at this moment, in one of the words of the table."""
        if writes_a_checkpoint(self.checkpoints):
            return "checkpoint write"
        if moment.running is None:
            return "ledger write" if self.ledger.is_file() and writes_the_ledger(self.ledger) else "between trials"
        return "confirming" if " fresh " in moment.running[0] else "training"


def _nothing() -> None:
    """End an outage that is none."""


@dataclass
class Outage:
    """What a strike left: for how long it lasts, and how it is lifted."""

    seconds: float = 0.0
    lift: Callable[[], None] = field(default=_nothing)


# Strikes -------------------------------------------------------------------------------------------------------------

Strike = Callable[[Target, Moment, float], Outage | None]  # None: there was nothing to strike


def _kill(pid: int, number: int = signal.SIGKILL) -> Outage | None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return None
    return Outage()


def _exit(target: Target, moment: Moment, seconds: float) -> Outage | None:
    """Have the worker end by itself, as a trial's own code may."""
    if moment.running is None or moment.losses >= LOSSES_SPARED or not _named(moment.worker, "ray::"):
        return None
    return _kill(moment.worker, signal.SIGTERM)


def _hang(target: Target, moment: Moment, seconds: float) -> Outage | None:
    """Have the worker hang for ever, and the driver told to end."""
    if moment.running is None or not _named(moment.worker, "ray::"):
        return None
    return _kill(moment.worker, signal.SIGSTOP) and _kill(target.driver, signal.SIGINT)


def _stop(target: Target, moment: Moment, seconds: float) -> Outage | None:
    target.stop()
    return Outage()


def _hangup(target: Target, moment: Moment, seconds: float) -> Outage | None:
    return _kill(target.driver, signal.SIGHUP)


def _driver(target: Target, moment: Moment, seconds: float) -> Outage | None:
    return _kill(target.driver)


def _worker(target: Target, moment: Moment, seconds: float) -> Outage | None:
    if moment.running is None or moment.losses >= LOSSES_SPARED or not _named(moment.worker, "ray::"):
        return None
    return _kill(moment.worker)


def _named(pid: int, words: str) -> bool:
    """Whether a process lives whose command line has these words."""
    try:
        return words in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _child(target: Target, words: str) -> int | None:
    """The descendant of the driver with these words in its command line."""
    try:
        children = psutil.Process(target.driver).children(recursive=True)
    except psutil.Error:
        return None
    return next((child.pid for child in children if _named(child.pid, words)), None)


def _raylet(target: Target, moment: Moment, seconds: float) -> Outage | None:
    pid = _child(target, "raylet/raylet ") if target.own_ray and moment.losses < LOSSES_SPARED else None
    return _kill(pid) if pid is not None else None


def _mirror(target: Target, moment: Moment, seconds: float) -> Outage | None:
    pid = _child(target, "sync")
    return _kill(pid) if pid is not None else None


def _mlflow(target: Target, moment: Moment, seconds: float) -> Outage | None:
    if target.server is None:
        return None
    target.server.kill()
    return Outage(seconds, target.server.start)


def _sigterm(target: Target, moment: Moment, seconds: float) -> Outage | None:
    return _kill(target.driver, signal.SIGTERM)


def _ctrl_c(target: Target, moment: Moment, seconds: float) -> Outage | None:
    return _kill(target.driver, signal.SIGINT)


def _ctrl_c_group(target: Target, moment: Moment, seconds: float) -> Outage | None:
    """As a terminal does: to the driver and all that stand in its process group."""
    try:
        os.killpg(target.driver, signal.SIGINT)
    except ProcessLookupError:
        return None
    return Outage()


def _pause(target: Target, moment: Moment, seconds: float) -> Outage | None:
    stopped = _kill(target.driver, signal.SIGSTOP)
    return Outage(seconds, lambda: _kill(target.driver, signal.SIGCONT) and None) if stopped else None


def _disk_full(target: Target, moment: Moment, seconds: float) -> Outage | None:
    if target.disk is None:
        return None
    ballast = target.disk / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return Outage(seconds, ballast.unlink)


def _read_only(target: Target, moment: Moment, seconds: float) -> Outage | None:
    place = target.disk or target.runs
    subprocess.run(["mount", "--bind", place, place], check=True)
    while subprocess.run(["mount", "-o", "remount,bind,ro", place], capture_output=True).returncode:
        time.sleep(0.01)  # somebody had a file open for writing there just now
    return Outage(seconds, lambda: subprocess.run(["umount", "--lazy", place], check=True) and None)


def _torn(target: Target, moment: Moment, seconds: float) -> Outage | None:
    """Cut a file of the running trial's newest checkpoint, as a power failure may, with all who write it gone."""
    if moment.checkpoint is None or not moment.checkpoint.is_dir() or not _named(moment.worker, "ray::"):
        return None
    if _kill(target.driver) is None:
        return None
    _kill(moment.worker)
    while _named(moment.worker, "ray::"):
        time.sleep(0.01)
    steps = sorted(moment.checkpoint.parent.glob("step-*"))
    file = max(steps[-1].iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    return Outage()


def _locked(target: Target, moment: Moment, seconds: float) -> Outage | None:
    connection = sqlite3.connect(target.ledger, timeout=20, isolation_level=None)
    connection.execute("begin exclusive")
    return Outage(seconds, connection.close)


def _clock(target: Target, moment: Moment, seconds: float) -> Outage | None:
    """Set the clock back by an hour more."""
    now = float(target.clock.read_text()) - 3600
    written = target.clock.with_suffix(".new")
    written.write_text(str(now))
    written.rename(target.clock)
    return Outage()


STRIKES: Mapping[str, Strike] = {
    "driver": _driver,
    "worker": _worker,
    "exit": _exit,
    "hang": _hang,
    "raylet": _raylet,
    "mirror": _mirror,
    "mlflow": _mlflow,
    "sigterm": _sigterm,
    "sighup": _hangup,
    "stop": _stop,
    "ctrl-c": _ctrl_c,
    "ctrl-c-group": _ctrl_c_group,
    "pause": _pause,
    "disk-full": _disk_full,
    "read-only": _read_only,
    "torn": _torn,
    "locked": _locked,
    "clock": _clock,
}
RESTARTS = ("driver", "hang", "sigterm", "sighup", "stop", "ctrl-c", "ctrl-c-group", "torn")  # these end the command
ANEW = (*RESTARTS, "worker", "exit", "raylet")  # the worker dies with it
MOUNTING = ("disk-full", "read-only")


def skipped(kinds: list[str]) -> dict[str, str]:
    """Which of these kinds this machine or this version does not allow, and why."""
    reasons = {}
    if any(kind in MOUNTING for kind in kinds) and (reason := _own_mounts()):
        reasons |= {kind: reason for kind in kinds if kind in MOUNTING}
    if "clock" in kinds and not CLOCK.is_file():
        reasons["clock"] = f"there is no {CLOCK.name}"
    return reasons


def _own_mounts() -> str:
    """Take a mount namespace of our own, so that no mount outlives the campaign; why that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return "mount namespaces are Linux's"
    if os.geteuid() != 0:
        return "mounting needs root"
    if libc.unshare(CLONE_NEWNS) != 0:
        return f"a mount namespace is needed, but {os.strerror(ctypes.get_errno())}"
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    return private.stderr.strip()
