"""Learning rates over a trial: a pure function of the step and of the schedule's own length, never of the budget."""

import math
from typing import Literal

Kind = Literal["constant", "linear", "cosine"]


def factor(step: int, *, kind: Kind, warmup_steps: int = 0, schedule_steps: int | None = None) -> float:
    """What the learning rate is multiplied by in a step, from 1, as transformers' schedules have it: in [0, 1].

    It rises from 0 by 1 / `warmup_steps` a step; then it stays, or falls to 0 behind step `schedule_steps`, in a line
    or in half a wave of the cosine.
    """
    done = step - 1
    if done < warmup_steps:
        return done / warmup_steps
    if kind == "constant":
        return 1.0
    if schedule_steps is None:
        raise ValueError(f"schedule_steps: expected a length of the {kind} schedule, got none")
    left = max(0.0, (schedule_steps - done) / max(1, schedule_steps - warmup_steps))
    return left if kind == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
