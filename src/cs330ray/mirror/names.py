"""Names and texts as MLflow takes them: what it refuses is shown under the nearest name that it takes.

The rules are those of `mlflow.utils.validation`: letters, digits, `_-. :/`, at most 250, and a normal relative path.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Collection

NAME_LIMIT = 250
TEXT_LIMIT = 4_000  # MLflow takes 6,000 in a parameter and 8,000 in a tag
CELL_LIMIT = 1_000

Key = tuple[str, str, str]  # kind, cell, trial


def spoken(name: str, beside: Collection[str] = ()) -> str:
    """The name of a metric, a parameter or a tag as MLflow takes it: `acc@1` becomes `acc_1`.

    One that MLflow refuses for more than an `@` ends in a digest of itself, so that no two become one; so does `acc@1`
    where one of the names `beside` it becomes `acc_1` too.
    """
    legal = re.sub(r"[^\w\-. :/]", "_", name)
    path = posixpath.normpath("/".join("__" if part == ".." else part for part in legal.split("/"))).strip("/")
    taken = f"_{path.lstrip('.')}" if path == "." or path.startswith("..") else path or "_"
    is_shared = name != legal and any(other != name and other.replace("@", "_") == legal for other in beside)
    if taken == legal and name.replace("@", "_") == legal and len(legal) <= NAME_LIMIT and not is_shared:
        return legal
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{taken[: NAME_LIMIT - 9].rstrip('/')}.{digest}"


def renamed(names: Collection[str], beside: Collection[str]) -> list[str]:
    """Say of each metric that MLflow refuses, with those declared `beside` it, under which name it is shown."""
    shown = {name: spoken(name, beside) for name in names}
    return [f"MLflow takes no metric named {text(name)[:60]!r}: it shows {said!r}" for name, said in shown.items()
            if said != name]  # fmt: skip


def text(value: object, most: int = TEXT_LIMIT) -> str:
    """A value as MLflow and its databases take it: no half of a surrogate pair, no NUL, not too long."""
    return str(value)[:most].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[:most]


def key_of(kind: str, cell: str = "", trial: int | None = None) -> Key:
    """The key of a run; that of a cell is long where what it compares is, and a digest then."""
    short = cell if len(cell) <= CELL_LIMIT else f"sha256:{hashlib.sha256(cell.encode()).hexdigest()}"
    return kind, short, "" if trial is None else str(trial)


# A run says who it is twice, in one tag and in four: whichever a person takes away or edits, the others hold it.
WHOLE, PARTS = "cs330ray.key", ("uid", "kind", "cell", "trial")


def identity(uid: str, key: Key) -> dict[str, str]:
    """The tags that say which run of which study this is."""
    return {WHOLE: json.dumps([uid, *key])} | {
        f"cs330ray.{part}": said for part, said in zip(PARTS, (uid, *key), strict=True)
    }


def identified(tags: dict[str, str]) -> tuple[str, Key | None] | None:
    """The uid and the key that a run's tags say; no key where too few are left, None for a run that is not ours."""
    try:
        uid, kind, cell, trial = json.loads(tags.get(WHOLE, ""))
        return str(uid), (str(kind), str(cell), str(trial))
    except (ValueError, TypeError):
        pass
    parts = [tags.get(f"cs330ray.{part}") for part in PARTS]
    if parts[0] is None:
        return None
    if None in parts:
        return parts[0], None
    return parts[0], (str(parts[1]), str(parts[2]), str(parts[3]))
