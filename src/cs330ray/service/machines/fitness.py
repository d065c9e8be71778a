"""Whether a node is fit to run trials: its versions, its data, its CUDA and its disk."""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ray

from cs330ray.errors import Cs330rayError, NodeUnfit
from cs330ray.quiet import quiet
from cs330ray.service.messages import Assignment, Facts
from cs330ray.spec.command import Command
from cs330ray.trial import named
from cs330ray.trial.environment import Told, reason_of

COMPARED = ("ray", "torch", "numpy", "safetensors", "transformers", "peft", "accelerate")


LEAST_FREE_BYTES = 1024**3


def facts(
    prepares: Mapping[str, tuple[str, Mapping[str, Any]]], home: str, *, has_gpu: bool, command: Command | None = None
) -> Facts:
    """On what this node would run trials; prepares the data of each cell, see `preparations`."""
    quiet()
    data = {key: _data(*cell, command) for key, cell in prepares.items()}
    cuda = _cuda() if has_gpu else ""
    return Facts(platform.python_version(), versions(), cuda, _free_bytes(Path(home)), data)


@cache
def versions() -> dict[str, str]:
    """The versions of what trials depend on, as installed here."""
    found = {}
    for name in COMPARED:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]  # what follows says for which accelerator
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def difference(found: Facts, wanted: Facts) -> str | None:
    """Why a node cannot run trials as they are wanted, in words; None where it can."""
    for name, version in {"python": wanted.python, **wanted.versions}.items():
        here = found.python if name == "python" else found.versions.get(name, "not there")
        if here != version:
            return f"{name} must be {version}, but is {here}; install that version there"
    for key, digest in wanted.data.items():
        if found.data.get(key) != digest:
            return f"its data must be those of the head ({digest[:12]}), but {found.data.get(key)}; put the same there"
    if found.free_bytes < LEAST_FREE_BYTES:
        return f"1 GiB must be free for checkpoints, but {found.free_bytes / 1024**3:.2f} GiB are; make room there"
    if found.cuda == "none":
        return "there is a GPU, but its torch was built without CUDA; install one with it there"
    if wanted.cuda and found.cuda and found.cuda != wanted.cuda:
        return f"CUDA must be {wanted.cuda} as on the first node with a GPU, but is {found.cuda}; install that torch"
    return None


def gate(assignment: Assignment) -> None:
    """Raise NodeUnfit where a trial of a cluster stands on a node that differs from what the trial's terms demand."""
    terms = assignment.terms
    if terms.node is None:
        return
    wanted, prepares = terms.node.facts, terms.node.prepares
    command = terms.node.command.model_dump_json() if terms.node.command is not None else ""
    data = {key: _data_once(assignment.trainable, key, json.dumps(config), command) for key, config in prepares.items()}
    cuda = _cuda() if terms.gpus else ""
    here = Facts(platform.python_version(), versions(), cuda, _free_bytes(terms.home), data)
    why = difference(here, replace(wanted, data={key: wanted.data[key] for key in data}))
    if why is not None:
        raise NodeUnfit(ray.get_runtime_context().get_node_id(), why)


def _data(trainable: str, config: Mapping[str, Any], command: Command | None) -> str:
    """The digest of the data, prepared on this node; or what is wrong with them."""
    with Told() as told:
        try:
            module = named.load(trainable, command, frozenset(config))
            return named.prepared(module, trainable, named.validated(module, trainable, config))
        except Cs330rayError as error:
            return f"they cannot be had: {error}"
        except BaseException as error:  # of a trainable of somebody's
            if told():
                raise
            return f"they cannot be had: {reason_of(error)}"


@cache
def _data_once(trainable: str, key: str, config: str, command: str) -> str:  # noqa: ARG001 - its config does not tell a cell
    return _data(trainable, json.loads(config), Command.model_validate_json(command) if command else None)


def _cuda() -> str:
    """The CUDA that torch was built for; without it, a GPU is of no use."""
    import torch

    return str(torch.version.cuda or "none")


def _free_bytes(home: Path) -> int:
    """What is free where `home` is, or will be."""
    while not home.exists():
        home = home.parent
    return shutil.disk_usage(home).free
