"""Whatever stands in a checkpoint's place is passed over, refused in one line or loaded; nothing in it runs."""

import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from cs330ray.checkpoints import local
from cs330ray.errors import CheckpointError, Diverged
from cs330ray.training import state
from cs330ray.training.adam import Adam
from cs330ray.trial import named
from tests.spoilt_bytes import spoilt
from tests.trial.test_contract import TINY_FINETUNE, TINY_ICL, TINY_MULTITASK

CASES = int(os.environ.get("CS330RAY_FUZZ", "50"))


class Planted:
    """What runs where it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Trial:
    """A small net with its optimiser and generator, three steps of training old."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = torch.nn.Linear(3, 2)
        self.optimizer = Adam(self.net.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            self.optimizer.zero_grad()
            self.net(torch.randn(4, 3, generator=self.generator)).square().sum().backward()
            self.optimizer.step()

    def save(self, directory: Path) -> None:
        state.save_state(
            directory,
            tensors=self.net.state_dict(),
            optimizer=self.optimizer,
            generator=self.generator,
            notes={"step": 3},
        )

    def load(self, directory: Path) -> dict[str, Any]:
        return state.load_state(
            directory, tensors=self.net.state_dict(), optimizer=self.optimizer, generator=self.generator
        )

    def bits(self) -> bytes:
        """All that it is."""
        content = io.BytesIO()
        torch.save([self.net.state_dict(), self.optimizer.moments, self.generator.get_state()], content)
        return content.getvalue()

    def goes_on(self) -> None:
        self.optimizer.zero_grad()
        self.net(torch.randn(4, 3, generator=self.generator)).square().sum().backward()
        self.optimizer.step()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A whole checkpoint of another trial."""
    return local.write(tmp_path / "home", 3, Trial(seed=1).save).path


def sealed(path: Path) -> Path:
    """The directory with a manifest of what is in it now, as who means harm would write it."""
    names = sorted(file.name for file in path.iterdir() if file.name != local.MANIFEST)
    files = {name: sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / local.MANIFEST).write_text(json.dumps({"step": 3, "files": files}))
    assert local.read(path).step == 3
    return path


def refusal(load: Any) -> str | None:
    """The one line that a checkpoint is refused with, None where it loads."""
    try:
        load()
    except CheckpointError as error:
        refused = str(error)
    else:
        return None
    assert len(refused.splitlines()) == 1
    assert refused.isprintable()
    assert "; " in refused
    return refused


# Whole or passed over


def test_a_checkpoint_with_a_spoilt_file_is_passed_over(whole):
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    for seed in range(CASES):
        name = random.Random(seed).choice(sorted(files))
        what, content = spoilt(files[name], seed)
        (whole / name).write_bytes(content)
        try:
            newest = local.newest(whole.parent)
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{name}, {what}: {error!r}")
        as_it_was = content == files[name] or name == local.MANIFEST  # its blanks and step have no digest
        assert newest is None or (as_it_was and newest.step >= 0), what
        (whole / name).write_bytes(files[name])


MANIFESTS = [
    {"step": 3, "files": [[5, "x"]]}, {"step": 3, "files": [["state.json", "x"]]}, {"step": "3", "files": {}},
    {"step": 3.5, "files": {}}, {"step": True, "files": {}}, {"step": -1, "files": {}},
    {"step": 3, "files": {"..": "x"}},
    {"step": 3, "files": {"../step-00000003/state.json": None}}, {"step": 3, "files": {"state.json": ["x"]}},
    {"step": 3, "files": {"/etc/passwd": sha256(Path("/etc/passwd").read_bytes()).hexdigest()}},
]  # fmt: skip


@pytest.mark.parametrize("manifest", MANIFESTS, ids=json.dumps)
def test_a_manifest_of_wrong_types_or_places_is_no_checkpoint(whole, manifest):
    (whole / local.MANIFEST).write_text(json.dumps(manifest))
    assert refusal(lambda: local.read(whole)) is not None
    assert local.newest(whole.parent) is None


@pytest.mark.parametrize("name", ["state.json", local.MANIFEST])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(whole, name):
    (whole / name).unlink()
    os.mkfifo(whole / name)
    assert local.newest(whole.parent) is None


def test_a_manifest_without_end_is_not_read(whole):
    with (whole / local.MANIFEST).open("wb") as file:
        file.truncate(1 << 32)  # with holes: it takes no place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert local.newest(whole.parent) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KB


# Sealed by who means harm


def test_a_sealed_state_loads_and_goes_on_or_is_refused_and_leaves_the_trial_as_it_was(whole):
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.name != local.MANIFEST}
    trial, refused = Trial(), 0
    before = trial.bits()
    for seed in range(CASES):
        name = random.Random(seed).choice(sorted(files))
        what, content = spoilt(files[name], seed)
        (whole / name).write_bytes(content)
        try:
            if refusal(lambda trial=trial: trial.load(sealed(whole))) is None:
                trial.goes_on()
                trial = Trial()
            else:
                refused += 1
                assert trial.bits() == before, what
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{name}, {what}: {error!r}")
        (whole / name).write_bytes(files[name])
    assert refused > CASES / 4


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "state.safetensors")


OTHERS = {
    "no generator": lambda held: {name: tensor for name, tensor in held.items() if name != "generator"},
    "a short generator": lambda held: held | {"generator": torch.zeros(3, dtype=torch.uint8)},
    "a generator of numbers": lambda held: held | {"generator": torch.zeros(5056)},
    "a broadcast shape": lambda held: held | {"tensor/weight": torch.zeros(1)},
    "another type": lambda held: held | {"tensor/weight": torch.zeros(2, 3, dtype=torch.float64)},
    "a name too many": lambda held: held | {"tensor/more": torch.zeros(1)},
    "a moment of no parameter": lambda held: held | {"optimizer/7/exp_avg": torch.zeros(2, 3)},
    "a moment before all": lambda held: held | {"optimizer/-1/exp_avg": torch.zeros(2, 3)},
    "a moment of another shape": lambda held: held | {"optimizer/0/exp_avg": torch.zeros(9)},
    "a moment missing": lambda held: {name: held[name] for name in held if name != "optimizer/0/exp_avg"},
    "a moment without a number": lambda held: held | {"optimizer/x/exp_avg": torch.zeros(2, 3)},
    "a moment without a name": lambda held: held | {"optimizer/0": torch.zeros(2, 3)},
    "nothing": lambda held: {},
}


@pytest.mark.parametrize("change", OTHERS)
def test_the_state_of_another_configuration_is_refused_and_leaves_the_trial_as_it_was(whole, change):
    (whole / "state.safetensors").write_bytes(save(OTHERS[change](tensors_of(whole))))
    trial = Trial()
    before = trial.bits()
    assert refusal(lambda: trial.load(sealed(whole))) is not None
    assert trial.bits() == before


@pytest.mark.parametrize(
    "notes", ["[" * 100_000, "[]", "null", "3", "{}", '{"step": "3"}', '{"step": -1}', '{"step": null}', "\xff"]
)
def test_notes_that_are_none_are_refused(whole, notes):
    (whole / "state.json").write_text(notes, encoding="latin-1")
    assert refusal(lambda: Trial().load(sealed(whole))) is not None


def test_a_missing_note_is_refused_when_it_is_asked_for(whole):
    notes = Trial().load(sealed(whole))
    assert notes["step"] == 3
    assert "'left' is needed" in str(refusal(lambda: notes["left"]))


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
def test_a_header_whose_length_lies_is_refused(whole, length):
    content = (whole / "state.safetensors").read_bytes()
    (whole / "state.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    assert refusal(lambda: Trial().load(sealed(whole))) is not None


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_does_not_run(whole, tmp_path, name, by_torch):
    content = io.BytesIO()
    (torch.save if by_torch else pickle.dump)(Planted(tmp_path / "ran"), content)
    (whole / name).write_bytes(content.getvalue())
    assert refusal(lambda: Trial().load(sealed(whole))) is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "config"), [("multitask", TINY_MULTITASK), ("finetune", TINY_FINETUNE), ("icl", TINY_ICL)]
)
def test_a_trainable_goes_on_from_a_sealed_checkpoint_or_refuses_it(name, config, tmp_path):
    trainable = named.load(name)
    config = trainable.Config(**config)
    progress = next(iter(trainable.train(config, 5, 2)))
    kept = local.write(tmp_path, 3, progress.save).path
    files = sorted(path.name for path in kept.iterdir() if path.name != local.MANIFEST)
    for seed in range(CASES // 10):
        path = Path(shutil.copytree(kept, tmp_path / f"spoilt-{seed}"))
        file = random.Random(seed).choice(files)
        what, content = spoilt((path / file).read_bytes(), seed)
        (path / file).write_bytes(content)
        try:
            refusal(lambda path=path: list(trainable.train(config, 5, 3, sealed(path))))
        except Diverged:  # its weights are other ones, as sealed
            continue
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{file}, {what}: {error!r}")
