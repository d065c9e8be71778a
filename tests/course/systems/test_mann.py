import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from cs330ray.course.data.episodes import Classes
from cs330ray.course.systems import fewshot, mann
from cs330ray.errors import Diverged
from cs330ray.trial.contract import Progress

SEEDS = {"train": 1, "val": 2, "test": 3}
CLASSES, DRAWINGS = 60, 20
SMALL = {"ways": 3, "tasks": 6, "hidden": 8, "eval_every_steps": 2, "val_tasks": 5, "test_tasks": 7}


def config(**changes: object) -> mann.Config:
    return mann.Config(**(SMALL | changes))


@pytest.fixture(autouse=True)
def parts_read(monkeypatch) -> Iterator[list[str]]:
    """Synthetic classes, two dim squares of sixteen, each drawn twenty times with noise; the parts that were read."""
    read: list[str] = []

    def image_classes(dataset: str, split: str, data_seed: int, part: str) -> Tensor:
        read.append(part)
        generator = torch.Generator().manual_seed(SEEDS[part] + 10 * data_seed)
        lit = torch.rand(CLASSES, 16, generator=generator).argsort(dim=1).view(CLASSES, 1, 4, 4) < 2
        noise = torch.rand(CLASSES, DRAWINGS, 28, 28, generator=generator) < 0.5
        return (lit.repeat_interleave(7, 2).repeat_interleave(7, 3) & noise).to(torch.uint8) * 255

    monkeypatch.setattr(fewshot, "image_classes", image_classes)
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are tiny, and the machine may be busy
    yield read
    torch.set_num_threads(threads)


def rows(history: Sequence[Progress]) -> list[tuple[int, dict[str, float]]]:
    return [(progress.step, dict(progress.metrics)) for progress in history]


def run(settings: mann.Config, seed: int, steps: int, home: Path, resume: Path | None = None) -> list[Progress]:
    """Train, and write the last moment into `home`."""
    history = []
    for progress in mann.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return history


def same_state(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "state.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes", [{}, {"cell": "gru", "layers": 2, "shots": 2}, {"cell": "rnn", "encoder": "conv", "protocol": "leaky"}]
)
def test_a_resumed_trial_ends_exactly_where_an_unbroken_one_does(changes, tmp_path):
    settings = config(**changes)
    whole = run(settings, 0, 6, tmp_path / "whole")
    half = run(settings, 0, 2, tmp_path / "half")
    rest = run(settings, 0, 6, tmp_path / "rest", resume=tmp_path / "half")
    assert rows(half) + rows(rest) == rows(whole)
    assert [step for step, _ in rows(whole)] == [2, 4, 6]
    assert same_state(tmp_path / "rest", tmp_path / "whole")


def test_a_longer_budget_continues_a_shorter_one(tmp_path):
    short = run(config(), 0, 3, tmp_path / "short")
    long = run(config(), 0, 5, tmp_path / "long")
    rest = run(config(), 0, 5, tmp_path / "rest", resume=tmp_path / "short")
    assert rows(short)[0] == rows(long)[0]
    assert rows(rest) == rows(long)[1:]
    assert same_state(tmp_path / "rest", tmp_path / "long")


def test_a_finished_trial_has_nothing_left_to_do(tmp_path):
    run(config(), 0, 2, tmp_path / "done")
    assert list(mann.train(config(), 0, 2, tmp_path / "done")) == []


def test_every_row_holds_the_promised_metrics_within_their_range(tmp_path):
    for _, metrics in rows(run(config(), 0, 2, tmp_path / "home")):
        assert metrics.keys() == {name for name in mann.METRICS if not name.startswith("test_")}
        assert all(mann.METRICS[name].low <= value <= mann.METRICS[name].high for name, value in metrics.items())


def test_it_learns_what_can_be_learned(tmp_path):
    settings = config(ways=2, tasks=32, hidden=32, lr=0.003, eval_every_steps=100, val_tasks=100)
    before, _, after = rows(run(settings, 0, 300, tmp_path / "home"))
    assert after[1]["train_loss"] < before[1]["train_loss"]
    assert after[1]["val_accuracy"] > 0.8 > 1 / 2


def images_of_their_own() -> Tensor:
    """No image twice: the first pixel is the class, the second the drawing."""
    classes_MRHW = torch.zeros(CLASSES, DRAWINGS, 28, 28, dtype=torch.uint8)
    classes_MRHW[..., 0, 0] = torch.arange(CLASSES)[:, None]
    classes_MRHW[..., 0, 1] = torch.arange(DRAWINGS)
    return classes_MRHW


def drawn(settings: mann.Config, tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Many tasks: of each place in their sequences the class and the drawing (L, T), and the labels of the queries."""
    batch = mann._draw(settings, Classes.equal(images_of_their_own()), tasks, torch.Generator().manual_seed(0))
    assert batch.images_LTCHW.shape == ((settings.shots + 1) * settings.ways, tasks, 1, 28, 28)
    pixels_LTD = (batch.images_LTCHW.flatten(2) * 255).round().long()
    return pixels_LTD[..., 0], pixels_LTD[..., 1], batch.labels_TN


def test_the_support_comes_round_by_round_in_one_order_of_classes_and_the_queries_shuffled():
    classes_LT, _, labels_TN = drawn(config(shots=2), tasks=600)
    first_NT, second_NT, query_NT = classes_LT.split(3)
    assert torch.equal(first_NT, second_NT)
    assert all(len(set(classes)) == 3 for classes in first_NT.T.tolist())
    assert torch.equal(query_NT, first_NT.gather(0, labels_TN.T))
    orders, counts = labels_TN.unique(dim=0, return_counts=True)
    assert len(orders) == math.factorial(3)
    assert counts.min() > 60  # of 100 expected, with a standard deviation of 9


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("protocol", ["clean", "leaky"])
def test_a_query_is_of_the_support_never_or_if_leaky_as_often_as_chance_has_it(protocol, shots):
    tasks, ways = 2000, 3
    classes_LT, drawings_LT, _ = drawn(config(protocol=protocol, shots=shots), tasks)
    images_LT = classes_LT * DRAWINGS + drawings_LT
    support_LT, query_NT = images_LT[: shots * ways], images_LT[shots * ways :]
    assert all(len(set(images)) == shots * ways for images in support_LT.T.tolist())
    share = (query_NT[:, None] == support_LT).any(dim=1).double().mean().item()
    chance = shots / DRAWINGS if protocol == "leaky" else 0.0
    assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / (tasks * ways)))


def test_every_ordered_choice_of_distinct_numbers_is_equally_likely():
    picks, counts = mann._distinct(12_000, 4, 3, torch.Generator().manual_seed(0)).unique(dim=0, return_counts=True)
    assert len(picks) == 4 * 3 * 2
    assert all(len(set(pick)) == 3 and set(pick) <= set(range(4)) for pick in picks.tolist())
    assert (counts - 500).abs().max() < 5 * math.sqrt(500)


def test_ink_is_one_and_paper_zero():
    ink = mann._draw(
        config(), Classes.equal(torch.full((4, 2, 28, 28), 255).byte()), 2, torch.Generator().manual_seed(0)
    )
    assert ink.images_LTCHW.unique().tolist() == [1.0]


def test_validation_episodes_come_from_the_data_seed_and_no_other(monkeypatch):
    seen = []
    measure = mann._score

    def spy(settings, state, batch):
        seen.append(batch.images_LTCHW.clone())
        return measure(settings, state, batch)

    monkeypatch.setattr(mann, "_score", spy)
    for settings, seed in ((config(), 0), (config(lr=0.1), 7), (config(data_seed=1), 0)):
        list(mann.train(settings, seed, 2))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_loss_that_is_not_finite_ends_the_trial_before_its_step_is_reported(monkeypatch):
    losses, measure = iter([1.0, 1.0, math.inf]), mann.mann.losses
    trial = mann.train(config(eval_every_steps=1), 0, 5)

    def spoilt(logits_TNN: Tensor, labels_TN: Tensor) -> Tensor:
        losses_T = measure(logits_TNN, labels_TN)
        return losses_T * next(losses) if losses_T.requires_grad else losses_T

    monkeypatch.setattr(mann.mann, "losses", spoilt)
    assert [next(trial).step, next(trial).step] == [1, 2]
    with pytest.raises(Diverged, match="inf at step 3"):
        next(trial)


def test_the_train_metrics_of_a_row_are_of_its_step_s_tasks_before_the_update(monkeypatch):
    losses, measure = [], mann.mann.losses

    def spy(logits_TNN: Tensor, labels_TN: Tensor) -> Tensor:
        losses_T = measure(logits_TNN, labels_TN)
        if losses_T.requires_grad:
            losses.append(losses_T.mean().item())
        return losses_T

    monkeypatch.setattr(mann.mann, "losses", spy)
    found = [progress.metrics["train_loss"] for progress in mann.train(config(eval_every_steps=1), 0, 4)]
    assert found == pytest.approx(losses, rel=1e-6)


def test_training_never_opens_the_test_part_and_testing_opens_no_other(tmp_path, parts_read):
    run(config(), 0, 2, tmp_path / "home")
    assert set(parts_read) == {"train", "val"}
    parts_read.clear()
    mann.test(config(), 0, tmp_path / "home")
    assert parts_read == ["test"]


def test_test_scores_the_tasks_one_by_one(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    scores = mann.test(config(), 0, tmp_path / "home")
    values = [item.score for item in scores.items["test_accuracy"]]
    assert [item.unit for item in scores.items["test_accuracy"]] == [str(task) for task in range(7)]
    assert {round(3 * value, 6) for value in values} <= {0, 1, 2, 3}  # of three queries
    mean = sum(values) / 7
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 6)
    assert scores.metrics["test_accuracy"] == pytest.approx(mean)
    assert scores.metrics["test_accuracy_ci95"] == pytest.approx(1.96 * sd / math.sqrt(7))
    assert scores.metrics.keys() == {name for name in mann.METRICS if name.startswith("test_")}
    assert scores.items == mann.test(config(), 1, tmp_path / "home").items


def test_every_part_is_split_by_the_data_seed_and_no_other(tmp_path, monkeypatch):
    asked, images = [], fewshot.image_classes
    monkeypatch.setattr(fewshot, "image_classes", lambda *arguments: asked.append(arguments) or images(*arguments))
    settings = config(dataset="glyphs", split="lake", data_seed=3)
    run(settings, 7, 2, tmp_path / "home")
    mann.test(settings, 9, tmp_path / "home")
    assert asked == [("glyphs", "lake", 3, part) for part in ("train", "val", "test")]


def test_test_episodes_come_from_the_data_seed_too(tmp_path, monkeypatch):
    images = fewshot.image_classes
    monkeypatch.setattr(fewshot, "image_classes", lambda dataset, split, _, part: images(dataset, split, 0, part))
    run(config(), 0, 2, tmp_path / "home")
    one, other = (mann.test(config(data_seed=seed), 0, tmp_path / "home").metrics for seed in (0, 1))
    assert one["test_loss"] != other["test_loss"]


CHANGES = {
    "ways": 4, "shots": 2, "tasks": 5, "cell": "gru", "layers": 2, "hidden": 9, "encoder": "conv", "lr": 0.01,
    "protocol": "leaky", "eval_every_steps": 1, "val_tasks": 6, "data_seed": 1,
}  # fmt: skip


OF_THE_IMAGES = {"dataset", "split", "data", "size", "channels"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_hyperparameter_changes_the_rows(name, value):
    assert CHANGES.keys() | {"test_tasks", "filters"} | OF_THE_IMAGES == mann.Config.model_fields.keys()
    one, other = (rows(list(mann.train(settings, 0, 4))) for settings in (config(), config(**{name: value})))
    assert one != other


def test_the_filters_change_the_rows_where_there_is_an_encoder():
    one, other = (rows(list(mann.train(config(encoder="conv", filters=filters), 0, 2))) for filters in (2, 3))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": DRAWINGS}, "less than or equal to 19"),
        ({"ways": 1}, "greater than or equal to 2"),
        ({"lr": 0.0}, "greater than 0"),
        ({"cell": "ntm"}, "'lstm', 'gru' or 'rnn'"),
        ({"hidden_units": 8}, "hidden_units"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_the_defaults_are_the_course_s():
    wanted = {"ways": 3, "shots": 1, "tasks": 128, "cell": "lstm", "layers": 1, "hidden": 128, "encoder": "none"}
    assert mann.Config().model_dump().items() >= (wanted | {"lr": 1e-3, "protocol": "clean"}).items()


def test_chance_is_one_class_in_so_many():
    assert mann.chance(config(ways=4)) == {"val_accuracy": 0.25}
