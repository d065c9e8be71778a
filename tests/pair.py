"""Workers on this machine, for tests of what they reach together; whoever hangs is ended."""

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, Literal, Self

PATIENCE_S = 120  # for what a test asks of them


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Workers:
    """Processes that have joined one another and do what they are told, all of them the same."""

    def __init__(self, count: int = 2, *, device: Literal["cpu", "cuda"] = "cpu") -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self.processes = []
        port = free_port()
        for rank in range(count):
            here, there = context.Pipe()
            told = (rank, count, port, device, there)
            self.processes.append(context.Process(target=_serve, args=told, daemon=True))
            self._ends.append(here)
            self.processes[-1].start()
            there.close()
        self._answers(range(count))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.close()  # they see it, and end
        for process in self.processes:
            process.join(10)
            process.kill()
            process.join()
            process.close()

    def outcomes(self, function: Callable[..., Any], *given: Any, ranks: range | None = None) -> list[Any]:
        """What `function` returns or raises in each worker, by rank."""
        ranks = range(len(self._ends)) if ranks is None else ranks
        for rank in ranks:
            self._ends[rank].send((function, given))
        return self._answers(ranks)

    def call(self, function: Callable[..., Any], *given: Any) -> list[Any]:
        """What `function` returns in each worker, by rank."""
        outcomes = self.outcomes(function, *given)
        for rank, outcome in enumerate(outcomes):
            told = "".join(getattr(outcome, "__notes__", []))
            assert not isinstance(outcome, BaseException), f"worker {rank}: {outcome!r} {told}"
        return outcomes

    def _answers(self, ranks: range) -> list[Any]:
        answers = []
        for rank in ranks:
            if not self._ends[rank].poll(PATIENCE_S):
                for process in self.processes:
                    process.kill()
                raise TimeoutError(f"worker {rank} has not answered for {PATIENCE_S} s")
            answers.append(self._ends[rank].recv())
        return answers


def _serve(rank: int, count: int, port: int, device: str, commands: Connection) -> None:
    os.environ |= {"CS330RAY_DEVICE": device, "CUDA_VISIBLE_DEVICES": str(rank)}  # a GPU each, where there are any
    import torch

    from cs330ray.training import parallel

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")  # on CUDA, some kernels
    parallel.join(rank, count, "127.0.0.1", port, timeout=timedelta(seconds=PATIENCE_S))
    commands.send("joined")
    while True:
        try:
            function, given = commands.recv()
        except EOFError:
            break
        try:
            answer = function(*given)
        except Exception as error:  # noqa: BLE001 - the test is told
            error.add_note(traceback.format_exc())
            answer = error
        commands.send(answer)
    parallel.leave()
