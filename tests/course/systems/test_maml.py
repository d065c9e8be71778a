import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from cs330ray.course.systems import fewshot, maml
from cs330ray.errors import Diverged
from cs330ray.trial.contract import Progress

SEEDS = {"train": 1, "val": 2, "test": 3}
SMALL = {
    "ways": 3,
    "queries": 3,
    "tasks": 4,
    "body": "pooled",
    "filters": 4,
    "eval_every_steps": 2,
    "val_tasks": 5,
    "test_tasks": 7,
    "test_shots": (1, 2),
    "test_queries": 4,
}


def config(**changes: object) -> maml.Config:
    return maml.Config(**(SMALL | changes))


@pytest.fixture(autouse=True)
def parts_read(monkeypatch) -> Iterator[list[str]]:
    """Eight synthetic classes a part, each a coarse pattern drawn twenty times with noise; the parts that were read."""
    read: list[str] = []

    def image_classes(dataset: str, split: str, data_seed: int, part: str) -> Tensor:
        read.append(part)
        generator = torch.Generator().manual_seed(SEEDS[part] + 10 * data_seed)
        prototypes = torch.rand(8, 1, 4, 4, generator=generator).repeat_interleave(7, 2).repeat_interleave(7, 3)
        noise = torch.rand(8, 20, 28, 28, generator=generator)
        return ((prototypes + noise) > 1.0).to(torch.uint8) * 255

    monkeypatch.setattr(fewshot, "image_classes", image_classes)
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are tiny, and the machine may be busy
    yield read
    torch.set_num_threads(threads)


def rows(history: Sequence[Progress]) -> list[tuple[int, dict[str, float]]]:
    return [(progress.step, dict(progress.metrics)) for progress in history]


def run(settings: maml.Config, seed: int, steps: int, home: Path, resume: Path | None = None) -> list[Progress]:
    """Train, and write the last moment into `home`."""
    history = []
    for progress in maml.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return history


def same_state(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "state.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learn_inner_lrs": "tensor_step", "inner_steps": 2, "body": "course"},
        {"learn_inner_lrs": "tensor", "body": "course", "affine": False},
    ],
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
    assert list(maml.train(config(), 0, 2, tmp_path / "done")) == []


def test_every_row_holds_the_promised_metrics_within_their_range(tmp_path):
    for _, metrics in rows(run(config(), 0, 2, tmp_path / "home")):
        families = {name for name in maml.METRICS if not name.startswith("test_")}
        assert metrics.keys() == families
        assert all(maml.METRICS[name].low <= value <= maml.METRICS[name].high for name, value in metrics.items())
        assert metrics["val_accuracy"] == metrics["val_post_adapt_query_accuracy"]


def test_it_learns_what_can_be_learned(tmp_path):
    before, *_, after = rows(run(config(eval_every_steps=20, outer_lr=0.01, filters=8), 0, 60, tmp_path / "home"))
    assert after[1]["train_loss"] < before[1]["train_loss"]
    assert after[1]["val_accuracy"] > 0.75 > 1 / 3


def test_validation_episodes_come_from_the_data_seed_and_no_other(monkeypatch):
    seen = []
    measure = maml._scores

    def spy(algorithm, state, batch):
        seen.append(batch.query_TNQCHW.clone())
        return measure(algorithm, state, batch)

    monkeypatch.setattr(maml, "_scores", spy)
    for settings, seed in ((config(), 0), (config(inner_lr=0.1), 7), (config(data_seed=1), 0)):
        list(maml.train(settings, seed, 2))
    train, val = seen[0::2], seen[1::2]
    assert torch.equal(val[0], val[1])
    assert not torch.equal(val[0], val[2])
    assert not torch.equal(train[0], train[1])


def test_an_absurd_rate_diverges():
    absurd = config(inner_lr=10, inner_steps=60, tasks=2, val_tasks=2, eval_every_steps=1)
    with pytest.raises(Diverged, match="at step"):
        list(maml.train(absurd, 0, 50))


def test_a_loss_that_is_not_finite_ends_the_trial_before_its_step_is_reported(monkeypatch):
    losses = iter([[1.0], [1.0], [math.inf]])
    monkeypatch.setattr(maml.maml, "outer_backward_many", lambda *_, **__: next(losses))
    trial = maml.train(config(eval_every_steps=1), 0, 5)
    assert [next(trial).step, next(trial).step] == [1, 2]
    with pytest.raises(Diverged, match="inf at step 3"):
        next(trial)


def test_training_never_opens_the_test_part_and_testing_opens_no_other(tmp_path, parts_read):
    run(config(), 0, 2, tmp_path / "home")
    assert set(parts_read) == {"train", "val"}
    parts_read.clear()
    maml.test(config(), 0, tmp_path / "home")
    assert parts_read == ["test"]


def test_test_scores_every_number_of_shots_with_the_tasks_behind_it(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    scores = maml.test(config(), 0, tmp_path / "home")
    accuracies = ["test_accuracy", "test_accuracy_support_norm", "test_accuracy/shots/1", "test_accuracy/shots/2"]
    assert sorted(scores.items) == sorted(accuracies)
    for name in accuracies:
        values = [item.score for item in scores.items[name]]
        assert [item.unit for item in scores.items[name]] == [str(task) for task in range(7)]
        assert scores.metrics[name] == pytest.approx(sum(values) / 7)
    values = [item.score for item in scores.items["test_accuracy"]]
    mean = sum(values) / 7
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 6)
    assert scores.metrics["test_accuracy_ci95"] == pytest.approx(1.96 * sd / math.sqrt(7))
    assert scores.metrics["test_accuracy/shots/1"] == scores.metrics["test_accuracy"]
    assert {name.split("/")[0] for name in scores.metrics} <= maml.METRICS.keys()
    assert scores.items == maml.test(config(), 1, tmp_path / "home").items


@pytest.mark.parametrize("name", ["test_accuracy/shots/1", "test_accuracy/shots/2"])
def test_each_number_of_shots_is_scored_with_so_many_drawings(name, tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    swept = maml.test(config(), 0, tmp_path / "home").items
    alone = maml.test(config(shots=int(name[-1])), 0, tmp_path / "home").items  # the same tasks and drawings
    assert swept[name] == alone["test_accuracy"]
    assert swept["test_accuracy/shots/1"] != swept["test_accuracy/shots/2"]


def test_the_score_under_the_support_s_statistics_is_that_of_a_trial_which_is_told_to_use_them(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    by_query, by_support = (
        maml.test(config(query_norm=norm), 0, tmp_path / "home").items for norm in ("query", "support")
    )
    assert by_query["test_accuracy_support_norm"] == by_support["test_accuracy"] != by_query["test_accuracy"]


def test_every_part_is_split_by_the_data_seed_and_no_other(tmp_path, monkeypatch):
    asked, images = [], fewshot.image_classes
    monkeypatch.setattr(fewshot, "image_classes", lambda *arguments: asked.append(arguments) or images(*arguments))
    settings = config(dataset="glyphs", split="lake", data_seed=3)
    run(settings, 7, 2, tmp_path / "home")
    maml.test(settings, 9, tmp_path / "home")
    assert asked == [("glyphs", "lake", 3, part) for part in ("train", "val", "test")]


def test_test_episodes_come_from_the_data_seed_too(tmp_path, monkeypatch):
    images = fewshot.image_classes
    monkeypatch.setattr(fewshot, "image_classes", lambda dataset, split, _, part: images(dataset, split, 0, part))
    run(config(), 0, 2, tmp_path / "home")
    one, other = (maml.test(config(data_seed=seed), 0, tmp_path / "home").items for seed in (0, 1))
    assert one != other


def test_the_train_metrics_of_a_row_are_of_its_step_s_tasks_before_the_update(monkeypatch):
    losses, outer_backward = [], maml.maml.outer_backward_many
    monkeypatch.setattr(
        maml.maml,
        "outer_backward_many",
        lambda *given, **named: losses.extend(outer_backward(*given, **named)) or losses[-1:],
    )
    found = [progress.metrics["train_loss"] for progress in maml.train(config(eval_every_steps=1), 0, 4)]
    assert found == pytest.approx(losses, rel=1e-5)


CHANGES = {
    "ways": 4, "shots": 2, "queries": 4, "tasks": 5, "body": "course", "filters": 5, "affine": False, "inner_lr": 0.1,
    "inner_steps": 2,
    "learn_inner_lrs": "tensor", "first_order": True, "outer_lr": 0.01, "query_norm": "support", "eval_every_steps": 1,
    "eval_inner_steps": 3, "val_tasks": 6, "data_seed": 1,
}  # fmt: skip
OF_THE_IMAGES = {"dataset", "split", "data", "size", "channels"}
OF_THE_TEST = {"test_tasks", "test_shots", "test_queries"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_hyperparameter_changes_the_rows(name, value):
    assert CHANGES.keys() | OF_THE_TEST | OF_THE_IMAGES == maml.Config.model_fields.keys()
    one, other = (rows(list(maml.train(settings, 0, 4))) for settings in (config(), config(**{name: value})))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 6, "queries": 15}, "20 drawings"),
        ({"test_shots": (11,), "test_queries": 10}, "20 drawings"),
        ({"inner_lr": 0.0}, "greater than 0"),
        ({"inner_learning_rate": 0.1}, "inner_learning_rate"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_every_hyperparameter_says_what_it_is():
    assert all(field.description for field in maml.Config.model_fields.values())
    assert maml.Config().model_dump()["inner_lr"] == 0.4


def test_a_net_that_only_normalises_has_no_scale_and_no_shift_in_its_checkpoint(tmp_path):
    kept = []
    for affine in (True, False):
        run(config(affine=affine), 0, 2, tmp_path / str(affine))
        names = load_file(tmp_path / str(affine) / "state.safetensors")
        kept.append({name for name in names if name.startswith("tensor/")})
    assert "tensor/param/norm4.shift" in kept[0]
    assert kept[1] == {name for name in kept[0] if "norm" not in name}
