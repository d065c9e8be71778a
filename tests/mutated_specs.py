"""Study files spoilt by a seeded generator: what typing errors, editors, disks and bad will make of them."""

import copy
import random
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from cs330ray.package import shipped
from tests.toml_writer import document

SHIPPED = {path.stem: path.read_bytes() for path in sorted(shipped().glob("*.toml"))}
EXTREMES = (
    "1e308", "-1e308", "-0.0", "0", "-1", "nan", "-nan", "inf", "-inf", "5e-324", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "9" * 5000, "0x" + "f" * 5000, "1e999", "0.1",
)  # fmt: skip
OTHERS = (
    "true", '""', '"x"', "[]", "{}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "[[1]]", "{ low = 1 }",
    '"line\\nfeed"', '"\\u0000"', '"\\u001b[31mred"', '"\\u2028"', '"../../etc"', "[nan]", "{ a = { b = 1 } }",
    '{ low = 1, high = 2, step = 5e-324 }', "{ choices = [1, 1.0, true] }", "{ low = -1e308, high = 1e308 }",
    '{ low = 0, high = 1, when = { "" = [] } }', '["' + "x" * 2000 + '"]', '"os.path"', '"this.is.not"', '"..."',
)  # fmt: skip
NUMBER = re.compile(rb"(?<![\w.])-?\d[\d_]*(\.\d+)?(e-?\d+)?(?![\w.])")
SETTING = re.compile(rb"^\s*([\w.-]+) *= *(.*)$", re.MULTILINE)
KEYS = (
    "low", "high", "log", "step", "when", "choices", "trainable", "name", "int", "Range", "a[b", '"a\\nb"', "''", '"é"',
    "self", "model_fields", '"' + "k" * 3000 + '"', "objective", "fixed", "eval_every_steps", "seed",
)  # fmt: skip
HUGE = 10_000


def mutated(seed: int, files: Mapping[str, bytes] = SHIPPED) -> tuple[str, bytes]:
    """Spoil one of the files once to three times; what was done to it, and the bytes."""
    random_ = random.Random(seed)
    name = random_.choice(sorted(files))
    content, done = files[name], []
    for _ in range(random_.choice((1, 1, 2, 3))):
        mutation = random_.choice(MUTATIONS)
        content = mutation(content, random_)
        done.append(mutation.__name__)
    return f"{name}, seed {seed}: {' + '.join(done)}", content


# Bytes


def flip_bytes(content: bytes, random_: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 8))):
        if spoilt:
            spoilt[random_.randrange(len(spoilt))] ^= 1 << random_.randrange(8)
    return bytes(spoilt)


def cut(content: bytes, random_: random.Random) -> bytes:
    return content[: random_.randint(0, len(content))]


def insert_bytes(content: bytes, random_: random.Random) -> bytes:
    piece = random_.choice(
        (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\x85", b"\xed\xa0\x80", b"\x1b[2J", b'"""', b"[")
    )
    at = random_.randint(0, len(content))
    return content[:at] + piece + content[at:]


# Lines


def drop_a_line(content: bytes, random_: random.Random) -> bytes:
    lines = content.splitlines()
    del lines[random_.randrange(len(lines)) : random_.randrange(len(lines) + 1)][:1]
    return b"\n".join(lines)


def double_a_line(content: bytes, random_: random.Random) -> bytes:
    lines = content.splitlines() or [b""]
    at = random_.randrange(len(lines))
    return b"\n".join([*lines[:at], lines[at], *lines[at:]])


def swap_lines(content: bytes, random_: random.Random) -> bytes:
    lines = content.splitlines() or [b""]
    one, other = random_.randrange(len(lines)), random_.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def splice(content: bytes, random_: random.Random) -> bytes:
    """The beginning of this file and the end of another."""
    other = SHIPPED[random_.choice(sorted(SHIPPED))].splitlines()
    lines = content.splitlines()
    return b"\n".join(lines[: random_.randint(0, len(lines))] + other[random_.randint(0, len(other)) :])


# Settings


def replace_a_number(content: bytes, random_: random.Random) -> bytes:
    found = list(NUMBER.finditer(content))
    return _replaced(content, random_.choice(found).span(), random_.choice(EXTREMES)) if found else content


def replace_a_value(content: bytes, random_: random.Random) -> bytes:
    found = list(SETTING.finditer(content))
    value = random_.choice(OTHERS + EXTREMES)
    return _replaced(content, random_.choice(found).span(2), value) if found else content


def rename_a_key(content: bytes, random_: random.Random) -> bytes:
    found = list(SETTING.finditer(content))
    return _replaced(content, random_.choice(found).span(1), random_.choice(KEYS)) if found else content


def nest(content: bytes, random_: random.Random) -> bytes:
    found = list(SETTING.finditer(content))
    depth = random_.choice((2, 20, 400, 5000))
    opening, closing = random_.choice((("[", "]"), ("{ a = ", " }")))
    deep = random_.choice((f"{opening * depth}1{closing * depth}", opening * depth))
    if found and random_.random() < 0.7:
        return _replaced(content, random_.choice(found).span(2), deep)
    return content + f"\n[{'.'.join(['fixed', *['a'] * depth])}]\nb = 1\n".encode()


def enlarge(content: bytes, random_: random.Random) -> bytes:
    """A huge list, a huge text, very many keys or very many cells."""
    found = list(SETTING.finditer(content))
    values = random_.choice(('"x"', "1", "{}", "[]"))
    huge = random_.choice(
        (
            f"[{', '.join([values] * HUGE)}]",
            f"[{', '.join(map(str, range(HUGE)))}]",
            f'"{"x" * 50 * HUGE}"',
            "{ " + ", ".join(f"k{at} = {values}" for at in range(2000)) + " }",
        )
    )
    if found and random_.random() < 0.7:
        return _replaced(content, random_.choice(found).span(2), huge)
    return content + b"\n[compare]\n" + b"\n".join(b"k%d = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" % at for at in range(30))


def _replaced(content: bytes, span: tuple[int, int], text: str) -> bytes:
    return content[: span[0]] + text.encode() + content[span[1] :]


# Tables


def change_a_table(content: bytes, random_: random.Random) -> bytes:
    """Read the file, put a value of another place or type somewhere, and write it anew."""
    try:
        tables = tomllib.loads(content.decode())
        other, holder, key = _exchanged(tables, random_)
    except (ValueError, RecursionError, IndexError):  # no TOML by now, deeper than Python goes, or empty
        return content
    change: Any = random_.choice(
        (other, [other], {"low": other, "high": 1}, {"choices": other}, {"a": other}, str(other))
    )
    if random_.random() < 0.2:
        del holder[key]
    else:
        holder[key] = change
    try:
        return document(tables).encode()
    except RecursionError:
        return content


def _exchanged(tables: Any, random_: random.Random) -> tuple[Any, Any, Any]:
    """A copy of what stands at one random place, what holds another, and the key of that there."""
    holder, key = _somewhere(tables, random_)
    return copy.deepcopy(holder[key]), *_somewhere(tables, random_)


def _somewhere(tables: Any, random_: random.Random) -> tuple[Any, Any]:
    """A random place inside nested tables and lists: what holds it, and its key there."""
    places = []
    waiting = [tables]
    while waiting:
        holder = waiting.pop()
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            places.append((holder, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return random_.choice(places)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bytes, cut, insert_bytes, drop_a_line, double_a_line, swap_lines, splice,
    replace_a_number, replace_a_value, rename_a_key, nest, enlarge, change_a_table,
    replace_a_number, replace_a_value, change_a_table,
)  # fmt: skip
