"""A search by Ray Tune and Optuna, and a second experiment for the fresh seeds: what a researcher writes, and tuned.

    python benchmarks/headline_arms/with_tune.py LEARNER FOLDER

FOLDER/task.json says what to train, FOLDER/said.txt gets a line a trial, FOLDER/answer.json the choice. Tuned: actors
are reused, as many trials are asked for as run, data go with the trainable, nothing is logged. Killed, the same
command restores both experiments.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from benchmarks.headline_arms import protocol

SPACE = {
    "lr": tune.loguniform(3e-4, 1e-2),
    "factorization_weight": tune.uniform(0.5, 0.999),
    "weight_decay": tune.loguniform(1e-7, 1e-4),
    "seed": tune.randint(0, 2**31),
}
SLOTS = 2


def train(params, learner, task, data, names, said, *, test):
    if learner == "plain":  # here, so that the driver waits for neither
        from benchmarks.headline_arms.plain import rows
    else:
        from benchmarks.headline_arms.ours import rows
    for row in rows(params, task["dataset"], task["epochs"], data, test=test):
        tune.report(row)
    with said.open("a") as file:
        file.write(f"{names[params['lr'], params['seed']]} COMPLETE {row}\n")


def fit(experiment, points, folder, **given):
    """Train at these points, or go on with an experiment that was killed; the last row of each, by its name."""
    names = {(point["lr"], point["seed"]): name for name, point in points.items()}
    trainable = tune.with_parameters(train, names=names, said=folder / "said.txt", **given)
    if tune.Tuner.can_restore(folder / experiment):
        tuner = tune.Tuner.restore(str(folder / experiment), trainable)
    else:
        search = OptunaSearch(points_to_evaluate=list(points.values()))
        config = tune.TuneConfig(
            metric="val_mse", mode="min", search_alg=search, num_samples=len(points), max_concurrent_trials=SLOTS,
            reuse_actors=True,
        )  # fmt: skip
        run = tune.RunConfig(name=experiment, storage_path=str(folder), verbose=0)
        tuner = tune.Tuner(trainable, param_space=SPACE, tune_config=config, run_config=run)
    ended = [result for result in tuner.fit() if result.error is None]
    return {names[result.config["lr"], result.config["seed"]]: result.metrics for result in ended}


def main(learner, folder):
    task = json.loads((folder / "task.json").read_text())
    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    data = None
    if learner == "plain":
        from benchmarks.headline_arms.plain import read

        data = read(task["dataset"])
    protocol.answer(folder, task, partial(fit, folder=folder, learner=learner, task=task, data=data))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
