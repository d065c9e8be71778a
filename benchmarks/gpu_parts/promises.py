"""What must hold on a GPU: its tests, a trial that is killed, trials that share a GPU, memory that is short, bf16."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cs330ray.checkpoints import local
from cs330ray.course.pretrained import wheels
from cs330ray.ledger.writer import Writer
from cs330ray.service.run import run
from cs330ray.spec.reading import parse
from cs330ray.training.device import computing_in, device
from cs330ray.trial import named
from cs330ray.trial.contract import Trainable
from cs330ray.trial.run import run_alone

ROOT = Path(__file__).parents[2]
Rows = Iterator[tuple[str, Callable[[], str]]]
STEPS, CUT, EVERY = 8, 4, 2
SMALL: Mapping[str, Any] = {
    "dataset": "glyphs", "filters": 4, "ways": 3, "queries": 3, "tasks": 2, "val_tasks": 4,
}  # fmt: skip
WORDS: Mapping[str, Any] = {
    "dataset": "rooms", "model": "tiny", "shots": 2, "eval_examples": STEPS, "max_new_tokens": 2,
}  # fmt: skip
TUNED: Mapping[str, Any] = {**WORDS, "batch": 2, "early_stop": False}
TRIALS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {  # of a CPU, and of a GPU, by system
    "multitask": ({"dataset": "planted", "dim": 2, "layers": "4", "batch": 4096}, {"dataset": "planted"}),
    "mann": ({"dataset": "glyphs", "hidden": 4, "tasks": 2, "val_tasks": 4}, {"dataset": "glyphs", "val_tasks": 100}),
    "maml": ({**SMALL, "body": "pooled"}, {"dataset": "glyphs", "body": "pooled", "inner_steps": 2, "val_tasks": 50}),
    "protonet": ({**SMALL, "eval_ways": 3, "eval_queries": 3}, {"dataset": "glyphs", "val_tasks": 50}),
    "baseline": (
        {"dataset": "glyphs", "filters": 4, "batch": 6, "eval_ways": 3, "eval_queries": 3, "val_tasks": 4},
        {"dataset": "glyphs", "val_tasks": 50},
    ),
    "finetune": (TUNED, {**TUNED, "shots": 16, "batch": 8}),
    "icl": (WORDS, WORDS),
}
BE_KILLED = "import sys; from benchmarks.gpu_parts import promises; promises.be_killed(*sys.argv[1:])"
TOLERANCE = 0.05  # of a loss in bf16


# The tests -----------------------------------------------------------------------------------------------------------


def tests(where: str, folder: Path) -> Rows:
    """Every test that is marked `gpu`."""
    yield "pytest -m gpu", partial(tested, where)


def tested(where: str) -> str:
    """Run the tests in processes of their own; how many passed, and why others were skipped."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    workers = min(4, os.cpu_count() or 1) if where == "cuda" else 0
    environment = {name: value for name, value in os.environ.items() if name != "CS330RAY_DEVICE"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", str(workers), *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = (lines or done.stderr.splitlines() or [""])[-1].strip("= ")
    assert done.returncode == 0, "; ".join([last, *failed[:3]])
    why = Counter(reason for line in lines for reason in re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", line))
    assert where != "cuda" or "needs CUDA" not in why, f"{last}: the tests see no CUDA"
    return ", ".join([last, *(f"skipped: {reason}" for reason in why)])


# Killed and resumed --------------------------------------------------------------------------------------------------


def resumed(where: str, folder: Path) -> Rows:
    """A trial of each system, killed behind a checkpoint and resumed, against one that was left alone."""
    killed = subprocess.run([sys.executable, "-c", BE_KILLED, where, str(folder)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL, f"the process to be killed ended with {killed.returncode}"
    for name in TRIALS:
        yield f"{name}, killed and resumed", partial(same, name, where, folder)


def trial(name: str, where: str) -> tuple[Trainable, Any]:
    """The system, and its configuration for this device."""
    trainable, (small, large) = named.load(name), TRIALS[name]
    config = trainable.Config(**(large if where == "cuda" else small), eval_every_steps=EVERY)
    trainable.prepare(config)
    return trainable, config


def be_killed(where: str, folder: str) -> None:
    """Train every system until it is past its checkpoint, noting its rows, and kill this process."""
    for name in TRIALS:
        trainable, config = trial(name, where)
        found = []
        for progress in run_alone(trainable, config, 0, STEPS, Path(folder, "cut", name), save_every_steps=CUT):
            found.append((progress.step, dict(progress.metrics)))
            if progress.step > CUT:
                break
        Path(folder, f"{name}.json").write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)


def same(name: str, where: str, folder: Path) -> str:
    """Resume the killed trial and train another from its beginning: rows and last checkpoints are equal."""
    (trainable, config), cut, whole = trial(name, where), folder / "cut" / name, folder / "whole" / name
    before = [(step, metrics) for step, metrics in json.loads((folder / f"{name}.json").read_text()) if step <= CUT]
    newest = local.newest(cut)
    assert newest is not None, "there is no checkpoint of the killed trial"
    assert newest.step == CUT, f"the checkpoint is of step {newest.step}"
    after, expected = (
        [(progress.step, dict(progress.metrics)) for progress in run_alone(trainable, config, 0, STEPS, home)]
        for home in (cut, whole)
    )
    for (step, metrics), (other_step, others) in zip([*before, *after], expected, strict=True):
        assert step == other_step, f"row {step} in place of {other_step}"
        for metric, value in others.items():
            assert metrics[metric] == value, f"step {step}: {metric} is {metrics[metric]} in place of {value}"
    return f"{len(expected)} rows and {compared(cut, whole)} equal bit for bit"


def compared(one: Path, other: Path) -> str:
    """Compare the newest checkpoints of two trials; how many tensors were equal. Raises AssertionError."""
    newest, count = [local.newest(home) for home in (one, other)], 0
    assert newest[0] is not None
    assert newest[1] is not None
    for file in sorted(path.name for path in newest[1].path.iterdir() if path.name != local.MANIFEST):
        if not file.endswith(".safetensors"):
            assert (newest[0].path / file).read_bytes() == (newest[1].path / file).read_bytes(), f"{file} differs"
            continue
        found, expected = (load_file(each.path / file) for each in newest if each is not None)
        assert found.keys() == expected.keys(), f"{file} holds other tensors"
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{name} differs"
        count += len(expected)
    return f"{count} tensors"


# The service ---------------------------------------------------------------------------------------------------------


def service(where: str, folder: Path) -> Rows:
    """What trials of a study do on the GPU that they share."""
    yield "two trials at gpus = 0.25", partial(together, where, folder / "quarter")
    yield "out of memory", partial(short_of_memory, where, folder / "short")


def together(where: str, home: Path) -> str:
    """Run two trials of MAML, a quarter of a GPU each: how long both were under way."""
    steps = 1000 if where == "cuda" else 20
    study = parse(
        {
            "name": "quarter", "trainable": "maml", "objective": "val_accuracy",
            "fixed": {
                "dataset": "glyphs", "body": "pooled", "filters": 16, "tasks": 4, "val_tasks": 10,
                "eval_every_steps": steps // 10,
            },
            "search": {"inner_lr": {"low": 0.05, "high": 0.5}},
            "budget": {"trials": 2, "steps": steps},
            "resources": {"gpus": 0.25, "require_gpu": where == "cuda", "slots": 2},
        },
        "quarter",
    )  # fmt: skip
    run(study, home, mirror=False)
    (cell,), ledger = study.cells, Writer.at(home)
    trials = ledger.trials(study, cell)
    assert [one.state for one in trials] == ["COMPLETE"] * 2, f"they ended as {[one.state for one in trials]}"
    attempts = [ledger.attempts(study, cell, one.number)[0] for one in trials]
    both_s = min(one.ended_s or 0.0 for one in trials) - max(attempt["began_s"] for attempt in attempts)
    assert both_s > 0, f"one had ended {-both_s:.1f} s before the other began"
    devices = {attempt["device"] for attempt in attempts}
    assert where != "cuda" or devices == {torch.cuda.get_device_name()}, f"they ran on {devices}"
    return f"both under way for {both_s:.1f} s on {', '.join(devices)}"


def short_of_memory(where: str, home: Path) -> str:
    """Run a trial that takes more memory than there is, and then another in the same worker: how the first ended."""
    study = parse(
        {
            "name": "short", "trainable": "benchmarks.greedy", "objective": "val_loss",
            "compare": {"wants": ["all", "half"]}, "budget": {"trials": 1, "steps": 1, "fail_share": 1.0},
            "resources": {"gpus": 1, "require_gpu": where == "cuda", "slots": 1},
        },
        "short",
    )  # fmt: skip
    run(study, home, mirror=False)
    ledger = Writer.at(home)
    (short, fits), starts = (
        [ledger.trials(study, cell)[0] for cell in study.cells],
        [ledger.attempts(study, cell, 0) for cell in study.cells],
    )
    assert short.state == "FAIL", f"it ended as {short.state}"
    assert short.reason.startswith("out of memory: "), f"it ended by {short.reason}"
    assert fits.state == "COMPLETE", f"the next one ended as {fits.state}: {fits.reason}"
    assert [len(attempts) for attempts in starts] == [1, 1], "a worker was lost"
    assert starts[0][0]["pid"] == starts[1][0]["pid"], "the next trial has another worker"
    return f"FAIL, {short.reason.partition('. ')[0][:60]}; the next trial holds half of it in the same worker"


# bf16 ----------------------------------------------------------------------------------------------------------------


def bf16(where: str, folder: Path) -> Rows:
    """What is multiplied in bf16, and how far a loss is from float32's."""
    yield "products", products
    for model, answers in ((language_model(where), "words"), ("tiny-encoder", "classes")):
        yield f"finetune, {model}", partial(losses, model, answers, 20 if where == "cuda" else 3)


def language_model(where: str) -> str:
    """The small model of words where a GPU can take it and its weights are here; else the random one."""
    return "smollm2-135m" if where == "cuda" and wheels.found("smollm2-135m") else "tiny"


def products() -> str:
    """The types of products under each precision."""
    where = device()
    a, kinds = torch.rand(8, 8, device=where), {}
    for precision in ("fp32", "bf16"):
        with computing_in(precision, where):
            kinds[precision] = (a @ a).dtype
    assert kinds == {"fp32": torch.float32, "bf16": torch.bfloat16}, f"got {kinds}"
    return "bfloat16 where asked for, float32 elsewhere"


def losses(model: str, answers: str, steps: int) -> str:
    """Fine-tune in both precisions: the validation losses at the end, which are nearly the same."""
    system, found = named.load("finetune"), {}
    for precision in ("fp32", "bf16"):
        config = system.Config(
            dataset="rooms", model=model, answers=answers, method="lora", shots=4, lr=1e-3, dropout=0.0,
            early_stop=False, eval_every_steps=steps, eval_examples=20, precision=precision,
        )  # fmt: skip
        (row,) = system.train(config, 0, steps)
        found[precision] = row.metrics["val_loss"]
    apart = abs(found["bf16"] / found["fp32"] - 1)
    said = f"val_loss {found['bf16']:.4f}, in float32 {found['fp32']:.4f}, {apart:.1%} apart after {steps} steps"
    assert 0 < apart <= TOLERANCE, said
    return said
