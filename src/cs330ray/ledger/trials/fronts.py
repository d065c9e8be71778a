"""Fronts: which trials no other dominates, and in which order they stand."""

import math
from collections.abc import Sequence

from cs330ray.ledger.records import Trial


def losses(values: Sequence[float], goals: Sequence[str]) -> tuple[float, ...]:
    """Objectives as losses: less is better."""
    return tuple(-value if goal == "max" else value for value, goal in zip(values, goals, strict=True))


def pareto_front(found: Sequence[Trial], goals: Sequence[str]) -> list[Trial]:
    """The COMPLETE trials that no other COMPLETE trial dominates."""
    complete = [trial for trial in found if trial.state == "COMPLETE" and trial.values]
    places = {trial.number: losses(trial.values or (), goals) for trial in complete}
    return [
        trial
        for trial in complete
        if not any(_dominates(places[other.number], places[trial.number]) for other in complete)
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def by_crowding(front: Sequence[Trial], goals: Sequence[str]) -> list[Trial]:
    """A front, its ends and its loneliest members first: crowding distance, Deb et al. 2002, section III-B."""
    distance = dict.fromkeys((trial.number for trial in front), 0.0)
    for objective in range(len(goals)):
        ranked = sorted(front, key=lambda trial: (losses(trial.values or (), goals)[objective], trial.number))
        places = [losses(trial.values or (), goals)[objective] for trial in ranked]
        for end in (ranked[:1], ranked[-1:]):
            distance |= {trial.number: math.inf for trial in end}
        spread = (places[-1] - places[0]) if places else 0.0
        for before, trial, after in zip(places, ranked[1:-1], places[2:], strict=False):
            distance[trial.number] += (after - before) / spread if spread else 0.0
    first = {trial.number: losses(trial.values or (), goals)[0] for trial in front}
    return sorted(front, key=lambda trial: (-distance[trial.number], first[trial.number], trial.number))
