import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from cs330ray.course.data import text
from cs330ray.course.data.text import Example
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.systems import icl
from cs330ray.errors import CheckpointError, DataError, SpecError
from cs330ray.training.device import generator
from cs330ray.trial.contract import Progress

SMALL = {"dataset": "rooms", "model": "tiny", "shots": 3, "eval_examples": 8, "eval_every_steps": 3, "eval_batch": 2}
ENTROPIES = {"ordering": "localE", "orderings": 3, "probes": 1}


def config(**changes: object) -> icl.Config:
    return icl.Config(**(SMALL | changes))


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch) -> Iterator[None]:
    """The model is tiny, and the machine may be busy."""
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    monkeypatch.setattr(icl.incontext, "PROBE_TOKENS", 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str]]:
    """The prefix and the question of every prompt that is answered from here on."""
    seen: list[tuple[str, str]] = []
    greedy = Decoder.greedy

    def spy(decoder: Decoder, questions: Sequence[str], **named: int) -> list[str]:
        seen.extend((decoder.prefix, question) for question in questions)
        return greedy(decoder, questions, **named)

    monkeypatch.setattr(Decoder, "greedy", spy)
    return seen


def rows(history: Sequence[Progress]) -> list[tuple[int, dict[str, float]]]:
    return [(progress.step, dict(progress.metrics)) for progress in history]


def run(settings: icl.Config, seed: int, steps: int, home: Path, resume: Path | None = None) -> list[Progress]:
    """Train, and write the last moment into `home`."""
    history = []
    for progress in icl.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return history


def answered(home: Path) -> dict[str, object]:
    return json.loads((home / "answers.json").read_text())


# A cut trial


@pytest.mark.parametrize("changes", [{}, ENTROPIES, {"shots": 0}])
def test_a_cut_trial_goes_on_with_the_questions_not_yet_answered(changes, tmp_path, asked):
    settings = config(**changes)
    whole = run(settings, 0, 125, tmp_path / "whole")
    questions = list(asked)
    half = run(settings, 0, 3, tmp_path / "half")
    asked.clear()
    rest = run(settings, 0, 125, tmp_path / "rest", resume=tmp_path / "half")
    assert asked == questions[3:]
    assert rows(half) + rows(rest) == rows(whole)
    assert answered(tmp_path / "rest") == answered(tmp_path / "whole")


def test_a_resumed_trial_keeps_its_ordering_without_looking_for_it_again(tmp_path, monkeypatch):
    run(config(**ENTROPIES), 0, 3, tmp_path / "half")
    monkeypatch.setattr(icl.incontext, "choose", None)
    (first, *_) = icl.train(config(**ENTROPIES), 0, 6, tmp_path / "half")
    assert first.metrics["ordering_entropy"] == answered(tmp_path / "half")["entropy"]


def test_a_longer_budget_continues_a_shorter_one_that_ended_within_a_block(tmp_path, asked):
    short = run(config(), 0, 4, tmp_path / "short")
    assert len(asked) == 6  # the whole block, so that its batches do not hang on the budget
    long = run(config(), 0, 8, tmp_path / "long")
    rest = run(config(), 0, 8, tmp_path / "rest", resume=tmp_path / "short")
    assert [step for step, _ in rows(short)] == [3, 4]
    assert rows(short)[0] == rows(long)[0]
    assert rows(rest) == rows(long)[1:]


def test_a_trial_ends_with_its_questions(tmp_path):
    assert [step for step, _ in rows(run(config(), 0, 1000, tmp_path / "home"))] == [3, 6, 8]


def test_a_finished_trial_has_nothing_left_to_do_and_loads_no_model(tmp_path, monkeypatch):
    run(config(), 0, 8, tmp_path / "done")
    monkeypatch.setattr(icl.models, "causal", None)
    assert list(icl.train(config(), 0, 9, tmp_path / "done")) == []


def test_a_checkpoint_is_the_answers_alone(tmp_path):
    run(config(), 0, 8, tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["answers.json"]


def test_a_checkpoint_of_another_system_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="answers of an in-context trial are needed"):
        list(icl.train(config(), 0, 3, tmp_path))
    (tmp_path / "answers.json").write_text('{"weights": 1}')
    with pytest.raises(CheckpointError, match="answers of an in-context trial are needed"):
        icl.test(config(), 0, tmp_path)


def test_a_checkpoint_behind_other_examples_is_refused(tmp_path):
    run(config(), 0, 3, tmp_path / "home")
    with pytest.raises(CheckpointError, match=r"an order of 2 examples is needed, but it holds one of 3"):
        list(icl.train(config(shots=2), 0, 6, tmp_path / "home"))


# Examples and questions


def test_questions_come_in_one_order_whatever_the_trial(tmp_path, asked):
    ways = ({}, {"shots": 1, "ordering": "globalE"}, {"shots": 0, "eval_every_steps": 5})
    orders = []
    for seed, changes in enumerate(ways):
        asked.clear()
        run(config(**changes), seed, 8, tmp_path / str(seed))
        orders.append([question for _, question in asked])
    assert orders[0] == orders[1] == orders[2]
    pool = text.examples("rooms", "val", 0)
    assert orders[0] == [f"{example.text} In the" for example in pool[:8]]


def test_a_draw_seed_fixes_the_examples_and_the_trial_s_seed_orders_them(tmp_path, asked):
    prefixes = []
    for seed in range(3):
        asked.clear()
        run(config(draw_seed=5), seed, 3, tmp_path / str(seed))
        prefixes.append(asked[0][0])
    drawn = text.draw(text.examples("rooms", "train", 0), 3, 5, classes=False)
    shots = [f"{example.text} In the {example.answer}. " for example in drawn]
    assert len(set(prefixes)) > 1
    assert all(sorted(prefix) == sorted("".join(shots)) for prefix in prefixes)
    assert all(shot in prefix for prefix in prefixes for shot in shots)


def test_without_a_draw_seed_the_trial_s_seed_draws_too(tmp_path, asked):
    for seed in range(2):
        run(config(shots=1), seed, 3, tmp_path / str(seed))
    (first, _), (second, _) = asked[0], asked[3]
    assert first != second


def test_without_shots_the_question_stands_alone(tmp_path, asked):
    (progress, *_) = run(config(shots=0), 0, 3, tmp_path / "home")
    assert {prefix for prefix, _ in asked} == {""}
    assert progress.metrics["shots_used"] == 0
    lengths = [len(question) for _, question in asked]
    assert progress.metrics["prompt_tokens"] == pytest.approx(sum(lengths) / 3)  # tokens are bytes


def test_an_ordering_is_taken_among_candidates_and_its_entropy_told(tmp_path):
    (first, *_) = run(config(**ENTROPIES), 0, 3, tmp_path / "home")
    state = answered(tmp_path / "home")
    assert first.metrics["ordering_entropy"] == state["entropy"] > 0
    candidates = icl.incontext.orders(3, 3, generator("order", 0))
    assert state["order"] in candidates
    run(config(), 0, 3, tmp_path / "seed")
    assert answered(tmp_path / "seed")["order"] == candidates[0]


def test_the_number_of_questions_at_once_changes_no_answer(tmp_path):
    for batch in (1, 3):
        run(config(eval_batch=batch), 0, 8, tmp_path / str(batch))
    assert answered(tmp_path / "1") == answered(tmp_path / "3")


# The window


def test_a_prompt_beyond_the_window_is_refused_before_anything_is_asked(monkeypatch, asked):
    monkeypatch.setattr(icl.models, "window", lambda _: 500)
    with pytest.raises(SpecError, match=r"at most 500 tokens fit the model's window, but got \d+ of the longest"):
        list(icl.train(config(), 0, 3))
    assert asked == []


def test_whole_examples_are_dropped_when_asked_for_the_last_drawn_first(tmp_path, monkeypatch, asked):
    run(config(shots=1), 0, 8, tmp_path / "one")
    alone = list(asked)
    asked.clear()
    longest = max(len(prefix + question) for prefix, question in alone)
    monkeypatch.setattr(icl.models, "window", lambda _: longest + 6)
    history = run(config(overflow="drop"), 0, 8, tmp_path / "dropped")
    assert asked == alone
    assert {progress.metrics["shots_used"] for progress in history} == {1}


@pytest.mark.parametrize("window", range(700, 1000, 100))
def test_an_entropy_has_room_for_the_texts_it_asks_for_wherever_examples_are_dropped(monkeypatch, window):
    """Texts of 300 tokens, longer than any question."""
    monkeypatch.setattr(icl.models, "window", lambda _: window)
    monkeypatch.setattr(icl.incontext, "PROBE_TOKENS", 300)
    monkeypatch.setattr(icl.incontext, "PROBE_ROOM", 600)
    settings = config(shots=8, overflow="drop", ordering="globalE", orderings=2, probes=2)
    used = {progress.metrics["shots_used"] for progress in icl.train(settings, 0, 3)}
    assert len(used) == 1
    assert max(used) < 8


def test_a_question_that_alone_is_beyond_the_window_is_refused_even_then(monkeypatch):
    monkeypatch.setattr(icl.models, "window", lambda _: 20)
    with pytest.raises(SpecError, match="at most 20 tokens fit"):
        list(icl.train(config(overflow="drop"), 0, 3))


def test_a_test_drops_what_its_own_questions_leave_no_room_for(tmp_path, monkeypatch):
    run(config(), 0, 8, tmp_path / "home")
    monkeypatch.setattr(icl.models, "window", lambda _: 450)
    scores = icl.test(config(overflow="drop"), 0, tmp_path / "home")
    assert 0 < scores.metrics["test_shots_used"] < 3


# Scores


def test_a_row_holds_the_means_over_the_questions_answered_so_far(tmp_path, monkeypatch):
    pool = text.examples("rooms", "val", 0)
    given = [pool[0].answer, "nowhere", f"The {pool[2].answer}!", "", f"{pool[4].answer} hall", "", "", ""]
    monkeypatch.setattr(icl._Reader, "answer", lambda _, __, block: [given[pool.index(example)] for example in block])
    history = rows(run(config(), 0, 8, tmp_path / "home"))
    assert [metrics["val_accuracy"] for _, metrics in history] == pytest.approx([2 / 3, 2 / 6, 2 / 8])
    f = [1, 0, 2 / 3, 0, 2 / 3, 0, 0, 0]  # "the pantry" has one of two words right, so has "pantry hall"
    assert [metrics["val_rouge1"] for _, metrics in history] == pytest.approx(
        [sum(f[:3]) / 3, sum(f[:6]) / 6, sum(f) / 8]
    )


def test_every_row_holds_the_promised_metrics_within_their_range(tmp_path):
    for _, metrics in rows(run(config(**ENTROPIES), 0, 8, tmp_path / "home")):
        assert metrics.keys() == {name for name in icl.METRICS if not name.startswith("test_")} - {"val_score"}
        assert all(icl.METRICS[name].low <= value <= icl.METRICS[name].high for name, value in metrics.items())


def test_test_asks_the_test_questions_behind_the_same_examples(tmp_path, asked):
    run(config(), 4, 8, tmp_path / "home")
    prefix = asked[0][0]
    asked.clear()
    scores = icl.test(config(), 4, tmp_path / "home")
    pool = text.examples("rooms", "test", 0)[:8]
    assert asked == [(prefix, f"{example.text} In the") for example in pool]
    assert scores.items.keys() == {"test_accuracy", "test_rouge1"}
    for items in scores.items.values():
        assert [item.unit for item in items] == [example.unit for example in pool]


def test_only_testing_opens_the_test_part(tmp_path, monkeypatch):
    opened, examples = [], text.examples
    monkeypatch.setattr(text, "examples", lambda *given, **named: opened.append(given[1]) or examples(*given, **named))
    icl.prepare(config())
    icl.chance(config())
    run(config(), 0, 3, tmp_path / "home")
    assert set(opened) == {"train", "val"}
    opened.clear()
    icl.test(config(), 0, tmp_path / "home")
    assert set(opened) == {"train", "test"}


# Datasets


@pytest.fixture
def reviews(monkeypatch) -> None:
    """Four reviews of each number of stars in every part."""

    def examples(dataset: str, part: str, data_seed: int, **_: object) -> list[Example]:
        assert dataset == "amazon"
        return [Example(f"{part}-{at}", f"Review {at} of {part}.", str(at % 5 + 1)) for at in range(20)]

    monkeypatch.setattr(text, "examples", examples)


def test_reviews_are_shown_and_asked_with_a_template_of_their_own(tmp_path, asked, reviews):
    (progress, *_) = run(config(dataset="amazon", shots=1), 0, 3, tmp_path / "home")
    prefix, question = asked[0]
    assert question == "Review 0 of val. Stars, from 1 to 5:"
    assert sorted(shown[0] for shown in prefix.split(": ")[1:]) == list("12345")
    assert progress.metrics["shots_used"] == 5  # one of each
    assert progress.metrics.keys() == {"val_accuracy", "shots_used", "prompt_tokens"}


@pytest.mark.parametrize(
    ("given", "stars"), [("4", "4"), ("5 out of 5", "5"), ("I give 3/5", "3"), ("10", "10"), ("good", "good"), ("", "")]
)
def test_the_stars_of_an_answer_are_its_first_number_from_one_to_five(given, stars):
    assert icl._stars(given) == stars


def test_chance_is_one_of_the_answers_that_occur(reviews):
    assert icl.chance(config(dataset="amazon")) == {"val_accuracy": 1 / 5}


def test_chance_among_six_rooms_is_a_sixth_and_of_summaries_not_known():
    assert icl.chance(config()) == {"val_accuracy": 1 / 6}
    assert icl.chance(config(dataset="xsum")) == {}


def test_too_many_shots_are_refused_before_anything_starts():
    with pytest.raises(DataError, match="shots"):
        icl.prepare(config(shots=9999))


def test_the_digest_is_that_of_text_and_weights(monkeypatch):
    first = icl.prepare(config())
    monkeypatch.setattr(icl.models, "digest", lambda _: "other weights")
    second = icl.prepare(config())
    monkeypatch.setattr(text, "digest", lambda _: "other text")
    assert len({first, second, icl.prepare(config())}) == 3


# Config


CHANGES = {
    "data_seed": 1, "prompt": "none", "shots": 2, "draw_seed": 9, "ordering": "globalE", "eval_every_steps": 4,
    "eval_examples": 5, "max_new_tokens": 40, "metric": "operator:eq",
}  # fmt: skip
OF_ORDERINGS = {"orderings": 2, "probes": 3}
ELSEWHERE = {
    "dataset", "task", "questions", "max_words", "model", "template", "overflow", "eval_batch", "data", "chat",
    "precision",
}  # fmt: skip


def state_of(settings: icl.Config, home: Path) -> object:
    return rows(run(settings, 0, 8, home)), answered(home)


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_hyperparameter_changes_the_rows_or_the_answers(name, value, tmp_path):
    assert CHANGES.keys() | OF_ORDERINGS.keys() | ELSEWHERE == icl.Config.model_fields.keys()
    assert state_of(config(), tmp_path / "one") != state_of(config(**{name: value}), tmp_path / "other")


@pytest.mark.parametrize(("name", "value"), OF_ORDERINGS.items())
def test_what_an_ordering_is_chosen_among_and_by_changes_its_entropy(name, value, tmp_path):
    one, other = (
        run(config(**(ENTROPIES | changes)), 0, 3, tmp_path / str(len(changes)))[0].metrics["ordering_entropy"]
        for changes in ({}, {name: value})
    )
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "custom"}, r"prompt = custom needs one with \{text\} in it, but got None"),
        ({"prompt": "custom", "template": "no place"}, r"\{text\} in it, but got 'no place'"),
        ({"dataset": "amazon", "template": "no place"}, r"\{text\} in it, but got 'no place'"),
        ({"dataset": "xsum", "ordering": "globalE"}, "xsum has no set of answers"),
        ({"ordering": "best"}, "globalE"),
        ({"eval_examples": 126}, "eval_examples: expected at most 125, as many as rooms has .*, got 126; lower it"),
        ({"shots": -1}, "greater than or equal to 0"),
        ({"lr": 1.0}, "lr"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("dataset", "style"), [("babi", "qa"), ("rooms", "qa"), ("xsum", "tldr"), ("amazon", "custom")]
)
def test_each_dataset_has_a_prompt_of_its_own(dataset, style):
    assert icl.Config(dataset=dataset).asking.style == style


@pytest.mark.parametrize(("dataset", "tokens"), [("babi", 6), ("rooms", 6), ("xsum", 30)])
def test_answers_are_as_long_as_the_course_has_them(dataset, tokens):
    assert config(dataset=dataset).new_tokens == tokens
    assert config(dataset=dataset, max_new_tokens=4).new_tokens == 4


def test_the_course_s_prompt_is_the_default():
    assert icl.Config().asking.style == "qa"
    assert (icl.Config().dataset, icl.Config().task, icl.Config().eval_examples) == ("babi", 1, 125)
