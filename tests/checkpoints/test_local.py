import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cs330ray
from cs330ray.checkpoints import local
from cs330ray.errors import CheckpointError


def saving(text="weights"):
    """What a trial's `save` does: a file, and one in a directory."""

    def save(path):
        (path / "state.json").write_text(text)
        (path / "layers").mkdir()
        (path / "layers" / "first.bin").write_bytes(b"\0\1\2")

    return save


def steps(home):
    return sorted(path.name for path in home.iterdir())


# Whole


def test_a_checkpoint_holds_what_was_saved(tmp_path):
    written = local.write(tmp_path, 120, saving())
    assert (written.step, written.path) == (120, tmp_path / "step-00000120")
    assert (written.path / "state.json").read_text() == "weights"
    assert (written.path / "layers" / "first.bin").read_bytes() == b"\0\1\2"


def test_the_manifest_names_the_step_and_the_digest_of_every_file(tmp_path):
    written = local.write(tmp_path, 120, saving())
    text = (written.path / "MANIFEST.json").read_bytes()
    assert json.loads(text) == {
        "step": 120,
        "files": {
            "state.json": sha256(b"weights").hexdigest(),
            "layers/first.bin": sha256(b"\0\1\2").hexdigest(),
        },
    }
    assert written.digest == sha256(text).hexdigest()


def test_what_is_read_is_what_was_written(tmp_path):
    written = local.write(tmp_path, 120, saving())
    assert local.read(written.path) == written == local.newest(tmp_path)


def test_the_newest_has_done_the_most_steps_whatever_their_digits(tmp_path):
    for step in (9, 10, 100):
        local.write(tmp_path, step, saving(), keep=3)
    assert local.newest(tmp_path).step == 100


def test_there_is_no_newest_where_there_is_nothing(tmp_path):
    assert local.newest(tmp_path) is None
    assert local.newest(tmp_path / "absent") is None


def test_the_same_step_twice_leaves_the_first(tmp_path):
    first = local.write(tmp_path, 5, saving("first"))
    assert local.write(tmp_path, 5, saving("second")) == first
    assert (first.path / "state.json").read_text() == "first"


@pytest.mark.parametrize(("keep", "kept"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_the_newest_are_kept(tmp_path, keep, kept):
    for step in (10, 20, 30, 40):
        local.write(tmp_path, step, saving(), keep=keep)
    assert steps(tmp_path) == [f"step-{step:08d}" for step in kept]


# Torn


def alter(path):
    content = bytearray((path / "state.json").read_bytes())
    content[3] ^= 1
    (path / "state.json").write_bytes(content)


def shorten(path):
    os.truncate(path / "state.json", 3)


def empty(path):
    for file in path.rglob("*.*"):
        file.write_bytes(b"")


def lose_a_file(path):
    (path / "layers" / "first.bin").unlink()


def lose_the_manifest(path):
    (path / "MANIFEST.json").unlink()


def put_a_directory_in_place_of_a_file(path):
    (path / "state.json").unlink()
    (path / "state.json").mkdir()


MANIFESTS = {
    "no text": "",
    "cut off": '{"step": 5,',
    "not JSON": "step 5",
    "a list": "[1, 2]",
    "nothing": "null",
    "no step": '{"files": {}}',
    "no files": '{"step": 5}',
    "a step that is no number": '{"step": null, "files": {}}',
    "an infinite step": '{"step": Infinity, "files": {}}',
    "files that are a number": '{"step": 5, "files": 3}',
    "files without digests": '{"step": 5, "files": ["state.json"]}',
    "a digest that is no text": '{"step": 5, "files": {"state.json": null}}',
    "a file without a name": '{"step": 5, "files": {"": "0"}}',
    "a file whose name no disk takes": '{"step": 5, "files": {"a\\u0000b": "0"}}',
    "a file whose name is too long": json.dumps({"step": 5, "files": {"x" * 5000: "0"}}),
    "too deep": "[" * 100_000,
}


def a_manifest_of(text):
    return lambda path: (path / "MANIFEST.json").write_text(text)


DAMAGES = [
    *(pytest.param(damage, id=damage.__name__) for damage in (alter, shorten, empty, lose_a_file, lose_the_manifest)),
    pytest.param(put_a_directory_in_place_of_a_file, id="directory"),
    *(pytest.param(a_manifest_of(text), id=name) for name, text in MANIFESTS.items()),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_never_read(tmp_path, damage):
    written = local.write(tmp_path, 5, saving())
    damage(written.path)
    with pytest.raises(CheckpointError, match=r"step-00000005: .*use another"):
        local.read(written.path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_passes_over_a_damaged_one(tmp_path, damage):
    older = local.write(tmp_path, 5, saving())
    damage(local.write(tmp_path, 6, saving()).path)
    assert local.newest(tmp_path) == older


@pytest.mark.parametrize("name", ["../outside.json", "layers/../../outside.json", "/{home}/outside.json"])
def test_a_manifest_may_not_reach_outside_its_directory(tmp_path, name):
    (tmp_path / "outside.json").write_text("weights")
    written = local.write(tmp_path, 5, saving())
    name = name.format(home=tmp_path)
    manifest = {"step": 5, "files": {name: sha256(b"weights").hexdigest()}}
    assert (written.path / name).read_text() == "weights"  # only the place is wrong
    (written.path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"outside\.json must match its digest"):
        local.read(written.path)


def test_a_link_may_not_reach_outside_its_directory(tmp_path):
    (tmp_path / "outside.json").write_text("weights")
    written = local.write(tmp_path, 5, saving())
    (written.path / "state.json").unlink()
    (written.path / "state.json").symlink_to(tmp_path / "outside.json")
    assert local.newest(tmp_path) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
manifests = json_values | st.fixed_dictionaries({"step": json_values, "files": json_values})


@settings(max_examples=100, deadline=None)
@given(manifests.map(json.dumps).map(str.encode) | st.binary(max_size=20))
@example(b"\xff")
def test_no_manifest_breaks_the_search_for_the_newest(tmp_path_factory, manifest):
    home = tmp_path_factory.mktemp("home")
    older = local.write(home, 5, lambda path: (path / "state.json").write_text("weights"))
    newer = home / "step-00000006"
    newer.mkdir()
    (newer / "MANIFEST.json").write_bytes(manifest)
    assert local.newest(home).path in (older.path, newer)


def test_a_damaged_one_is_written_anew_when_its_step_comes_again(tmp_path):
    alter(local.write(tmp_path, 5, saving("first")).path)
    again = local.write(tmp_path, 5, saving("second"))
    assert (again.path / "state.json").read_text() == "second"
    assert local.newest(tmp_path) == again


def test_damaged_later_ones_do_not_push_out_the_one_just_written(tmp_path):
    for step in (30, 40):
        shorten(local.write(tmp_path, step, saving()).path)
    written = local.write(tmp_path, 10, saving())
    assert local.newest(tmp_path) == written


# Absent


def test_a_crash_inside_save_leaves_nothing(tmp_path):
    def crash(path):
        saving()(path)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        local.write(tmp_path, 5, crash)
    assert steps(tmp_path) == []


def test_a_crash_inside_save_leaves_the_older_one(tmp_path):
    older = local.write(tmp_path, 5, saving())
    with pytest.raises(ZeroDivisionError):
        local.write(tmp_path, 6, lambda path: 1 / 0)
    assert local.newest(tmp_path) == older
    assert steps(tmp_path) == ["step-00000005"]


def test_what_a_kill_between_two_writes_leaves_is_no_checkpoint(tmp_path):
    partial = tmp_path / ".partial-00000006-0123abcd"
    partial.mkdir()
    saving()(partial)
    assert local.newest(tmp_path) is None
    assert local.write(tmp_path, 6, saving()).step == 6


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from cs330ray.checkpoints import local

def save(path):
    (path / "state.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

local.write(Path(sys.argv[1]), 5, lambda path: (path / "state.json").write_text("whole"))
local.write(Path(sys.argv[1]), 6, save)
"""


def test_a_process_killed_while_saving_leaves_the_older_one_newest(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(cs330ray.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert local.newest(tmp_path).step == 5
    assert (local.newest(tmp_path).path / "state.json").read_text() == "whole"


def test_sweeping_removes_what_a_killed_process_left_and_nothing_else(tmp_path):
    whole = local.write(tmp_path, 1, lambda path: (path / "state").write_text("s"))
    (tmp_path / ".partial-00000002-abc").mkdir()
    local.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [whole.path]
