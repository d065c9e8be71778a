"""What there is to run trials on, and how many fit at once."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass

import ray

from cs330ray.errors import SpecError
from cs330ray.quiet import cluster_address
from cs330ray.spec.study import Study


@dataclass(frozen=True)
class Machine:
    """What there is to run trials on: this machine, or the nodes of a cluster."""

    nodes: tuple[tuple[float, float], ...]  # CPUs and GPUs of each
    joined: bool = False  # a cluster at RAY_ADDRESS, whose nodes come and go
    had_gpus: bool = False  # a cluster that has lost them: they are waited for

    @classmethod
    def here(cls, without: Collection[str] = ()) -> "Machine":
        """This machine, as far as this process may use it; or the cluster that was joined, `without` some nodes."""
        if ray.is_initialized():
            live = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
            found = [(float(node["Resources"].get("CPU", 0)), float(node["Resources"].get("GPU", 0))) for node in live]
            return cls(tuple(found), joined=cluster_address() is not None)
        import torch

        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(((float(cpus), float(torch.cuda.device_count())),))

    @property
    def cpus(self) -> float:
        """All there are."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """All there are."""
        return sum(gpus for _, gpus in self.nodes)

    def waits(self, study: Study) -> bool:
        """Whether nodes are still to come: a cluster scales up to the slots that the study names."""
        return self.joined and study.resources.slots is not None

    def gpus_per_worker(self, study: Study) -> float:
        """What a trial, or each of its workers, gets: what it asks for where there are GPUs or will be, else 0."""
        return study.resources.gpus if self.gpus or self.had_gpus or self.waits(study) else 0.0

    def slots(self, study: Study) -> int:
        """How many trials run at once at the most. Raises SpecError where not even one can."""
        wanted, gpus = study.resources, self.gpus_per_worker(study)
        if self.waits(study):
            assert wanted.slots is not None
            return wanted.slots
        if wanted.require_gpu and not self.gpus:
            raise SpecError(f"{study.name}: resources.require_gpu: a GPU is needed, but there is none; set it to false")
        if study.budget.cap is not None and study.budget.cap.of == "gpu" and not gpus:
            raise SpecError(
                f"{study.name}: budget.cost: expected GPUs to count, but there are none here, got "
                f"{study.budget.cost!r}; write cpu-hours"
            )
        if wanted.fuse > 1 and gpus:
            raise SpecError(
                f"{study.name}: resources.fuse: trials that train together have equal numbers on a CPU alone, but they "
                f"take gpus={gpus:g}, got fuse={wanted.fuse}; write 1"
            )
        fitting = self.fitting(study)
        if not fitting:
            scales = "; or set resources.slots, and it waits for nodes to come" if self.joined else ""
            each = "" if wanted.workers == 1 else f" for each of workers={wanted.workers}"
            raise SpecError(
                f"{study.name}: resources: a trial must fit the machine ({self.cpus:g} CPUs, {self.gpus:g} GPUs), "
                f"but got cpus={wanted.cpus:g}, gpus={gpus:g}{each}; ask for less{scales}"
            )
        return min(fitting, wanted.slots or fitting)

    def fitting(self, study: Study) -> int:
        """How many trials fit the nodes that are here."""
        return sum(self._places(study, node) for node in self.nodes) // study.resources.workers

    def room(self, study: Study) -> int:
        """How many trials may be under way: as many as fit, and a node's worth more where the cluster scales.

        The autoscaler sees a demand then, and little is asked long before it can run.
        """
        most = study.resources.slots or math.inf
        if not self.waits(study):
            return int(min(most, self.fitting(study)))
        a_node = max((self._places(study, node) for node in self.nodes), default=0) // study.resources.workers
        return int(min(most, self.fitting(study) + max(a_node, 1)))

    def _places(self, study: Study, node: tuple[float, float]) -> int:
        """How many workers of trials fit a node; a trial has one unless it asks for more."""
        (cpus, gpus), wanted, each = node, study.resources, self.gpus_per_worker(study)
        fitting = int(cpus / wanted.cpus + 1e-9)
        if each:
            per_gpu = int(1 / each + 1e-9)
            fitting = min(fitting, int(gpus) * per_gpu if per_gpu else int(gpus / each))
        return fitting
