"""Hosts on one machine: each has its own network, name, processes, /tmp, home and sshd, and shares the disk.

A host is the set of namespaces under one first process. Killing that process is pulling the plug: everything in it dies
at once, and its network with it. Nothing is made outside: the bridge that joins the hosts lies in the first one. The
first processes end with this one, however it ends.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "mount")
NETWORK = "10.213.7"
# The first process of a host: it reaps what loses its parent, and lives as long as the pipe to it is open.
FIRST = """
set -e
mount --make-rprivate /
{binds}
mount --rbind {folder}/tmp /tmp
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
hostname {name}
ip link set lo up
echo ready
{sshd} -D -f {folder}/sshd_config -E {folder}/sshd.log &
cat > /dev/null
"""
SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {key}.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PidFile none
Subsystem sftp internal-sftp
"""


def why_not() -> str | None:
    """Why no hosts can be made here."""
    if os.geteuid() != 0:
        return "namespaces need root"
    if missing := [name for name in PROGRAMS if _program(name) is None]:
        return f"missing programs: {', '.join(missing)}"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


_UNSHARE = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class Host:
    """A host that runs."""

    name: str
    address: str
    folder: Path  # its files, on the disk of all
    outside: "subprocess.Popen[str]"  # `unshare`, whose only child is the first process
    started: "list[subprocess.Popen[str]]" = field(default_factory=list)

    @property
    def home(self) -> Path:
        """Its user's home."""
        return self.folder / "home"

    @property
    def first(self) -> int:
        """Its first process, as seen from outside."""
        return int(Path(f"/proc/{self.outside.pid}/task/{self.outside.pid}/children").read_text().split()[0])

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs a command on it, in a login shell."""
        return [
            "nsenter", "-t", str(self.first), "--net", "--uts", "--mount", "--pid", "env", "-i", f"HOME={self.home}",
            "USER=root", "bash", "--login", "-c", f"cd; exec {shlex.join(words)}",
        ]  # fmt: skip

    def run(self, *words: str, seconds: float = 60, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command on it to its end."""
        done = subprocess.run(
            self.command(words), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *words: str, log: Path) -> "subprocess.Popen[str]":
        """Start a command on it, which ends with it."""
        with log.open("w") as output:
            started = subprocess.Popen(
                self.command(words), stdout=output, stderr=output, text=True, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(started)
        return started

    def die(self) -> None:
        """Pull the plug."""
        with contextlib.suppress(IndexError, OSError):
            os.kill(self.first, signal.SIGKILL)
        for process in [self.outside, *self.started]:
            process.wait(30)
        for pipe in (self.outside.stdin, self.outside.stdout):
            if pipe is not None:
                pipe.close()


class Hosts:
    """Hosts that are joined; the first is where a person sits, and bears the bridge."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.all: dict[str, Host] = {}
        self.booted: list[Host] = []  # those that died too
        _key(self.key)
        self._addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)}

    def __getitem__(self, name: str) -> Host:
        return self.all[name]

    def address(self, name: str) -> str:
        """The address of a host."""
        return self._addresses[name]

    def furnish(self, profile: str) -> None:
        """Give every host its home, whose login shells read `profile`, and the keys of its door."""
        for name in self._addresses:
            folder = self.folder / name
            (folder / "home").mkdir(parents=True)
            (folder / "home" / ".bash_profile").write_text(profile)
            (folder / "passwd").write_text(self._passwd(folder / "home"))
            (folder / "hosts").write_text(
                "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in self._addresses.items())
            )
            _key(folder / "host_key")
            (folder / "sshd_config").write_text(SSHD.format(folder=folder, key=self.key))

    def boot(self, name: str) -> None:
        """Start a host, or start it again with an empty /tmp, and join it to the first."""
        folder = self.folder / name
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        (folder / "tmp").mkdir()
        script = FIRST.format(folder=folder, name=name, sshd=_program("sshd"), binds=self._binds(folder))
        with (folder / "boot.log").open("w") as log:
            outside = subprocess.Popen(
                [*_UNSHARE, "bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True,
            )  # fmt: skip
        host = Host(name, self._addresses[name], folder, outside)
        self.booted.append(host)
        self.all[name] = host
        assert outside.stdout is not None
        said = outside.stdout.readline()
        assert said == "ready\n", (folder / "boot.log").read_text()
        self._join(host)

    def _join(self, host: Host) -> None:
        first = next(iter(self.all.values()))
        if host is first:
            self._on(host, "link add bridge type bridge", f"addr add {host.address}/24 dev bridge",
                     "link set bridge up")  # fmt: skip
            return
        port = f"port{len(self.booted)}"
        self._on(first, f"link add {port} type veth peer name eth0 netns {host.first}",
                 f"link set {port} master bridge", f"link set {port} up")  # fmt: skip
        self._on(host, f"addr add {host.address}/24 dev eth0", "link set eth0 up",
                 f"route add default via {first.address}")  # fmt: skip

    def _passwd(self, home: Path) -> str:
        lines = Path("/etc/passwd").read_text().splitlines()
        others = [line for line in lines if not line.startswith("root:")]
        return "\n".join([f"root:x:0:0:root:{home}:/bin/bash", *others]) + "\n"

    def _binds(self, folder: Path) -> str:
        """What keeps its place where it lies under the /tmp that a host's own takes the place of."""
        kept = {path.resolve() for path in (self.folder, ROOT, Path(sys.prefix), Path(sys.base_prefix))}
        lines = []
        for path in sorted(path for path in kept if path.is_relative_to("/tmp")):
            place = folder / "tmp" / path.relative_to("/tmp")
            lines.append(f"mkdir -p {place} && mount --bind {path} {place}")
        return "\n".join(lines)

    @staticmethod
    def _on(host: Host, *settings: str) -> None:
        for setting in settings:
            words = ["nsenter", "-t", str(host.first), "--net", str(_program("ip")), *setting.split()]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, f"{setting}: {done.stderr}"

    def end(self) -> None:
        """End all hosts."""
        for host in self.booted:
            host.die()


def _key(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)


@contextlib.contextmanager
def hosts(names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts that are neither furnished nor booted yet; afterwards nothing of them is left."""
    before = _outside()
    folder = Path(tempfile.mkdtemp(prefix="cs330ray-hosts-"))
    folder.chmod(0o711)  # PostgreSQL runs as another user
    made = Hosts(folder, names)
    try:
        yield made
    finally:
        made.end()
        left = _until_none_of(folder)
        shutil.rmtree(folder)
        assert left == []
        assert _outside() == before


def _outside() -> dict[str, Any]:
    """What hosts might leave behind: interfaces, names of networks, mounts."""
    return {
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "networks": sorted(path.name for path in Path("/run/netns").glob("*")),
        "mounts": Path("/proc/self/mounts").read_text(),
    }


def _until_none_of(folder: Path, seconds: float = 20) -> list[str]:
    """Wait until no process mentions a folder; the command lines of those that still do."""
    until = time.monotonic() + seconds
    while (found := _mentioning(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _mentioning(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (process / "environ").read_bytes().decode(errors="replace")
            if str(folder) in words + environment:
                found.append(words)
    return found
