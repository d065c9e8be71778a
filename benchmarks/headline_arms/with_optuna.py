"""The same with Optuna alone, this project's learner and two processes: the floor of any service.

    python benchmarks/headline_arms/with_optuna.py FOLDER

FOLDER holds what `with_tune.py` says, and Optuna's journal. The processes are forked, so that torch is imported once.
All trials are asked for at once, since their points are given. Killed, the same command trains what the journal lacks.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.headline_arms import ours, protocol

SPACE = {
    "lr": FloatDistribution(3e-4, 1e-2, log=True),
    "factorization_weight": FloatDistribution(0.5, 0.999),
    "weight_decay": FloatDistribution(1e-7, 1e-4, log=True),
    "seed": IntDistribution(0, 2**31 - 1),
}
SLOTS = 2


def train(name, params, task, said, *, test):
    for row in ours.rows(params, task["dataset"], task["epochs"], None, test=test):
        last = row
    with said.open("a") as file:
        file.write(f"{name} COMPLETE {last}\n")
    return last


def fit(experiment, points, folder, pool, task, *, test):
    """Train at these points but for those that are done; the last row of each, by the point's name."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(storage=storage, study_name=experiment, load_if_exists=True)
    done = {one.user_attrs["name"]: one.user_attrs["row"] for one in study.get_trials(states=[TrialState.COMPLETE])}
    under_way = {}
    for name in [name for name in points if name not in done]:
        study.enqueue_trial(points[name], user_attrs={"name": name})
        trial = study.ask(SPACE)
        under_way[pool.submit(train, name, trial.params, task, folder / "said.txt", test=test)] = trial
    for future in as_completed(under_way):
        trial, row = under_way[future], future.result()
        trial.set_user_attr("row", row)
        study.tell(trial, row["val_mse"])
        done[trial.user_attrs["name"]] = row
    return done


def main(folder):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task = json.loads((folder / "task.json").read_text())
    with ProcessPoolExecutor(SLOTS, get_context("fork")) as pool:
        protocol.answer(folder, task, partial(fit, folder=folder, pool=pool, task=task))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
