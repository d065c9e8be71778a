"""Copies of checkpoints in a store, which outlive the machine that made them: whole or absent there too.

ADDRESS/NAME/STUDY                                          of a study, under the name that its ledger keeps for it
ADDRESS/NAME/CELL/trial-00003/step-00000120/                what the checkpoint's directory holds,
ADDRESS/NAME/CELL/trial-00003/step-00000120/MANIFEST.json   and, written last, its manifest, to the byte

The store is what counts: on the disk lies what the trial under way here needs.
"""

import contextlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cs330ray.checkpoints import local
from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.local import MANIFEST, MANIFEST_BYTES, Checkpoint
from cs330ray.checkpoints.store import Store, StoreFault
from cs330ray.errors import CheckpointError

MARK = "STUDY"
STEP = re.compile(r"step-(\d{8,18})")
LONGEST_NAME = 255
BEGUN = "begun"  # beside a trial's checkpoints, the one of another trial that it began at


class Copies:
    """The copies of one trial's checkpoints, in `place` of a store. Raises StoreFault where that is at fault."""

    def __init__(self, store: Store, place: str) -> None:
        self.store, self._place = store, place
        self._refused: set[int] = set()  # the steps of which the copy is not what its manifest says
        self._safe: int | None = None  # up to this step nothing on the disk is needed any more

    def address(self, step: int) -> str:
        """Where the copy of a checkpoint lies, without credentials."""
        return f"{self.store.address}/{self._folder(step)}"

    def holds(self, address: str) -> bool:
        """Whether it is the address of one of them."""
        return address.startswith(f"{self.store.address}/{self._place}/")

    def take_up(self, home: Path, recorded_step: int) -> Checkpoint | None:
        """The newest whole checkpoint of the disk and the store, on both by now; None where there is none.

        Those beyond `recorded_step` are removed: what the record does not hold has not happened.
        """
        must_be_seen(self.store, PurePosixPath(self._place).parts[0])
        held = self._held()
        for step in [step for step in held if step > recorded_step]:
            self._remove(step, held.pop(step))
        here = local.newest(home)
        there = sorted((step for step, files in held.items() if MANIFEST in files), reverse=True)
        for step in there:
            if here is not None and step <= here.step:
                break
            try:
                here = self.fetch(step, home)
            except CheckpointError:
                self._refused.add(step)
            else:
                break
        if here is not None and here.step not in there:
            self.push(here, keep=2)
        self._safe = here.step if here is not None else self._safe
        return here

    def push(self, written: Checkpoint, keep: int) -> None:
        """Copy a whole checkpoint to the store, and keep the `keep` newest there; nothing is done twice."""
        held = self._held()
        there = held.get(written.step, {})
        files = {path.relative_to(written.path).as_posix(): path for path in written.path.rglob("*") if path.is_file()}
        if written.step in self._refused or not self._is_there(written.step, files, there):
            if MANIFEST in there:  # of other files than will lie there
                self.store.remove(f"{self._folder(written.step)}/{MANIFEST}")
            for name in sorted(files, key=lambda name: (name == MANIFEST, name)):
                self.store.upload(files[name], f"{self._folder(written.step)}/{name}")
            self._refused.discard(written.step)
        self._safe = written.step
        older = sorted(step for step in held if step < written.step)
        whole = [step for step in older if MANIFEST in held[step] and step not in self._refused]
        stay = whole[max(len(whole) - (keep - 1), 0) :]
        with contextlib.suppress(OSError):  # the copy is safe; the next one clears up
            for step in [step for step in older if step not in stay]:
                self._remove(step, held[step])

    def fetch(self, step: int, home: Path) -> Checkpoint:
        """Copy a checkpoint of the store under `home`; it. Raises CheckpointError where it is not whole there."""
        folder = self._folder(step)
        files = self._manifest(step)

        def save(into: Path) -> None:
            for name, digest in files.items():
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                with (into / name).open("xb") as file:
                    received = self.store.download(f"{folder}/{name}", file)
                if received != digest:
                    raise CheckpointError(
                        f"{self.address(step)}: {name} must match its digest, but it is altered; use another checkpoint"
                    )

        try:
            return local.write(home, step, save)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise CheckpointError(
                f"{self.address(step)}: each file must be there, but {error}; use another checkpoint"
            ) from None
        except StoreFault:
            raise
        except OSError as error:
            raise StoreFault(f"{home}: {error.strerror or error}") from None

    def clear(self, home: Path) -> None:
        """Remove the checkpoints on the disk, if the store has the newest."""
        shutil.rmtree(home / BEGUN, ignore_errors=True)
        if self._safe is not None:
            safe = home / local.name_of(self._safe)
            if all(path <= safe for path in home.glob("step-*")):
                local.remove(home)

    def remove(self) -> None:
        """Remove all copies of the trial."""
        must_be_seen(self.store, PurePosixPath(self._place).parts[0])
        for step, files in self._held().items():
            if MANIFEST in files:  # at no moment is there half of a checkpoint
                self.store.remove(f"{self._folder(step)}/{MANIFEST}")
        self.store.remove(self._place)

    def _folder(self, step: int) -> str:
        return f"{self._place}/{local.name_of(step)}".lstrip("/")

    def _held(self) -> dict[int, dict[str, int]]:
        """The files of each step, with their sizes; only those with a manifest may be whole."""
        found: dict[int, dict[str, int]] = defaultdict(dict)
        for name, size in self.store.files(self._place).items():
            folder, _, file = name.partition("/")
            if file and (step := STEP.fullmatch(folder)):
                found[int(step[1])][file] = size
        return dict(found)

    def _is_there(self, step: int, files: Mapping[str, Path], there: Mapping[str, int]) -> bool:
        """Whether the store holds just these files: by their sizes, and by the digests in the manifest."""
        if {name: path.stat().st_size for name, path in files.items()} != there:
            return False
        return self.store.read(f"{self._folder(step)}/{MANIFEST}", MANIFEST_BYTES) == files[MANIFEST].read_bytes()

    def _remove(self, step: int, files: Mapping[str, int]) -> None:
        """Remove the copy of a checkpoint, first of all its manifest: at no moment is there half of one."""
        if MANIFEST in files:
            self.store.remove(f"{self._folder(step)}/{MANIFEST}")
        self.store.remove(self._folder(step))

    def _manifest(self, step: int) -> dict[str, str]:
        """The digest of each file of a copy, by name. Raises CheckpointError where that cannot be."""
        try:
            manifest = json.loads(self.store.read(f"{self._folder(step)}/{MANIFEST}", MANIFEST_BYTES))
            files = manifest["files"]
            if manifest["step"] != step or not isinstance(files, dict) or not all(map(is_within, files)):
                raise ValueError("it is of another step, or names what cannot lie there")
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.address(step)}: a checkpoint holds a {MANIFEST}, but this one cannot be read ({error}); "
                "use another"
            ) from None
        return files


def mark(store: Store, name: str) -> None:
    """Leave what a machine must see of a study's folder before it takes it for the same one. Raises StoreFault."""
    if not store.has(f"{name}/{MARK}"):
        store.write(f"{name}/{MARK}", name.encode())


def must_be_seen(store: Store, name: str) -> None:
    """Check that this is the store in which a study was marked: a disk that is not mounted is empty. StoreFault."""
    if not store.has(f"{name}/{MARK}"):
        raise StoreFault(f"{store.address}: what the driver wrote is not seen here: there is no {name}/{MARK}")


def fetched(address: str, home: Path, store: Store | None = None) -> Checkpoint:
    """Copy the checkpoint that the ledger names `address` under `home`; it. Raises CheckpointError, StoreFault.

    One that does not lie in `store` is looked for by what its address says alone.
    """
    folder, _, name = address.rpartition("/")
    step = STEP.fullmatch(name)
    if step is None:
        raise CheckpointError(f"{address}: the address of a checkpoint ends in its step; see `cs330ray show`")
    if store is not None and folder.startswith(f"{store.address}/"):
        return Copies(store, folder.removeprefix(f"{store.address}/")).fetch(int(step[1]), home)
    try:
        return Copies(stores.at(folder), "").fetch(int(step[1]), home)
    except StoreFault as fault:
        raise CheckpointError(f"{address}: the checkpoint must be readable, but {fault}; use another") from None


def is_within(name: str) -> bool:
    """Whether a file of this name can lie in the directory of a checkpoint."""
    parts = PurePosixPath(name).parts
    short = all(len(part.encode()) <= LONGEST_NAME for part in parts)
    return bool(parts) and short and not name.startswith("/") and "\0" not in name and ".." not in parts
