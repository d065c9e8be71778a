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
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cs330ray import package
from cs330ray.errors import DataError, SpecError
from cs330ray.trial import declared, named
from cs330ray.trial.contract import Weights
from cs330ray.words import first_line, short

TENSORS, CONFIG, METRICS, PROVENANCE, CARD = (
    "model.safetensors", "config.json", "metrics.json", "provenance.json", "README.md",
)  # fmt: skip
MANIFEST = "manifest.json"
JSON_BYTES = 1 << 24


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


def load(directory: Path, trainable: str | None, base: str | None = None) -> Any:
    """Make the model of a directory, on top of `base` in place of the pre-trained model that its config names.

    Raises DataError where it is not as it was written, else SpecError. Warns where other code trained it.
    """
    _verify(directory)
    described = _described(directory)
    name = _named(directory, described, trainable)
    module = named.load(name)
    make = getattr(module, "ready", None)
    if make is None:
        raise SpecError(
            f"{directory}: {name} has no `ready(config, exported)` to make a model; cs330ray.trial.Trainable says how"
        )
    try:
        config = named.validated(module, name, described.config | _on_top_of(base, described))
        model = make(config, Weights(_tensors(directory), described.notes))
    except (SpecError, DataError) as error:
        raise type(error)(f"{directory}: {error}") from None
    if described.code is not None and described.code != (code := named.code_digest(name)):
        warnings.warn(
            f"{directory}: trained by other code (cs330ray {described.cs330ray}, code {described.code[:12]}) than is "
            f"here (cs330ray {package.VERSION}, code {code[:12]}); answers may differ",
            stacklevel=3,
        )
    return model


def _on_top_of(base: str | None, described: Described) -> dict[str, str]:
    """What changes in a configuration where its pre-trained model is elsewhere: `ready` compares the digest."""
    if base is None:
        return {}
    if "base_digest" not in described.notes or "model" not in described.config:
        raise SpecError(
            f"base: expected a model that was trained on top of another, got none below it; leave out {base!r}"
        )
    return {"model": base}


def _verify(directory: Path) -> None:
    """Compare each file with its digest. Raises DataError."""
    names = (TENSORS, CONFIG, METRICS, PROVENANCE)
    manifest = _json(directory, MANIFEST)
    held = manifest.get("files")
    if not isinstance(held, dict) or not set(names[1:]) <= set(held) <= set(names):
        raise DataError(f"{directory}: {MANIFEST} must name the files of a model, but names others; export it anew")
    for name, digest in held.items():
        try:
            same = (directory / name).is_file() and sha256(directory / name) == digest
        except OSError as error:
            raise DataError(f"{directory}: {name} must be readable, but {error.strerror or error}; mend that") from None
        if not same:
            raise DataError(f"{directory}: {name} must match its digest, but is missing or altered; export it anew")


def _described(directory: Path) -> Described:
    try:
        return Described.model_validate(_json(directory, CONFIG))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{directory}: {CONFIG}: {place}: {declared.said(first)}; export it anew, with the version here"
        ) from None


def _named(directory: Path, described: Described, trainable: str | None) -> str:
    """The trainable: one of the package, or one that the caller names. A directory's word imports nothing else."""
    if trainable is None and described.trainable not in named.names():
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


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
