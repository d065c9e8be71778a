"""A trainable whose trials may train together: each walks by draws of its own; some kinds of company go wrong."""

import json
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.errors import Diverged
from cs330ray.trial.contract import Item, Member, Metric, Moment, Progress, Scores, alone

METRICS: Mapping[str, Metric] = {"val_loss": Metric("min"), "test_loss": Metric("min")}
FUSIBLE = frozenset({"lr", "sleep_s"})


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(0.1, gt=0)
    width: int = Field(1, ge=1)
    together: Literal["well", "unequal", "raises", "dies", "grows"] = Field(
        "well", description="what becomes of company"
    )
    diverges_on: int = Field(-1, description="a seed that diverges at step 7")
    stops_at: int | None = Field(None, description="the step after which training ends by itself")
    sleep_s: float = Field(0.0, ge=0)
    eval_every_steps: int = Field(2, ge=1)


def prepare(config: Config) -> str:
    return "company"


def train_many(members: Sequence[Member], left: Collection[int] = ()) -> Iterator[Moment]:
    states = [_begun(member) for member in members]
    going = set(range(len(members)))
    while going := going - set(left):
        moment: dict[int, Progress | Exception] = {}
        for place in sorted(going):
            member, state = members[place], states[place]
            config, end = member.config, min(member.steps, member.config.stops_at or member.steps)
            if state["step"] >= end:
                going.discard(place)
                continue
            state["step"] += 1
            time.sleep(config.sleep_s)
            _company(config, len(members), state)
            draw = np.random.default_rng([member.seed, state["step"]]).normal()
            state["at"] += config.lr * (draw - state["at"]) + (len(members) > 1 and config.together == "unequal")
            if member.seed == config.diverges_on and state["step"] == 7:
                moment[place] = Diverged("planted")
                going.discard(place)
            elif state["step"] % config.eval_every_steps == 0 or state["step"] == end:
                moment[place] = Progress(state["step"], {"val_loss": state["at"]}, _saving(state))
        if moment:
            yield moment


train = alone(train_many)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    at = json.loads((checkpoint / "state.json").read_text())["at"]
    return Scores({"test_loss": at}, {"test_loss": [Item(str(unit), at + unit) for unit in range(2)]})


def _begun(member: Member) -> dict[str, float]:
    if member.resume is not None:
        found: dict[str, float] = json.loads((member.resume / "state.json").read_text())
        return found
    return {"step": 0, "at": 1.0}


def _company(config: Config, members: int, state: Mapping[str, float]) -> None:
    if members > 1 and state["step"] == 9:
        if config.together == "raises":
            raise MemoryError("together they do not fit")
        if config.together == "grows":
            held = bytearray(2 * 1024**3)
            time.sleep(2.0)
            del held
        if config.together == "dies":
            os.kill(os.getpid(), signal.SIGKILL)


def _saving(state: dict[str, float]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        (path / "state.json").write_text(json.dumps(state))

    return save
