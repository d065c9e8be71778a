"""YAML without its surprises: a key stands once, names are text, values are plain, and little text stays little."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cs330ray.errors import SpecError

MOST_BYTES = 1 << 20
MOST_VALUES = 20_000  # after every alias is followed
LARGEST = 10**12


def read(file: Path) -> tuple[dict[str, Any], str]:
    """Read a YAML file that holds one table: its content, and its text. Raises SpecError in one line."""
    try:
        if not file.is_file():
            raise SpecError(f"{file}: a file must be there, but there is none; mend its name")
        if file.stat().st_size > MOST_BYTES:
            raise SpecError(f"{file}: at most {MOST_BYTES} bytes are read, but it has more; is it the right file?")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{file}: it must be readable, but {error.strerror}; mend its name or mode") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: it must be text in UTF-8, but byte {error.start} is not; mend that place") from None
    try:
        content = _load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: it must be YAML, but {_reason(error)}; mend that place") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # PyYAML's own, for `!!int ''` and its like
        raise SpecError(f"{file}: it must be YAML, but a value is not what it says: {error}; mend it") from None
    except RecursionError:
        raise SpecError(f"{file}: it must be YAML, but its brackets are too deep; mend it") from None
    if not isinstance(content, dict):
        raise SpecError(f"{file}: a table of names and values is needed, but got {_kind(content)}; see cluster.yaml")
    for problem in _surprises(content, ""):
        raise SpecError(f"{file}: {problem}")
    return content, text


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Go through every value that holds no others, with its place: `setup_commands.0`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{place}.{index}")
    else:
        yield place, value


def _load(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, set(), {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _measure(node: yaml.Node, around: set[int], sizes: dict[int, int]) -> int:
    """How many values a node is when its aliases are followed; none may hold itself, no key stand twice."""
    if id(node) in around:
        raise yaml.constructor.ConstructorError(None, None, "an alias holds itself", node.start_mark)
    if id(node) not in sizes:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _no_key_twice(node)
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        around.add(id(node))
        sizes[id(node)] = 1 + sum(_measure(each, around, sizes) for each in inner)
        around.remove(id(node))
        if sizes[id(node)] > MOST_VALUES:
            problem = f"it holds more than {MOST_VALUES} values with its aliases"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return sizes[id(node)]


def _no_key_twice(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                problem = f"`{key.value}` stands twice in one table"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)


def _reason(error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return where + " ".join(str(problem or error).split())[:200]


def _surprises(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield f"{place or 'the file'}: a name must be text, but got {key!r}; put it into quotes"
            else:
                yield from _surprises(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _surprises(inner, f"{place}.{index}")
    elif isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > LARGEST:
            yield f"{place}: a number up to {LARGEST:.0e} is needed, but got another; mend it"
    elif value is not None and not isinstance(value, str):
        yield f"{place}: text, a number, a list or a table is needed, but got {_kind(value)}; put it into quotes"


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
