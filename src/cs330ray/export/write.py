"""Taking a model out of a study: a trial's last checkpoint, wherever it lies, as a directory for `cs330ray.load`."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cs330ray import files, package
from cs330ray.checkpoints import copies, local, store
from cs330ray.checkpoints.local import Checkpoint
from cs330ray.checkpoints.store import StoreFault
from cs330ray.errors import CheckpointError, DataError, SpecError
from cs330ray.export.directory import CARD, CONFIG, MANIFEST, METRICS, PROVENANCE, TENSORS, Described, sha256
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Kept, Trial
from cs330ray.spec.study import Study
from cs330ray.trial import named
from cs330ray.trial.contract import Weights
from cs330ray.words import first_line, short

PRIVATE = ("host", "nodes", "pid", "workers", "began_s")  # of a start: whose machines they were, and when


@dataclass(frozen=True)
class Model:
    """What is taken of one trial for a directory."""

    described: Described
    weights: Weights
    provenance: Mapping[str, Any]


def vacant(directory: Path) -> Path:
    """The place of a directory that is empty or not there. Raises SpecError where something is."""
    try:
        place = directory.expanduser().resolve()
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return place
        why = "it holds something" if place.is_dir() else "it is a file"
    except (OSError, RuntimeError) as error:  # a RuntimeError where `~` names nobody, or links lead in a circle
        why = getattr(error, "strerror", None) or first_line(error)
    raise SpecError(f"--export {directory}: an empty or new directory is needed, but {why}; name another")


def take(ledger: Ledger, study: Study, run: Trial) -> Model:
    """Take what makes a model out of a trial's last checkpoint. Raises SpecError, DataError or CheckpointError."""
    trainable = named.of(run.cell)
    export = getattr(trainable, "export", None)
    if export is None:
        raise SpecError(
            f"{run.cell.trainable}: to be exported a trainable needs `export(config, seed, checkpoint)`, but this one "
            "has none; cs330ray.trial.Trainable says how"
        )
    starts = ledger.attempts(study, run.cell, run.number)
    before = starts[-1].get("config") if starts else None
    config = named.as_recorded(trainable, run.cell.trainable, {**run.cell.fixed, **run.params}, before)
    with _checkpoint(ledger, study, run) as held:
        weights = export(config, run.seed, held.path)
        steps = held.step
    if not isinstance(weights, Weights):
        raise SpecError(
            f"{run.cell.trainable}: `export` must answer a cs330ray.trial.Weights, but answered {short(weights)}"
        )
    last = starts[-1] if starts else {}
    described = Described(
        cs330ray=package.VERSION,
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
        "replicate": run.cell.replicate,
        "trial": run.number,
        "fresh": run.cell.fresh,
        "data": last.get("data"),
        "code": last.get("code"),
        "starts": [{key: told for key, told in start.items() if key not in (*PRIVATE, "config")} for start in starts],
    }
    return Model(described, weights, provenance)


def write(directory: Path, model: Model, metrics: Mapping[str, Any], card: str) -> None:
    """Write a model into an empty or new directory: under another name, then renamed. Raises SpecError."""
    from safetensors import SafetensorError

    final = vacant(directory)
    try:
        files.make_directory(final, lambda partial: _fill(partial, model, metrics, card))
    except (OSError, SafetensorError) as error:  # the latter too where a disk is full
        why = getattr(error, "strerror", None) or first_line(error)
        raise SpecError(
            f"--export {directory}: a directory that can be written is needed, but {why}; name another"
        ) from None
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(
            f"{model.described.trainable}: `export` must answer tensors by name, and notes as JSON has them, but "
            f"{first_line(error)}; cs330ray.trial.Trainable says how"
        ) from None


def _fill(partial: Path, model: Model, metrics: Mapping[str, Any], card: str) -> None:
    documents = {CONFIG: model.described.model_dump(), METRICS: metrics, PROVENANCE: model.provenance}
    if model.weights.tensors:
        from safetensors.torch import save_file  # here: it brings torch

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.weights.tensors.items()}
        save_file(tensors, partial / TENSORS)
    for name, document in documents.items():
        (partial / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if model.weights.tensors:  # which safetensors keeps for its owner alone
        (partial / TENSORS).chmod((partial / CONFIG).stat().st_mode)
    digests = {path.name: sha256(path) for path in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps({"files": digests}, indent=1) + "\n")
    (partial / CARD).write_text(card, encoding="utf-8")


@contextmanager
def _checkpoint(ledger: Ledger, study: Study, run: Trial) -> Iterator[Checkpoint]:
    """A trial's last checkpoint, fetched from the store where it is. Raises SpecError, DataError or CheckpointError."""
    kept = ledger.kept(study, run.cell, run.number)
    which = f"{study.name}: trial {run.number} of {run.cell.label}"
    if kept is None:
        raise SpecError(
            f"{which}: its checkpoint is needed, but only the best {study.resources.keep} of a cell keep theirs "
            "(resources.keep), and runs of confirmation; let [confirm] take it in, or export another"
        )
    place = kept.path
    if "://" not in place:
        if not os.path.isdir(place):  # noqa: PTH112 - False where it may not be seen
            hosts = {str(start.get("host")) for start in ledger.attempts(study, run.cell, run.number)[-1:]}
            raise DataError(
                f"{which}: its checkpoint must be at {place}, where {' '.join(hosts) or 'a machine'} wrote it, but is "
                f"not to be seen here; export there, or run studies with {store.VARIABLE} set"
            )
        yield _as_recorded(which, kept, local.read(Path(place)))
        return
    with TemporaryDirectory(prefix="cs330ray-") as directory:
        try:
            url = store.wanted()
            fetched = copies.fetched(place, Path(directory), store.at(url) if url else None)
        except StoreFault as fault:
            raise DataError(
                f"{which}: its checkpoint at {place} must be readable, but {fault}; set {store.VARIABLE} as the "
                "study had it"
            ) from None
        yield _as_recorded(which, kept, fetched)


def _as_recorded(which: str, kept: Kept, found: Checkpoint) -> Checkpoint:
    """The checkpoint itself, if it is the one that was recorded: one of another ledger may lie whole in its place."""
    if (found.step, found.digest) != (kept.step, kept.digest):
        raise CheckpointError(
            f"{which}: its checkpoint at {kept.path} must be the recorded one (step {kept.step}, digest "
            f"{kept.digest[:12]}), but it is another (step {found.step}, digest {found.digest[:12]}); put that one "
            "back, or export another"
        )
    return found
