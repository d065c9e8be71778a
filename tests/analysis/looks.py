"""Looks for the tests of claims: two cells or more, searched or not."""

from typing import Any

from cs330ray.analysis.claims.look import Look

WIDE = [0.90, 0.91, 0.92, 0.90, 0.93]
DEEP = [0.80, 0.82, 0.81, 0.81, 0.82]  # apart by .1, .09, .11, .09, .11: mean .1, sd .01
THIN = [0.89, 0.91, 0.90, 0.915, 0.93]  # apart by .01, 0, .02, -.015, 0: mean .003


def searched(validation: dict[str, list[float]], **others: Any) -> Look:
    """A first look at five searches of eight trials, tested; the values of validation are those of test."""
    known = {
        "number": 1, "unit": "replicate", "searches": 5, "trials": 8, "seeds": 3, "metric": "val_accuracy",
        "goal": "max", "tested": "test_accuracy", "test": validation, "sampler": "tpe", "searched": ("lr", "wd"),
    }  # fmt: skip
    return Look(validation=validation, **(known | others))


def unsearched(validation: dict[str, list[float]], **others: Any) -> Look:
    """A first look at five seeds of a study that searches nothing."""
    known: dict[str, Any] = {
        "unit": "seed", "searches": 1, "trials": 1, "seeds": 5, "sampler": None, "searched": (), "held": {"lr": 0.001}
    }  # fmt: skip
    return searched(validation, **(known | others))
