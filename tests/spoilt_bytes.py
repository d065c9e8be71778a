"""Files spoilt by a seeded generator: what torn downloads, bad disks and bad will make of them."""

import random
from collections.abc import Callable

MAGICS = (
    b"PK\3\4",
    b"\x1f\x8b\x08",
    b"\x89PNG\r\n",
    b"PAR1",
    b"\x93NUMPY",
    b"\x80\x04",
    b"GGUF",
    b"\xff" * 8,
    b"\0" * 8,
)


def spoilt(content: bytes, seed: int) -> tuple[str, bytes]:
    """Spoil a file once or twice; what was done to it, and the bytes."""
    random_ = random.Random(seed)
    done = []
    for _ in range(random_.choice((1, 1, 2))):
        change = random_.choice(CHANGES)
        content = change(content, random_)
        done.append(change.__name__)
    return f"seed {seed}: {' + '.join(done)}", content


def cut(content: bytes, random_: random.Random) -> bytes:
    return content[: random_.randint(0, len(content))]


def flip(content: bytes, random_: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random_.choice((1, 1, 4, 32))):
        if changed:
            changed[_somewhere(content, random_)] ^= 1 << random_.randrange(8)
    return bytes(changed)


def overwrite(content: bytes, random_: random.Random) -> bytes:
    """A few bytes by extremes, as a length or an offset that lies."""
    at = _somewhere(content, random_)
    piece = random_.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80", b"\xff", b"\xff" * 8))
    return content[:at] + piece + content[at + len(piece) :]


def leave_out(content: bytes, random_: random.Random) -> bytes:
    at = _somewhere(content, random_)
    return content[:at] + content[at + random_.choice((1, 2, 16, 512)) :]


def double(content: bytes, random_: random.Random) -> bytes:
    at, length = _somewhere(content, random_), random_.choice((1, 64, 512, 4096))
    return content[:at] + content[at : at + length] + content[at:]


def put_another_magic(content: bytes, random_: random.Random) -> bytes:
    magic = random_.choice(MAGICS)
    return magic + content[len(magic) :]


def append(content: bytes, random_: random.Random) -> bytes:
    return content + random_.choice((b"\0" * 512, b"garbage", content[:1000], random_.choice(MAGICS)))


def _somewhere(content: bytes, random_: random.Random) -> int:
    """A place in a file; its beginning and end, where its tables are, as often as all else."""
    if not content:
        return 0
    place = random_.randrange(len(content))
    return random_.choice((place, place, place % 64, max(0, len(content) - 1 - place % 256)))


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut, flip, flip, overwrite, overwrite, leave_out, double, put_another_magic, append,
)  # fmt: skip
