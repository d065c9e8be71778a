"""Data parallelism: several processes, the workers, train one trial together and reach what one process reaches.

All run the same trainable in lock-step, with the same streams of random numbers and from the same checkpoint. Each
takes its share of what a step learns from and of what an evaluation scores. Gradients are added up, and scores put
together, before anything is decided by them: so the workers' states are the same, to the bit, and so are a worker's and
that of a lone process but for the rounding of sums. A lone process is one worker: it gets back what it gives.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cs330ray.errors import Diverged, SpecError, WorkerLost
from cs330ray.training.device import device
from cs330ray.words import first_line

T = TypeVar("T")

TIMEOUT = timedelta(minutes=5)  # that workers wait for one another
_told: list[str] = []  # names in the environment that `join` has set


def join(rank: int, workers: int, address: str, port: int, *, timeout: timedelta = TIMEOUT) -> None:
    """Make this process one of `workers`, which meet where the first of them, rank 0, listens.

    On CUDA they speak by nccl, and each sees one GPU, its own; else by gloo. Who does not answer within `timeout` is
    lost: gloo says so, and WorkerLost is raised; nccl ends the process that waits. Raises SpecError for a device by
    which they cannot speak, WorkerLost where they do not meet.
    """
    kind = device().type
    if kind not in ("cpu", "cuda"):
        raise SpecError(f"resources.workers: several run on cuda or cpu, but got {kind}; use 1, or CS330RAY_DEVICE=cpu")
    leave()
    try:
        with _partners(f"worker {rank} of {workers} at {address}:{port}"):
            _tell(RANK=rank, WORLD_SIZE=workers, MASTER_ADDR=address, MASTER_PORT=port)
            _tell(LOCAL_RANK=0, LOCAL_WORLD_SIZE=1)  # as if alone on its machine: it sees no other's GPU
            if kind == "cpu" and "OMP_NUM_THREADS" not in os.environ:
                _tell(OMP_NUM_THREADS=torch.get_num_threads())  # else accelerate sets the threads by itself
            if kind == "cpu" and "GLOO_SOCKET_IFNAME" not in os.environ:
                _tell(GLOO_SOCKET_IFNAME=_interface(address, port))
            torch.distributed.init_process_group(
                "gloo" if kind == "cpu" else "nccl",
                store=_meeting_place(rank, workers, address, port, timeout),
                rank=rank,
                world_size=workers,
                timeout=timeout,
            )
            PartialState(cpu=kind == "cpu")
    except BaseException:
        leave()
        raise


def leave() -> None:
    """Make this process a lone one; nothing where it is."""
    if torch.distributed.is_initialized():
        PartialState().destroy_process_group()
    while _told:
        os.environ.pop(_told.pop(), None)
    PartialState._reset_state()  # no public way is known; it is made anew when it is next asked for


def workers() -> int:
    """Count the processes that train this trial."""
    return int(PartialState().num_processes)


def rank() -> int:
    """Tell which of them this is, from 0."""
    return int(PartialState().process_index)


def share(count: int) -> slice:
    """Cut this worker's share out of `count` things: one follows another, and their sizes differ by at most one.

    A share is empty where there are fewer things than workers.
    """
    own = rank()
    each, more = divmod(count, workers())
    first = own * each + min(own, more)
    return slice(first, first + each + (own < more))


def add_gradients(params: Iterable[Tensor]) -> None:
    """Make each parameter's gradient the sum of the workers', in one exchange; one that none of them has stays None."""
    if workers() == 1:
        return
    held = list(params)
    grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in held]
    there = grads[0].new_tensor([float(param.grad is not None) for param in held])
    flat = torch.cat([*(grad.flatten() for grad in grads), there])
    with _partners():
        torch.distributed.all_reduce(flat)  # in place, where accelerate's `reduce` would copy
    *sums, there = torch.split(flat, [*(param.numel() for param in held), len(held)])
    for param, grad, total, known in zip(held, grads, sums, there.tolist(), strict=True):
        if known:
            param.grad = grad.copy_(total.view_as(grad))


def add(value: float) -> float:
    """Sum up what the workers have, in float64: the same number in each."""
    if workers() == 1:
        return value
    with _partners():
        return float(reduce(torch.tensor(value, dtype=torch.float64, device=PartialState().device), "sum"))


def gather(values: list[T]) -> list[T]:
    """Put the workers' values one after another, whatever they are and however many each has."""
    if workers() == 1:
        return values
    with _partners():
        return list(gather_object(values))


def gather_scores(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the workers' scores one after another, by name; on the CPU where they are several.

    A worker whose share is empty has no names to give.
    """
    if workers() == 1:
        return dict(scores)
    shares = gather([{name: values.detach().cpu() for name, values in scores.items()}])
    return {name: torch.cat([given[name] for given in shares if given]) for name in shares[0]}


def gather_from(work: Callable[[], list[T]]) -> list[T]:
    """Gather what `work` gives in each worker; where it raises Diverged in one, that is raised in all."""
    if workers() == 1:
        return work()
    try:
        done, reason = work(), None
    except Diverged as error:
        done, reason = [], str(error)
    shares = gather([(done, reason)])
    for _, why in shares:
        if why is not None:
            raise Diverged(why)
    return [value for given, _ in shares for value in given]


@contextmanager
def _partners(place: str = "") -> Iterator[None]:
    """Speak with the others; raises WorkerLost where they are gone, silent or not to be found."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        place = place or f"worker {rank()} of {workers()}"
        reason = first_line(error)
        raise WorkerLost(f"{place}: an answer of all workers is needed, but {reason}; start them anew") from error


def _meeting_place(rank: int, workers: int, address: str, port: int, timeout: timedelta) -> TCPStore:
    """Where the workers find one another: at this address alone. By itself torch would listen on every one, unasked."""
    if rank:
        return TCPStore(address, port, workers, timeout=timeout)
    family = socket.getaddrinfo(address, port)[0][0]
    listens = socket.create_server((address, port), family=family).detach()
    return TCPStore(address, port, workers, is_master=True, timeout=timeout, master_listen_fd=listens)


def _tell(**environment: object) -> None:
    _told.extend(environment)
    os.environ.update({name: str(value) for name, value in environment.items()})


def _interface(address: str, port: int) -> str:
    """The network interface by which this process reaches an address; gloo would take that of the machine's name."""
    family, kind, _, _, there = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(there)  # sends nothing
        here = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == here for each in addresses):
            return str(name)
    raise OSError(f"no network interface has the address {here}, by which {address} is reached")
