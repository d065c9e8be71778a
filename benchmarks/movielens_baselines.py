"""What a recommender has to beat on MovieLens-100k: mean and biases for the stars, EASE and popularity for the ranking.

    python benchmarks/movielens_baselines.py [--smallest]

The course's split by each of five data seeds, learned from train and validation together (95 % of the ratings), scored
on test. Biases: mean + a_i + b_j, least squares with a penalty on a and b. EASE (Steck 2019): item weights in closed
form, lambda 300, from who rated what. `mrr` is the course's: see `learners.recommender.ranking`. Needs the
archive (`cs330ray data fetch`), and says so where it is missing; at the smallest size two splits of `planted`, which
needs none. The last line is one JSON object: mean and standard deviation of each.
"""

import argparse
import json
import statistics
import sys

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from cs330ray.course.data import movielens
from cs330ray.course.data.movielens import Ratings
from cs330ray.errors import Cs330rayError

DATA_SEEDS = range(5)
FEWEST = range(2)  # of the smallest size: a deviation takes two
BIAS_PENALTY = 5.0  # ratings that a bias of 0 stands for
BIAS_SWEEPS = 20
EASE_PENALTY = 300.0


def biases_mse(known: Ratings, held_out: Ratings, sizes: tuple[int, int]) -> float:
    """Fit the biases of users and items in turn until they stand; the mean squared error."""
    users, items = sizes
    mean = known.stars.mean(dtype=np.float64)
    a, b = np.zeros(users), np.zeros(items)
    for _ in range(BIAS_SWEEPS):
        b = shrunk_means(known.stars - mean - a[known.users], known.items, items)
        a = shrunk_means(known.stars - mean - b[known.items], known.users, users)
    return float(np.square(mean + a[held_out.users] + b[held_out.items] - held_out.stars).mean())


def shrunk_means(values: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    sums = np.bincount(groups, weights=values, minlength=count)
    return sums / (np.bincount(groups, minlength=count) + BIAS_PENALTY)


def rated(known: Ratings, sizes: tuple[int, int]) -> NDArray[np.float64]:
    """Who rated what: one, else zero; users by items."""
    x = np.zeros(sizes)
    x[known.users, known.items] = 1
    return x


def ease_scores(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Score all pairs, Steck 2019, eq. (8)."""
    inverse = np.linalg.inv(x.T @ x + EASE_PENALTY * np.eye(x.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return x @ weights


def mrr(scores: NDArray[np.float64], known: Ratings, held_out: Ratings) -> float:
    """The course's mean reciprocal rank, user by user."""
    means = []
    for user in np.unique(held_out.users):
        order = -scores[user]
        order[known.items[known.users == user]] = np.inf
        means.append((1 / scipy.stats.rankdata(order)[held_out.items[held_out.users == user]]).mean())
    return float(np.mean(means))


def measure(dataset: str, data_seed: int) -> dict[str, float]:
    train, val, test = (movielens.ratings(dataset, "course", data_seed, part) for part in movielens.PARTS)
    known = Ratings(*(np.concatenate(pair) for pair in zip(vars(train).values(), vars(val).values(), strict=True)))
    sizes = movielens.sizes(dataset)
    x = rated(known, sizes)
    chance = np.random.RandomState(data_seed).random_sample(x.shape)
    return {
        "biases_mse": biases_mse(known, test, sizes),
        "ease_mrr": mrr(ease_scores(x), known, test),
        "popularity_mrr": mrr(np.tile(x.sum(axis=0), (len(x), 1)), known, test),
        "random_mrr": mrr(chance, known, test),
    }


def main(*, smallest: bool) -> None:
    dataset, data_seeds = ("planted", FEWEST) if smallest else ("movielens", DATA_SEEDS)
    rows = {data_seed: measure(dataset, data_seed) for data_seed in data_seeds}
    names = list(rows[0])
    print(f"{'data seed':>10}" + "".join(f"{name:>16}" for name in names))
    for data_seed, row in rows.items():
        print(f"{data_seed:>10}" + "".join(f"{row[name]:>16.4f}" for name in names))
    found = {}
    for name in names:
        values = [row[name] for row in rows.values()]
        found[name] = {"mean": round(statistics.mean(values), 4), "sd": round(statistics.stdev(values), 4)}
    for figure in ("mean", "sd"):
        print(f"{figure:>10}" + "".join(f"{found[name][figure]:>16.4f}" for name in names))
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smallest", action="store_true", help="two splits of `planted`: shows only that it runs")
    try:
        main(smallest=parser.parse_args().smallest)
    except Cs330rayError as error:
        sys.exit(f"benchmarks/movielens_baselines.py: {error}")
