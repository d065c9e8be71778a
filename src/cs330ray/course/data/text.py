"""Text to learn from a few examples of, CS330 homework 3: bAbI, XSum, Amazon reviews; and `rooms`, their stand-in.

    babi     questions on short stories (Weston et al. 2015), twenty tasks; the answer is a word or a list of words
    xsum     documents and their summaries in one sentence (Narayan et al. 2018)
    amazon   reviews of musical instruments and their stars (He & McAuley 2016)
    rooms    "where is X?" after the manner of bAbI's first task, drawn by a grammar of our own; needs no archive

Archives are verified by content. A split leaves out of train what stands in val or test under another name: stories
of the same sentences, questions asked word for word after the same sentences, reviews that were posted twice.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cs330ray.course.data import packed, rooms, text_archives
from cs330ray.course.data.text_archives import STARS, TASKS, Story
from cs330ray.errors import DataError, SpecError

DATASETS = ("babi", "xsum", "amazon", "rooms")
PARTS = ("train", "val", "test")
Questions = Literal["first", "all"]  # of a story
EVALUATION = 125  # examples of val, and of test, in every dataset
MAX_WORDS = 350  # of xsum's document and summary, unless told
FORM = 1  # of what is packed; another one is packed anew
SEED_MAX = 2**32 - 1


@dataclass(frozen=True)
class Example:
    """A text and what is to be answered."""

    unit: str  # what is independent of other units: a story (babi, rooms), a document (xsum), a review (amazon)
    text: str  # one line, single blanks: the story so far and its question, the document, or the review
    answer: str  # the words asked for, the summary, or the stars "1" ... "5"
    line: int = 0  # where it begins in a file of one's own


def digest(dataset: str) -> str:
    """Find, verify and pack a dataset of text unless that is done; the digest of what is packed. Raises DataError."""
    return pack(dataset).digest


def examples(
    dataset: str,
    part: str,
    data_seed: int,
    *,
    task: int = 1,
    max_words: int | None = None,
    questions: Questions = "all",
) -> list[Example]:
    """Read one part of a dataset of text, in a fixed order: that in which an evaluation asks it.

    val and test have EVALUATION examples. Any first few of them are spread over as many stories (babi, rooms) or
    classes (amazon) as can be. babi and rooms are cut by story: test comes from the test file, val and train from the
    train file; `task` is babi's, 1 to 20. With `questions` "first" only a story's first question is asked, as the
    course does: of babi's first task behind two sentences, where "all" has 2 to 10. amazon has as many reviews of each
    class in val, and in test. Of xsum those pairs are cut whose document and summary have fewer than `max_words` words
    together (MAX_WORDS unless told). Raises SpecError for an unknown name or a number out of its range, DataError where
    the data cannot be had or do not suffice.
    """
    _known("dataset", dataset, DATASETS)
    _known("part", part, PARTS)
    words = MAX_WORDS if max_words is None else max_words
    _in_range("data_seed", data_seed, 0, SEED_MAX)
    _in_range("task", task, 1, TASKS)
    _in_range("max_words", words, 1, SEED_MAX)
    return list(_split(dataset, digest(dataset), data_seed, task, words, questions)[part])


def draw(pool: Sequence[Example], shots: int, draw_seed: int, *, classes: bool) -> list[Example]:
    """Draw `shots` examples from the train part, or with `classes` so many of each answer: the same for every method.

    Draws of one seed are nested: a smaller one is the beginning of a larger one. They are from as many different units
    as there are. With `classes`, each answer has its turn in order. Raises DataError where the pool is too small.
    """
    answers = sorted({example.answer for example in pool})
    kinds = np.array([answers.index(example.answer) if classes else 0 for example in pool], np.int64)
    units = numbered([example.unit for example in pool])
    places = draw_places(units, kinds, answers if classes else [None], shots, draw_seed)
    return [pool[at] for at in places.tolist()]


def draw_places(
    units: NDArray[np.int64], kinds: NDArray[np.int64], names: Sequence[str | None], shots: int, draw_seed: int
) -> NDArray[np.int64]:
    """Draw as `draw` does, by the units of the examples and their kinds, numbered as in `names`; the places drawn."""
    random = stream("draw", draw_seed)
    spread_out = []
    for name, places in zip(names, sorted_out(kinds), strict=True):
        if len(places) < shots:
            of = "" if name is None else f" of the answer {name!r}"
            raise DataError(f"shots: `shots <= {len(places)}`, the training examples{of}, must hold, but got {shots}")
        spread_out.append(places[spread(units[places], random)][:shots])
    return np.stack(spread_out, axis=1).ravel()


def pack(dataset: str) -> packed.Packed:
    """Pack a dataset unless that is done: JSON as bytes, babi's tasks under `qa1` ... `qa20`, else under its name.

    Raises DataError where the archive is missing or not what was published.
    """
    _known("dataset", dataset, DATASETS)
    if dataset == "rooms":
        return packed.pack(f"rooms-{_hashed(rooms.ROOMS)}", lambda: _packable({"rooms": rooms.draw()}))
    if dataset == "babi":
        return packed.pack(f"babi-{_hashed(text_archives.FACTS)}", lambda: _packable(text_archives.read_babi()))
    if dataset == "amazon":
        return packed.pack(
            f"amazon-{_hashed(text_archives.FACTS)}", lambda: _packable({"amazon": text_archives.read_amazon()})
        )
    content = hashlib.sha256(
        text_archives.fetch("xsum").read_bytes()
    ).hexdigest()  # no number tells one archive from another
    return packed.pack(f"xsum-{_hashed(content)}", lambda: _packable({"xsum": text_archives.read_xsum()}))


def verify(dataset: str) -> str:
    """Check an archive and what is packed from it, reading all of it; the packed digest. Raises DataError."""
    read: Mapping[str, Callable[[], object]] = {
        "babi": text_archives.read_babi,
        "amazon": text_archives.read_amazon,
        "xsum": text_archives.read_xsum,
    }
    if dataset in read:
        read[dataset]()
    kept = pack(dataset)
    kept.verify()
    return kept.digest


# Splitting


@functools.lru_cache(maxsize=32)
def _split(
    dataset: str,
    content_digest: str,  # noqa: ARG001 - tells one content from another
    data_seed: int,
    task: int,
    max_words: int,
    questions: Questions,
) -> Mapping[str, tuple[Example, ...]]:
    """All parts of a dataset, made once a process."""
    key = f"qa{task}" if dataset == "babi" else dataset
    kept = pack(dataset)
    kept.verify()  # it is small, and a flipped byte may make it no JSON
    content = json.loads(kept.arrays[key].tobytes())
    if dataset in ("babi", "rooms"):
        parts = _split_stories(key, content, data_seed, questions)
    else:
        rows = [Example(*row) for row in content]
        parts = _split_reviews(rows, data_seed) if dataset == "amazon" else _split_pairs(rows, data_seed, max_words)
    return {part: tuple(cut) for part, cut in parts.items()}


def _split_stories(
    name: str, content: Mapping[str, list[Story]], data_seed: int, questions: Questions
) -> dict[str, list[Example]]:
    """Test from the test file, val from the train file, train from what is left; no story twice, in any part."""
    told: set[str] = set()  # stories that have their place
    parts: dict[str, list[Example]] = {}
    for part, file in (("test", "test"), ("val", "train")):
        random = stream(part, data_seed)
        taken: list[Example] = []
        for at in random.permutation(len(content[file])):
            if len(taken) < EVALUATION and not _told(content[file][at], told):
                taken += _questions(f"{name}-{file}-{at + 1}", content[file][at], questions)
        if len(taken) < EVALUATION:
            more = '; set questions = "all"' if questions == "first" else ""
            raise DataError(
                f"{name}: {part} needs {EVALUATION} questions on other stories, but there are {len(taken)}{more}"
            )
        parts[part] = _spread(taken[:EVALUATION], random, _unit)
    asked = {example.text for part in parts.values() for example in part}
    stories = [(f"{name}-train-{at}", story) for at, story in enumerate(content["train"], 1) if not _told(story, told)]
    train = [example for unit, story in stories for example in _questions(unit, story, questions)]
    return parts | {"train": [example for example in train if example.text not in asked]}


def _told(story: Story, told: set[str]) -> bool:
    """Whether a story of the same sentences was told before, whatever was asked; from now on it was."""
    sentences = " ".join(line[0] for line in story if len(line) == 1)
    if sentences in told:
        return True
    told.add(sentences)
    return False


def _questions(unit: str, story: Story, questions: Questions) -> list[Example]:
    """The questions of a story, each after the sentences before it; one that is asked again with no news only once."""
    most = 1 if questions == "first" else None
    sentences: list[str] = []
    found: dict[str, Example] = {}
    for line in story:
        if len(line) == 1:
            sentences += line
        else:
            question, answer = line
            text = " ".join([*sentences, question])
            found.setdefault(text, Example(unit, text, answer))
    return list(found.values())[:most]


def _split_reviews(rows: Sequence[Example], data_seed: int) -> dict[str, list[Example]]:
    """As many reviews of each class to val and to test, the rest to train; none that was posted twice."""
    rows = _distinct(rows, lambda row: [row.text])
    each = EVALUATION // len(STARS)
    random = stream("amazon", data_seed)
    parts: dict[str, list[Example]] = {part: [] for part in PARTS}
    for stars in STARS:
        shuffled = _shuffled([row for row in rows if row.answer == stars], random)
        _suffice(f"amazon: the reviews with {stars} of 5 stars", len(shuffled), each, "use another archive")
        for part, chosen in zip(("test", "val", "train"), _cut(shuffled, each), strict=True):
            parts[part] += chosen
    return parts | {part: _spread(parts[part], random, lambda row: row.answer) for part in ("val", "test")}


def _split_pairs(rows: Sequence[Example], data_seed: int, max_words: int) -> dict[str, list[Example]]:
    """Of the pairs that are short enough EVALUATION to val and to test, the rest to train."""
    short = [row for row in rows if len(row.text.split()) + len(row.answer.split()) < max_words]
    short = _distinct(short, lambda row: [row.text, row.answer])
    what = f"xsum: of {len(rows)} pairs those with fewer than {max_words} words"
    step = "raise max_words" if len(rows) > 2 * EVALUATION else "use a larger archive"
    _suffice(what, len(short), EVALUATION, step)
    parts = _cut(_shuffled(short, stream("xsum", data_seed)), EVALUATION)
    return dict(zip(("test", "val", "train"), parts, strict=True))


def _distinct(rows: Sequence[Example], texts: Callable[[Example], Sequence[str]]) -> list[Example]:
    """Leave out what has a text without words, or one that begins like an earlier one: it was published twice."""
    seen: set[str] = set()
    kept: list[Example] = []
    for row in rows:
        marks = {_beginning(text) for text in texts(row)}
        if "" not in marks and not marks & seen:
            seen |= marks
            kept.append(row)
    return kept


def _beginning(text: str, words: int = 25) -> str:
    """The first words of a text, without case and punctuation."""
    return " ".join(word.group().lower() for word in itertools.islice(re.finditer(r"\w+", text), words))


def _cut(rows: list[Example], each: int) -> tuple[list[Example], list[Example], list[Example]]:
    return rows[:each], rows[each : 2 * each], rows[2 * each :]


def _suffice(what: str, got: int, each: int, step: str) -> None:
    if got <= 2 * each:
        raise DataError(f"{what} must be more than {each} for val and {each} for test, but are {got}; {step}")


def _unit(example: Example) -> str:
    return example.unit


def _spread(rows: Sequence[Example], random: np.random.RandomState, by: Callable[[Example], Hashable]) -> list[Example]:
    """Shuffle such that no group has its second turn before every group that is left had its first, and so on."""
    return [rows[at] for at in spread(numbered([by(row) for row in rows]), random).tolist()]


def spread(groups: NDArray[np.int64], random: np.random.RandomState) -> NDArray[np.int64]:
    """Shuffle as `_spread` does, by the number of each one's group; the places in their new order."""
    order = random.permutation(len(groups))
    shuffled = groups[order]
    together = np.argsort(shuffled, kind="stable")
    starts = np.flatnonzero(np.diff(shuffled[together], prepend=-1))
    turns = np.empty_like(order)
    turns[together] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return order[np.argsort(turns, kind="stable")]


def sorted_out(kinds: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of each kind that occurs, the kinds in their order."""
    order = np.argsort(kinds, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)


def numbered(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number different values as they first come."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _shuffled(rows: Sequence[Example], random: np.random.RandomState) -> list[Example]:
    return [rows[at] for at in random.permutation(len(rows))]


def stream(name: str, seed: int) -> np.random.RandomState:
    """A stream of its own for each name and seed, whatever their size; it never changes, unlike default_rng's."""
    words = np.frombuffer(hashlib.sha256(f"cs330ray/{name}/{seed}".encode()).digest(), "<u4")
    return np.random.RandomState(words.tolist())


# Packing


def _packable(contents: Mapping[str, object]) -> dict[str, NDArray[Any]]:
    return {key: np.frombuffer(json.dumps(content).encode(), np.uint8) for key, content in contents.items()}


def _hashed(made_with: object) -> str:
    return hashlib.sha256(f"{FORM} {made_with!r}".encode()).hexdigest()[:12]


def _known(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(f"{field}: must be one of {', '.join(choices)}, but got {value!r}")


def _in_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpecError(f"{field}: `{low} <= {field} <= {high}` must hold, but got {value}")
