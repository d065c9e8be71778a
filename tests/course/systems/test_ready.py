"""A model made of a checkpoint answers as the trainable's own test does at the same weights."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cs330ray.course.data import movielens, text
from cs330ray.course.data.text import Example
from cs330ray.course.learners import mann as mann_learner
from cs330ray.course.models import card
from cs330ray.course.models.language import one_line
from cs330ray.course.systems import baseline, fewshot, finetune, icl, maml, mann, multitask, protonet
from cs330ray.errors import CheckpointError, DataError, SpecError
from cs330ray.trial import named
from cs330ray.trial.contract import Weights
from tests.trial.test_contract import (
    TINY_BASELINE,
    TINY_FINETUNE,
    TINY_ICL,
    TINY_MAML,
    TINY_MANN,
    TINY_MULTITASK,
    TINY_PROTONET,
)

SEED = 5


@dataclass(frozen=True)
class Trained:
    """A trial that is over: its module, configuration and checkpoint, what was exported, and the model of it."""

    config: Any
    checkpoint: Path
    exported: Weights
    model: Any


Train = Callable[..., Trained]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def train(name: str, values: dict[str, Any], steps: int = 4, **changes: Any) -> Trained:
        trainable: Any = named.load(name)
        config = trainable.Config(**values | changes)
        for progress in trainable.train(config, SEED, steps):
            last = progress
        last.save(tmp_path)
        exported = trainable.export(config, SEED, tmp_path)
        read = Weights(exported.tensors, json.loads(json.dumps(exported.notes)))  # as a directory gives it back
        return Trained(config, tmp_path, exported, trainable.ready(config, read))

    yield train
    torch.set_num_threads(threads)


def test_every_trainable_of_the_package_gives_a_model() -> None:
    for name in named.names():
        assert all(hasattr(named.load(name), part) for part in ("export", "ready")), name


# Drawings


def accuracies(model: Any, support_TNKCHW: torch.Tensor, query_TNQCHW: torch.Tensor) -> list[float]:
    """The share of each task's queries that the model names rightly, its classes called by words."""
    found = []
    for support_NKCHW, query_NQCHW in zip(support_TNKCHW, query_TNQCHW, strict=True):
        ways, shots, queries = *support_NKCHW.shape[:2], query_NQCHW.shape[1]
        shown = [f"class {way}" for way in range(ways) for _ in range(shots)]
        told = model.classify(support_NKCHW.flatten(0, 1), shown, query_NQCHW.flatten(0, 1))
        true = [f"class {way}" for way in range(ways) for _ in range(queries)]
        found.append(sum(a == b for a, b in zip(told, true, strict=True)) / len(true))
    return found


@pytest.mark.parametrize(
    ("module", "values", "shots"),
    [(maml, TINY_MAML, 1), (maml, TINY_MAML | {"eval_inner_steps": 3}, 1), (protonet, TINY_PROTONET, 1),
     (protonet, TINY_PROTONET | {"distance": "euclidean", "eval_shots": 2}, 2), (baseline, TINY_BASELINE, 1),
     (baseline, TINY_BASELINE | {"classifier": "cosine", "head": "nearest", "eval_shots": 2}, 2)],
    ids=["maml", "maml of more inner steps", "protonet", "protonet of the other distance", "baseline", "baseline++"],
)  # fmt: skip
def test_drawings_are_named_as_in_the_test_where_the_support_normalises(
    trained: Train, module: Any, values: dict[str, Any], shots: int
):
    one = trained(module.__name__.rpartition(".")[2], values, test_tasks=12)
    scores = module.test(one.config, SEED, one.checkpoint)
    batch = fewshot.evaluation(one.config, "test", torch.device("cpu")).with_shots(shots)
    found = accuracies(one.model, batch.support_TNKCHW, batch.query_TNQCHW)
    assert found == [item.score for item in scores.items["test_accuracy_support_norm"]]
    assert len({*found}) > 1  # else any model would do


@pytest.mark.parametrize(
    ("name", "values"),
    [("maml", TINY_MAML), ("protonet", TINY_PROTONET), ("mann", TINY_MANN), ("baseline", TINY_BASELINE)],
)
def test_a_query_is_named_alone_as_it_is_among_others(trained: Train, name: str, values: dict[str, Any]):
    one = trained(name, values)
    images = np.random.default_rng(0).integers(0, 200, (13, 28, 28)).astype(np.uint8)
    shown, asked, labels = images[:3], images[3:], ["a", "b", "c"]
    together = one.model.classify(shown, labels, asked)
    assert [one.model.classify(shown, labels, [query])[0] for query in asked] == together


def test_the_memory_names_the_first_query_of_a_sequence_as_in_the_test(trained: Train):
    one = trained("mann", TINY_MANN, test_tasks=40)
    batch = mann._evaluation_batch(one.config, "test", torch.device("cpu"))
    with torch.no_grad():
        params = {name: tensor.clone() for name, tensor in one.exported.tensors.items()}
        true = mann_learner.logits(one.config.net, params, batch)[:, 0].argmax(dim=1).tolist()
    ways = one.config.ways
    told = [
        one.model.classify(batch.images_LTCHW[:ways, task], range(ways), batch.images_LTCHW[ways : ways + 1, task])[0]
        for task in range(len(batch))
    ]
    assert told == true
    assert len({*told}) > 1


@pytest.mark.parametrize(("name", "values"), [("maml", TINY_MAML), ("mann", TINY_MANN)])
def test_other_numbers_of_classes_than_in_training_are_refused(trained: Train, name: str, values: dict[str, Any]):
    from cs330ray.errors import SpecError

    one = trained(name, values, steps=1)
    drawn = np.random.default_rng(0).integers(0, 200, (2, 28, 28)).astype(np.uint8)
    with pytest.raises(SpecError, match="3, as many as in training, different labels are needed, but got 2"):
        one.model.classify(drawn, ["a", "b"], drawn)


@pytest.mark.parametrize(("name", "values"), [("protonet", TINY_PROTONET), ("baseline", TINY_BASELINE)])
def test_class_means_take_any_number_of_classes(trained: Train, name: str, values: dict[str, Any]):
    one = trained(name, values, steps=1)
    images = np.random.default_rng(0).integers(0, 200, (7, 28, 28)).astype(np.uint8)
    assert one.model.classify(images, "abcdefg", images) == list("abcdefg")


# Ratings


def test_films_are_ranked_and_their_stars_predicted_as_in_the_test(trained: Train):
    one = trained("multitask", TINY_MULTITASK)
    scores = multitask.test(one.config, SEED, one.checkpoint)
    held_out = movielens.ratings("planted", "course", 0, "test")
    pairs = list(zip(held_out.users + 1, held_out.items + 1, held_out.stars, strict=True))
    errors = [(one.model.predict(user, item) - stars) ** 2 for user, item, stars in pairs]
    assert np.mean(errors) == pytest.approx(scores.metrics["test_mse"], rel=1e-5)
    reciprocal = []
    for user in sorted({*held_out.users.tolist()}):
        ranked = [row.title for row in one.model.recommend(user + 1, n=10**6)]
        wanted = [f"item {item}" for of_user, item, _ in pairs if of_user == user + 1]
        reciprocal.append(np.mean([1 / (1 + ranked.index(title)) for title in wanted]))
    assert np.mean(reciprocal) == pytest.approx(scores.metrics["test_mrr"], rel=1e-6)


def test_the_best_moment_s_weights_are_exported_and_not_the_last_s(trained: Train):
    one = trained("multitask", TINY_MULTITASK, steps=8, lr=0.5, eval_every_steps=1)
    scores = multitask.test(one.config, SEED, one.checkpoint)
    assert scores.metrics["test_mse"] != scores.metrics["test_mse_last"]
    held_out = movielens.ratings("planted", "course", 0, "test")
    errors = [
        (one.model.predict(user + 1, item + 1) - stars) ** 2
        for user, item, stars in zip(held_out.users, held_out.items, held_out.stars, strict=True)
    ]
    assert np.mean(errors) == pytest.approx(scores.metrics["test_mse"], rel=1e-5)
    assert "epoch " + str(one.exported.notes["best_step"]) in one.exported.card


def test_numbers_that_are_not_whole_are_one_line(trained: Train):
    model = trained("multitask", TINY_MULTITASK, steps=1).model
    assert len(model.recommend(np.int64(1), n=2)) == 2
    for ask, place in ((lambda: model.predict(1.9, 1), "user"), (lambda: model.recommend(1, n=2.5), "n")):
        with pytest.raises(SpecError, match=rf"^{place}: a whole number is needed, but got \d\.\d$"):
            ask()


@pytest.mark.parametrize(("weight", "head"), [(1.0, "Its stars mean nothing"), (0.0, "Its ranking means nothing")])
def test_a_card_says_which_head_of_a_recommender_was_not_trained(trained: Train, weight: float, head: str):
    assert head in trained("multitask", TINY_MULTITASK, steps=1, factorization_weight=weight).exported.card
    assert "means nothing" not in trained("multitask", TINY_MULTITASK, steps=1).exported.card
    assert "mean nothing" not in trained("multitask", TINY_MULTITASK, steps=1).exported.card


# Language


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reviews that say their stars, for the archive that they would come from."""

    def examples(dataset: str, part: str, data_seed: int, **_: object) -> list[Example]:
        return [Example(f"{part}-{at}", f"{at % 5 + 1} stars from {part} {at}", str(at % 5 + 1)) for at in range(20)]

    monkeypatch.setattr(text, "examples", examples)
    monkeypatch.setattr(text, "digest", lambda dataset: "reviews")


def asked(config: Any) -> list[Example]:
    return list(config.texts.part("test")[: config.eval_examples])


def told(model: Any, example: Example) -> str:
    if hasattr(model, "stars"):
        return str(model.stars(example.text))
    story, _, question = example.text.rpartition(". ")
    return str(model.answer(f"{story}.", question))


@pytest.mark.parametrize("method", ["lora", "all", "last"])
def test_a_fine_tuned_model_answers_as_in_the_test(trained: Train, method: str):
    pytest.importorskip("peft")
    changes = {"method": method, "blocks": 1, "lora_dropout": 0.5, "eval_examples": 8}
    one = trained("finetune", TINY_FINETUNE, **changes)
    state = finetune._State.fresh(one.config, 0, torch.device("cpu")).restored(one.checkpoint)
    questions = finetune._Questions.of(one.config, "test", state)
    scored = finetune._score(one.config, state, questions.encoded)
    answers = finetune._answers(one.config, state, questions.examples, scored)
    assert [told(one.model, example) for example in questions.examples] == answers
    untrained = finetune._State.fresh(one.config, SEED, torch.device("cpu"))
    assert [finetune._told(one.config, untrained, example.text) for example in questions.examples] != answers


def test_adapters_are_exported_without_the_model_below(trained: Train):
    pytest.importorskip("peft")
    one = trained("finetune", TINY_FINETUNE, steps=2)
    assert all(".lora_" in name for name in one.exported.tensors)
    assert one.exported.notes["base"] == "tiny"
    assert "tiny" in one.exported.card


def test_a_classifier_of_texts_tells_the_classes_of_the_test(trained: Train):
    pytest.importorskip("peft")
    one = trained(
        "finetune", TINY_FINETUNE | {"model": "tiny-encoder", "answers": "classes"}, steps=6, shots=2, eval_examples=40
    )
    scores = finetune.test(one.config, SEED, one.checkpoint)
    right = [float(told(one.model, example) == example.answer) for example in asked(one.config)]
    assert right == [item.score for item in scores.items["test_accuracy"]]
    assert 0 < sum(right) < len(right)


def test_a_fine_tuned_encoder_tells_the_stars_of_the_test(trained: Train, reviews: None):
    pytest.importorskip("peft")
    values = TINY_FINETUNE | {"dataset": "amazon", "model": "tiny-encoder", "shots": 2}
    one = trained("finetune", values, method="all", steps=4, eval_examples=20)
    scores = finetune.test(one.config, SEED, one.checkpoint)
    said = [told(one.model, example) for example in asked(one.config)]
    right = [float(answer == example.answer) for answer, example in zip(said, asked(one.config), strict=True)]
    assert right == [item.score for item in scores.items["test_accuracy"]]
    assert len({*said}) > 1


def test_a_model_answers_behind_its_examples_as_in_the_test(trained: Train):
    pytest.importorskip("transformers")
    one = trained("icl", TINY_ICL, eval_examples=8, ordering="seed", shots=3)
    order = icl._State.load(one.checkpoint).order or []
    examples = asked(one.config)
    reader = icl._Reader.of(one.config, SEED, examples, torch.device("cpu"))
    answers = reader.answer(reader.behind(order), examples)
    assert [told(one.model, example) for example in examples] == answers
    assert len({*answers}) > 1
    assert one.exported.tensors == {}
    assert [example for example, _ in one.exported.notes["shots"]] == [reader.shots[at][0] for at in order]
    assert "pieces of rooms" in one.exported.card


@pytest.mark.parametrize(
    ("name", "values", "changes", "said"),
    [
        ("icl", TINY_ICL | {"ordering": "seed"}, {"overflow": "drop"}, "`test_shots_used` says behind how many"),
        ("mann", TINY_MANN, {"protocol": "leaky"}, "a query may be one of the very drawings that were shown"),
    ],
)
def test_a_card_says_where_the_test_was_easier_or_other_than_the_model(
    trained: Train, name: str, values: dict[str, Any], changes: dict[str, Any], said: str
):
    pytest.importorskip("transformers")
    assert said in trained(name, values | changes, steps=1).exported.card
    assert said not in trained(name, values, steps=1).exported.card


def test_a_card_names_a_model_in_a_folder_without_its_path(tmp_path: Path):
    said = card.sections(weights="", dataset="rooms", use=[], limits=[], base=str(tmp_path))
    assert str(tmp_path) not in said
    assert f"a folder {tmp_path.name} of the machine that exported" in said


def test_stars_in_context_are_a_number_or_none(trained: Train, reviews: None, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    one = trained("icl", TINY_ICL | {"dataset": "amazon"}, eval_examples=5, ordering="seed", shots=1)
    for answer, stars in (("about 4 of 5", 4), ("none at all", None), ("17", None)):
        monkeypatch.setattr(icl.Decoder, "greedy", lambda *_, answer=answer, **__: [answer])
        assert one.model.stars("a review") == stars


def test_an_order_that_the_draw_has_not_is_not_exported(trained: Train):
    pytest.importorskip("transformers")
    one = trained("icl", TINY_ICL, ordering="seed")
    notes = json.loads((one.checkpoint / "answers.json").read_text())
    (one.checkpoint / "answers.json").write_text(json.dumps(notes | {"order": [0, 7]}))
    with pytest.raises(CheckpointError, match="an order of 2 examples is needed"):
        icl.export(one.config, SEED, one.checkpoint)


def test_a_text_is_put_as_the_data_put_it():
    assert one_line("Anna went\n to  the attic.\tWhere?") == "Anna went to the attic. Where?"


# What is not of the configuration


@pytest.mark.parametrize(
    ("name", "values"),
    [("maml", TINY_MAML), ("protonet", TINY_PROTONET), ("mann", TINY_MANN), ("multitask", TINY_MULTITASK),
     ("finetune", TINY_FINETUNE), ("baseline", TINY_BASELINE)],
)  # fmt: skip
@pytest.mark.parametrize("change", ["missing", "another", "shape", "type"])
def test_tensors_of_another_net_are_refused_in_one_line(trained: Train, name: str, values: dict[str, Any], change: str):
    if name == "finetune":
        pytest.importorskip("peft")
    one = trained(name, values, steps=1)
    first = next(iter(one.exported.tensors))
    tensors = dict(one.exported.tensors)
    tensor = tensors.pop(first)
    if change == "another":
        tensors |= {first: tensor, "another": tensor}
    elif change == "shape":
        tensors[first] = torch.cat([tensor, tensor])
    elif change == "type":
        tensors[first] = tensor.double()
    trainable: Any = named.load(name)
    with pytest.raises(DataError, match=r"^tensors: .*; export the model anew$") as caught:
        trainable.ready(one.config, Weights(tensors, one.exported.notes))
    assert first in str(caught.value) or change == "another"


@pytest.mark.parametrize("name", ["finetune", "icl"])
def test_another_model_below_is_refused_in_one_line(trained: Train, name: str):
    pytest.importorskip("peft")
    one = trained(name, {"finetune": TINY_FINETUNE, "icl": TINY_ICL | {"ordering": "seed"}}[name], steps=1)
    trainable: Any = named.load(name)
    for notes in (one.exported.notes | {"base_digest": "0" * 64}, {"shots": []}):
        with pytest.raises(DataError, match=r"tiny: the model of digest .* on which this was trained"):
            trainable.ready(one.config, Weights(one.exported.tensors, notes))


@pytest.mark.parametrize("shots", [None, 3, ["a"], [["a"]], [["a", 1]], [["a", "b", "c"]]])
def test_examples_that_are_none_are_refused_in_one_line(trained: Train, shots: object):
    pytest.importorskip("transformers")
    config = icl.Config(**TINY_ICL)
    with pytest.raises(DataError, match=r"^shots: "):
        icl.ready(config, Weights({}, {"shots": shots}))
