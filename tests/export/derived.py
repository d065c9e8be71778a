"""A trainable of one's own that is MAML on other data: what somebody writes who derives from a system of ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cs330ray.course.systems import fewshot
from cs330ray.course.systems import maml as theirs
from cs330ray.course.systems.maml import *  # noqa: F403 - as people do
from cs330ray.trial.contract import Progress


class Config(theirs.Config):
    dataset: Literal["runes"] = "runes"  # type: ignore[assignment]


def _as_glyphs(config: Config) -> theirs.Config:
    return theirs.Config(**config.model_dump() | {"dataset": "glyphs"})


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    yield from theirs.train(_as_glyphs(config), seed, steps, resume)


def prepare(config: Config) -> str:
    return fewshot.prepare(_as_glyphs(config))
