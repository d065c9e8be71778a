"""The README's examples of models, run as they stand there on small models of each system."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cs330ray
from cs330ray.course.data.images import image_classes
from tests.packed import pack
from tests.test_contract import TINY_FINETUNE, TINY_ICL, TINY_MAML, TINY_MANN, TINY_MULTITASK, TINY_PROTONET

README = Path(__file__).parents[1] / "README.md"
TINY: dict[str, dict[str, Any]] = {
    "maml": TINY_MAML | {"ways": 5}, "protonet": TINY_PROTONET, "mann": TINY_MANN | {"ways": 5},
    "multitask": TINY_MULTITASK, "finetune": TINY_FINETUNE, "icl": TINY_ICL | {"ordering": "seed"},
}  # fmt: skip


def blocks() -> dict[str, str]:
    """The section's examples, by the directory that each loads."""
    (section,) = re.findall(r"\n## Use what you found\n(.*?)\n## ", README.read_text(), re.DOTALL)
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return {re.findall(r'cs330ray\.load\("(\w+)"\)', block)[0]: block for block in found}


def run(name: str, system: str, place: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Run an example in a directory where its model is one of `system`."""
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    pack(place / name, system, TINY[system] | changes, steps=2)
    monkeypatch.chdir(place)
    exec(compile(blocks()[name], "README.md", "exec"), {})


def test_there_is_an_example_of_each_kind_and_none_is_longer_than_ten_lines() -> None:
    assert set(blocks()) == {"letters", "films", "answers"}
    assert all(block.count("\n") <= 10 for block in blocks().values())


@pytest.mark.parametrize("system", ["maml", "protonet", "mann"])
def test_drawings_in_files_are_named(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = image_classes("glyphs", "course", 0, "test")[:5]
    for folder, names, drawing in (("shown", "abcde", 0), ("new", "01234", 1)):
        (tmp_path / folder).mkdir()
        for name, character in zip(names, letters, strict=True):
            Image.fromarray(255 - character[drawing].numpy()).save(tmp_path / folder / f"{name}.png")
    run("letters", system, tmp_path, monkeypatch)
    found = re.findall(r"new/(\d)\.png is (\w)\n", capsys.readouterr().out)
    model = cs330ray.load(tmp_path / "letters")
    shown, new = (255 - np.stack([character[drawing].numpy() for character in letters]) for drawing in (0, 1))
    told = model.classify([model.image(one) for one in shown], "abcde", [model.image(one) for one in new])
    assert found == list(zip("01234", told, strict=True))


def test_films_are_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("films", "multitask", tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"item \d+: -?\d+\.\d stars", line) for line in lines[:5])
    assert re.fullmatch(r"film 50: -?\d+\.\d stars", lines[5])


@pytest.mark.parametrize("system", ["finetune", "icl"])
def test_questions_are_answered(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    changes = {"model": "tiny-encoder", "answers": "classes", "shots": 1} if system == "finetune" else {}
    run("answers", system, tmp_path, monkeypatch, **changes)
    model = cs330ray.load(tmp_path / "answers")
    story = "Anna walked to the attic. Boris ran to the cellar."
    assert capsys.readouterr().out == f"{model.respond(f'{story} Where is Anna?')}\n"
