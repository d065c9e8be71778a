"""The pages' lines of Python, run as they are written there: on small models of each system, and on small studies."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cs330ray
from cs330ray.course.data.images import image_classes
from tests.cli.test_cli import ran
from tests.finished import finish, study_of
from tests.packed import pack
from tests.trial.test_contract import (
    TINY_BASELINE,
    TINY_FINETUNE,
    TINY_ICL,
    TINY_MAML,
    TINY_MANN,
    TINY_MULTITASK,
    TINY_PROTONET,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "use-a-model.md"
TINY: dict[str, dict[str, Any]] = {
    "maml": TINY_MAML | {"ways": 5}, "protonet": TINY_PROTONET, "mann": TINY_MANN | {"ways": 5},
    "baseline": TINY_BASELINE, "multitask": TINY_MULTITASK, "finetune": TINY_FINETUNE,
    "icl": TINY_ICL | {"ordering": "seed"},
}  # fmt: skip


def python_of(page: Path) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def blocks() -> dict[str, str]:
    """The examples of the page, by the directory that each loads."""
    return {re.findall(r'cs330ray\.load\("(\w+)"\)', block)[0]: block for block in python_of(PAGE)}


def run(name: str, system: str, place: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Run an example in a directory where its model is one of `system`."""
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    pack(place / name, system, TINY[system] | changes, steps=2)
    monkeypatch.chdir(place)
    exec(compile(blocks()[name], PAGE.name, "exec"), {})


def test_there_is_an_example_of_each_kind_and_none_is_longer_than_ten_lines() -> None:
    assert set(blocks()) == {"letters", "films", "answers"}
    assert all(block.count("\n") <= 10 for block in blocks().values())


def drawn_letters() -> list[Any]:
    """Five letters of the test split, each several drawings with ink of 255."""
    return list(image_classes("glyphs", "course", 0, "test")[:5])


@pytest.mark.parametrize("system", ["maml", "protonet", "mann", "baseline"])
def test_drawings_in_files_are_named(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = drawn_letters()
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


def finished(name: str, home: Path, **changes: Any) -> None:
    """Leave a small study of MAML in a home, with two trials in each cell, confirmed on two seeds."""
    search = {"search": {"inner_lr": {"low": 0.1, "high": 1.0}}, "budget": {"trials": 2, "steps": 2}}
    study = study_of("maml", TINY["maml"], name=name, **search, **changes)
    finish(home, study, [{"inner_lr": 0.2}, {"inner_lr": 0.4}])


def test_the_six_lines_of_the_readme_print_a_configuration_the_candidates_and_a_letter(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = python_of(ROOT / "README.md")
    assert len([line for line in block.splitlines() if line]) == 6
    finished("quickstart", home)
    monkeypatch.chdir(tmp_path)
    assert ran(capsys, "best", "quickstart", "--export", "letters")[0] == 0
    for letter, drawings in zip("abcde", drawn_letters(), strict=True):
        Image.fromarray(255 - drawings[0].numpy()).save(tmp_path / f"{letter}.png")
    Image.fromarray(255 - drawings[1].numpy()).save(tmp_path / "new.png")
    exec(compile(block, "README.md", "exec"), {})
    first, *middle, last = capsys.readouterr().out.splitlines()
    assert re.search(r"'inner_lr': 0\.[24]", first)
    assert len(middle) > 2
    assert re.fullmatch(r"\['[abcde]'\]", last)


def test_what_the_page_of_results_reads_from_a_study_is_there(home: Path) -> None:
    (block,) = python_of(ROOT / "docs" / "guide" / "results.md")
    finished("inner-loop", home, compare={"inner_steps": [1, 2]})
    names: dict[str, Any] = {}
    exec(compile(block, "results.md", "exec"), names)
    study = names["study"]
    assert len(study.trials) == 4
    assert study.best.config["inner_lr"] in (0.2, 0.4)
    assert {"curves"} <= set(study.figures)
    assert len(study.table("curves")) > 0
