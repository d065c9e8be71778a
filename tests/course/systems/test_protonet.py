import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.systems import fewshot, maml, protonet
from cs330ray.errors import CheckpointError, Diverged
from cs330ray.package import shipped
from cs330ray.spec import reading
from cs330ray.trial import named as trainables
from cs330ray.trial.contract import Progress

SEEDS = {"train": 1, "val": 2, "test": 3}
SMALL = {
    "ways": 4,
    "shots": 2,
    "queries": 2,
    "tasks": 3,
    "filters": 4,
    "eval_every_steps": 2,
    "eval_ways": 3,
    "eval_queries": 3,
    "val_tasks": 5,
    "test_tasks": 7,
    "test_shots": (1, 2),
    "test_queries": 4,
}


def config(**changes: object) -> protonet.Config:
    return protonet.Config(**(SMALL | changes))


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


def run(settings: protonet.Config, seed: int, steps: int, home: Path, resume: Path | None = None) -> list[Progress]:
    """Train, and write the last moment into `home`."""
    history = []
    for progress in protonet.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return history


def same_state(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "state.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[object, Tensor, Tensor]]:
    """What is drawn from here on: the generator, and the support and query images."""
    seen: list[tuple[object, Tensor, Tensor]] = []
    draw_episodes = fewshot.draw_episodes

    def spy(*given, **named):
        episodes = draw_episodes(*given, **named)
        seen.append((named["generator"], episodes.support_TNKCHW, episodes.query_TNQCHW))
        return episodes

    monkeypatch.setattr(fewshot, "draw_episodes", spy)
    return seen


def evaluated(draws: list[tuple[object, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The draws from streams that serve once: those of validation and test."""
    streams = [id(generator) for generator, *_ in draws]
    return [(support, query) for generator, support, query in draws if streams.count(id(generator)) == 1]


@pytest.mark.parametrize("changes", [{}, {"distance": "euclidean", "query_norm": "support"}])
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
    assert list(protonet.train(config(), 0, 2, tmp_path / "done")) == []


def test_a_checkpoint_of_another_system_is_refused(tmp_path):
    for progress in maml.train(maml.Config(ways=3, queries=2, tasks=2, body="pooled", filters=4, val_tasks=2), 0, 1):
        progress.save(tmp_path)
    with pytest.raises(CheckpointError, match="those of another"):
        list(protonet.train(config(), 0, 2, tmp_path))


def test_every_row_holds_the_promised_metrics_within_their_range(tmp_path):
    for _, metrics in rows(run(config(), 0, 2, tmp_path / "home")):
        families = {name for name in protonet.METRICS if not name.startswith("test_")}
        assert metrics.keys() == families
        assert all(
            protonet.METRICS[name].low <= value <= protonet.METRICS[name].high for name, value in metrics.items()
        )
        assert metrics["val_accuracy"] == metrics["val_query_accuracy"]


def test_it_learns_what_can_be_learned(tmp_path):
    before, *_, after = rows(run(config(eval_every_steps=10, lr=0.01, filters=8), 0, 40, tmp_path / "home"))
    assert after[1]["train_loss"] < before[1]["train_loss"]
    assert after[1]["val_accuracy"] > 0.75 > 1 / 3


def test_a_loss_that_is_not_finite_ends_the_trial_before_its_step_is_reported(monkeypatch):
    backward, losses = protonet.protonet.backward, iter([1.0, 1.0, math.inf])
    monkeypatch.setattr(
        protonet.protonet,
        "backward",
        lambda *given, **named: backward(*given, **named) | {"loss": torch.tensor([next(losses)])},
    )
    trial = protonet.train(config(eval_every_steps=1), 0, 5)
    assert [next(trial).step, next(trial).step] == [1, 2]
    with pytest.raises(Diverged, match="inf at step 3"):
        next(trial)


def test_the_train_metrics_of_a_row_are_of_its_step_s_tasks_before_the_update(monkeypatch, drawn):
    settings = config(eval_every_steps=1)
    first = next(protonet.train(settings, 0, 4)).metrics
    start = protonet._State.fresh(settings, 0, torch.device("cpu"))
    _, support_TNKCHW, query_TNQCHW = drawn[1]  # the validation is drawn first
    scores_T = protonet.protonet.evaluate(settings.algorithm, start.params, Batch(support_TNKCHW, query_TNQCHW))
    for name, values_T in scores_T.items():
        assert first[f"train_{name}"] == pytest.approx(values_T.double().mean().item(), rel=1e-5)


# Episodes


def test_training_never_opens_the_test_part_and_testing_opens_no_other(tmp_path, parts_read):
    run(config(), 0, 2, tmp_path / "home")
    assert set(parts_read) == {"train", "val"}
    parts_read.clear()
    protonet.test(config(), 0, tmp_path / "home")
    assert parts_read == ["test"]


def test_every_part_is_split_by_the_data_seed_and_no_other(tmp_path, monkeypatch):
    asked, images = [], fewshot.image_classes
    monkeypatch.setattr(fewshot, "image_classes", lambda *arguments: asked.append(arguments) or images(*arguments))
    settings = config(dataset="glyphs", split="lake", data_seed=3)
    run(settings, 7, 2, tmp_path / "home")
    protonet.test(settings, 9, tmp_path / "home")
    assert asked == [("glyphs", "lake", 3, part) for part in ("train", "val", "test")]


def test_training_and_evaluation_have_tasks_of_their_own_kind(drawn):
    next(protonet.train(config(), 0, 2))
    (_, val_support, val_query), (_, support, query), _ = drawn
    assert (support.shape[:3], query.shape[:3]) == ((3, 4, 2), (3, 4, 2))
    assert (val_support.shape[:3], val_query.shape[:3]) == ((5, 3, 1), (5, 3, 3))


def test_validation_episodes_come_from_the_data_seed_and_no_other(drawn):
    kinds = {"ways": 2, "shots": 1, "queries": 3, "tasks": 2, "lr": 0.1}
    for settings, seed in ((config(), 0), (config(**kinds), 7), (config(data_seed=1), 0)):
        list(protonet.train(settings, seed, 2))
    (_, first), (_, second), (_, third) = evaluated(drawn)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_test_episodes_come_from_the_data_seed_too(tmp_path, monkeypatch):
    images = fewshot.image_classes
    monkeypatch.setattr(fewshot, "image_classes", lambda dataset, split, _, part: images(dataset, split, 0, part))
    run(config(), 0, 2, tmp_path / "home")
    one, other = (protonet.test(config(data_seed=seed), 0, tmp_path / "home").items for seed in (0, 1))
    assert one != other


SHARED = {"val_tasks": 4, "test_tasks": 6, "test_queries": 3, "tasks": 2, "filters": 4, "data_seed": 2}


@pytest.mark.parametrize(("shots", "test_shots"), [(1, (1, 2)), (4, (1, 2))])
def test_validation_and_test_episodes_are_those_of_maml(shots, test_shots, tmp_path, drawn):
    settings = {
        "maml": maml.Config(**SHARED, ways=3, shots=shots, queries=5, test_shots=test_shots, body="pooled"),
        "protonet": protonet.Config(
            **SHARED, ways=4, shots=2, queries=1, test_shots=test_shots, eval_ways=3, eval_shots=shots, eval_queries=5
        ),
    }
    found = {}
    for module, name in ((maml, "maml"), (protonet, "protonet")):
        drawn.clear()
        for progress in module.train(settings[name], 0, 2):
            last = progress
        (tmp_path / name).mkdir()
        last.save(tmp_path / name)
        module.test(settings[name], 0, tmp_path / name)
        found[name] = evaluated(drawn)
    by_maml, by_protonet = found["maml"], found["protonet"]
    assert len(by_maml) == len(by_protonet) == 2  # a validation and a test
    for ours, theirs in zip(by_protonet, by_maml, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_the_shipped_comparison_evaluates_both_on_the_same_tasks():
    cells = reading.read(shipped() / "more-support.toml").cells
    ours, theirs = (trainables.configuration(trainables.load(cell.trainable), cell, {}) for cell in cells)
    assert (ours.eval_ways, ours.eval_shots, ours.eval_queries) == (theirs.ways, theirs.shots, theirs.queries)
    same = ("dataset", "split", "data_seed", "val_tasks", "test_tasks", "test_shots", "test_queries", "query_norm")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
    assert ours.test_shots == (1, 2, 4, 6, 8, 10)


# Test


def test_test_scores_every_number_of_shots_with_the_tasks_behind_it(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    scores = protonet.test(config(), 0, tmp_path / "home")
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
    assert {name.split("/")[0] for name in scores.metrics} == {
        name for name in protonet.METRICS if name.startswith("test_")
    }
    assert scores.items == protonet.test(config(), 1, tmp_path / "home").items


@pytest.mark.parametrize("name", ["test_accuracy/shots/1", "test_accuracy/shots/2"])
def test_each_number_of_shots_is_scored_with_so_many_drawings(name, tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    swept = protonet.test(config(), 0, tmp_path / "home").items
    alone = protonet.test(config(eval_shots=int(name[-1])), 0, tmp_path / "home").items  # the same tasks and drawings
    assert swept[name] == alone["test_accuracy"]
    assert swept["test_accuracy/shots/1"] != swept["test_accuracy/shots/2"]


def test_the_score_under_the_support_s_statistics_is_that_of_a_trial_which_is_told_to_use_them(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    by_query, by_support = (
        protonet.test(config(query_norm=norm), 0, tmp_path / "home").items for norm in ("query", "support")
    )
    assert by_query["test_accuracy_support_norm"] == by_support["test_accuracy"] != by_query["test_accuracy"]


def test_tasks_that_are_gathered_some_at_a_time_score_the_same_bit_for_bit(tmp_path, monkeypatch):
    """Ten tasks of 3 classes with 4 queries are 120 of 128 images; 25 tasks are gathered in three parts."""
    run(config(), 0, 2, tmp_path / "home")
    whole = protonet.test(config(test_tasks=25), 0, tmp_path / "home")
    gathered, batch_of = [], fewshot._batch
    monkeypatch.setattr(fewshot, "_batch", lambda episodes: gathered.append(len(episodes)) or batch_of(episodes))
    monkeypatch.setattr(fewshot, "BYTES_AT_ONCE", 1)
    assert protonet.test(config(test_tasks=25), 0, tmp_path / "home") == whole
    assert gathered[:3] == [10, 10, 5]


def test_a_test_does_not_hang_on_the_kind_of_the_training_tasks(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    one, other = (
        protonet.test(config(**kind), 0, tmp_path / "home") for kind in ({}, {"ways": 2, "shots": 1, "queries": 5})
    )
    assert one == other


# Config


CHANGES = {
    "ways": 3, "shots": 1, "queries": 4, "tasks": 5, "filters": 5, "affine": False, "distance": "euclidean", "lr": 0.01,
    "query_norm": "support", "eval_every_steps": 1, "eval_ways": 2, "eval_shots": 2, "eval_queries": 4, "val_tasks": 6,
    "data_seed": 1,
}  # fmt: skip
OF_THE_IMAGES = {"dataset", "split", "data", "size", "channels"}
OF_THE_TEST = {"test_tasks", "test_shots", "test_queries"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_hyperparameter_changes_the_rows(name, value):
    assert CHANGES.keys() | OF_THE_TEST | OF_THE_IMAGES == protonet.Config.model_fields.keys()
    one, other = (rows(list(protonet.train(settings, 0, 4))) for settings in (config(), config(**{name: value})))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 6, "queries": 15}, "^1 validation error(.|\n)*shots: a class has 20 drawings, but got 6 shots"),
        ({"eval_shots": 6, "eval_queries": 15}, "eval_shots: a class has 20 drawings"),
        ({"test_shots": (11,), "test_queries": 10}, "test_shots: a class has 20 drawings"),
        ({"eval_shots": 11, "test_queries": 10}, "test_shots: a class has 20 drawings"),
        ({"ways": 61}, "less than or equal to 60"),
        ({"eval_ways": 61}, "less than or equal to 60"),
        ({"lr": 0.0}, "greater than 0"),
        ({"distance": "cosine"}, "squared"),
        ({"outer_lr": 0.1}, "outer_lr"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_shots_and_queries_may_take_all_drawings():
    assert config(shots=5, queries=15, eval_shots=5, eval_queries=15, test_shots=(10,), test_queries=10)


def test_the_defaults_are_those_of_the_course():
    defaults = protonet.Config().model_dump()
    course = {"ways": 5, "shots": 1, "queries": 15, "tasks": 16, "filters": 64, "distance": "squared", "lr": 1e-3}
    assert defaults == defaults | course
    assert protonet.chance(config()) == {"val_accuracy": 1 / 3}


def test_a_net_that_only_normalises_has_no_scale_and_no_shift_in_its_checkpoint(tmp_path):
    kept = []
    for affine in (True, False):
        run(config(affine=affine), 0, 2, tmp_path / str(affine))
        names = load_file(tmp_path / str(affine) / "state.safetensors")
        kept.append({name for name in names if name.startswith("tensor/")})
    assert "tensor/param/norm4.shift" in kept[0]
    assert kept[1] == {name for name in kept[0] if "norm" not in name}
