"""A model as a directory: `cs330ray best --export` writes it whole or not at all, `cs330ray.load` makes it again.

DIR/model.safetensors   the weights alone; absent where nothing is trained
DIR/config.json         `Described`: the trainable, its full configuration, seed and steps, and what it noted
DIR/metrics.json        of which run the weights are, and what was promised, confirmed and tested
DIR/provenance.json     study, trial, data, code, versions and device
DIR/README.md           a card for people, who may change it
DIR/manifest.json       the sha256 of each file but the card

Nothing in it is run: tensors and JSON, and a configuration that the trainable's own `Config` must take.
"""

import hashlib
import json
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import cs330ray
from cs330ray import checkpoint
from cs330ray.checkpoint import Checkpoint, fsync
from cs330ray.errors import DataError, SpecError, first_line
from cs330ray.service import copies, objects, trainables
from cs330ray.service.ledger import Ledger, Trial
from cs330ray.service.objects import StoreFault
from cs330ray.spec import Study, short
from cs330ray.trial import Weights

TENSORS, CONFIG, METRICS, PROVENANCE, CARD = (
    "model.safetensors", "config.json", "metrics.json", "provenance.json", "README.md",
)  # fmt: skip
MANIFEST = "manifest.json"
JSON_BYTES = 1 << 24
PRIVATE = ("host", "nodes", "pid", "workers", "began_s")  # of a start: whose machines they were, and when


class Described(BaseModel):
    """What `config.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    form: Literal[1] = 1  # of the directory
    cs330ray: str  # the version that wrote it
    code: str | None  # the digest of the code that trained
    trainable: str
    config: dict[str, Any]
    seed: int
    steps: int = Field(ge=0)
    notes: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What is taken of one trial for a directory."""

    described: Described
    weights: Weights
    provenance: Mapping[str, Any]


# Writing -----------------------------------------------------------------------------------------------------------


def vacant(directory: Path) -> Path:
    """The place of a directory that is empty or not there. Raises SpecError where something is."""
    place = directory.expanduser().resolve()
    try:
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return place
        why = "it holds something" if place.is_dir() else "it is a file"
    except OSError as error:
        why = error.strerror or str(error)
    raise SpecError(f"--export {directory}: an empty or new directory is needed, but {why}; name another")


def take(ledger: Ledger, study: Study, run: Trial) -> Model:
    """Take what makes a model out of a trial's last checkpoint. Raises SpecError, DataError or CheckpointError."""
    trainable = trainables.load(run.cell.trainable)
    export = getattr(trainable, "export", None)
    if export is None:
        raise SpecError(
            f"{run.cell.trainable}: to be exported a trainable needs `export(config, seed, checkpoint)`, but this one "
            "has none; cs330ray.trial.Trainable says how"
        )
    config = trainables.configuration(trainable, run.cell, run.params)
    starts = ledger.attempts(study, run.cell, run.number)
    with _checkpoint(ledger, study, run) as held:
        weights = export(config, run.seed, held.path)
        steps = held.step
    last = starts[-1] if starts else {}
    described = Described(
        cs330ray=cs330ray.__version__,
        code=last.get("code"),
        trainable=run.cell.trainable,
        config=config.model_dump(mode="json"),
        seed=run.seed,
        steps=steps,
        notes=dict(weights.notes),
    )
    provenance = {
        "study": study.name,
        "study_digest": study.digest,
        "cell": run.cell.title,
        "trial": run.number,
        "fresh": run.cell.fresh,
        "data": last.get("data"),
        "code": last.get("code"),
        "starts": [{key: told for key, told in start.items() if key not in PRIVATE} for start in starts],
    }
    return Model(described, weights, provenance)


def write(directory: Path, model: Model, metrics: Mapping[str, Any], card: str) -> None:
    """Write a model into an empty or new directory: under another name, then renamed. Raises SpecError."""
    final = vacant(directory)
    partial = final.with_name(f".partial-{final.name}-{uuid.uuid4().hex[:8]}")
    documents = {CONFIG: model.described.model_dump(), METRICS: metrics, PROVENANCE: model.provenance}
    try:
        partial.mkdir(parents=True)
        if model.weights.tensors:
            from safetensors.torch import save_file  # here: it brings torch

            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.weights.tensors.items()}
            save_file(tensors, partial / TENSORS)
        for name, document in documents.items():
            (partial / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        digests = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"files": digests}, indent=1) + "\n")
        (partial / CARD).write_text(card, encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            fsync(path)
        partial.rename(final)
        fsync(final.parent)
    except OSError as error:
        raise SpecError(
            f"--export {directory}: a directory that can be written is needed, but {error.strerror or error}; name "
            "another"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _checkpoint(ledger: Ledger, study: Study, run: Trial) -> Iterator[Checkpoint]:
    """A trial's last checkpoint, fetched from the store where it is. Raises SpecError, DataError or CheckpointError."""
    place = ledger.checkpoint(study, run.cell, run.number)
    which = f"{study.name}: trial {run.number} of {run.cell.searched.title}"
    if place is None:
        raise SpecError(
            f"{which}: its checkpoint is needed, but only the best {study.resources.keep} of a cell keep theirs "
            "(resources.keep), and runs of confirmation; let [confirm] take it in, or export another"
        )
    if "://" not in place:
        if not Path(place).is_dir():
            hosts = {str(start.get("host")) for start in ledger.attempts(study, run.cell, run.number)[-1:]}
            raise DataError(
                f"{which}: its checkpoint must be at {place}, where {' '.join(hosts) or 'a machine'} wrote it, but is "
                f"not to be seen here; export there, or run studies with {objects.VARIABLE} set"
            )
        yield checkpoint.read(Path(place))
        return
    with TemporaryDirectory(prefix="cs330ray-") as directory:
        try:
            url = objects.wanted()
            fetched = copies.fetched(place, Path(directory), objects.at(url) if url else None)
        except StoreFault as fault:
            raise DataError(
                f"{which}: its checkpoint at {place} must be readable, but {fault}; set {objects.VARIABLE} as the "
                "study had it"
            ) from None
        yield fetched


# Reading -----------------------------------------------------------------------------------------------------------


def load(directory: Path, trainable: str | None) -> Any:
    """Make the model of a directory. Raises DataError where it is not as it was written, else SpecError.

    Warns where other code trained it.
    """
    _verify(directory)
    described = _described(directory)
    name = _named(directory, described, trainable)
    module = trainables.load(name)
    make = getattr(module, "ready", None)
    if make is None:
        raise SpecError(
            f"{directory}: {name} has no `ready(config, exported)` to make a model; cs330ray.trial.Trainable says how"
        )
    try:
        config = trainables.validated(module, name, described.config)
        model = make(config, Weights(_tensors(directory), described.notes))
    except (SpecError, DataError) as error:
        raise type(error)(f"{directory}: {error}") from None
    if described.code is not None and described.code != (code := trainables.code_digest(name)):
        warnings.warn(
            f"{directory}: trained by other code (cs330ray {described.cs330ray}, code {described.code[:12]}) than is "
            f"here (cs330ray {cs330ray.__version__}, code {code[:12]}); answers may differ",
            stacklevel=3,
        )
    return model


def _verify(directory: Path) -> None:
    """Compare each file with its digest. Raises DataError."""
    names = (TENSORS, CONFIG, METRICS, PROVENANCE)
    manifest = _json(directory, MANIFEST)
    held = manifest.get("files")
    if not isinstance(held, dict) or not set(names[1:]) <= set(held) <= set(names):
        raise DataError(f"{directory}: {MANIFEST} must name the files of a model, but names others; export it anew")
    for name, digest in held.items():
        if not (directory / name).is_file() or _sha256(directory / name) != digest:
            raise DataError(f"{directory}: {name} must match its digest, but is missing or altered; export it anew")


def _described(directory: Path) -> Described:
    try:
        return Described.model_validate(_json(directory, CONFIG))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{directory}: {CONFIG}: {place}: {trainables.said(first)}; export it anew, with the version here"
        ) from None


def _named(directory: Path, described: Described, trainable: str | None) -> str:
    """The trainable: one of the package, or one that the caller names. A directory's word imports nothing else."""
    if trainable is None and described.trainable not in trainables.names():
        raise SpecError(
            f"{directory}: its trainable {short(described.trainable)} is none of the package's, and importing it runs "
            "its code; if you trust that, say cs330ray.load(DIR, trainable=...) with its name"
        )
    if trainable is not None and trainable != described.trainable:
        raise SpecError(f"{directory}: the trainable is {short(described.trainable)}, but got {short(trainable)}")
    return described.trainable


def _tensors(directory: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # here: it brings torch

    if not (directory / TENSORS).is_file():
        return {}
    try:
        return dict(load_file(directory / TENSORS))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{TENSORS}: tensors are needed, but {first_line(error)}; export it anew") from None


def _json(directory: Path, name: str) -> dict[str, Any]:
    """Read a JSON object. Raises DataError."""
    path = directory / name
    try:
        if not path.is_file() or path.stat().st_size > JSON_BYTES:
            raise ValueError("it is no file, or too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{directory}: a directory that `cs330ray best --export` wrote is needed, but of {name}: {error}"
        ) from None
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
