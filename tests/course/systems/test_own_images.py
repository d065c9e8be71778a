"""The few-shot systems on one's own images: trained, resumed, tested, exported, and used without the folder."""

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

import cs330ray
from cs330ray import package
from cs330ray.cli.trial import identity
from cs330ray.course.data.folder.image import pixels
from cs330ray.course.systems import fewshot, mann
from cs330ray.errors import DataError, SpecError
from cs330ray.spec import reading
from cs330ray.spec.study import first_values
from cs330ray.trial import check, named
from tests.own_images import write
from tests.packed import pack
from tests.trial.test_contract import TINY_BASELINE, TINY_MAML, TINY_MANN, TINY_PROTONET

COUNTS = {"a/one": 6, "a/two": 4, "a/three": 9, "b/four": 4, "b/five": 5, "six": 4, "seven": 7, "eight": 4, "nine": 5}
LISTS = {"train": "a\nb", "val": "six\nseven", "test": "eight\nnine"}
OWN = {"dataset": "images", "split": "lists", "size": 17, "channels": 3}
TINY: dict[str, dict[str, Any]] = {
    "baseline": TINY_BASELINE | {"eval_ways": 2, "classifier": "cosine"},
    "maml": TINY_MAML | {"ways": 2},
    "mann": TINY_MANN | {"ways": 2, "encoder": "conv"},
    "protonet": TINY_PROTONET | {"eval_ways": 2},
}
each = pytest.mark.parametrize("system", TINY)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are tiny, and the machine may be busy
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "photos", COUNTS)
    for part, names in LISTS.items():
        (root / f"{part}.txt").write_text(names)
    return root


def configured(system: str, root: Path, **changes: Any) -> tuple[Any, Any]:
    module: Any = named.load(system)
    return module, module.Config(**(TINY[system] | OWN | {"data": str(root)} | changes))


@each
def test_a_resumed_trial_on_own_images_ends_exactly_where_an_unbroken_one_does(system: str, root: Path, tmp_path: Path):
    module, config = configured(system, root)
    assert module.prepare(config) == module.prepare(config)

    def run(name: str, steps: int, resume: Path | None = None) -> list[tuple[int, dict[str, float]]]:
        rows = []
        for progress in module.train(config, 0, steps, resume):
            rows.append((progress.step, dict(progress.metrics)))
            last = progress
        (tmp_path / name).mkdir()
        last.save(tmp_path / name)
        return rows

    whole = run("whole", 4)
    assert run("half", 2) + run("rest", 4, tmp_path / "half") == whole
    one, other = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "rest"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert module.test(config, 0, tmp_path / "whole") == module.test(config, 1, tmp_path / "rest")


@pytest.mark.parametrize("system", ["baseline", "protonet"])
def test_own_images_are_learned(system: str, root: Path):
    """Their classes differ by colours and patterns, and so do new ones: chance is a half."""
    changes = {"filters": 8, "lr": 0.01, "eval_every_steps": 30, "val_tasks": 40}
    module, config = configured(system, root, **changes)
    *_, last = module.train(config, 0, 30)
    assert last.metrics["val_accuracy"] > 0.9


@each
def test_an_export_answers_from_files_on_a_machine_without_the_images(system: str, root: Path, tmp_path: Path):
    """As the score does that it was trained for, on images that were read as training reads them."""
    pack(tmp_path / "model", system, TINY[system] | OWN | {"data": str(root)}, steps=4)
    shown = shutil.copytree(root / "eight", tmp_path / "shown")
    new = shutil.copytree(root / "nine", tmp_path / "new")
    shutil.rmtree(root)
    shutil.rmtree(tmp_path / "cache")
    model = cs330ray.load(tmp_path / "model")
    support = [shown / "000.png", shown / "001.png", new / "000.png", new / "001.png"]
    asked = [shown / "002.png", new / "002.png", new / "003.png", shown / "003.png"]
    names = ["lynx", "lynx", "puma", "puma"]
    told = model.classify(support, names, asked)
    shown_BCHW, asked_BCHW = (
        torch.from_numpy(np.stack([pixels("x", path, 17, 3) for path in paths])).float() / 255
        for paths in (support, asked)
    )
    best = model.score(shown_BCHW.view(2, 2, 3, 17, 17), asked_BCHW).argmax(dim=1).tolist()
    assert told == [["lynx", "puma"][place] for place in best]
    assert told == model.classify([str(path) for path in support], names, asked_BCHW)
    assert model.image(shown / "000.png").shape == (3, 17, 17)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "stretched to 17x17 pixels, in colour, levels divided by 255 and not inverted" in card
    assert "Characters in single lines of pen" not in card
    assert str(root) not in card


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_an_export_takes_images_of_any_size_and_mode(mode: str, root: Path, tmp_path: Path):
    pack(tmp_path / "model", "protonet", TINY["protonet"] | OWN | {"data": str(root)}, steps=1)
    model = cs330ray.load(tmp_path / "model")
    random = np.random.default_rng(0)
    for name in "ab":
        image = Image.fromarray(random.integers(0, 255, (50, 30, 3)).astype(np.uint8)).convert(mode)
        image.save(tmp_path / f"{name}.tiff")
    pair = [tmp_path / "a.tiff", tmp_path / "b.tiff"]
    assert model.classify(pair, ["a", "b"], pair) == ["a", "b"]
    with Image.open(pair[0]) as first, Image.open(pair[1]) as second:
        assert model.classify(pair, ["a", "b"], [np.asarray(second.convert("RGB")), first]) == ["b", "a"]


def test_what_is_no_image_is_refused_by_an_export_in_one_line(root: Path, tmp_path: Path):
    pack(tmp_path / "model", "protonet", TINY["protonet"] | OWN | {"data": str(root)}, steps=1)
    model = cs330ray.load(tmp_path / "model")
    (tmp_path / "a.png").write_text("a cat")
    with pytest.raises(DataError, match=r"a\.png: expected a whole image .*, got none: its content is of no such kind"):
        model.classify([tmp_path / "a.png"], ["a"], [])
    with pytest.raises(DataError, match=r"nowhere\.png: expected a whole image .*, got none: No such file"):
        model.image(tmp_path / "nowhere.png")
    with pytest.raises(SpecError, match=r"support_images: expected a list of images, got 'a\.png'"):
        model.classify("a.png", ["a"], [])


# The template


def test_the_template_of_a_study_asks_its_question_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "photos", {f"{at:02}": 15 for at in range(26)}, colours=1)
    template = package.source() / "templates" / "images" / "study.toml"
    text = template.read_text().replace("NAME", "my-photos").replace("DATA", str(folder))
    study = reading.parse(tomllib.loads(text), "study.toml")
    check.check(study, "study.toml")
    assert study.name == "my-photos"
    assert [cell.trainable for cell in study.cells] == ["protonet", "baseline"]
    for cell in study.cells:
        module: Any = named.load(cell.trainable)
        config = named.configuration(module, cell, first_values(cell) | {"val_tasks": 2, "filters": 4})
        assert config.kinds["val"][1:] == (5, 1, 10)
        with pytest.raises(
            DataError, match=r"val: expected 5 classes or more, as a task has \(5 ways\), got 4 by split"
        ):
            module.prepare(config)
        fewer = config.model_copy(update={"eval_ways": 4})
        module.prepare(fewer)
        assert [progress.step for progress in module.train(fewer, 0, 2)] == [2]


# Draws


@pytest.mark.parametrize("protocol", ["clean", "leaky"])
def test_the_memory_draws_from_classes_of_different_sizes_as_often_as_each_has(protocol: str, root: Path):
    """A count of n draws with probability p has deviation sqrt(n p (1 - p)); five of them bound all."""
    _, config = configured("mann", root, protocol=protocol, shots=1)
    classes = fewshot.classes(config, "train", torch.device("cpu"))
    levels = torch.arange(len(classes.images_ICHW), dtype=torch.uint8)[:, None, None, None]  # each image its place
    numbered = type(classes)(levels, classes.firsts_M, classes.counts_M)
    batch = mann._draw(config, numbered, 6000, torch.Generator().manual_seed(0))
    drawn_LT = (batch.images_LTCHW[..., 0, 0, 0] * 255).round().long()
    support_NT, query_NT = drawn_LT[:2], drawn_LT[2:]
    same = (query_NT[:, None] == support_NT).any(dim=1)
    assert bool(same.any()) is (protocol == "leaky")
    for first, count in zip(classes.firsts_M.tolist(), classes.counts_M.tolist(), strict=True):
        for drawn in (support_NT, query_NT):
            inside = drawn[(drawn >= first) & (drawn < first + count)] - first
            n = len(inside)
            assert abs(n - 12000 / 5) < 5 * (12000 * 0.2 * 0.8) ** 0.5
            counts = inside.bincount(minlength=count)
            assert (counts - n / count).abs().max() < 5 * (n * (1 / count) * (1 - 1 / count)) ** 0.5


@pytest.mark.parametrize("system", ["baseline", "maml", "protonet"])
def test_tasks_of_large_images_are_scored_some_at_a_time_as_all_at_once_are(
    system: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of 3x17x17 float32, 3,468 bytes; a task of 2 classes has 1 + 2 or 2 + 2 of each, 20,808 or 27,744 bytes."""
    module, config = configured(system, root, test_tasks=4)
    *_, last = module.train(config, 0, 2)
    (tmp_path / "last").mkdir()
    last.save(tmp_path / "last")
    whole = module.test(config, 0, tmp_path / "last")
    gathered, batch_of = list[int](), fewshot._batch
    monkeypatch.setattr(fewshot, "_batch", lambda episodes: gathered.append(len(episodes)) or batch_of(episodes))
    monkeypatch.setattr(fewshot, "BYTES_AT_ONCE", 45_000)
    monkeypatch.setattr(fewshot, "CPU_IMAGES_AT_ONCE", 4)  # as many queries as a task has
    parts = module.test(config, 0, tmp_path / "last")
    assert gathered[:2] == ([1, 1] if system == "baseline" else [2, 2])
    assert max(gathered) <= 2
    assert parts.items == whole.items
    assert parts.metrics == pytest.approx(whole.metrics)


@each
def test_tasks_that_the_classes_cannot_give_are_refused_before_anything_starts(system: str, root: Path):
    ways = {"ways": 3} if system in ("maml", "mann") else {"eval_ways": 3}
    module, config = configured(system, root, **ways)
    with pytest.raises(DataError, match=r"photos: val: expected 3 classes or more, as a task has \(3 ways\), got 2 by"):
        module.prepare(config)
    shots = {"shots": 4} if system == "mann" else {"test_shots": (3,)}
    module, config = configured(system, root, **shots)
    with pytest.raises(
        DataError, match=r"expected 5 images or more of each class \([34] shots \+ [12] queries\), got 4"
    ):
        module.prepare(config)


@pytest.mark.parametrize("system", ["mann", "protonet"])
def test_tasks_that_a_search_asks_for_beyond_what_the_classes_have_are_refused_too(system: str, root: Path):
    module, config = configured(system, root, shots=5)
    with pytest.raises(SpecError, match=r"`shots \+ queries <= drawings of a class` must hold, but got shots=5"):
        next(module.train(config, 0, 2))


# Config


@each
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": None}, "data: expected the folder of your images for dataset = images, got none; name it"),
        ({"split": "course"}, "split: expected seed or lists for dataset = images, got course; take one of them"),
        ({"dataset": "omniglot"}, "split: expected course, paper or lake for dataset = omniglot, got lists; take"),
        (
            {"dataset": "glyphs", "split": "paper"},
            "data: expected none for dataset = glyphs, got .*photos; leave",
        ),
        ({"dataset": "glyphs", "split": "lake", "data": None}, "size: expected 28 for dataset = glyphs, got 17; leave"),
        ({"dataset": "glyphs", "split": "lake", "data": None, "size": 28}, "channels: expected 1 for .*, got 3; leave"),
        ({"size": 15}, "greater than or equal to 16"),
        ({"size": 257}, "less than or equal to 256"),
        ({"channels": 4}, "1 or 3"),
        ({"data": ""}, "at least 1 character"),
    ],
)
def test_a_field_that_makes_no_sense_with_the_dataset_is_refused_in_one_line(
    system: str, changes: dict[str, Any], said: str, root: Path
):
    with pytest.raises(ValidationError, match=said):
        configured(system, root, **changes)
    with pytest.raises(SpecError) as caught:
        named.validated(named.load(system), system, TINY[system] | OWN | {"data": str(root)} | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("system", ["baseline", "maml", "protonet"])
def test_more_than_the_drawings_of_a_character_may_be_asked_of_own_images(system: str, root: Path):
    many = {"test_shots": (19,), "test_queries": 19}
    assert configured(system, root, **many)
    with pytest.raises(ValidationError, match="test_shots: a class has 20 drawings, but got 19 shots"):
        named.load(system).Config(**(TINY[system] | many))


@pytest.mark.parametrize(
    ("system", "known"), [("maml", "12e54be994eb"), ("protonet", "e71013c591d8"), ("mann", "033f04d8178e")]
)
def test_a_lone_trial_of_characters_is_found_where_version_0_1_0_left_it(system: str, known: str, root: Path):
    """The names are those that the code of before gave; on one's own images every field counts."""
    module: Any = named.load(system)
    assert identity(system, module.Config(dataset="glyphs"), 5) == known
    configs = [configured(system, root, **changes)[1] for changes in ({}, {"size": 18}, {"channels": 1})]
    assert len({identity(system, config, 5) for config in configs}) == 3


@each
def test_a_configuration_of_characters_says_the_same_with_and_without_what_is_of_own_images(system: str):
    config = named.load(system).Config(**TINY[system])
    assert config == named.load(system).Config(**(json.loads(config.model_dump_json())))
    assert (config.data, config.size, config.channels, config.folder) == (None, 28, 1, None)
