"""A model's folder in which anything may be spoilt loads or is refused in one line, and nothing in it runs."""

import json
import os
import pickle
import random
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch

from cs330ray.course.pretrained import models
from cs330ray.errors import DataError
from tests.course.data.test_fuzz import Planted, refusal
from tests.spoilt_bytes import spoilt

pytest.importorskip("transformers")
CASES = int(os.environ.get("CS330RAY_FUZZ", "30"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny causal model."""
    folder = tmp_path_factory.mktemp("whole")
    model, tokenizer = models.causal("tiny", device=CPU)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def load(folder: Path) -> DataError | None:
    return refusal(lambda: models.causal(str(folder), device=CPU))


def test_a_folder_with_a_spoilt_file_loads_or_is_refused_in_one_line(whole, folder):
    assert load(folder) is None
    files = sorted(path.name for path in whole.iterdir())
    refused = 0
    for seed in range(CASES):
        name = random.Random(seed).choice([*files, "config.json", "model.safetensors"])
        what, content = spoilt((whole / name).read_bytes(), seed)
        (folder / name).write_bytes(content)
        try:
            refused += load(folder) is not None
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{name}, {what}: {error!r}")
        shutil.copy(whole / name, folder / name)
    assert refused > CASES / 6


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", '{"transformers_weights": 5}', '"x"', "", "{}"])
def test_a_config_that_is_none_is_refused_in_one_line(folder, content):
    (folder / "config.json").write_text(content)
    assert load(folder) is not None


INDEXES = (
    "[" * 100_000, '{"weight_map": {"a": 5}}', '{"weight_map": {"a": []}}', '{"weight_map": []}',
    '{"weight_map": {"a": "../model.safetensors"}}',
)  # fmt: skip


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_that_is_none_or_names_a_place_outside_is_refused_in_one_line(folder, index):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert load(folder) is not None


def pickled(planted: Planted) -> bytes:
    return pickle.dumps(planted)


def saved_by_torch(planted: Planted) -> bytes:
    import io

    content = io.BytesIO()
    torch.save({"weight": planted}, content)
    return content.getvalue()


@pytest.mark.parametrize("content", [pickled, saved_by_torch])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_a_pickle_in_a_models_folder_does_not_run(folder, tmp_path, name, content):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content(Planted(tmp_path / "ran")))
    assert load(folder) is not None
    assert not (tmp_path / "ran").exists()


def test_code_in_a_models_folder_does_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(f"import pathlib; pathlib.Path({str(ran)!r}).touch()")
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "mine.Config",
        "AutoModelForCausalLM": "mine.Model",
        "AutoTokenizer": ["mine.Slow", "mine.Fast"],
    }
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "model_type": "mine"}))
    assert load(folder) is not None
    assert not ran.exists()


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
def test_a_header_whose_length_lies_is_refused(folder, length):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    assert load(folder) is not None


@pytest.mark.parametrize(
    "lie", [{"vocab_size": 20_000_000}, {"intermediate_size": 10_000_000}, {"hidden_size": 100_000}]
)
def test_a_config_of_a_larger_model_than_the_folder_holds_is_refused_before_it_takes_memory(folder, lie):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | lie))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "its config is of" in str(load(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KB
