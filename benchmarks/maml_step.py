"""What an outer MAML step costs against the plain loop over tasks that the course's solutions write.

    python benchmarks/maml_step.py [--smallest]

Same net, batch, precision and results, one thread, 16 tasks 5-way 1-shot with 15 queries. The two take turns, so that
a busy machine slows both; a figure is a median of its turns. The floor is the step's multiplications at the speed at
which this machine multiplies matrices just then. The last line is one JSON object: `ratio` is that of the first case.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import maml
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.learners.maml import Maml

WAYS, SHOTS, QUERIES, FILTERS, SIDE = 5, 1, 15, 32, 28
INNER_LR = 0.4
TASKS, CASES = 16, [("pooled", 1, 9), ("pooled", 5, 5), ("course", 1, 5)]  # body, inner steps, turns
FEWEST_TASKS, SMALLEST = 1, ("pooled", 1, 1)
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-2,
}  # of the outer gradient, relative; float32 flips ReLUs and pools


def plain_forward(body: str, params: dict[str, Tensor], x: Tensor) -> Tensor:
    for block in range(1, 5):
        x = F.conv2d(x, params[f"conv{block}.weight"], padding=1)
        x = F.batch_norm(x, None, None, params[f"norm{block}.scale"], params[f"norm{block}.shift"], training=True)
        x = F.relu(x)
        if body == "pooled":
            x = F.max_pool2d(x, 2)
    x = x.flatten(1) if body == "pooled" else x.mean(dim=(2, 3))
    return F.linear(x, params["head.weight"], params["head.bias"])


def plain_step(body: str, inner_steps: int, params: dict[str, Tensor], batch: Batch) -> None:
    where, (shots, queries) = batch.support_TNKCHW.device, (batch.support_TNKCHW.shape[2], batch.query_TNQCHW.shape[2])
    support_labels = torch.arange(WAYS, device=where).repeat_interleave(shots)
    query_labels = torch.arange(WAYS, device=where).repeat_interleave(queries)
    losses = []
    for support, query in zip(batch.support_TNKCHW.flatten(1, 2), batch.query_TNQCHW.flatten(1, 2), strict=True):
        phi = dict(params)
        for _ in range(inner_steps):
            loss = F.cross_entropy(plain_forward(body, phi, support), support_labels)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: phi[name] - INNER_LR * grad for name, grad in zip(phi, grads, strict=True)}
        losses.append(F.cross_entropy(plain_forward(body, phi, query), query_labels))
    torch.stack(losses).mean().backward()


def our_step(body: str, inner_steps: int, params: dict[str, Tensor], batch: Batch) -> None:
    inner_lrs = maml.init_inner_lrs(params, INNER_LR, "none", inner_steps)
    maml.outer_backward(Maml(body, inner_steps), params, inner_lrs, batch)


def drawn(tasks: int, body: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Batch]:
    """Strokes are about a tenth of a character's pixels."""
    generator = torch.Generator().manual_seed(0)
    params = conv4.init(body, filters=FILTERS, ways=WAYS, generator=generator)
    images = (torch.rand(tasks, WAYS, SHOTS + QUERIES, 1, SIDE, SIDE, generator=generator) < 0.1).to(dtype)
    batch = Batch(images[:, :, :SHOTS], images[:, :, SHOTS:])
    return {name: param.to(dtype).requires_grad_() for name, param in params.items()}, batch


def outer_gradient(step: Callable[..., None], tasks: int, body: str, inner_steps: int, dtype: torch.dtype) -> Tensor:
    params, batch = drawn(tasks, body, dtype)
    step(body, inner_steps, params, batch)
    return torch.cat([param.grad.flatten() for param in params.values() if param.grad is not None])


def check_agreement(tasks: int, body: str, inner_steps: int) -> dict[torch.dtype, float]:
    """Compare the outer gradients of both; the relative difference by precision."""
    found = {}
    for dtype, tolerance in TOLERANCE.items():
        plain, ours = (outer_gradient(step, tasks, body, inner_steps, dtype) for step in (plain_step, our_step))
        found[dtype] = ((plain - ours).norm() / plain.norm()).item()
        assert found[dtype] <= tolerance, f"{body}, {inner_steps} inner steps, {dtype}: {found[dtype]:.1e} apart"
    return found


def multiplications(tasks: int, body: str, inner_steps: int) -> float:
    """Floating-point operations of a step's convolutions: forward 1, backward 2 (the first has no image gradient).

    A query image costs one forward and one backward pass, a support image and inner step those and twice as much again.
    """
    sides = [SIDE // 2**block if body == "pooled" else SIDE for block in range(4)]
    forward = [2 * 9 * (1 if block == 0 else FILTERS) * FILTERS * side**2 for block, side in enumerate(sides)]
    once = 2 * forward[0] + 3 * sum(forward[1:])
    return float(tasks * WAYS * (QUERIES * once + SHOTS * inner_steps * 3 * once))


def multiply_speed() -> float:
    """Floating-point operations a second of a float32 matrix product."""
    a = torch.rand(1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ a) for _ in range(5))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(tasks: int, body: str, inner_steps: int, turns: int) -> dict[str, float]:
    params, batch = drawn(tasks, body, torch.float32)
    steps = {"plain": plain_step, "ours": our_step}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            params = {key: param.detach().requires_grad_() for key, param in params.items()}
            took = seconds(lambda step=step, params=params: step(body, inner_steps, params, batch))
            if turn:  # the first turn warms up
                times[name].append(took)
    plain_s, ours_s = (statistics.median(times[name]) for name in steps)
    floor_s = multiplications(tasks, body, inner_steps) / multiply_speed()
    return {"plain_s": plain_s, "ours_s": ours_s, "floor_s": floor_s, "ratio": plain_s / ours_s}


def main(*, smallest: bool) -> None:
    torch.set_num_threads(1)
    print(
        f"{'body':8}{'inner steps':>12}{'plain s':>10}{'ours s':>10}{'floor s':>10}{'ratio':>8}   gradients differ by"
    )
    found = {}
    tasks, cases = (FEWEST_TASKS, [SMALLEST]) if smallest else (TASKS, CASES)
    for body, inner_steps, turns in cases:
        apart = check_agreement(tasks, body, inner_steps)
        row = measure(tasks, body, inner_steps, turns)
        found[f"{body}/{inner_steps}"] = {name: round(value, 4) for name, value in row.items()}
        figures = f"{row['plain_s']:>10.3f}{row['ours_s']:>10.3f}{row['floor_s']:>10.3f}{row['ratio']:>8.2f}"
        print(f"{body:8}{inner_steps:>12}{figures}   {apart[torch.float64]:.0e} (64), {apart[torch.float32]:.0e} (32)")
    print(json.dumps({"ratio": found["pooled/1"]["ratio"], "threads": 1, "cases": found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smallest", action="store_true", help="one case, one turn: shows only that it runs")
    main(smallest=parser.parse_args().smallest)
