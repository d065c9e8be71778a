"""Preflight: whether a node of a cluster may run trials: each says on what, and one that differs gets none.

Every node is asked when it joins. A trial that is quicker asks for itself before it begins (`gate`), so that none ever
runs on a node that differs.
"""

import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cs330ray.errors import SpecError, StudyError
from cs330ray.service.machines.fitness import difference, facts, versions
from cs330ray.service.machines.machine import Machine
from cs330ray.service.messages import Facts
from cs330ray.spec.study import Study, first_values
from cs330ray.words import first_line

LOOK_S = 5.0
PATIENCE_S = 600.0  # for the first nodes: data may have to be packed
UNFIT_ALLOWED = 3  # nodes that come for trials and differ, before any that does not


class Nodes:
    """The nodes of a cluster, as they come and go, and which of them differ."""

    def __init__(self, study: Study, home: Path, data: Mapping[str, str], says: Callable[[str], None]) -> None:
        self._study, self._home, self._says = study, home, says
        self.wanted = Facts(platform.python_version(), versions(), "", 0, data)  # what the head has
        self.unfit: dict[str, str] = {}  # why, by node
        self._asked: dict[str, Any] = {}  # Ray's promises, by node
        self._known: set[str] = set()
        self._looked_s = -math.inf
        self._none_since_s: float | None = None
        self._room = 0
        self._any_fit = False
        self._had_gpus = False  # among the nodes that were here at first, unfit ones too

    def meet(self) -> None:
        """Wait for what the nodes that are here say. Raises SpecError where none may run trials and none will come."""
        self._had_gpus = bool(Machine.here().gpus)
        self._ask()
        ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=PATIENCE_S) if self._asked else None
        self._hear()
        machine = self.machine()
        if self.unfit and not machine.waits(self._study) and not machine.fitting(self._study):
            raise SpecError(f"{self._study.name}: no node may run its trials: {self._first_reason()}")

        self._room = machine.room(self._study)

    def look(self) -> None:
        """Ask nodes that have joined, and hear what they say. Raises StudyError where no node is left."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        self._ask()
        self._hear()
        machine = self.machine()
        self._tell_of_waiting(machine)
        self._room = machine.room(self._study)

    def exclude(self, node: str, why: str) -> None:
        """Give a node no more trials."""
        if node not in self.unfit:
            self.unfit[node] = why
            self._says(f"{self._study.name}: node {_address(node)} gets no trials: {why}")

    def machine(self) -> Machine:
        """The nodes that are here and fit; one with GPUs that has left or is unfit makes no trial do without."""
        return replace(Machine.here(self.unfit), had_gpus=self._had_gpus)

    def live(self) -> set[str]:
        """The nodes that Ray knows to be alive; of one that has just died it hears some seconds later."""
        return {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}

    def room(self) -> int:
        """How many trials may be under way, as of the last look."""
        return self._room

    def _ask(self) -> None:
        """Ask every node that is new, on that node; what holds nothing runs no trials and is not asked."""
        for node in ray.nodes():
            key = node["NodeID"]
            cpus, gpus = (node["Resources"].get(name, 0) for name in ("CPU", "GPU"))
            if not node["Alive"] or not (cpus or gpus) or key in self._known:
                continue
            self._known.add(key)
            there = NodeAffinitySchedulingStrategy(key, soft=False)
            asks = ray.remote(num_cpus=0, max_retries=1, scheduling_strategy=there)(facts)
            self._asked[key] = asks.remote(
                preparations(self._study), str(self._home), has_gpu=gpus > 0, command=self._study.command
            )

    def _hear(self) -> None:
        for key in list(self._asked):
            done, _ = ray.wait([self._asked[key]], timeout=0)
            if not done:
                continue
            try:
                found: Facts = ray.get(self._asked.pop(key))
            except ray.exceptions.RayError as error:  # it left, or its Python cannot even run this
                if key in self.live():
                    self.exclude(key, f"it could not say what it has: {first_line(error)}; see its logs")
                continue
            if found.cuda not in ("", "none") and not self.wanted.cuda:
                self.wanted = replace(self.wanted, cuda=found.cuda)
            why = difference(found, self.wanted)
            if why is not None:
                self.exclude(key, why)
            else:
                self._any_fit = True
                self._says(f"{self._study.name}: node {_address(key)} joins: {_in_words(found)}")

    def _tell_of_waiting(self, machine: Machine) -> None:
        """Say, once each time, that there is nowhere to run. Raises StudyError where that will not change."""
        if machine.fitting(self._study):
            self._none_since_s = None
            return
        wrong = len(self.unfit) >= UNFIT_ALLOWED and not self._any_fit  # more of them would come, and cost, for ever
        if self.unfit and (wrong or not machine.waits(self._study)):
            raise StudyError(f"{self._study.name}: no node is left that may run its trials: {self._first_reason()}")
        if self._none_since_s is None:
            self._none_since_s = time.monotonic()
            wanted, gpus = self._study.resources, machine.gpus_per_worker(self._study)
            many = f"{wanted.workers} times " if wanted.workers > 1 else ""
            on = f"{gpus:g} GPU and {wanted.cpus:g} CPU" if gpus else f"{wanted.cpus:g} CPU"
            self._says(f"{self._study.name}: waits for nodes: a trial needs {many}{on}, and none here has that free")

    def _first_reason(self) -> str:
        node, why = next(iter(self.unfit.items()))
        return f"node {_address(node)}: {why}"


def preparations(study: Study) -> dict[str, tuple[str, dict[str, Any]]]:
    """By cell what its data are prepared for: trainable and configuration."""
    return {cell.key: (cell.trainable, {**cell.fixed, **first_values(cell)}) for cell in study.cells}


def _address(key: str) -> str:
    return next((str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == key), key[:12])


def _in_words(found: Facts) -> str:
    torch = f"torch {found.versions.get('torch', 'not there')}" + (f" for CUDA {found.cuda}" if found.cuda else "")
    return f"Python {found.python}, {torch}, {found.free_bytes / 1024**3:.0f} GiB free"
