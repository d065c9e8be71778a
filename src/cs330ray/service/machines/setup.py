"""What a study stands on: the machine or the nodes of a cluster, their data, and the store that checkpoints go to."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.store import Store
from cs330ray.quiet import cluster_address
from cs330ray.service.machines import ray_here
from cs330ray.service.machines.machine import Machine
from cs330ray.service.machines.nodes import Nodes
from cs330ray.spec.study import Study, first_values
from cs330ray.trial import named

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory


@dataclass(frozen=True)
class Ground:
    """What a study stands on."""

    machine: Machine
    slots: int
    data: dict[str, str]  # digest by cell
    nodes: Nodes | None  # of a cluster
    store: Store | None  # where checkpoints are copied to

    def room(self) -> float:
        """How many trials may be under way just now."""
        return self.slots if self.nodes is None else self.nodes.room()

    def request(self, study: Study) -> "PlacementGroupFactory":
        """What a trial wants: one bundle, or one for each of its workers and none for the process that leads them."""
        from ray import tune  # here: it takes its time, which Ray needs to start

        wanted = study.resources
        worker = {"CPU": wanted.cpus, "GPU": self.machine.gpus_per_worker(study)}
        bundles = [worker] if wanted.workers == 1 else [{}, *[worker] * wanted.workers]
        unfit = sorted(self.nodes.unfit) if self.nodes is not None else []
        if not unfit:
            return tune.PlacementGroupFactory(bundles)
        selector = {"ray.io/node-id": f"!in({','.join(unfit)})"}
        return tune.PlacementGroupFactory(bundles, bundle_label_selector=[selector] * wanted.workers)


def survey(study: Study, home: Path, says: Callable[[str], None]) -> Ground:
    """Find what there is to run on, and prepare the data there. Raises SpecError or DataError."""
    machine = _join(study)
    if not machine.joined:
        ray_here.folder()  # refused before anything is written
    machine.slots(study)  # the quickest to refuse comes first
    store = _store(study, says)
    data, nodes = prepare(study), None
    if machine.joined:
        nodes = Nodes(study, home.absolute(), data, says)
        nodes.meet()
        machine = nodes.machine()
    return Ground(machine, machine.slots(study), data, nodes, store)


def prepare(study: Study) -> dict[str, str]:
    """Find, verify and pack the data of every cell; the data digest by cell key. Raises DataError.

    What the end of the study will ask of a trainable, `chance`, is asked here first. Raises SpecError.
    """
    digests = {}
    for cell in study.cells:
        trainable = named.of(cell)
        config = named.configuration(trainable, cell, first_values(cell))
        digests[cell.key] = named.prepared(trainable, cell.trainable, config)
        named.chance(cell, first_values(cell))
    return digests


def _store(study: Study, says: Callable[[str], None]) -> Store | None:
    """The store that checkpoints are copied to, once it has proved itself, or None. Raises SpecError."""
    url = stores.wanted()
    store = stores.tried(url) if url else None
    if store is not None:
        says(f"{study.name}: checkpoints are kept at {store.address}")
    return store


def _join(study: Study) -> Machine:
    """The machine, or the cluster at RAY_ADDRESS, which is joined."""
    if (address := cluster_address()) is not None and not ray.is_initialized():
        ray_here.hush()
        with ray_here.reached(address):
            ray.init(log_to_driver=False, logging_level=logging.ERROR, namespace=f"cs330ray-{study.name}")
    return Machine.here()
