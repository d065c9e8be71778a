"""The contract of a trial: what a system has, and what it yields. Knows no torch, and no part of the service."""

from cs330ray.trial.contract import Item, Metric, Progress, Scores, Trainable, Weights, finite
from cs330ray.trial.run import run_alone

__all__ = ["Item", "Metric", "Progress", "Scores", "Trainable", "Weights", "finite", "run_alone"]
