"""What there is to run trials on, and how many fit at once."""

import os
from dataclasses import dataclass

import ray

from cs330ray.errors import SpecError
from cs330ray.spec import Study


@dataclass(frozen=True)
class Machine:
    """What there is to run trials on."""

    cpus: float
    gpus: float

    @classmethod
    def here(cls) -> "Machine":
        """This machine, as far as this process may use it; or the cluster at RAY_ADDRESS, once joined."""
        if ray.is_initialized():
            total = ray.cluster_resources()
            return cls(float(total.get("CPU", 0)), float(total.get("GPU", 0)))
        import torch

        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(float(cpus), float(torch.cuda.device_count()))

    def gpus_per_trial(self, study: Study) -> float:
        """What a trial gets: what it asks for where there are GPUs, else 0."""
        return study.resources.gpus if self.gpus else 0.0

    def slots(self, study: Study) -> int:
        """How many trials fit at once. Raises SpecError where not even one does."""
        wanted, gpus = study.resources, self.gpus_per_trial(study)
        if wanted.require_gpu and not self.gpus:
            raise SpecError(f"{study.name}: resources.require_gpu: a GPU is needed, but there is none; set it to false")
        if wanted.workers > 1:
            raise SpecError(f"{study.name}: resources.workers: only 1 is built yet, but got {wanted.workers}; use 1")
        if wanted.cpus > self.cpus or gpus > self.gpus:
            raise SpecError(
                f"{study.name}: resources: a trial must fit the machine ({self.cpus:g} CPUs, {self.gpus:g} GPUs), "
                f"but got cpus={wanted.cpus:g}, gpus={gpus:g}; ask for less"
            )
        fitting = int(self.cpus / wanted.cpus + 1e-9)
        if gpus:
            per_gpu = int(1 / gpus + 1e-9)
            fitting = min(fitting, int(self.gpus) * per_gpu if per_gpu else int(self.gpus / gpus))
        return min(fitting, wanted.slots or fitting)
