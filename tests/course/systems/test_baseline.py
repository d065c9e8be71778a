import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from cs330ray.course.data import images
from cs330ray.course.data.episodes import Classes
from cs330ray.course.systems import baseline, fewshot, protonet
from cs330ray.errors import CheckpointError, Diverged
from cs330ray.package import shipped
from cs330ray.spec import reading
from cs330ray.spec.study import first_values
from cs330ray.trial import named as trainables
from cs330ray.trial.contract import Progress

SEEDS = {"train": 1, "val": 2, "test": 3}
CLASSES = {"train": 9, "val": 6, "test": 7}
OF_EVALUATION = {
    "eval_ways": 3, "eval_queries": 3, "val_tasks": 5, "test_tasks": 7, "test_shots": (1, 2), "test_queries": 4,
}  # fmt: skip
SMALL = {"batch": 12, "filters": 4, "eval_every_steps": 2} | OF_EVALUATION


def config(**changes: object) -> baseline.Config:
    return baseline.Config(**(SMALL | changes))


@pytest.fixture(autouse=True)
def parts_read(monkeypatch) -> Iterator[list[str]]:
    """Synthetic classes, each a coarse pattern drawn twenty times with noise; the parts that were read."""
    read: list[str] = []

    def image_classes(dataset: str, split: str, data_seed: int, part: str) -> Tensor:
        read.append(part)
        draws = torch.Generator().manual_seed(SEEDS[part] + 10 * data_seed)
        prototypes = torch.rand(CLASSES[part], 1, 4, 4, generator=draws).repeat_interleave(7, 2).repeat_interleave(7, 3)
        noise = torch.rand(CLASSES[part], 20, 28, 28, generator=draws)
        return ((prototypes + noise) > 1.0).to(torch.uint8) * 255

    monkeypatch.setattr(fewshot, "image_classes", image_classes)
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are tiny, and the machine may be busy
    yield read
    torch.set_num_threads(threads)


def rows(history: Sequence[Progress]) -> list[tuple[int, dict[str, float]]]:
    return [(progress.step, dict(progress.metrics)) for progress in history]


def run(settings: baseline.Config, seed: int, steps: int, home: Path, resume: Path | None = None) -> list[Progress]:
    """Train, and write the last moment into `home`."""
    history = []
    for progress in baseline.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return history


def same_state(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "state.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("changes", [{}, {"classifier": "cosine", "head": "nearest", "batches": 2, "affine": False}])
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


@pytest.mark.parametrize("of", [{"filters": 5}, {"classifier": "cosine"}])
def test_a_checkpoint_of_another_net_is_refused(of, tmp_path):
    run(config(**of), 0, 2, tmp_path / "home")
    with pytest.raises(CheckpointError, match="those of another"):
        list(baseline.train(config(), 0, 4, tmp_path / "home"))
    with pytest.raises(CheckpointError, match="those of another"):
        baseline.test(config(), 0, tmp_path / "home")


def test_a_checkpoint_of_another_system_is_refused(tmp_path):
    for progress in protonet.train(protonet.Config(queries=2, tasks=2, filters=4, val_tasks=2), 0, 1):
        progress.save(tmp_path)
    with pytest.raises(CheckpointError, match="those of another"):
        baseline.test(config(), 0, tmp_path)


def test_every_row_holds_the_promised_metrics_within_their_range(tmp_path):
    for _, metrics in rows(run(config(), 0, 2, tmp_path / "home")):
        assert metrics.keys() == {name for name in baseline.METRICS if not name.startswith("test_")}
        assert all(
            baseline.METRICS[name].low <= value <= baseline.METRICS[name].high for name, value in metrics.items()
        )


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("head", ["nearest", "cosine"])
def test_it_learns_the_training_classes_and_tells_new_ones_apart(classifier, head, tmp_path):
    settings = config(classifier=classifier, head=head, lr=0.01, filters=8, batch=32, eval_every_steps=30, val_tasks=40)
    before, after = rows(run(settings, 0, 60, tmp_path / "home"))
    assert after[1]["train_loss"] < before[1]["train_loss"] < math.log(CLASSES["train"])
    assert after[1]["train_accuracy"] > 0.8 > 1 / CLASSES["train"]
    assert after[1]["val_accuracy"] > 0.7 > 1 / 3


def test_it_tells_letters_apart_that_it_never_saw(monkeypatch):
    monkeypatch.setattr(fewshot, "image_classes", images.image_classes)
    settings = baseline.Config(
        dataset="glyphs", filters=16, batch=64, classifier="cosine", lr=0.01, eval_every_steps=80, eval_queries=5,
        val_tasks=50,
    )  # fmt: skip
    (last,) = baseline.train(settings, 0, 80)
    assert last.metrics["val_accuracy"] > 0.4 > 1 / 5


def test_a_loss_that_is_not_finite_ends_the_trial_before_its_step_is_reported(monkeypatch):
    backward, losses = baseline.baseline.backward, iter([1.0, 1.0, math.inf])

    def spoilt(*given, **named):
        scores_G, statistics = backward(*given, **named)
        return scores_G | {"loss": torch.tensor([next(losses)])}, statistics

    monkeypatch.setattr(baseline.baseline, "backward", spoilt)
    trial = baseline.train(config(eval_every_steps=1), 0, 5)
    assert [next(trial).step, next(trial).step] == [1, 2]
    with pytest.raises(Diverged, match="inf at step 3"):
        next(trial)


# Images


def test_training_never_opens_the_test_part_and_testing_opens_no_other(tmp_path, parts_read):
    run(config(), 0, 2, tmp_path / "home")
    assert set(parts_read) == {"train", "val"}
    parts_read.clear()
    baseline.test(config(), 0, tmp_path / "home")
    assert parts_read == ["test"]


@pytest.mark.parametrize("counts", [[5, 5, 5], [1, 2, 7]])
def test_every_image_is_drawn_as_often_as_any_other_with_the_class_that_it_has(counts):
    """A count of n draws with probability p has deviation sqrt(n p (1 - p)); five of them bound all."""
    total, gap = sum(counts), 3  # images of other parts between the classes
    firsts_M = torch.tensor(counts).cumsum(0) - torch.tensor(counts) + gap * torch.arange(len(counts))
    levels = torch.arange(int(firsts_M[-1]) + counts[-1], dtype=torch.uint8)
    classes = Classes(levels[:, None, None, None], firsts_M, torch.tensor(counts))
    batch = baseline._draw(config(batch=1000, batches=2), classes, torch.Generator().manual_seed(0))
    drawn_GB = (batch.images_GBCHW[..., 0, 0, 0] * 255).round().long()
    assert drawn_GB.shape == batch.labels_GB.shape == (2, 1000)
    for label, (first, count) in enumerate(zip(firsts_M.tolist(), counts, strict=True)):
        inside = (drawn_GB >= first) & (drawn_GB < first + count)
        assert torch.equal(inside, batch.labels_GB == label)
        for image in range(first, first + count):
            p = 1 / total
            assert abs(int((drawn_GB == image).sum()) - 2000 * p) < 5 * (2000 * p * (1 - p)) ** 0.5


def test_validation_and_test_tasks_are_those_of_protonet(tmp_path, monkeypatch):
    drawn: list[tuple[Tensor, Tensor]] = []
    evaluation = fewshot.evaluation

    def spy(*given):
        episodes = evaluation(*given)
        drawn.append((episodes.support_TNKCHW, episodes.query_TNQCHW))
        return episodes

    monkeypatch.setattr(fewshot, "evaluation", spy)
    ours, theirs = config(data_seed=2), protonet.Config(**OF_EVALUATION, data_seed=2, tasks=2, queries=2, filters=4)
    for module, settings in ((baseline, ours), (protonet, theirs)):
        home = tmp_path / module.__name__
        home.mkdir()
        for progress in module.train(settings, 0, 2):
            last = progress
        last.save(home)
        module.test(settings, 0, home)
    assert len(drawn) == 4
    for one, other in zip(drawn[:2], drawn[2:], strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_shipped_comparison_evaluates_all_on_the_same_tasks_after_as_many_images():
    cells = reading.read(shipped() / "meta-against-baseline.toml").cells
    found = {}
    for cell in cells:
        trainable = trainables.load(cell.trainable)
        found[cell.trainable] = trainables.configuration(trainable, cell, first_values(cell))
    for part in ("val", "test"):
        assert len({found[name].kinds[part] for name in found}) == 1
    images = {found["baseline"].batch * found["baseline"].batches}
    for name in ("protonet", "maml"):
        kind = found[name].kinds["train"]
        images.add(kind.tasks * kind.ways * (kind.shots + kind.queries))
        assert found[name].query_norm == "support"
    assert images == {120}
    assert {(one.dataset, one.split, one.filters, one.affine) for one in found.values()} == {
        ("omniglot", "course", 32, True)
    }


# Test


def test_test_scores_every_number_of_shots_with_the_tasks_behind_it(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    scores = baseline.test(config(), 0, tmp_path / "home")
    accuracies = ["test_accuracy", "test_accuracy_support_norm", "test_accuracy/shots/1", "test_accuracy/shots/2"]
    assert sorted(scores.items) == sorted(accuracies)
    for name in accuracies:
        values = [item.score for item in scores.items[name]]
        assert [item.unit for item in scores.items[name]] == [str(task) for task in range(7)]
        assert scores.metrics[name] == pytest.approx(sum(values) / 7)
    assert (
        scores.items["test_accuracy"] == scores.items["test_accuracy/shots/1"] != scores.items["test_accuracy/shots/2"]
    )
    assert scores.items["test_accuracy_support_norm"] == scores.items["test_accuracy"]
    assert {name.split("/")[0] for name in scores.metrics} == {
        name for name in baseline.METRICS if name.startswith("test_")
    }
    assert scores == baseline.test(config(), 1, tmp_path / "home")


@pytest.mark.parametrize("shots", [1, 2])
def test_each_number_of_shots_is_scored_with_so_many_images(shots, tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    swept = baseline.test(config(), 0, tmp_path / "home").items
    alone = baseline.test(config(eval_shots=shots), 0, tmp_path / "home").items  # the same tasks and images
    assert swept[f"test_accuracy/shots/{shots}"] == alone["test_accuracy"]


# Config


CHANGES = {
    "batch": 13, "batches": 2, "filters": 5, "affine": False, "classifier": "cosine", "head": "nearest", "lr": 0.01,
    "eval_every_steps": 1, "eval_ways": 2, "eval_shots": 2, "eval_queries": 4, "val_tasks": 6, "data_seed": 1,
}  # fmt: skip
OTHERS = {"test_tasks", "test_shots", "test_queries", "dataset", "split", "data", "size", "channels"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_hyperparameter_changes_the_rows(name, value):
    assert CHANGES.keys() | OTHERS == baseline.Config.model_fields.keys()
    one, other = (rows(list(baseline.train(settings, 0, 4))) for settings in (config(), config(**{name: value})))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_shots": 6, "eval_queries": 15}, "eval_shots: a class has 20 drawings, but got 6 shots"),
        ({"test_shots": (11,), "test_queries": 10}, "test_shots: a class has 20 drawings"),
        ({"batch": 1}, "greater than or equal to 2"),
        ({"lr": 0.0}, "greater than 0"),
        ({"head": "logistic"}, "nearest"),
        ({"ways": 5}, "ways"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_chance_is_one_class_in_so_many():
    assert baseline.chance(config(eval_ways=4)) == {"val_accuracy": 0.25}
