"""Archives of text, read and verified by content: bAbI's stories, XSum's pairs, Amazon's reviews."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cs330ray.course.data import archives, unpack
from cs330ray.errors import DataError

TASKS = 20  # of bAbI
STARS = ("1", "2", "3", "4", "5")
FILES = {"babi": "tasks_1-20_v1-2.tar.gz", "xsum": "xsum.jsonl", "amazon": "Musical_Instruments_5.json.gz"}
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can write it, and no encoding can
LINE_BYTES = 1 << 20  # of xsum and amazon; the published ones have 11,464 bytes at most
MOST_ROWS = 100_000  # of xsum and amazon
MEMBER_BYTES = 1 << 22  # of a file of bAbI; the published ones have 529,204 bytes at most
Line = list[str]  # of a story: a sentence alone, or a question and its answer
Story = list[Line]


@dataclass(frozen=True)
class Facts:
    """What the archives must hold; of xsum any number of pairs will do."""

    questions: int = 1000  # in each file of bAbI
    stories: int = 200  # in each file of bAbI, unless its task stands in `others`
    others: Mapping[int, tuple[int, int]] = field(  # task -> stories to train and to test
        default_factory=lambda: {
            4: (1000, 1000),
            15: (250, 250),
            16: (1000, 1000),
            17: (125, 125),
            18: (198, 199),
            19: (1000, 1000),
            20: (94, 93),
        }
    )
    stars: tuple[int, ...] = (217, 250, 772, 2084, 6938)  # reviews of each, 10,261 in all


FACTS = Facts()


def read_babi() -> dict[str, dict[str, list[Story]]]:
    """Read and verify the archive; the stories of each task, to train and to test. Raises DataError."""
    path = fetch("babi")
    archive = archives.ARCHIVES[FILES["babi"]]
    members = unpack.read_tar(archive, path, MEMBER_BYTES, folder="en")
    files = {PurePosixPath(name).name: text for name, text in members.items()}
    try:
        return {
            f"qa{task}": {part: _stories(files, task, part) for part in ("train", "test")}
            for task in range(1, TASKS + 1)
        }
    except ValueError as error:
        raise DataError(f"{path}: {error}; {archive.remedy}") from None


def _stories(files: Mapping[str, bytes], task: int, part: str) -> list[Story]:
    """The stories of one file; raises ValueError where it is missing or holds other numbers of them."""
    named = re.compile(rf"qa{task}_.*_{part}\.txt")
    name = next((name for name in files if named.fullmatch(name)), None)
    if name is None:
        raise ValueError(f"en/qa{task}_*_{part}.txt must be in it, but is not")
    stories: list[Story] = []
    for number, line in enumerate(files[name].decode().splitlines(), 1):
        count, _, content = line.partition(" ")
        if count == "1":
            stories.append([])
        columns = [_one_line(column) for column in content.split("\t")][:2]  # the third names supporting sentences
        if not stories or count != str(len(stories[-1]) + 1) or not all(columns):
            raise ValueError(f"{name}: line {number} must count a sentence, or a question and its answer, but does not")
        stories[-1].append(columns)
    questions = sum(len(line) == 2 for story in stories for line in story)
    wanted = FACTS.others.get(task, (FACTS.stories, FACTS.stories))[part == "test"]
    _check(name, "as many stories and questions", (len(stories), questions), (wanted, FACTS.questions))
    return stories


def read_amazon() -> list[list[str]]:
    """Read and verify the archive; number, review and stars of each. Raises DataError."""
    path = fetch("amazon")
    archive = archives.ARCHIVES[FILES["amazon"]]
    try:
        rows = _json_lines(unpack.read_gz(archive, path))
        reviews = [[str(at), *_texts(f"line {at}", row, ("reviewText", "overall"))] for at, row in enumerate(rows, 1)]
        counts = Counter(stars for *_, stars in reviews)
        wanted = dict(zip(STARS, FACTS.stars, strict=True))
        _check("it", "as many reviews by their stars", dict(sorted(counts.items())), wanted)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {archive.remedy}") from None
    return reviews


def read_xsum() -> list[list[str]]:
    """Read and verify the archive; id, document and summary of each pair. Raises DataError."""
    path = fetch("xsum")
    archive = archives.ARCHIVES[FILES["xsum"]]
    try:
        read, unit = (_parquet, "row") if path.suffix == ".parquet" else (_json_pairs, "line")
        rows = enumerate(read(path, archive.max_bytes), 1)
        pairs = [_texts(f"{unit} {at}", row, ("id", "document", "summary")) for at, row in rows]
        if not pairs:
            raise ValueError("expected pairs of a document and its summary, got an empty file")
        _check("it", "as many different ids as pairs", len({id_ for id_, *_ in pairs}), len(pairs))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}; {archive.remedy}") from None
    return pairs


def _json_pairs(path: Path, max_bytes: int) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it must not have more than {max_bytes} bytes")
    yield from _json_lines(content)


def _json_lines(content: bytes) -> Iterator[Mapping[str, Any]]:
    """The objects of a file with one in each line; raises ValueError at a line that is none."""
    lines = io.BytesIO(content)
    for number, line in enumerate(iter(lambda: lines.readline(LINE_BYTES + 1), b""), 1):
        if len(line) > LINE_BYTES or number > MOST_ROWS:
            raise ValueError(f"line {number} is beyond the bound of {LINE_BYTES} bytes a line, {MOST_ROWS} lines")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} must be a JSON object, but is not")
        yield row


def _parquet(path: Path, max_bytes: int) -> Iterator[Mapping[str, Any]]:
    """The rows of a parquet file, whose columns may have `max_bytes` in all."""
    from pyarrow import parquet  # here, for it is slow to import and seldom needed

    left = max_bytes
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            left -= batch.nbytes
            if left < 0:
                raise ValueError(f"it unpacks beyond the bound of {max_bytes} bytes")
            yield from batch.to_pylist()


def _texts(place: str, row: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """Some fields of a row, each a text or a number, as a line of text; raises ValueError where one is missing."""
    for name in fields:
        if not isinstance(row.get(name), str | int | float):
            got = f"{row[name]!r:.60}" if name in row else "no such field"
            raise ValueError(f"{place}: {name} must stand in each row as a text or a number, but got {got}")
    texts = [_one_line(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name])) for name in fields]
    if any(SURROGATE.search(text) for text in texts):
        raise ValueError(
            f"{place}: {', '.join(fields)} must be text in each row, but got half a character in {texts[0]!r:.60}"
        )
    return texts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check(name: str, what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise ValueError(f"{name} must hold {what}: {wanted}, but got {got}")


def fetch(dataset: str) -> Path:
    """Find the archive of a dataset, or download it; its path. Raises DataError."""
    return archives.fetch(archives.ARCHIVES[FILES[dataset]])
