"""What a step of LoRA costs, in time and memory, against one of full fine-tuning of the same model.

    python benchmarks/lora_step.py [--model smollm2-135m] [--turns 5] [--smallest]

Both are this project's own step on the same 8 examples of bAbI's first task (without its archive, of `rooms`), in
micro-batches of 4: LoRA of rank 16 on all matrices of every block, or all weights. A third, plain, is LoRA as it is
often written: one batch, in the order drawn, padded to its longest, the vocabulary multiplied out at every token. Each
works in a process of its own, on one thread, by turns, so that a busy machine slows all; a time is the median
over the turns, without the first, of the seconds for which the processor worked, and memory the most that the process
ever held, its model and all it has imported included. The losses of the first step, before any update, must agree.

The last line is one JSON object: `ratio` and `memory_ratio` are full fine-tuning's over LoRA's, `plain_ratio` and
`plain_memory_ratio` those of the plain way over ours.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

from cs330ray.course.data import archives
from cs330ray.course.learners import lora
from cs330ray.course.systems import finetune
from cs330ray.errors import Cs330rayError
from cs330ray.training.device import device

SIDES = {"lora": "lora-16", "full": "all", "plain": "lora-16"}
TOLERANCE = 1e-4  # of the first loss, relative, in float32
MIB = 1 << 20


class Side:
    """One way to train, ready for its first step."""

    def __init__(self, name: str, model: str) -> None:
        torch.set_num_threads(1)
        found = all(archive.found for archive in archives.archives() if archive.name == "babi")
        dataset = "babi" if found else "rooms"
        self.config = finetune.Config(dataset=dataset, model=model, method=SIDES[name], shots=8, micro_batch=4)
        self.step = self.plain if name == "plain" else self.ours
        self.state = finetune._State.fresh(self.config, 0, device())
        self.drawn = [self.state.encode(example) for example in finetune._draw(self.config, 0)]

    def ours(self) -> float:
        self.state.step += 1
        return finetune._update(self.config, self.state, self.drawn, 0)

    def plain(self) -> float:
        length = max(len(example.ids) for example in self.drawn)
        pads = [length - len(example.ids) for example in self.drawn]
        rows = [[*example.ids, *[self.state.pad] * pad] for example, pad in zip(self.drawn, pads, strict=True)]
        ids_BL = torch.tensor(rows, device=self.state.device)
        labels_BL = torch.full_like(ids_BL, lora.IGNORED)
        for row, example in enumerate(self.drawn):
            answered = slice(len(example.ids) - example.answer, len(example.ids))
            labels_BL[row, answered] = ids_BL[row, answered]
        mask_BL = torch.tensor([[1] * (length - pad) + [0] * pad for pad in pads], device=self.state.device)
        self.state.model.train()
        self.state.optimizer.zero_grad()
        logits_BLV = self.state.model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
        loss = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=lora.IGNORED)
        loss.backward()
        self.state.optimizer.step()
        return loss.item()


def work(name: str, model: str, pipe: Connection) -> None:
    """Send the count of trained numbers, or why there is no model; then, for each message, take a step and send its
    loss, its seconds and the most memory so far."""
    try:
        side = Side(name, model)
    except Cs330rayError as error:
        pipe.send(error)
        return
    pipe.send(side.state.size)
    while pipe.recv():
        start = time.process_time()
        loss = side.step()
        took = time.process_time() - start
        pipe.send((loss, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB))


def measure(model: str, turns: int) -> dict[str, dict[str, float]]:
    """What each side's step costs."""
    context = multiprocessing.get_context("spawn")
    pipes, found, times = {}, {}, {}
    for name in SIDES:
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(name, model, theirs), daemon=True).start()
        theirs.close()  # so that the end of the process ends the wait for it
        trained = pipes[name].recv()
        if isinstance(trained, Cs330rayError):
            raise trained
        found[name] = {"trained_parameters": float(trained)}
        times[name] = []
    for turn in range(turns + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            loss, took, found[name]["peak_mib"] = pipe.recv()
            if turn == 0:
                found[name]["first_loss"] = loss
            else:
                times[name].append(took)
    for name, pipe in pipes.items():
        pipe.send(False)
        found[name]["step_s"] = statistics.median(times[name])
    return found


def main(model: str, turns: int) -> None:
    found = measure(model, turns)
    first = found["lora"]["first_loss"]
    for name, row in found.items():
        assert abs(row["first_loss"] - first) <= TOLERANCE * first, f"{name}: another loss, {row['first_loss']}"
    print(f"{'side':6}{'trained':>12}{'step s':>9}{'peak MiB':>10}")
    for name, row in found.items():
        print(f"{name:6}{row['trained_parameters']:>12.0f}{row['step_s']:>9.2f}{row['peak_mib']:>10.0f}")
    ours, full, plain = (found[name] for name in ("lora", "full", "plain"))
    report = {
        "ratio": round(full["step_s"] / ours["step_s"], 2),
        "memory_ratio": round(full["peak_mib"] / ours["peak_mib"], 2),
        "plain_ratio": round(plain["step_s"] / ours["step_s"], 2),
        "plain_memory_ratio": round(plain["peak_mib"] / ours["peak_mib"], 2),
        "model": model,
        "threads": 1,
    }
    print(
        json.dumps(report | {name: {key: round(value, 3) for key, value in row.items()} for name, row in found.items()})
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--smallest", action="store_true", help="a tiny model, one turn: shows only that it runs")
    given = parser.parse_args()
    model, turns = ("tiny", 1) if given.smallest else (given.model, given.turns)
    try:
        main(model, turns)
    except Cs330rayError as error:
        sys.exit(f"benchmarks/lora_step.py: {error}")
