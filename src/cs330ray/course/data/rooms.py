"""Stories of `rooms`, drawn by a grammar of our own: "where is X?" after the manner of bAbI's first task."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cs330ray.course.data.text_archives import Story


@dataclass(frozen=True)
class Rooms:
    """How `rooms` is drawn: before each question two people go somewhere; one who went is asked for."""

    version: int = 1  # of the way of drawing below; a new one is packed anew
    seed: int = 330
    train: int = 300  # stories
    test: int = 100
    questions: int = 5  # of a story
    moves: int = 2  # before each question
    people: tuple[str, ...] = ("Anna", "Boris", "Clara", "Dmitri")
    verbs: tuple[str, ...] = ("walked to", "ran to", "returned to", "hurried to")
    places: tuple[str, ...] = ("attic", "cellar", "garage", "library", "pantry", "stable")


ROOMS = Rooms()


def draw() -> dict[str, list[Story]]:
    """Draw the stories of `rooms`; no two begin alike, so that no question stands in two of them."""
    random = np.random.RandomState(ROOMS.seed)
    stories: dict[str, Story] = {}
    while len(stories) < ROOMS.train + ROOMS.test:
        story = _draw_story(random)
        stories.setdefault(json.dumps(story[: ROOMS.moves]), story)
    drawn = list(stories.values())
    return {"train": drawn[: ROOMS.train], "test": drawn[ROOMS.train :]}


def _draw_story(random: np.random.RandomState) -> Story:
    story: Story = []
    where: dict[str, str] = {}
    for _ in range(ROOMS.questions):
        for _ in range(ROOMS.moves):
            person = _pick(ROOMS.people, random)
            where[person] = _pick([place for place in ROOMS.places if place != where.get(person)], random)
            story.append([f"{person} {_pick(ROOMS.verbs, random)} the {where[person]}."])
        asked = _pick(sorted(where), random)
        story.append([f"Where is {asked}?", where[asked]])
    return story


def _pick(choices: Sequence[str], random: np.random.RandomState) -> str:
    return choices[random.randint(len(choices))]
