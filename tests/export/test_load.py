"""`cs330ray.load`: a directory that is not as it was written is one line, and nothing in it is ever run."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import cs330ray
from cs330ray.errors import Cs330rayError, DataError, SpecError
from cs330ray.export import directory as exported
from tests.packed import pack
from tests.spoilt_bytes import spoilt
from tests.trial.test_contract import TINY_FINETUNE, TINY_ICL, TINY_MULTITASK, TINY_PROTONET

SHOWN = np.random.default_rng(0).integers(0, 200, (6, 28, 28)).astype(np.uint8)
SIGNED = ("model.safetensors", "config.json", "metrics.json", "provenance.json")


@pytest.fixture(scope="module")
def model_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("once") / "model", "protonet", TINY_PROTONET)


@pytest.fixture
def model(model_once: Path, tmp_path: Path) -> Path:
    """A ProtoNet in a directory of the test's own."""
    return Path(shutil.copytree(model_once, tmp_path / "model"))


def sign(directory: Path) -> None:
    """Make the manifest agree with what is there, as who tampers with a directory would."""
    held = {name: directory / name for name in SIGNED if (directory / name).exists()}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in held.items()}
    (directory / "manifest.json").write_text(json.dumps({"files": digests}))


def change(directory: Path, **values: Any) -> None:
    """Change what config.json says, and sign it."""
    told = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(told | values))
    sign(directory)


def refused(directory: Path, **options: str) -> str:
    """The one line that loading raises."""
    with pytest.raises((DataError, SpecError)) as caught:
        cs330ray.load(directory, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(directory))
    return str(caught.value)


def attempt(directory: Path) -> Exception | None:
    """What loading raises, if anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cs330ray.load(directory)
        except Exception as error:  # noqa: BLE001 - which it is, is what is tested
            return error
    return None


# As it was written


def test_a_directory_is_loaded_by_its_path_or_by_its_name(model: Path) -> None:
    one, other = cs330ray.load(model), cs330ray.load(str(model))
    assert one.classify(SHOWN[:3], "abc", SHOWN) == other.classify(SHOWN[:3], "abc", SHOWN)


def test_the_card_is_for_people_who_may_change_or_remove_it(model: Path) -> None:
    (model / "README.md").write_text("mine")
    cs330ray.load(model)
    (model / "README.md").unlink()
    cs330ray.load(model)


def test_other_code_than_that_which_trained_is_a_warning(model: Path) -> None:
    change(model, code="0" * 64)
    with pytest.warns(UserWarning, match="trained by other code .*; answers may differ"):
        cs330ray.load(model)
    change(model, code=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs330ray.load(model)


def test_importing_the_package_imports_neither_torch_nor_the_service() -> None:
    slow = ["torch", "pydantic", "cs330ray.service"]
    code = f"import cs330ray, sys; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Not as it was written


@pytest.mark.parametrize("name", [*SIGNED, "manifest.json"])
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    assert name in refused(model)


def test_a_file_that_may_not_be_read_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(exported, "sha256", forbidden)  # root may read whatever the mode says
    assert "must be readable, but Permission denied" in refused(model)


def test_a_directory_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "file", "empty"):
        assert "`cs330ray best --export` wrote is needed" in refused(tmp_path / name)


@pytest.mark.parametrize("name", [*SIGNED, "manifest.json"])
def test_a_flipped_bit_or_a_cut_in_any_file_is_one_line(model: Path, name: str) -> None:
    content = (model / name).read_bytes()
    for seed in range(12):
        done, changed = spoilt(content, seed)
        (model / name).write_bytes(changed)
        error = attempt(model)
        if error is None:  # of the manifest a blank may go
            assert changed == content or (name == "manifest.json" and json.loads(changed) == json.loads(content)), done
        else:
            assert isinstance(error, DataError), done
            assert "\n" not in str(error), done


# As somebody would have it who can sign


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"form": 2}, "config.json: form: input should be 1, but got 2; export it anew, with the version here"),
        ({"surprise": 1}, "config.json: surprise: extra inputs are not permitted"),
        ({"seed": "5"}, "config.json: seed: input should be a valid integer"),
        ({"steps": -1}, "config.json: steps: input should be greater than or equal to 0"),
        ({"config": {"filters": 0}}, "filters: input should be greater than or equal to 1, but got 0"),
        ({"config": {"filters": 8}}, "tensors: "),
        ({"config": {"surprise": 8}}, "surprise: extra inputs are not permitted"),
        ({"config": {"distance": "../../etc/passwd"}}, "distance: input should be 'squared' or 'euclidean'"),
        ({"config": []}, "config.json: config: "),
        ({"trainable": "protonett"}, "its trainable 'protonett' is none of the package's"),
        ({"trainable": "maml"}, "extra inputs are not permitted"),
        ({"trainable": "../protonet"}, "is none of the package's"),
    ],
)
def test_what_config_says_is_held_to_the_trainable_s_own_rules(
    model: Path, values: dict[str, Any], fragment: str
) -> None:
    change(model, **values)
    assert fragment in refused(model)


@pytest.mark.parametrize("name", ["tests.trap", "os.system", "antigravity", "cs330ray.cli.app"])
def test_a_module_is_never_imported_by_a_directory_s_word_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CS330RAY_TRAP", str(tmp_path / "sprung"))
    monkeypatch.chdir(model)
    monkeypatch.syspath_prepend(str(model))
    change(model, trainable=name)
    assert "importing it runs its code; if you trust that, say cs330ray.load(DIR, trainable=...)" in refused(model)
    assert "the trainable is" in refused(model, trainable="tests.portable")
    assert not (tmp_path / "sprung").exists()
    assert "tests.trap" not in sys.modules


def test_a_trainable_of_one_s_own_is_loaded_where_it_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "model", "tests.portable", {"quality": 0.3})
    assert cs330ray.load(tmp_path / "model", "tests.portable") == (0.3, 5)
    tensors = {"another": torch.zeros(2)}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    sign(tmp_path / "model")
    assert "`quality` of two numbers is needed" in refused(tmp_path / "model", trainable="tests.portable")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pre-trained model in a folder."""
    from cs330ray.course.pretrained import models

    for part in models.causal("tiny", device=torch.device("cpu")):
        part.save_pretrained(tmp_path / "below")
    return tmp_path / "below"


@pytest.mark.parametrize("kind", ["finetune", "icl"])
def test_a_model_on_top_of_a_folder_moves_with_it_and_is_told_where_it_is(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    values = {"finetune": TINY_FINETUNE, "icl": TINY_ICL | {"ordering": "seed"}}[kind]
    model = pack(tmp_path / "model", kind, values | {"model": str(folder)})
    said = "Anna walked to the attic.", "Where is Anna?"
    answer = cs330ray.load(model).answer(*said)
    assert "cs330ray.load(DIR, base=PATH)" in (model / "README.md").read_text()
    moved = folder.rename(tmp_path / "elsewhere")
    assert refused(model).endswith("; where it is elsewhere, say cs330ray.load(DIR, base=PATH)")
    assert cs330ray.load(model, base=moved).answer(*said) == answer
    tensors = load_file(moved / "model.safetensors")
    save_file({name: each + 1 for name, each in tensors.items()}, moved / "model.safetensors", {"format": "pt"})
    assert "is needed, on which this was trained, but the one found here has" in refused(model, base=str(moved))
    assert refused(model, base=str(tmp_path / "nowhere"))


def test_a_model_that_is_on_top_of_nothing_takes_no_base(model: Path) -> None:
    assert "expected a model that was trained on top of another" in refused(model, base="smollm2-135m")


def test_a_trainable_derived_from_one_of_ours_with_data_of_its_own_is_exported_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    name = "tests.export.derived"
    model = pack(tmp_path / "model", name, {"filters": 4, "tasks": 2, "val_tasks": 2, "dataset": "runes"})
    assert "- runes: data that cs330ray does not carry" in (model / "README.md").read_text()
    assert cs330ray.load(model, name).classify(SHOWN[:5], "abcde", SHOWN[:1])[0] in "abcde"


def test_a_trainable_without_ready_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "model", "tests.portable", {})
    change(tmp_path / "model", trainable="tests.noisy")
    assert "tests.noisy has no `ready(config, exported)`" in refused(tmp_path / "model", trainable="tests.noisy")


TENSORS: dict[str, Callable[[Path], bytes]] = {
    "another shape": lambda path: save({name: torch.cat([each, each]) for name, each in load_file(path).items()}),
    "another type": lambda path: save({name: each.half() for name, each in load_file(path).items()}),
    "one more": lambda path: save(load_file(path) | {"more": torch.zeros(1)}),
    "one less": lambda path: save(dict(list(load_file(path).items())[1:])),
    "none": lambda path: save({}),
    "an endless header": lambda path: b"\xff" * 8 + path.read_bytes()[8:],
    "a pickle": lambda path: pickle.dumps({"param/conv1.weight": torch.zeros(2)}),
    "nothing": lambda path: b"",
}


@pytest.mark.parametrize("spoil", TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_are_not_the_model_s_are_one_line(model: Path, spoil: Callable[[Path], bytes]) -> None:
    (model / "model.safetensors").write_bytes(spoil(model / "model.safetensors"))
    sign(model)
    assert "tensors" in refused(model)


def test_tensors_that_are_gone_without_a_trace_are_missed(model: Path) -> None:
    (model / "model.safetensors").unlink()
    sign(model)
    assert "tensors: those of the configuration are needed" in refused(model)


@pytest.mark.parametrize(
    "manifest",
    [
        "{}", "[]", "null", "", '{"files": []}', '{"files": {}}', '{"files": {"config.json": 1}}', "[" * 100_000,
        '{"files": {"config.json": "", "metrics.json": "", "provenance.json": "", "../secret": ""}}',
    ],
)  # fmt: skip
def test_a_manifest_of_nonsense_is_one_line(model: Path, manifest: str) -> None:
    (model / "manifest.json").write_text(manifest)
    assert "anew" in refused(model) or "is needed" in refused(model)


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_file_that_is_endless_or_none_is_not_read(model: Path, name: str) -> None:
    with (model / name).open("r+b") as file:
        file.truncate(1 << 25)
    if name == "config.json":
        sign_large = json.loads((model / "manifest.json").read_text())
        with (model / name).open("rb") as file:
            sign_large["files"][name] = hashlib.file_digest(file, "sha256").hexdigest()
        (model / "manifest.json").write_text(json.dumps(sign_large))
    assert "too large" in refused(model)
    (model / name).unlink()
    (model / name).mkdir()
    assert name in refused(model)


@pytest.mark.parametrize("name", ["../../secret", "/etc", "no-such-model", "a/b/c", ""])
@pytest.mark.parametrize("kind", ["finetune", "icl"])
def test_a_path_for_the_model_below_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    values = {"finetune": TINY_FINETUNE, "icl": TINY_ICL | {"ordering": "seed"}}[kind]
    pack(tmp_path / "model", kind, values)
    told = json.loads((tmp_path / "model" / "config.json").read_text())
    change(tmp_path / "model", config=told["config"] | {"model": name})
    found = refused(tmp_path / "model")
    assert f"{name}: " in found if name else "model: string should have at least 1 character" in found


def test_ratings_are_read_only_where_known_items_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cs330ray.course.data import movielens

    model = cs330ray.load(pack(tmp_path / "model", "multitask", TINY_MULTITASK))

    def missing(*_: object) -> None:
        raise DataError("ml-100k.zip: movielens needs it; or use the dataset `planted`, which needs no archive")

    monkeypatch.setattr(movielens, "ratings", missing)
    assert len(model.recommend(1, n=3, known_removed=False)) == 3
    with pytest.raises(DataError, match=r"ml-100k\.zip") as caught:
        model.recommend(1)
    assert "recommend(..., known_removed=False)" in str(caught.value)
    assert "planted`" not in str(caught.value)


def test_every_error_is_one_of_ours_whatever_stands_in_the_directory(model: Path) -> None:
    """One file after another spoilt and signed again: nothing but our own errors, each in one line."""
    contents = {name: (model / name).read_bytes() for name in SIGNED}
    found = []
    for seed in range(60):
        name = SIGNED[seed % 2]
        for each, content in contents.items():
            (model / each).write_bytes(spoilt(content, seed)[1] if each == name else content)
        sign(model)
        found.append(attempt(model))
    errors = [error for error in found if error is not None]
    assert len(errors) > 20
    assert all(isinstance(error, Cs330rayError) and "\n" not in str(error) for error in errors)
