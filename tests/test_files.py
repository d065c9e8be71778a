"""Files and directories that are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cs330ray import files


def two(into: Path) -> str:
    (into / "below").mkdir()
    (into / "one").write_text("1")
    (into / "below" / "two").write_text("2")
    return "filled"


def held(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_directory_takes_its_name_with_all_that_is_in_it(tmp_path: Path) -> None:
    assert files.make_directory(tmp_path / "new" / "final", two) == "filled"
    assert held(tmp_path / "new") == ["final", "final/below", "final/below/two", "final/one"]


def test_a_directory_has_its_name_at_no_moment_before_it_is_whole(tmp_path: Path) -> None:
    seen = []
    files.make_directory(tmp_path / "final", lambda into: seen.append((tmp_path / "final").exists()) or two(into))
    assert seen == [False]


def test_a_directory_whose_filling_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(into: Path) -> None:
        two(into)
        raise OSError("planted")

    with pytest.raises(OSError, match="planted"):
        files.make_directory(tmp_path / "final", fails)
    assert held(tmp_path) == []


def test_a_directory_that_holds_something_by_then_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        files.make_directory(tmp_path / "final", two)
    assert held(tmp_path) == ["final", "final/mine"]


def test_a_text_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for text in ("first", "second: é"):
        assert files.write_text(tmp_path / "file", text) == tmp_path / "file"
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert held(tmp_path) == ["file"]


def test_a_file_whose_writing_fails_leaves_the_one_before(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file", "before")

    def fails() -> None:
        with files.new_file(tmp_path / "file") as partial:
            partial.write_text("half")
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fails()
    assert (tmp_path / "file").read_text() == "before"
    assert held(tmp_path) == ["file"]


@pytest.mark.parametrize("what", ["file", "directory"])
def test_all_is_on_the_disk_before_the_name_and_the_name_before_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What the operating system is asked for, in order."""
    asked: list[str] = []

    def noted(call: str, original: Any) -> Any:
        def wrapper(path: Any, *rest: Any) -> Any:
            name = "partial" if Path(path).name.startswith(".partial-") else Path(path).name
            asked.append(f"{call} {name}")
            return original(path, *rest)

        return wrapper

    monkeypatch.setattr(files, "fsync", noted("fsync", files.fsync))
    monkeypatch.setattr(Path, "replace", noted("rename", Path.replace))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    if what == "file":
        files.write_text(tmp_path / "final", "text")
        assert asked == ["fsync partial", "rename partial", f"fsync {tmp_path.name}"]
    else:
        files.make_directory(tmp_path / "final", two)
        assert sorted(asked[:3]) == ["fsync below", "fsync one", "fsync two"]
        assert asked[3:] == ["fsync partial", "rename partial", f"fsync {tmp_path.name}"]


KILLED = """
import os, pathlib, sys
from cs330ray import files
with files.new_file(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os._exit(9)
"""


def test_a_process_that_is_killed_leaves_what_a_reader_passes_over(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], check=False)
    assert ended.returncode == 9
    assert not (tmp_path / "file").exists()
    assert held(tmp_path) == [path.name for path in tmp_path.glob(files.PARTIAL)] != []


SCRATCH = """
import os, sys, time
from cs330ray import files
scratch = files.Scratch("test")
print(scratch.path, flush=True)
sys.stdin.read()
os._exit(9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_holds_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files, "BORN_S", -1)
    with subprocess.Popen(
        [sys.executable, "-c", SCRATCH],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        theirs = Path(other.stdout.readline().strip())
        (tmp_path / "cs330ray-test-link").symlink_to(theirs)
        with files.Scratch("test") as ours, files.Scratch("test") as more:
            assert theirs.is_dir()
            assert ours.is_dir()
            assert more != ours
        other.kill()
    assert held(tmp_path) == sorted([theirs.name, "cs330ray-test-link"])
    files.Scratch("other").remove()
    assert theirs.is_dir()
    files.Scratch("test").remove()
    assert held(tmp_path) == ["cs330ray-test-link"]


def test_a_newborn_temporary_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "cs330ray-test-newborn").mkdir()
    files.Scratch("test").remove()
    assert held(tmp_path) == ["cs330ray-test-newborn"]
