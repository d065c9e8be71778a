"""What a trial of the recommender costs by the number of ratings: an epoch, an evaluation, peak memory.

    python benchmarks/ratings.py [--smallest]

Ratings are drawn in memory, as many as MovieLens 1M has (6,040 users, 3,706 items), and ten million (70,000 by
10,700): stars = mean + a_i + b_j + x_i . y_j + noise of deviation .9; what is liked is rated more often. Each line
is a process of its own with one thread: it draws the ratings, trains an epoch, validates, and scores the test, which
trains an epoch more and evaluates four times. Seconds are those of the processor, the fewest of an epoch and of an
evaluation, so that other work on the machine counts little. Peak memory is the resident memory of that process, with
Python, torch and the drawing (`ru_maxrss`). That it learns is seen by `val_mse` after the epoch beside .81, the
noise's variance, and by `val_mrr` beside that of a random order. The last line is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOISE, TASTE, BIAS, MEAN, RANK = 0.9, 0.6, 0.4, 3.5, 4  # deviations are in stars
BATCH, DIM, LR = 4096, 32, 5e-3
CANDIDATES = (1, 4)
BOUND_GIB = 6.0  # of ten million ratings


@dataclass(frozen=True)
class Size:
    """How many ratings are drawn."""

    name: str
    users: int
    items: int
    ratings: int


SIZES = (Size("1 million", 6_040, 3_706, 1_000_209), Size("10 million", 70_000, 10_700, 10_000_000))
SMALLEST = (Size("2 thousand", 60, 50, 2_000),)


def draw(size: Size) -> dict[str, NDArray[Any]]:
    """Ratings as they are packed: by user and item, each pair once."""
    random = np.random.default_rng(0)
    a, b = (random.normal(0, BIAS, count) for count in (size.users, size.items))
    x, y = (random.normal(0, RANK**-0.25, (count, RANK)).astype(np.float32) for count in (size.users, size.items))
    likely = np.exp(2.5 * b + random.normal(0, 0.8, size.items))
    by_item = np.cumsum(likely / likely.sum())
    activity = random.permutation(np.exp(random.normal(0, 0.8, size.users)))
    by_user = np.cumsum(activity / activity.sum())
    keys = np.zeros(0, np.int64)
    while len(keys) < size.ratings:
        users, items = (
            np.minimum(np.searchsorted(ends, random.random(size.ratings // 2)), len(ends) - 1)
            for ends in (by_user, by_item)
        )
        taste = TASTE * np.einsum("ij,ij->i", x[users], y[items])
        kept = random.random(len(users)) < 1 / (1 + np.exp(-2 * taste))  # what is liked is rated more often
        keys = np.unique(np.concatenate([keys, (users * size.items + items)[kept]]))
    keys = np.sort(random.permutation(keys)[: size.ratings])
    users, items = np.divmod(keys, size.items)
    stars = MEAN + a[users] + b[items] + TASTE * np.einsum("ij,ij->i", x[users], y[items])
    return {
        "users": users.astype(np.uint32),
        "items": items.astype(np.uint16),
        "stars": (stars + random.normal(0, NOISE, len(keys))).astype(np.float32),
        "sizes": np.array([size.users, size.items]),
    }


def timed(work: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        began = time.process_time()
        found = work(*given, **named)
        taken.append(time.process_time() - began)
        return found

    return run


def measure(size: Size, candidates: int) -> dict[str, float]:
    """Train and test in this process."""
    import torch

    from cs330ray.course.data.packed import Packed
    from cs330ray.course.systems import multitask

    torch.set_num_threads(1)
    drawn = Packed(Path(), draw(size), "00" * 32)
    multitask.own.pack = lambda _: drawn
    epochs: list[float] = []
    evaluations: list[float] = []
    multitask.descent.train_epoch_many = timed(multitask.descent.train_epoch_many, epochs)
    multitask.ranking.evaluate = timed(multitask.ranking.evaluate, evaluations)
    config = multitask.Config(
        dataset="ratings", data="in memory", dim=DIM, lr=LR, batch=BATCH, candidates=candidates,
        factorization_weight=0.9, regression_bias=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        (row,) = multitask.train(config, 0, 1)
        row.save(Path(place))
        found = multitask.test(config, 0, Path(place)).metrics
    return {
        "epoch_s": min(epochs),
        "evaluation_s": min(evaluations),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "val_mse": row.metrics["val_mse"],
        "val_mrr": row.metrics["val_mrr"],
        "chance_mrr": multitask.chance(config)["val_mrr"],
        "test_mse": found["test_mse"],
    }


def measured(size: Size, candidates: int) -> dict[str, float]:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, "--one", json.dumps([asdict(size), candidates])]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(sizes: tuple[Size, ...]) -> None:
    columns = ["epoch_s", "evaluation_s", "peak_gib", "val_mse", "val_mrr", "chance_mrr"]
    print(f"{'ratings':12}{'candidates':>12}" + "".join(f"{name:>15}" for name in columns))
    cases: dict[str, dict[str, float]] = {}
    for size in sizes:
        for candidates in CANDIDATES:
            found = measured(size, candidates)
            cases[f"{size.name}, {candidates}"] = {name: round(value, 4) for name, value in found.items()}
            print(f"{size.name:12}{candidates:>12}" + "".join(f"{found[name]:>15.4g}" for name in columns), flush=True)
    most = max(case["peak_gib"] for case in cases.values())
    print(json.dumps({"peak_gib": most, "within": most <= BOUND_GIB, "batch": BATCH, "threads": 1, "cases": cases}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smallest", action="store_true", help="2,000 ratings: shows only that it runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        given, drawn_candidates = json.loads(options.one)
        print(json.dumps(measure(Size(**given), drawn_candidates)))
    else:
        main(SMALLEST if options.smallest else SIZES)
