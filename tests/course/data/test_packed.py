import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cs330ray
from cs330ray.course.data import packed
from cs330ray.errors import DataError


def run_python(code, *args):
    """Start a Python process that can import cs330ray."""
    environment = os.environ | {"PYTHONPATH": str(Path(cs330ray.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_archives_are_read_and_packed_without_waiting_for_torch():
    process = run_python("import cs330ray.course.data.unpack, sys; print('torch' in sys.modules)")
    assert process.communicate()[0].strip() == "False"


def things():
    return {"images": np.arange(12, dtype=np.uint8).reshape(3, 4), "names": np.array(["a", "bc", "d"])}


def test_packed_arrays_come_back_from_the_disk_as_they_were():
    for _ in range(2):
        thing = packed.pack("thing", things)
        assert {key: array.tolist() for key, array in thing.arrays.items()} == {
            "images": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
            "names": ["a", "bc", "d"],
        }
        assert all(isinstance(array, np.memmap) for array in thing.arrays.values())


def test_what_is_packed_is_not_built_again():
    def never():
        raise AssertionError

    assert packed.pack("thing", things).digest == packed.pack("thing", never).digest


def test_the_digest_tells_content_shape_type_and_name_apart():
    contents = [
        {"a": np.zeros(4, np.uint8)},
        {"a": np.array([0, 0, 0, 1], np.uint8)},
        {"a": np.zeros((2, 2), np.uint8)},
        {"a": np.zeros(4, np.int8)},
        {"b": np.zeros(4, np.uint8)},
    ]
    digests = [packed.pack(f"thing{at}", lambda content=content: content).digest for at, content in enumerate(contents)]
    assert len(set(digests)) == len(contents)
    assert packed.pack("again", lambda: contents[0]).digest == digests[0]


def test_writing_into_a_packed_array_does_not_reach_the_disk():
    packed.pack("thing", things).arrays["images"][:] = 255
    thing = packed.pack("thing", things)
    thing.verify()
    assert thing.arrays["images"][0, 0] == 0


def test_an_altered_byte_is_found_by_verify(cold_cache):
    path = packed.pack("thing", things).path / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="were altered"):
        packed.pack("thing", things).verify()


@pytest.mark.parametrize("file", ["images.npy", "manifest.json"])
def test_a_torn_file_is_packed_again(file):
    path = packed.pack("thing", things).path / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    packed.pack("thing", things).verify()
    assert path.read_bytes() == whole


def test_arrays_of_objects_are_never_packed(cold_cache):
    with pytest.raises(ValueError, match="Object arrays"):
        packed.pack("thing", lambda: {"a": np.array([{}])})
    assert not (cold_cache / "packed" / "thing").exists()


PACK = """
import sys, time
from pathlib import Path
import numpy as np
from cs330ray.course.data import packed

def build():
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    return {"images": np.full((1000, 1000), 7, np.uint8)}

Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("ready*"))) < 2:
    time.sleep(0.01)
print(packed.pack("thing", build).digest)
"""


def test_two_processes_that_pack_at_once_build_one_whole_thing(tmp_path):
    processes = [run_python(PACK, tmp_path / "log", tmp_path / f"ready{at}") for at in range(2)]
    digests = [process.communicate(timeout=60)[0].strip() for process in processes]
    thing = packed.pack("thing", things)
    assert digests == [thing.digest] * 2
    thing.verify()
    assert (tmp_path / "log").read_text() == "built\n"
    assert [path.name for path in thing.path.parent.iterdir() if "lock" not in path.name] == ["thing"]


KILL = """
import os, signal, sys
import numpy as np
from cs330ray.course.data import packed

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, sys.argv[1], die)
packed.pack("thing", lambda: {"images": np.zeros(1000)})
"""


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_process_killed_while_it_packs_leaves_nothing_that_is_taken_for_good(cold_cache, moment):
    process = run_python(KILL, moment)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    places = list((cold_cache / "packed").glob("[!.]*")), list((cold_cache / "packed").glob(".partial-*"))
    assert [len(place) for place in places] == [0, 1]
    thing = packed.pack("thing", things)
    assert thing.arrays["images"].shape == (3, 4)
    assert list((cold_cache / "packed").glob(".partial-*")) == []
