import functools
import json
import math
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from cs330ray.course.data import rooms, text
from cs330ray.course.data.text import Example
from cs330ray.course.learners import decoding, lora
from cs330ray.course.systems import finetune
from cs330ray.errors import CheckpointError, DataError, Diverged, SpecError
from cs330ray.service import estimate
from cs330ray.spec import reading
from cs330ray.trial.contract import Progress

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ROOMS = ("attic", "cellar", "garage")
UNITS = {"train": 8, "val": 3, "test": 3}
SMALL = {
    "dataset": "rooms", "model": "tiny", "shots": 4, "batch": 3, "micro_batch": 2, "rank": 2, "lr": 0.01,
    "eval_every_steps": 2, "eval_examples": 4, "max_new_tokens": 9, "early_stop": False,
}  # fmt: skip
CLASSES = {"dataset": "amazon", "model": "tiny-encoder", "shots": 2}
STATE = {"state.safetensors", "state.json"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json"}


def config(**changes: object) -> finetune.Config:
    return finetune.Config(**(SMALL | changes))


@pytest.fixture(autouse=True)
def parts_read(monkeypatch) -> Iterator[list[tuple[str, str]]]:
    """Short stories of two questions and reviews that say their stars; the datasets and parts that were read."""
    read: list[tuple[str, str]] = []

    def examples(
        dataset: str, part: str, data_seed: int, *, task: int = 1, max_words: int | None = None, questions: str = "all"
    ):
        read.append((dataset, part))
        rows = []
        for unit in range(UNITS[part]):
            room, other = ROOMS[(unit + data_seed) % 3], ROOMS[(unit + data_seed + task) % 3]
            name = f"{part}-{unit}"
            if dataset == "amazon":
                rows += [Example(name, f"{stars} stars {unit}", str(stars)) for stars in range(1, 6)]
            else:
                rows.append(Example(name, f"Al is in the {room} {unit}. Where?", room))
                if questions == "all":
                    rows.append(Example(name, f"Al is in the {room} {unit}. Al is in the {other}. Where?", other))
        return rows[: max_words and 2 * max_words]

    monkeypatch.setattr(text, "examples", examples)
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny, and the machine may be busy
    yield read
    torch.set_num_threads(threads)


def rows(history: Sequence[Progress]) -> list[tuple[int, dict[str, float]]]:
    return [(progress.step, dict(progress.metrics)) for progress in history]


def run(settings: finetune.Config, seed: int, steps: int, home: Path, resume: Path | None = None) -> list[Progress]:
    """Train, and write the last moment into `home`."""
    history = []
    for progress in finetune.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return history


def same_state(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "state.safetensors") for path in (one, other))
    notes = [json.loads((path / "state.json").read_text()) for path in (one, other)]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) and notes[0] == notes[1]


def fresh(settings: finetune.Config, seed: int = 0) -> finetune._State:
    return finetune._State.fresh(settings, seed, torch.device("cpu"))


# Resuming


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.3, "dropout": 0.2},
        {"method": "last", "blocks": 1},
        {"method": "all", "dropout": 0.1},
        CLASSES,
        CLASSES | {"method": "first", "blocks": 1, "micro_batch": 8, "batch": 8},
    ],
)
def test_a_resumed_trial_ends_exactly_where_an_unbroken_one_does(changes, tmp_path):
    settings = config(**changes)
    whole = run(settings, 7, 6, tmp_path / "whole")
    half = run(settings, 7, 2, tmp_path / "half")
    rest = run(settings, 7, 6, tmp_path / "rest", resume=tmp_path / "half")
    assert rows(half) + rows(rest) == rows(whole)
    assert [step for step, _ in rows(whole)] == [2, 4, 6]
    assert same_state(tmp_path / "rest", tmp_path / "whole")


def test_a_longer_budget_continues_a_shorter_one(tmp_path):
    short = run(config(), 7, 3, tmp_path / "short")
    long = run(config(), 7, 5, tmp_path / "long")
    rest = run(config(), 7, 5, tmp_path / "rest", resume=tmp_path / "short")
    assert rows(short)[0] == rows(long)[0]
    assert rows(rest) == rows(long)[1:]
    assert same_state(tmp_path / "rest", tmp_path / "long")


def test_a_finished_trial_has_nothing_left_to_do(tmp_path):
    run(config(), 7, 2, tmp_path / "done")
    assert list(finetune.train(config(), 7, 2, tmp_path / "done")) == []


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    run(config(method="first", blocks=1), 7, 1, tmp_path / "home")
    with pytest.raises(CheckpointError, match="those of another"):
        list(finetune.train(config(), 7, 2, tmp_path / "home"))


def test_dropout_draws_from_the_seed_and_the_step_alone(monkeypatch):
    seen: list[list[float]] = []
    backward = lora.backward
    monkeypatch.setattr(
        lora, "backward", lambda *given, **named: seen.append(torch.rand(3).tolist()) or backward(*given, **named)
    )
    for seed in (0, 0, 1):
        torch.manual_seed(len(seen))
        list(finetune.train(config(), seed, 2))
    assert seen[:2] == seen[2:4]
    assert seen[0] != seen[1]
    assert seen[0] != seen[4]


# Checkpoints


CHECKPOINTS = [
    # three numbers of 4 bytes for each that trains, an adapter's fourth for peft, and names; the models: 149 and 369 kB
    ({}, STATE | ADAPTER, 60_000),
    (CLASSES, STATE | ADAPTER, 75_000),
    ({"method": "last", "blocks": 1}, STATE, 140_000),
]


@pytest.mark.parametrize(("changes", "files", "bound"), CHECKPOINTS)
def test_a_checkpoint_holds_what_trains_and_no_frozen_weight(changes, files, bound, tmp_path):
    settings = config(**changes)
    run(settings, 0, 2, tmp_path / "home")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "home").iterdir()}
    assert sizes.keys() == files
    assert sum(sizes.values()) < bound
    held = load_file(tmp_path / "home" / "state.safetensors")
    params = fresh(settings).params
    assert {name.removeprefix("tensor/param/") for name in held if name.startswith("tensor/")} == set(params)
    moments = [name for name in held if name.endswith(("/exp_avg", "/exp_avg_sq"))]
    assert sum(held[name].numel() for name in moments) == 2 * sum(param.numel() for param in params.values())


@pytest.mark.parametrize("changes", [{}, CLASSES])
def test_peft_loads_a_trial_s_adapter_onto_the_plain_model_with_the_same_logits(changes, tmp_path):
    import warnings

    from peft import PeftModel

    settings = config(**changes)
    run(settings, 0, 4, tmp_path / "home")
    trained = fresh(settings).restored(tmp_path / "home").model.eval()
    plain = fresh(settings.model_copy(update={"method": "last", "blocks": 1}), 5).model
    ids_BL = torch.tensor([[70, 71, 72, 73], [80, 81, 82, 83]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's own call
        read = PeftModel.from_pretrained(plain, str(tmp_path / "home")).eval()
    assert torch.equal(read(input_ids=ids_BL).logits, trained(input_ids=ids_BL).logits)
    assert json.loads((tmp_path / "home" / "adapter_config.json").read_text())["base_model_name_or_path"] in (
        "tiny", "tiny-encoder",
    )  # fmt: skip
    assert not torch.equal(trained(input_ids=ids_BL).logits, fresh(settings).model(input_ids=ids_BL).logits)


# Rows


@pytest.mark.parametrize("changes", [{}, CLASSES])
def test_every_row_holds_the_promised_metrics_within_their_range(changes, tmp_path):
    words = {"val_rouge1"} if not changes else set()
    promised = {"val_accuracy", "val_loss", "train_loss", "train_accuracy", "trained_parameters"} | words
    for _, metrics in rows(run(config(**changes), 0, 2, tmp_path / "home")):
        assert metrics.keys() == promised
        for name, value in metrics.items():
            assert finetune.METRICS[name].low <= value <= finetune.METRICS[name].high


BLOCK = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32  # of `tiny`: matrices of attention, of the MLP, and two norms


@pytest.mark.parametrize(
    ("changes", "by_hand"),
    [
        ({"method": "lora", "rank": 3, "targets": "attention"}, 2 * 4 * 3 * (32 + 32)),  # blocks, matrices, A and B
        ({"method": "last", "blocks": 1}, BLOCK),
        ({"method": "all"}, 2 * BLOCK + 2 * 258 * 32 + 32),  # two embeddings of 258 tokens, and the last norm
    ],
)
def test_the_number_of_trained_parameters_is_that_of_the_matrices(changes, by_hand, tmp_path):
    (row,) = run(config(**changes), 0, 1, tmp_path / "home")
    assert row.metrics["trained_parameters"] == by_hand


def test_the_train_loss_of_a_row_is_of_its_step_s_own_batch_before_the_update(monkeypatch):
    chosen: list[list[int]] = []
    next_batch = finetune._State.next_batch
    monkeypatch.setattr(
        finetune._State, "next_batch", lambda state, count: chosen.append(next_batch(state, count)) or chosen[-1]
    )
    (row,) = finetune.train(config(), 0, 1)
    state = fresh(config())
    drawn = [state.encode(example) for example in finetune._draw(config(), 0)]
    found = finetune._score(config(), state, [drawn[place] for place in chosen[0]])
    expected = found.loss_B.sum() / found.labels_B.sum()
    assert row.metrics["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_validation_is_of_a_token_and_its_accuracy_that_of_greedy_answers(monkeypatch):
    monkeypatch.setattr(decoding, "greedy", lambda model, tokenizer, prompts, **named: ["the Attic", "", "attic", "x"])
    state = fresh(config())
    examples = [Example("u", "Where?", answer) for answer in ("attic", "attic", "attic", "attic")]
    questions = finetune._Questions(examples, [state.encode(example) for example in examples])
    loss, found = finetune._evaluate(config(), state, questions)
    assert found["accuracy"] == [1.0, 0.0, 1.0, 0.0]
    assert found["rouge1"] == [pytest.approx(2 / 3), 0.0, 1.0, 0.0]
    assert math.isfinite(loss)


@pytest.mark.parametrize("steps", [0, 120])
def test_an_answer_that_is_likeliest_token_by_token_is_what_decoding_finds(steps, tmp_path, monkeypatch):
    """After training most answers are read off the scores; before it, none is."""
    settings = config(lr=0.01, shots=6, batch=6, micro_batch=6, eval_every_steps=120, method="all")
    state = fresh(settings)
    if steps:
        run(settings, 0, steps, tmp_path / "home")
        state = fresh(settings).restored(tmp_path / "home")
    examples = text.examples("rooms", "train", 0)[:8]
    asked: list[int] = []
    greedy = decoding.greedy
    monkeypatch.setattr(
        decoding, "greedy", lambda *given, **named: asked.append(len(given[2])) or greedy(*given, **named)
    )
    found = finetune._score(settings, state, [state.encode(example) for example in examples])
    ours = finetune._answers(settings, state, examples, found)
    questions = [state.reader.question(example.text) for example in examples]
    window = finetune.models.window(state.model)
    assert ours == greedy(state.model, state.tokenizer, questions, max_new_tokens=9, batch=4, window=window)
    assert (asked[0] < len(examples)) == bool(steps)


@pytest.mark.parametrize(
    "changes", [{"method": "all"}, {"rank": 8}, CLASSES | {"shots": 1, "method": "all", "lr": 0.005}]
)
def test_it_learns_its_examples_by_heart(changes, tmp_path):
    settings = config(**({"shots": 3, "batch": 8, "micro_batch": 8, "lr": 0.02, "eval_every_steps": 20} | changes))
    *_, last = run(settings, 0, 80, tmp_path / "home")
    assert last.metrics["train_accuracy"] > 0.9


@pytest.mark.parametrize("changes", [{"method": "last", "blocks": 1}, {"method": "lora"}, CLASSES])
def test_what_is_frozen_is_as_it_came_after_training(changes, monkeypatch):
    kept: list[finetune._State] = []
    make = finetune._State.fresh.__func__
    monkeypatch.setattr(
        finetune._State, "fresh", classmethod(lambda cls, *given: kept.append(make(cls, *given)) or kept[-1])
    )
    settings = config(**changes)
    list(finetune.train(settings, 0, 4))
    before = dict(make(finetune._State, settings, 0, torch.device("cpu")).model.named_parameters())
    for name, parameter in kept[0].model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (name in kept[0].params), name
    assert kept[0].optimizer.params == [*kept[0].params.values()]
    assert set(kept[0].optimizer.moments) == set(range(len(kept[0].params)))


def test_a_loss_that_is_not_finite_ends_the_trial_before_its_step_is_reported(monkeypatch):
    backward, losses = lora.backward, iter([1.0, 1.0, math.inf])
    monkeypatch.setattr(lora, "backward", lambda *given, **named: (backward(*given, **named), next(losses))[1])
    trial = finetune.train(config(eval_every_steps=1), 0, 5)
    assert [next(trial).step, next(trial).step] == [1, 2]
    with pytest.raises(Diverged, match="inf at step 3"):
        next(trial)


# Batches


def test_a_pass_asks_every_example_once_and_the_next_in_another_order():
    state = fresh(config(batch=2))
    first, second = ([place for _ in range(3) for place in state.next_batch(6)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_a_rest_that_fills_no_batch_is_left_out_and_no_batch_holds_an_example_twice():
    state = fresh(config(batch=4))
    taken = [state.next_batch(6) for _ in range(5)]
    assert all(len(set(batch)) == 4 for batch in taken)
    assert [len(batch) for batch in [fresh(config(batch=8)).next_batch(3)]] == [3]


def test_micro_batches_change_no_more_than_the_last_bits(tmp_path):
    settings = [config(batch=4, micro_batch=size, method="all") for size in (1, 4)]
    one, other = (run(one, 0, 2, tmp_path / str(one.micro_batch))[-1].metrics for one in settings)
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


# Early stop


def test_a_trial_ends_at_the_first_due_row_whose_training_accuracy_suffices(monkeypatch):
    accuracies = iter([0.2, 0.6, 0.4, 0.9])
    monkeypatch.setattr(finetune, "mean", lambda _: next(accuracies))
    found = list(finetune.train(config(early_stop=True, stop_at=0.5), 0, 20))
    assert [step for step, _ in rows(found)] == [2, 4]


def test_a_row_that_is_there_for_the_end_of_the_budget_alone_ends_nothing(monkeypatch, tmp_path):
    settings = config(early_stop=True, stop_at=0.5)
    monkeypatch.setattr(finetune, "mean", lambda _: 1.0)
    assert [step for step, _ in rows(run(settings, 7, 1, tmp_path / "one"))] == [1]
    assert [step for step, _ in rows(run(settings, 7, 9, tmp_path / "on", resume=tmp_path / "one"))] == [2]
    assert list(finetune.train(settings, 7, 9, tmp_path / "on")) == []


def test_a_dry_run_estimates_a_study_whose_trials_end_at_their_first_row(monkeypatch):
    monkeypatch.setattr(finetune, "mean", lambda _: 1.0)
    study = {
        "name": "s", "trainable": "finetune", "objective": ["val_accuracy"], "budget": {"trials": 1, "steps": 9},
        "fixed": {"dataset": "rooms", "model": "tiny", "shots": 1, "eval_examples": 1},
    }  # fmt: skip
    assert "a trial" in list(estimate.plan(reading.parse(study, "s"), 1, 0.0))[2]


def test_without_the_rule_a_trial_goes_on(monkeypatch):
    monkeypatch.setattr(finetune, "mean", lambda _: 1.0)
    assert [step for step, _ in rows(list(finetune.train(config(early_stop=False, stop_at=0.5), 0, 6)))] == [2, 4, 6]


def test_what_suffices_is_the_course_s_unless_told():
    found = [finetune.Config(dataset=name).enough for name in ("babi", "xsum", "amazon", "rooms")]
    assert found == [0.9, 0.55, 0.75, 0.9]
    assert finetune.Config(stop_at=0.3).enough == 0.3
    assert finetune.Config(early_stop=False).enough is None


# Without examples


@pytest.mark.parametrize("changes", [{}, {"method": "all"}, CLASSES])
def test_without_examples_the_one_row_is_what_the_model_knows_by_itself(changes, tmp_path):
    settings = config(**(changes | {"shots": 0}))
    ((step, metrics),) = rows(run(settings, 7, 9, tmp_path / "home"))
    assert step == 1
    state = fresh(settings, 7)
    loss, found = finetune._evaluate(settings, state, finetune._Questions.of(settings, "val", state))
    assert metrics["val_loss"] == loss
    assert metrics["val_accuracy"] == sum(found["accuracy"]) / 4
    assert not {"train_loss", "train_accuracy"} & metrics.keys()
    assert list(finetune.train(settings, 7, 9, tmp_path / "home")) == []


# Text


def test_a_prompt_and_its_answer_are_the_tokens_of_the_shot():
    """Its question is what decoding reads; its answer a blank, the words and a period."""
    state = fresh(config())
    encoded = state.encode(Example("u", "Where is Al?", "attic"))
    asked = state.tokenizer("Where is Al? In the")["input_ids"]
    assert list(encoded.ids[: -encoded.answer]) == asked
    assert state.tokenizer.decode(list(encoded.ids[-encoded.answer :])) == " attic."


def test_training_never_opens_the_test_part_and_testing_opens_no_other(tmp_path, parts_read):
    run(config(), 0, 2, tmp_path / "home")
    assert set(parts_read) == {("rooms", "train"), ("rooms", "val")}
    parts_read.clear()
    finetune.test(config(), 0, tmp_path / "home")
    assert parts_read == [("rooms", "test")]


def test_the_examples_come_from_the_draw_seed_and_else_from_the_trial_s():
    told = [finetune._draw(config(draw_seed=3), seed) for seed in (0, 1)]
    own = [finetune._draw(config(), seed) for seed in (3, 1)]
    assert told[0] == told[1] == own[0] != own[1]


def test_of_classes_as_many_examples_are_drawn_of_each():
    drawn = finetune._draw(config(**CLASSES), 0)
    assert sorted(example.answer for example in drawn) == [str(stars) for stars in range(1, 6) for _ in range(2)]


def prepending(*, ends: bool) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of letters that puts a blank before every text, as that of Llama 2; or one that ends every text."""
    from tokenizers import Tokenizer, models, normalizers, processors

    marks = ["</s>", "\u2581"]
    letters = {letter: place for place, letter in enumerate([*marks, *string.ascii_letters, *string.digits, *".?"])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(marks[1]), normalizers.Replace(" ", marks[1])])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def test_an_answer_has_the_tokens_that_it_has_behind_its_question():
    """Alone it has another blank before it, which the tokenizer puts before every text."""
    state = fresh(config())
    state.tokenizer = prepending(ends=False)
    encoded = state.encode(Example("u", "Where is Al?", "attic"))
    assert state.tokenizer.convert_ids_to_tokens(encoded.ids[-encoded.answer :]) == ["\u2581", *"attic."]
    assert list(encoded.ids) == state.tokenizer("Where is Al? In the attic.")["input_ids"]
    assert state.tokenizer.convert_ids_to_tokens(state.tokenizer(" attic.")["input_ids"])[:2] == ["\u2581", "\u2581"]


def test_a_question_that_has_other_tokens_with_an_answer_behind_it_is_refused():
    """Decoding would read the end of the text before it writes the answer."""
    state = fresh(config())
    state.tokenizer = prepending(ends=True)
    with pytest.raises(DataError, match=r"rooms u: .* but tiny changes the last 1 of 21; take another model or prompt"):
        state.encode(Example("u", "Where is Al?", "attic"))


def test_what_does_not_fit_the_window_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(finetune.models, "window", lambda _: 20)
    with pytest.raises(DataError, match=r"the 20 tokens of tiny, but have \d+ \+ \d+; lower max_words or take"):
        list(finetune.train(config(), 0, 2))


def test_a_training_example_needs_room_for_its_own_answer_alone(monkeypatch):
    monkeypatch.setattr(finetune.models, "window", lambda _: 26)  # bytes of "Where is Al? In the attic."
    example = Example("u", "Where is Al?", "attic")
    assert len(fresh(config()).encode(example).ids) == 26
    with pytest.raises(DataError, match=r"the 26 tokens of tiny, but have 19 \+ 8; lower max_new_tokens or take"):
        fresh(config()).encode(example, new_tokens=8)


def test_validation_that_leaves_no_room_for_new_tokens_is_refused_before_any_update(monkeypatch):
    monkeypatch.setattr(finetune, "_update", lambda *_: pytest.fail("an update"))
    with pytest.raises(
        DataError, match=r"rooms val-0: .* the 2048 tokens of tiny, but have \d+ \+ 2040; lower max_new"
    ):
        list(finetune.train(config(max_new_tokens=2040), 0, 2))


def test_a_test_that_leaves_no_room_for_new_tokens_is_refused_before_any_question(monkeypatch, tmp_path):
    run(config(), 0, 1, tmp_path / "home")
    monkeypatch.setattr(finetune, "_score", lambda *_: pytest.fail("a question"))
    with pytest.raises(DataError, match=r"rooms test-0: .* \+ 2040; lower max_new_tokens"):
        finetune.test(config(max_new_tokens=2040), 0, tmp_path / "home")


def test_the_questions_of_validation_are_encoded_once(monkeypatch):
    encode, units = finetune._State.encode, []
    monkeypatch.setattr(
        finetune._State,
        "encode",
        lambda state, example, **named: units.append(example.unit) or encode(state, example, **named),
    )
    assert len(list(finetune.train(config(eval_every_steps=1), 0, 3))) == 3
    assert [unit for unit in units if unit.startswith("val")] == ["val-0", "val-0", "val-1", "val-1"]


def test_a_review_is_cut_at_max_tokens():
    state = fresh(config(**CLASSES, max_tokens=9))
    assert len(state.encode(Example("u", "good " * 50, "4")).ids) == 9
    assert state.encode(Example("u", "good", "4")).label == 3


# Test


@pytest.mark.parametrize(("changes", "names"), [({}, {"test_accuracy", "test_rouge1"}), (CLASSES, {"test_accuracy"})])
def test_test_scores_the_checkpoint_with_the_units_behind_it(changes, names, tmp_path):
    settings = config(**changes)
    run(settings, 0, 2, tmp_path / "home")
    scores = finetune.test(settings, 0, tmp_path / "home")
    assert set(scores.items) == names
    assert set(scores.metrics) == names | {"test_loss"}
    for name in names:
        expected = ["test-0", "test-0", "test-0", "test-0"] if changes else ["test-0", "test-0", "test-1", "test-1"]
        assert [item.unit for item in scores.items[name]] == expected
        assert scores.metrics[name] == sum(item.score for item in scores.items[name]) / 4


# Configuration


CHANGES = {
    "task": 2, "questions": "first", "data_seed": 1, "max_words": 2, "prompt": "tldr", "shots": 3, "draw_seed": 4,
    "method": "all",
    "rank": 3, "alpha": 7.0, "lora_dropout": 0.5, "targets": "mlp", "dropout": 0.5, "lr": 0.02, "batch": 2,
    "eval_every_steps": 1, "eval_examples": 2, "metric": "operator:eq", "precision": "bf16", "warmup_steps": 1,
}  # fmt: skip
OF_ENCODERS = {"layers": 1, "max_tokens": 8}
OF_BLOCKS = {"blocks": 1}
OF_SCHEDULES = {"lr_schedule": "cosine", "schedule_steps": 9}
ELSEWHERE = {
    "dataset", "model", "answers", "template", "micro_batch", "early_stop", "stop_at", "eval_batch",
    "max_new_tokens", "data", "chat", "gradient_checkpointing",
}  # fmt: skip


def test_every_hyperparameter_has_a_test():
    told = CHANGES.keys() | OF_ENCODERS.keys() | OF_BLOCKS.keys() | OF_SCHEDULES.keys() | ELSEWHERE
    assert told == finetune.Config.model_fields.keys()


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [({}, *change) for change in CHANGES.items()]
    + [(CLASSES, *change) for change in OF_ENCODERS.items()]
    + [({"method": "last"}, *change) for change in OF_BLOCKS.items()]
    + [({"lr_schedule": "linear", "schedule_steps": 5}, *change) for change in OF_SCHEDULES.items()]
    + [({"prompt": "custom", "template": "{text} Tell:"}, "template", "{text} Say:")],
)
def test_every_hyperparameter_changes_the_rows(base, name, value):
    assert rows_of(**base) != rows_of(**(base | {name: value}))


@functools.cache
def rows_of(**changes: object) -> list[tuple[int, dict[str, float]]]:
    return rows(list(finetune.train(config(**changes), 0, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "custom"}, "prompt = custom needs one with {text} in it, but got None"),
        ({"prompt": "custom", "template": "Where?"}, "but got 'Where\\?'"),
        ({"dataset": "xsum", "answers": "classes"}, "babi and xsum have words"),
        ({"dataset": "amazon", "answers": "words"}, "amazon classes, but got words"),
        ({"stop_at": 0.0}, "greater than 0"),
        ({"stop_at": 1.1}, "less than or equal to 1"),
        ({"shots": -1}, "greater than or equal to 0"),
        ({"eval_examples": 126}, "eval_examples: expected at most 125, as many as rooms has .*, got 126; lower it"),
        ({"task": 21}, "less than or equal to 20"),
        ({"method": "bitfit"}, "should match pattern"),
        ({"method": "lora-0"}, "should match pattern"),
        ({"method": "lora-1025"}, "rank of lora is at most 1024"),
        ({"layers": 1}, "layers: answers must be classes for it to count, but got 1; leave it out"),
        ({"max_tokens": 64}, "max_tokens: answers must be classes"),
        (CLASSES | {"prompt": "qa"}, "prompt: answers must be words for it to count, but got 'qa'"),
        (CLASSES | {"template": "{text} Tell:"}, "template: answers must be words"),
        ({"lora_dropout": 1.0}, "less than 1"),
        ({"targets": "atention"}, "expected attention, mlp, both, all-linear or .*, got 'atention'; write 'attention'"),
        ({"targets": "all_linear"}, "got 'all_linear'; write 'all-linear'"),
        ({"targets": "q_proj;v_proj"}, "should match pattern"),
        ({"inner_lr": 0.1}, "inner_lr"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_a_template_may_stand_ready_for_the_trials_whose_prompt_is_custom():
    assert config(prompt="tldr", template="{text} Tell:").style == "tldr"


def test_more_blocks_than_the_model_has_are_refused_when_it_is_read():
    with pytest.raises(SpecError, match="blocks: at most 2"):
        list(finetune.train(config(method="last", blocks=3), 0, 1))


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"dataset": "amazon", "method": "all"}, 1e-4),
        ({"dataset": "babi", "method": "all"}, 2e-5),
        ({"dataset": "xsum", "method": "last"}, 2e-5),
        ({"method": "lora"}, 3e-4),
        ({"method": "lora-4"}, 3e-4),
        ({"method": "lora", "lr": 0.5}, 0.5),
    ],
)
def test_the_learning_rate_is_the_course_s_but_lora_s_is_larger(changes, rate):
    assert finetune.Config(**changes).rate == rate


def test_an_adapter_counts_once_unless_alpha_says_otherwise():
    assert finetune.Config(rank=4).tuning.alpha == 4.0
    assert finetune.Config(rank=4, alpha=8.0).tuning.alpha == 8.0


def test_the_method_may_say_its_rank_so_that_a_study_can_compare_ranks_with_blocks():
    told = finetune.Config(method="lora-4", rank=16).tuning
    assert (told.method, told.rank, told.alpha) == ("lora", 4, 4.0)
    assert finetune.Config(method="lora-1024").tuning.rank == 1024


def test_the_prompt_is_that_of_the_dataset_unless_told():
    found = [finetune.Config(dataset=name).style for name in ("babi", "rooms", "xsum")]
    assert found == ["qa", "qa", "tldr"]
    assert finetune.Config(dataset="xsum", prompt="none").style == "none"


def test_the_defaults_are_those_of_the_course():
    defaults = finetune.Config().model_dump()
    course = {"dataset": "babi", "task": 1, "blocks": 2, "batch": 8, "eval_every_steps": 5, "eval_examples": 125}
    assert defaults == defaults | course


def test_rooms_may_be_told_as_classes():
    settings = config(answers="classes", model="tiny-encoder", shots=1)
    state = fresh(settings)
    assert state.model.config.num_labels == 6
    assert state.encode(Example("u", "Where?", "garage")).label == rooms.ROOMS.places.index("garage")
    ((_, metrics),) = rows(list(finetune.train(settings, 0, 1)))
    assert "val_rouge1" not in metrics


def test_chance_is_one_of_the_classes_and_not_known_of_words():
    assert finetune.chance(finetune.Config(dataset="rooms", answers="classes")) == {"val_accuracy": 1 / 6}
    assert finetune.chance(finetune.Config(dataset="amazon")) == {"val_accuracy": 0.2}
    assert finetune.chance(finetune.Config()) == {}
