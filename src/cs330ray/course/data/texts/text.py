"""Text of one's own: prompts with answers, or texts with labels. The columns of the file say which.

    {"prompt": "Where is Anna?", "answer": "attic"}     in words
    {"text": "I would buy it again.", "label": "good"}  one of the labels, which are sorted as Python sorts texts
    {"prompt": ..., "answer": ..., "group": "story 7"}  rows of a group stay in one part

Of a file with groups a fifth of them is test and a fifth val; of one with labels a fifth of the texts of each label;
else a fifth of the prompts; by `data_seed`. The rest is train. Rows of one prompt, whatever its case and blanks, stay
together as a group does, so that nothing is asked in one part that was shown in another. They all count, and none is
left out.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cs330ray.course.data import packed, text
from cs330ray.course.data.text import Example
from cs330ray.course.data.text_archives import SURROGATE
from cs330ray.course.data.texts import rows
from cs330ray.course.data.texts.rows import wrong
from cs330ray.errors import DataError
from cs330ray.words import plural, short

PAIRS = (("prompt", "answer"), ("text", "label"))
GROUP = "group"
SHARE = 0.2  # of test, and of val
LEAST_UNITS = 5  # so that a share of them is one
LEAST_OF_A_LABEL = 3  # one to each part
FORM = 1  # of what is packed; another one is packed again
Places = NDArray[np.int64]  # of rows in a file


def digest(data: str) -> str:
    """Find, check and pack a file unless that is done; the digest of what is packed. Raises DataError."""
    return _open(data).digest


def labels(data: str) -> tuple[str, ...] | None:
    """The labels of a file in the order that a classifier has them; None where it has answers in words."""
    return _open(data).labels


def part(data: str, name: str, data_seed: int) -> "Rows":
    """Take train, val or test; the first few of val and test are spread over as many labels, or units, as can be.

    Raises DataError where the file cannot be had, is not as it must be, or has too few rows.
    """
    table = _open(data)
    return Rows(table, _split(table, data_seed)[name])


def draw(pool: "Rows", shots: int, draw_seed: int, *, classes: bool) -> list[Example]:
    """Draw examples as `text.draw` does, but look at none that is not drawn."""
    table, places = pool.table, pool.places
    kinds = table.codes[places] if classes else np.zeros(len(places), np.int64)
    names = table.labels if classes and table.labels is not None else (None,)
    try:
        chosen = text.draw_places(table.units[places], kinds, names, shots, draw_seed)
    except DataError as error:
        raise DataError(f"{table.data}: {error}; lower shots or add rows") from None
    return [pool[at] for at in chosen.tolist()]


class Strings(Sequence[str]):
    """Texts in one array of bytes, cut where each ends."""

    def __init__(self, content: NDArray[np.uint8], ends: Places) -> None:
        self._content, self._ends = content, ends

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        start = int(self._ends[at - 1]) if at else 0
        return bytes(self._content[start : int(self._ends[at])]).decode()

    def __len__(self) -> int:
        return len(self._ends)


@dataclass(frozen=True, eq=False)
class Table:
    """A packed file. A unit is what stays in one part: a group, or the rows of one prompt, and what these tie up."""

    data: str  # the path as it was given
    digest: str
    prompts: Strings
    answers: Strings
    labels: tuple[str, ...] | None
    groups: tuple[str, ...] | None  # by unit
    codes: Places  # of each row its label, 0 where there are none
    units: Places  # of each row its unit, numbered as they come
    lines: Places  # of each row, in the file

    @property
    def firsts(self) -> Places:
        """The first row of each unit."""
        return np.unique(self.units, return_index=True)[1]

    def example(self, at: int) -> Example:
        """Read a row."""
        line, unit = int(self.lines[at]), int(self.units[at])
        name = f"line {line}" if self.groups is None else self.groups[unit]
        return Example(name, self.prompts[at], self.answers[at], line)


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Example]):
    """Some rows of a file in their order, read where they are looked at: there may be a million."""

    table: Table
    places: Places

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self.table.example(each) for each in self.places[at].tolist()]
        return self.table.example(int(self.places[at]))

    def __len__(self) -> int:
        return len(self.places)


# Splitting -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _split(table: Table, data_seed: int) -> Mapping[str, Places]:
    """The rows of each part; train's in the order of the file."""
    random = text.stream("own text", data_seed)
    by_label = table.labels is not None and table.groups is None
    firsts = table.firsts
    kinds = table.codes[firsts] if by_label else np.zeros(len(firsts), np.int64)
    parts = np.zeros(len(firsts), np.int64)  # 0 train, 1 val, 2 test
    for units in text.sorted_out(kinds):
        _suffice(table, units, firsts)
        each = max(1, round(SHARE * len(units)))
        shuffled = units[random.permutation(len(units))]
        parts[shuffled[:each]], parts[shuffled[each : 2 * each]] = 2, 1
    places = {name: np.flatnonzero(parts[table.units] == at) for at, name in enumerate(("train", "val", "test"))}
    _train_has_each_label(table, places["train"], data_seed)
    for name in ("val", "test"):
        keys = table.codes if table.labels is not None else table.units
        places[name] = places[name][text.spread(keys[places[name]], random)]
    return places


def _suffice(table: Table, units: Places, firsts: Places) -> None:
    """Raise DataError where train, val and test would not all have some of these units."""
    first = int(firsts[units[0]])
    if table.labels is not None and table.groups is None:
        if len(units) < LEAST_OF_A_LABEL:
            raise wrong(
                table.data,
                int(table.lines[first]),
                f"label: expected at least {LEAST_OF_A_LABEL} different texts of {short(table.answers[first])}, one "
                f"for each of train, val and test, got {len(units)}; add some, or remove the label",
            )
    elif len(units) < LEAST_UNITS:
        what = "prompts" if table.groups is None else "groups with no prompt in common"
        raise DataError(
            f"{table.data}: expected at least {LEAST_UNITS} different {what} for train, val and test, got {len(units)} "
            f"in {plural(len(table.units), 'row')}; add some"
        )


def _train_has_each_label(table: Table, train: Places, data_seed: int) -> None:
    """Raise DataError where groups left a label out of train."""
    present = {*np.unique(table.codes[train]).tolist()}
    for code, label in enumerate(table.labels or ()):
        if code not in present:
            raise DataError(
                f"{table.data}: label: expected {short(label)} in the groups of train, got none at data_seed "
                f"{data_seed}; choose another data_seed, or add groups with it"
            )


# Packing -------------------------------------------------------------------------------------------------------------


def _open(data: str) -> Table:
    """A file as it is now, packed unless that is done."""
    path = rows.located(data)
    held = path.stat()
    return _table(data, str(path.absolute()), held.st_mtime_ns, held.st_size)


@lru_cache(maxsize=8)
def _table(data: str, path: str, changed_ns: int, size: int) -> Table:  # noqa: ARG001 - tell one content from another
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a key of the cache
            content = file.read()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{data}: expected a file that can be read, got {reason}; change its permissions") from None
    name = hashlib.sha256(f"{FORM} {path.rpartition('.')[2].lower()} ".encode() + content).hexdigest()
    kept = packed.pack(f"text-{name[:16]}", lambda: _packable(data, content))
    kept.verify()
    held = kept.arrays
    notes = json.loads(held["notes"].tobytes())
    found, groups = (None if notes[key] is None else tuple(notes[key]) for key in ("labels", "groups"))
    prompts, answers = (Strings(held[key], held[f"{key}_ends"]) for key in ("prompts", "answers"))
    return Table(data, kept.digest, prompts, answers, found, groups, held["codes"], held["units"], held["lines"])


def _packable(data: str, content: bytes) -> dict[str, NDArray[Any]]:
    """Read and check a file; what is packed of it. Raises DataError."""
    lines: list[int] = []
    columns: dict[str, list[str]] = {}
    for line, row in rows.read(data, content):
        if not lines:
            columns = {name: [] for name in _columns(data, row)}
        for name, texts in columns.items():
            texts.append(_field(data, line, name, row))
        if GROUP in row and GROUP not in columns:
            raise wrong(data, line, f"{GROUP}: expected none, as in the first row, got one; give it to all rows")
        lines.append(line)
    if not lines:
        raise DataError(f"{data}: expected rows, got an empty file; write some")
    prompts, answers, *grouped = columns.values()
    found = sorted({*answers}) if "label" in columns else None
    if found is not None and len(found) < 2:
        raise DataError(f"{data}: label: expected two labels or more, got {short(found[0])} alone; add rows of others")
    code = {label: at for at, label in enumerate(found or ())}
    units = _units(prompts, *grouped)
    firsts = np.unique(units, return_index=True)[1].tolist()
    groups = [grouped[0][at] for at in firsts] if grouped else None
    notes = json.dumps({"labels": found, "groups": groups}).encode()
    return {
        **_in_bytes("prompts", prompts),
        **_in_bytes("answers", answers),
        "codes": np.array([code.get(answer, 0) for answer in answers], np.int64),
        "units": units,
        "lines": np.array(lines, np.int64),
        "notes": np.frombuffer(notes, np.uint8),
    }


def _columns(data: str, row: rows.Fields) -> Iterator[str]:
    """The columns of a file that count, by its first row."""
    pairs = [pair for pair in PAIRS if set(pair) <= row.keys()]
    if len(pairs) != 1:
        got = ", ".join(map(short, row)) or "none"
        raise DataError(
            f"{data}: expected the columns prompt and answer, or text and label, got {got}; "
            f"{'remove two' if pairs else 'rename them'}"
        )
    yield from pairs[0]
    if GROUP in row:
        yield GROUP


def _field(data: str, line: int, name: str, row: rows.Fields) -> str:
    """A field of a row without blanks around it."""
    value = row.get(name)
    if not isinstance(value, str):
        got = short(value) if name in row else "no such field"
        raise wrong(data, line, f"{name}: expected a text or a number, got {got}; write one, or remove the row")
    if not (stripped := value.strip()):
        raise wrong(data, line, f"{name}: expected a text, got {short(value)}; write one, or remove the row")
    if SURROGATE.search(stripped):
        raise wrong(data, line, f"{name}: expected characters, got half of one in {short(stripped)}; correct it")
    return stripped


def _units(prompts: Sequence[str], groups: Sequence[str] | None = None) -> Places:
    """Number what must stay in one part: rows of one prompt, and rows of one group, and what these tie together."""
    of_prompt = text.numbered([" ".join(prompt.split()).casefold() for prompt in prompts])
    if groups is None:
        return of_prompt
    from scipy.sparse import coo_array  # here: it takes its time
    from scipy.sparse.csgraph import connected_components

    of_group = text.numbered(groups)
    first_prompt = int(of_group.max()) + 1
    nodes = first_prompt + int(of_prompt.max()) + 1
    ties = coo_array((np.ones(len(prompts)), (of_group, first_prompt + of_prompt)), shape=(nodes, nodes))
    _, tied = connected_components(ties, directed=False)
    return text.numbered(tied[of_group].tolist())


def _in_bytes(name: str, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    encoded = [each.encode() for each in texts]
    return {
        name: np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_ends": np.cumsum([len(each) for each in encoded], dtype=np.int64),
    }
