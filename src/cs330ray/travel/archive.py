"""The file in which a study travels: a zip without compression, whose manifest says the size and digest of all in it.

manifest.json                                         `Manifest`: the form, who packed what, and the members
study.json                                            the study, as the ledger holds it
optuna.jsonl, trials.jsonl, tables/NAME.jsonl         what is recorded of it, see `record`
files/checkpoints/CELL/trial-00003/step-00000120/...  the checkpoints that are kept, logs beside them
files/report/...                                      the report, if there is one

Nothing in it is run. It is not compressed, so that it unpacks to no more than its own size. What a stranger made is
read within these bounds: each name stays in the folder, each size is declared, each digest fits.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cs330ray import files, package
from cs330ray.checkpoints.copies import is_within
from cs330ray.clock import wall_s
from cs330ray.errors import DataError, SpecError
from cs330ray.ledger.records import Asking
from cs330ray.words import first_line, short

MANIFEST, STUDY, OPTUNA, TRIALS = "manifest.json", "study.json", "optuna.jsonl", "trials.jsonl"
FILES, TABLES = "files/", "tables/"
FORM = 2  # 1 does not say how the study asks
LINE_BYTES = 1 << 26
CHUNK_BYTES = 1 << 20
DEEPEST = 24  # folders within each other
DAMAGE = (  # all that zipfile answers a torn file with
    zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error,
)  # fmt: skip


class Member(BaseModel):
    """What the manifest says of one member."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What `manifest.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["cs330ray study"] = "cs330ray study"
    form: int = FORM
    cs330ray: str  # the version that packed it
    study: str
    asking: Asking = "own"  # how it asks; all that were packed in form 1 ask each cell for itself
    packed_s: float  # since the epoch
    members: dict[str, Member]


# Writing ------------------------------------------------------------------------------------------------------------


class Packing:
    """A file under way."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members: dict[str, Member] = {}

    def lines(self, name: str, values: Iterable[object]) -> None:
        """Add a member that holds a value of JSON on each line."""
        self._add(name, (f"{json.dumps(value)}\n".encode() for value in values))

    def file(self, name: str, opened: IO[bytes]) -> None:
        """Add what is left of an open file. Raises DataError where that cannot be read, or cannot have its name."""
        if not _is_ours(name):
            raise DataError(f"{name}: expected a file name of printable characters, got {short(name)}; rename it")
        self._add(name, _chunks(opened))

    def end(self, study: str, asking: Asking) -> None:
        """Add the manifest."""
        manifest = Manifest(
            cs330ray=package.VERSION, study=study, asking=asking, packed_s=wall_s(), members=self._members
        )
        self._archive.writestr(MANIFEST, manifest.model_dump_json(indent=1))

    def _add(self, name: str, chunks: Iterable[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with self._archive.open(name, "w", force_zip64=True) as member:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                member.write(chunk)
        self._members[name] = Member(bytes=size, sha256=digest.hexdigest())


def _chunks(opened: IO[bytes]) -> Iterator[bytes]:
    """Read an open file to its end, in parts."""
    while True:
        try:
            chunk = opened.read(CHUNK_BYTES)
        except OSError as error:  # which does not say of which file
            raise _unreadable(opened.name, error) from None
        if not chunk:
            return
        yield chunk


def _unreadable(name: object, error: OSError) -> DataError:
    return DataError(f"{name}: expected a file that can be read, but {error.strerror or error}; nothing was packed")


@contextmanager
def packing(final: Path) -> Iterator[Packing]:
    """Make the file `final`, whole or not at all.

    Raises SpecError where it is there already or cannot be written, DataError where another file is at fault.
    """
    own: set[object] = {None, str(final), str(final.parent)}  # what an error of writing says that it is about
    try:
        if final.exists() or final.is_symlink():
            raise SpecError(f"-o {final}: expected the name of a new file, but it exists; name another, or remove it")
        with files.new_file(final) as partial:
            own.add(str(partial))
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                yield Packing(archive)
    except OSError as error:
        name = None if error.filename is None else os.fsdecode(error.filename)
        if name not in own:
            raise _unreadable(name, error) from None
        raise SpecError(f"-o {final}: expected a file that can be written, but {error.strerror or error}") from None


# Reading ------------------------------------------------------------------------------------------------------------


class Arrived:
    """A file whose members are all as the manifest says."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._archive = archive

    @property
    def members(self) -> Mapping[str, Member]:
        """What the manifest says of each member, but of itself."""
        return self.manifest.members

    def lines(self, name: str) -> Iterator[Any]:
        """Read the values of a member, a line each. Raises DataError."""
        with self._archive.open(name) as member:
            while line := member.readline(LINE_BYTES + 1):
                if len(line) > LINE_BYTES:
                    raise refused(self.path, f"{name} has a line of more than {LINE_BYTES} bytes")
                yield _json(self.path, name, line)

    def extract(self, name: str, target: Path) -> None:
        """Write a member into a new file. Raises OSError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._archive.open(name) as member, target.open("xb") as file:
            while chunk := member.read(CHUNK_BYTES):
                file.write(chunk)


@contextmanager
def arrived(path: Path) -> Iterator[Arrived]:
    """Open a file that `packing` made, once every member is as its manifest says. Raises DataError."""
    with contextlib.ExitStack() as stack:
        try:
            if not path.is_file():
                raise refused(path, "that is no file" if path.exists() else "there is no such file")
            archive = stack.enter_context(zipfile.ZipFile(path))
            found = Arrived(path, archive, _verified(path, archive))
        except DAMAGE as error:
            raise refused(path, getattr(error, "strerror", None) or first_line(error)) from None
        yield found


def _verified(path: Path, archive: zipfile.ZipFile) -> Manifest:
    """Read every member once, and compare it with the manifest; the manifest. Raises DataError, or one of DAMAGE."""
    members = archive.infolist()
    _must_be_plain(path, members)
    manifest = _manifest(path, archive)
    if odd := {info.filename for info in members} - {MANIFEST} ^ set(manifest.members):
        raise refused(path, f"the manifest and the file differ in {short(min(odd))}")
    for name, told in manifest.members.items():
        if _measured(archive, name) != (told.bytes, told.sha256):
            raise refused(path, f"{short(name)} does not match its digest")
    return manifest


def refused(path: Path, why: str) -> DataError:
    """What a person reads of a file that is not as it was written."""
    return DataError(f"{path}: expected a whole file that `cs330ray pack` made, but {why}; nothing was unpacked")


def _must_be_plain(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what `packing` never writes, before anything is read of it. Raises DataError."""
    names = [info.filename for info in members]
    if len(set(names)) < len(names):
        raise refused(path, "two members have one name")
    if sum(info.file_size for info in members) > path.stat().st_size:
        raise refused(path, "its members are larger than the file itself")
    for info in members:
        name, kind = info.filename, info.external_attr >> 28
        plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 and kind in (0, 8)
        if not plain or info.compress_size != info.file_size:
            raise refused(path, f"{short(name)} is compressed, encrypted or no plain file")
        if not _is_ours(name):
            raise refused(path, f"{short(name)} is no name of a member")


def _is_ours(name: str) -> bool:
    if name in (MANIFEST, STUDY, OPTUNA, TRIALS) or re.fullmatch(rf"{TABLES}[a-z0-9_]{{1,64}}\.jsonl", name):
        return True
    inner = name.removeprefix(FILES)
    parts = PurePosixPath(inner).parts
    known = parts[:1] == ("report",) or (
        parts[:1] == ("checkpoints",) and bool(re.fullmatch(r"[0-9a-f]{12}/trial-\d{5,9}/.+", inner[12:]))
    )
    exact = inner != name and "/".join(parts) == inner and name.isprintable() and "\\" not in name
    return known and exact and 1 < len(parts) <= DEEPEST and is_within(inner)


def _manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    try:
        info = archive.getinfo(MANIFEST)
    except KeyError:
        raise refused(path, f"it has no {MANIFEST}") from None
    if info.file_size > LINE_BYTES:
        raise refused(path, f"its {MANIFEST} is too large")
    raw = _json(path, MANIFEST, archive.read(info))
    form = raw.get("form") if isinstance(raw, dict) else None
    if type(form) is int and form > FORM:
        version = short(raw.get("cs330ray"))
        raise DataError(
            f"{path}: expected form {FORM} or less, got {form}: cs330ray {version} made it; install that one"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise refused(path, f"{MANIFEST}: {short(place)}: {first['msg']}") from None


def _measured(archive: zipfile.ZipFile, name: str) -> tuple[int, str]:
    """The size and digest of a member; its checksum is checked on the way."""
    digest, size = hashlib.sha256(), 0
    with archive.open(name) as member:
        opened: IO[bytes] = member
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _json(path: Path, name: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(path, f"{name} holds what is no JSON ({first_line(error)[:80]})") from None
