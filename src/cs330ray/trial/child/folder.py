"""The folder that a process of one's own starts in: which files are its code, and their digest.

What .gitignore names does not count, nor what is hidden, nor study files, nor the home of studies.
"""

import hashlib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from cs330ray.errors import DataError
from cs330ray.words import plural

MOST_BYTES = 100 * 1024**2
MOST_FILES = 5000
NEVER = {"__pycache__", "mlruns", "node_modules"}
OF_A_STUDY = {"name", "objective", "budget"}  # keys that a study file has


def files(folder: Path, home: Path | None = None) -> list[Path]:
    """List the files that are the code of a folder, relative to it, in order.

    `home`, where studies are kept, is none of them. Raises DataError where there is no such folder, or where they are
    too many or too large to travel.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder of a command is expected, got none; set command.folder")
    found, size = [], 0
    for path in _walk(folder, folder, _above(folder), home.resolve() if home is not None else None):
        found.append(path.relative_to(folder))
        size += path.stat().st_size
        if size > MOST_BYTES or len(found) > MOST_FILES:
            raise DataError(
                f"{folder}: expected at most {plural(MOST_FILES, 'file')} of {MOST_BYTES // 1024**2} MiB in all, got "
                f"more at {path.relative_to(folder)}; name data and outputs in its .gitignore, or set command.folder"
            )
    return sorted(found)


def digest(folder: Path, home: Path | None = None) -> str:
    """Digest the code of a folder: names and contents. Raises DataError."""
    found = hashlib.sha256()
    for name in files(folder, home):
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{name.as_posix()}\0{content}\n".encode())
    return found.hexdigest()


def _above(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """What the repository that a folder is in ignores, from its top down to the folder's parent."""
    parents = [folder, *folder.parents]
    top = next((place for place, path in enumerate(parents) if (path / ".git").exists()), 0)
    return [rules for path in reversed(parents[1 : top + 1]) for rules in _rules(path)]


def _rules(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    file = folder / ".gitignore"
    if not file.is_file():
        return []
    return [(folder, GitIgnoreSpec.from_lines(file.read_text(errors="replace").splitlines()))]


def _walk(folder: Path, root: Path, ignored: list[tuple[Path, GitIgnoreSpec]], home: Path | None) -> Iterator[Path]:
    ignored = [*ignored, *_rules(folder)]
    with os.scandir(folder) as entries:
        here = sorted((Path(entry.path) for entry in entries), key=lambda path: path.name)
    for path in here:
        if path.name.startswith(".") or path.name in NEVER or _is_ignored(path, ignored):
            continue
        if path.is_dir() and not path.is_symlink():
            if path.resolve() != home and not (path / "pyvenv.cfg").exists():
                yield from _walk(path, root, ignored, home)
        elif path.is_file() and not (folder == root and path.suffix == ".toml" and _is_study(path)):
            yield path


def _is_ignored(path: Path, ignored: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    end = "/" if path.is_dir() else ""
    verdicts = [spec.check_file(f"{path.relative_to(base).as_posix()}{end}").include for base, spec in ignored]
    return next((verdict for verdict in reversed(verdicts) if verdict is not None), False)


def _is_study(path: Path) -> bool:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).keys() >= OF_A_STUDY
    except (OSError, ValueError):
        return False
