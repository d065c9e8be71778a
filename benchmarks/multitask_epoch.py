"""What an epoch of the recommender with its evaluation costs against the plain code that the course's solutions write.

    python benchmarks/multitask_epoch.py [--smallest]

The plain code: a module of nn.Embedding tables and an MLP, run on rated items and again on drawn ones, autograd, Adam
as it comes, and an evaluation user by user, for which the module scores all items and scipy ranks them. Both train on
the same batches and reach the same results, on one thread, with as many ratings, users and items as MovieLens-100k
has in the course's split (drawn at random: no archive is needed). The two take turns, so that a busy machine slows
both; a figure is a median of its turns. The floor is the multiplications of matrices at the speed at which this machine
multiplies them just then. The last line is one JSON object: `ratio` is that of an epoch with its evaluation, shared
tables; `evaluation_ratio` that of the evaluation alone.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cs330ray.course.learners.recommender import descent, multitask, ranking
from cs330ray.course.learners.recommender.multitask import Multitask, Params, Weights
from cs330ray.course.learners.recommender.ratings import Ratings
from cs330ray.training.adam import Adam

USERS, ITEMS = 943, 1682
DIM, WIDTH, BATCH, LR = 32, 64, 256, 1e-3
MULTITASK = Multitask("sigmoid", 0.99, 0.01)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the weights after an epoch, relative
SHOWN = 12  # operations of a profile


@dataclass(frozen=True)
class Size:
    """How many ratings there are, and how often each side is timed."""

    train: int = 90_000
    val: int = 5_000
    turns: int = 7


SMALLEST = Size(train=2_000, val=100, turns=1)


class PlainNet(nn.Module):
    def __init__(self, sharing: str, users: int = USERS, items: int = ITEMS) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, DIM), nn.Embedding(items, DIM)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.regression_user, self.regression_item = self.user, self.item
        if sharing == "separate":
            self.regression_user, self.regression_item = nn.Embedding(users, DIM), nn.Embedding(items, DIM)
        self.layers = nn.Sequential(nn.Linear(3 * DIM, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, users_B: Tensor, items_B: Tensor) -> tuple[Tensor, Tensor]:
        biases_B = self.user_bias(users_B).squeeze(1) + self.item_bias(items_B).squeeze(1)
        scores_B = (self.user(users_B) * self.item(items_B)).sum(dim=1) + biases_B
        u_BD, q_BD = self.regression_user(users_B), self.regression_item(items_B)
        return scores_B, self.layers(torch.cat([u_BD, q_BD, u_BD * q_BD], dim=1)).squeeze(1)


def plain_net(params: Params, sharing: str) -> PlainNet:
    """The module with these parameters."""
    net = PlainNet(sharing, len(params["user"]), len(params["item"])).to(params["user"].dtype)
    names = {"layer1.weight": "layers.0.weight", "layer1.bias": "layers.0.bias"}
    names |= {"layer2.weight": "layers.2.weight", "layer2.bias": "layers.2.bias"}
    with torch.no_grad():
        for name, param in params.items():
            place = net.get_parameter(names.get(name, f"{name}.weight"))
            place.copy_(param.view(place.shape))
    return net


def plain_batches(ratings: Ratings, random: np.random.RandomState) -> Iterator[tuple[Ratings, Tensor]]:
    shuffled = ratings[torch.from_numpy(random.permutation(len(ratings)))]
    for first in range(0, len(ratings), BATCH):
        batch = shuffled[slice(first, first + BATCH)]
        yield batch, torch.from_numpy(random.randint(0, ITEMS, len(batch)))


def plain_epoch(
    net: PlainNet,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Ratings, Tensor]],
    weights: tuple[float, float] = (MULTITASK.factorization_weight, MULTITASK.regression_weight),
) -> list[float]:
    losses = []
    for batch, negatives_B in batches:
        positive_B, stars_B = net(batch.users_B, batch.items_B)
        negative_B, _ = net(batch.users_B, negatives_B)
        factorization = (1 - torch.sigmoid(positive_B - negative_B)).mean()
        regression = F.mse_loss(stars_B, batch.stars_B)
        loss = weights[0] * factorization + weights[1] * regression
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def plain_evaluate(net: PlainNet, held_out: Ratings, known: Ratings) -> dict[str, float]:
    _, stars_B = net(held_out.users_B, held_out.items_B)
    items, mrr, mrr_first = net.item.num_embeddings, [], []
    for user in held_out.users_B.unique().tolist():
        scores_I, _ = net(torch.full((items,), user), torch.arange(items))
        order_I = -scores_I.numpy()
        order_I[known.items_B[known.users_B == user]] = np.inf
        reciprocal = 1 / scipy.stats.rankdata(order_I)[held_out.items_B[held_out.users_B == user]]
        mrr.append(reciprocal.mean())
        mrr_first.append(reciprocal.max())
    mse = F.mse_loss(stars_B, held_out.stars_B).item()
    return {"mse": mse, "mrr": float(np.mean(mrr)), "mrr_first": float(np.mean(mrr_first))}


def our_evaluate(params: Params, held_out: Ratings, known: Ratings) -> dict[str, float]:
    return {name: values.mean().item() for name, values in ranking.evaluate(params, held_out, known).items()}


class Pair:
    """Both implementations, from the same parameters, with the same ratings."""

    def __init__(self, size: Size, sharing: str, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.train, self.val = drawn_ratings(size, dtype, generator)
        params = multitask.init(
            users=USERS, items=ITEMS, dim=DIM, layers=[WIDTH], sharing=sharing, std=1 / DIM, mean_stars=None,
            generator=generator,
        )  # fmt: skip
        params = {name: param.to(dtype) for name, param in params.items()}
        self.net = plain_net(params, sharing)
        self.plain_optimizer = torch.optim.Adam(self.net.parameters(), lr=LR)
        self.weights = Weights.of(params)
        self.optimizer = Adam([self.weights.flat], lr=LR, fused=True)
        self.random, self.generator = np.random.RandomState(0), torch.Generator().manual_seed(0)

    def plain_epoch(self) -> None:
        plain_epoch(self.net, self.plain_optimizer, plain_batches(self.train, self.random))

    def our_epoch(self) -> None:
        descent.train_epoch(MULTITASK, self.weights, self.optimizer, self.train, batch=BATCH, generator=self.generator)

    def plain_evaluation(self) -> dict[str, float]:
        return plain_evaluate(self.net, self.val, self.train)

    def our_evaluation(self) -> dict[str, float]:
        return our_evaluate(self.weights.params, self.val, self.train)


def drawn_ratings(size: Size, dtype: torch.dtype, generator: torch.Generator) -> tuple[Ratings, Ratings]:
    """Distinct pairs of user and item, and random stars."""
    pairs = torch.randperm(USERS * ITEMS, generator=generator)[: size.train + size.val]
    stars_B = torch.randint(1, 6, (size.train + size.val,), generator=generator).to(dtype)
    ratings = Ratings(pairs // ITEMS, pairs % ITEMS, stars_B)
    return ratings[slice(size.train)], ratings[slice(size.train, None)]


def check_agreement(size: Size, sharing: str) -> dict[torch.dtype, float]:
    """Train both for an epoch of the same batches; how far apart their weights are, relative, by precision.

    Both evaluate the same weights to the same figures.
    """
    found = {}
    for dtype, tolerance in TOLERANCE.items():
        pair = Pair(size, sharing, dtype)
        pair.our_epoch()
        generator = torch.Generator().manual_seed(0)
        drawn = descent.batches(pair.train, items=ITEMS, batch=BATCH, generator=generator)
        plain_epoch(pair.net, pair.plain_optimizer, ((part, items_B1.squeeze(1)) for part, items_B1 in drawn))
        plain = torch.cat([param.detach().flatten() for param in plain_net(pair.weights.params, sharing).parameters()])
        ours = torch.cat([param.detach().flatten() for param in pair.net.parameters()])
        found[dtype] = ((plain - ours).norm() / plain.norm()).item()
        assert found[dtype] <= tolerance, f"{sharing}, {dtype}: the weights are {found[dtype]:.1e} apart"
        pair.net = plain_net(pair.weights.params, sharing)
        plain_scores, our_scores = pair.plain_evaluation(), pair.our_evaluation()
        for name, value in plain_scores.items():
            assert math.isclose(value, our_scores[name], rel_tol=1e-4), f"{sharing}: {name} {value}, {our_scores[name]}"
    return found


def epoch_multiplications(size: Size) -> float:
    """Floating-point operations of the regression head's matrix products, forward 1 and backward 2."""
    return 3.0 * 2 * size.train * (3 * DIM * WIDTH + WIDTH)


def evaluation_multiplications(size: Size) -> float:
    """Those of all scores, and of the stars of the held-out pairs."""
    return 2.0 * USERS * ITEMS * DIM + 2.0 * size.val * (3 * DIM * WIDTH + WIDTH)


def multiply_speed() -> float:
    """Floating-point operations a second of a float32 matrix product."""
    a = torch.rand(1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ a) for _ in range(5))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(size: Size, sharing: str) -> dict[str, float]:
    pair = Pair(size, sharing, torch.float32)
    works = [pair.plain_epoch, pair.our_epoch, pair.plain_evaluation, pair.our_evaluation]
    times: list[list[float]] = [[] for _ in works]
    for turn in range(size.turns + 1):
        for work, taken in zip(works, times, strict=True):
            took = seconds(work)
            if turn:  # the first turn warms up
                taken.append(took)
    plain_s, ours_s, plain_evaluation_s, our_evaluation_s = (statistics.median(taken) for taken in times)
    speed = multiply_speed()
    floor_s, evaluation_floor_s = epoch_multiplications(size) / speed, evaluation_multiplications(size) / speed
    return {
        "plain_s": plain_s + plain_evaluation_s,
        "ours_s": ours_s + our_evaluation_s,
        "ratio": (plain_s + plain_evaluation_s) / (ours_s + our_evaluation_s),
        "of_floor": (ours_s + our_evaluation_s) / (floor_s + evaluation_floor_s),
        "training_ratio": plain_s / ours_s,
        "plain_evaluation_s": plain_evaluation_s,
        "our_evaluation_s": our_evaluation_s,
        "evaluation_ratio": plain_evaluation_s / our_evaluation_s,
        "evaluation_of_floor": our_evaluation_s / evaluation_floor_s,
    }


def print_profile(size: Size) -> None:
    """What an epoch with its evaluation goes into, by operation and the time that is its own."""
    pair = Pair(size, "shared", torch.float32)
    pair.our_epoch()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        pair.our_epoch()
        pair.our_evaluation()
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    print("\nshared, ours, by operation:")
    for row in rows[:SHOWN]:
        print(f"  {row.key:32}{row.self_cpu_time_total / whole:>7.1%}{row.count:>8} calls")


def main(size: Size) -> None:
    torch.set_num_threads(1)
    columns = ["plain_s", "ours_s", "ratio", "of_floor", "training_ratio", "plain_evaluation_s", "our_evaluation_s"]
    columns += ["evaluation_ratio", "evaluation_of_floor"]
    print(f"{'':10}" + "".join(f"{name:>20}" for name in columns) + "   weights differ by")
    found = {}
    for sharing in ("shared", "separate"):
        apart = check_agreement(size, sharing)
        found[sharing] = {name: round(value, 4) for name, value in measure(size, sharing).items()}
        figures = "".join(f"{found[sharing][name]:>20.3f}" for name in columns)
        print(f"{sharing:10}{figures}   {apart[torch.float64]:.0e} (64), {apart[torch.float32]:.0e} (32)")
    print_profile(size)
    shown = {name: found["shared"][name] for name in ("ratio", "of_floor", "evaluation_ratio", "evaluation_of_floor")}
    print(json.dumps({**shown, "threads": 1, "cases": found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smallest", action="store_true", help="2,000 ratings, one turn: shows only that it runs")
    main(SMALLEST if parser.parse_args().smallest else Size())
