"""Fine-tuning and in-context learning on files of one's own, with tiny models."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from cs330ray import package
from cs330ray.course.data.texts import text as own
from cs330ray.course.learners import decoding, prompts
from cs330ray.course.models.language import Labeller, Responder
from cs330ray.course.pretrained import models
from cs330ray.course.systems import finetune, icl, language
from cs330ray.errors import CheckpointError, Cs330rayError, DataError, SpecError
from cs330ray.spec import reading
from cs330ray.spec.study import first_values
from cs330ray.training.adam import Adam
from cs330ray.trial import named
from cs330ray.trial.check import check
from cs330ray.trial.contract import Weights

pytest.importorskip("peft")

ROOMS = ("attic", "cellar", "garage", "hall 3.5")  # an answer may hold a period
TUNING = {
    "dataset": "text", "model": "tiny", "shots": 3, "batch": 3, "micro_batch": 2, "rank": 2, "lr": 0.01,
    "eval_every_steps": 2, "eval_examples": 4, "max_new_tokens": 9,
}  # fmt: skip
CONTEXT = {"dataset": "text", "model": "tiny", "shots": 2, "eval_examples": 6, "eval_every_steps": 2, "eval_batch": 2}
TEMPLATE = (
    "Be brief.<|pad|>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|pad|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BOTH = pytest.mark.parametrize(("system", "small"), [(finetune, TUNING), (icl, CONTEXT)], ids=["finetune", "icl"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a file of words and one of labels; on one thread."""
    words = [{"prompt": f"Al is in the {ROOMS[at % 4]} {at}.\nWhere?", "answer": ROOMS[at % 4]} for at in range(25)]
    labels = [{"text": f"{label} number {at}", "label": label} for label in ("Up", "down") for at in range(15)]
    for name, rows in (("words.jsonl", words), ("labels.jsonl", labels)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model in a folder, with a chat template whose turns end in a token that ends no other text."""
    folder = tmp_path_factory.mktemp("chatty")
    model, tokenizer = models.causal("tiny", device=torch.device("cpu"))
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config(system: Any = finetune, data: str = "words.jsonl", **changes: object) -> Any:
    return system.Config(**({finetune: TUNING, icl: CONTEXT}[system] | {"data": data} | changes))


def run(system: Any, settings: Any, steps: int, home: Path, resume: Path | None = None) -> list[Any]:
    """Train, and write the last moment into `home`; the rows."""
    history = []
    for progress in system.train(settings, 7, steps, resume):
        history.append((progress.step, dict(progress.metrics)))
        last = progress
    home.mkdir()
    last.save(home)
    return history


# A trial


LABELS = {"data": "labels.jsonl", "model": "tiny-encoder"}
WAYS: dict[str, dict[str, Any]] = {
    "words": {"metric": "operator:eq"},
    "labels": LABELS | {"metric": "operator:eq"},
    "labels in words": {"data": "labels.jsonl", "answers": "words"},
    "chat": {"chat": True},
    "bf16": {"precision": "bf16", "lora_dropout": 0.2},
    "bf16 of classes": LABELS | {"precision": "bf16", "method": "all"},
    "checkpointing": {"gradient_checkpointing": True, "lora_dropout": 0.2, "dropout": 0.1},
    "all-linear": {"targets": "all-linear"},
    "names": {"targets": "q_proj, v_proj"},
    "cosine": {"lr_schedule": "cosine", "schedule_steps": 9, "warmup_steps": 2},
}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_a_resumed_trial_ends_exactly_where_an_unbroken_one_does(
    changes: dict[str, Any], tmp_path: Path, chatty: str
) -> None:
    settings = config(**(changes | ({"model": chatty} if changes.get("chat") else {})))
    assert finetune.prepare(settings) == finetune.prepare(settings)
    whole = run(finetune, settings, 6, tmp_path / "whole")
    half = run(finetune, settings, 3, tmp_path / "half")
    rest = run(finetune, settings, 6, tmp_path / "rest", resume=tmp_path / "half")
    assert half[:1] + rest == whole
    states = [load_file(tmp_path / name / "state.safetensors") for name in ("rest", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    scores = finetune.test(settings, 7, tmp_path / "whole")
    assert scores.metrics == finetune.test(settings, 7, tmp_path / "rest").metrics
    names = {"accuracy", "loss"} | ({"score"} if "metric" in changes else set())
    names |= {"rouge1"} if settings.data == "words.jsonl" else set()
    assert set(scores.metrics) == {f"test_{name}" for name in names}


@pytest.mark.parametrize(
    "changes",
    [{}, {"data": "labels.jsonl", "metric": "operator:eq"}, {"chat": True}, {"precision": "bf16"},
     {"data": "labels.jsonl", "ordering": "globalE", "orderings": 2, "probes": 1}],
    ids=["words", "labels", "chat", "bf16", "ordered"],
)  # fmt: skip
def test_a_cut_trial_in_context_continues_with_the_questions_not_yet_answered(
    changes: dict[str, Any], tmp_path: Path, chatty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icl.incontext, "PROBE_TOKENS", 12)
    settings = config(icl, **(changes | ({"model": chatty} if changes.get("chat") else {})))
    icl.prepare(settings)
    whole = run(icl, settings, 9, tmp_path / "whole")
    half = run(icl, settings, 2, tmp_path / "half")
    assert half + run(icl, settings, 9, tmp_path / "rest", resume=tmp_path / "half") == whole
    scores = icl.test(settings, 7, tmp_path / "whole")
    assert ("test_rouge1" in scores.metrics) == ("data" not in changes)  # labels have none
    assert whole[-1][1]["shots_used"] == (4 if "data" in changes else 2)  # as many of each label


def test_a_linear_or_cosine_trial_ends_with_its_schedule_whatever_the_budget(tmp_path: Path) -> None:
    settings = config(lr_schedule="linear", schedule_steps=5)
    short, long = (run(finetune, settings, steps, tmp_path / str(steps)) for steps in (5, 50))
    assert [step for step, _ in long] == [2, 4, 5]
    assert short == long
    assert list(finetune.train(settings, 7, 50, tmp_path / "50")) == []


def test_the_rate_of_a_step_is_that_of_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda adam: seen.append(adam.lr) or step(adam))
    run(finetune, config(lr_schedule="linear", schedule_steps=4, warmup_steps=2), 4, tmp_path / "home")
    assert seen == pytest.approx([0.0, 0.005, 0.01, 0.005])


@BOTH
def test_a_file_that_was_edited_is_no_ground_to_resume_or_test_a_trial_on(
    system: Any, small: dict[str, Any], tmp_path: Path
) -> None:
    """Its split is another one: what was trained on may be in test now."""
    settings = config(system)
    run(system, settings, 2, tmp_path / "home")
    before = (tmp_path / "words.jsonl").read_text()
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write('{"prompt": "New?", "answer": "yes"}\n')
    for use in (
        lambda: list(system.train(settings, 7, 4, tmp_path / "home")),
        lambda: system.test(settings, 7, tmp_path / "home"),
    ):
        with pytest.raises(DataError, match=r"^words\.jsonl: expected the rows that the trial was begun with .*; put"):
            use()
    (tmp_path / "words.jsonl").write_text(before.replace("\n", "\r\n"))  # the same rows
    assert system.test(settings, 7, tmp_path / "home")
    (tmp_path / "home" / "data.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected data\.json of a trial on a file of one's own"):
        system.test(settings, 7, tmp_path / "home")


def test_a_fine_tuned_model_is_exported_where_the_file_is_gone(tmp_path: Path) -> None:
    settings = config(data="labels.jsonl", model="tiny-encoder")
    run(finetune, settings, 2, tmp_path / "home")
    (tmp_path / "labels.jsonl").unlink()
    assert finetune.export(settings, 7, tmp_path / "home").notes["labels"] == ["Up", "down"]


# Precision and memory


def losses(**changes: object) -> list[float]:
    settings = config(eval_every_steps=1, shots=8, batch=8, micro_batch=8, **changes)
    return [progress.metrics["train_loss"] for progress in finetune.train(settings, 3, 20)]


@pytest.mark.parametrize("changes", [{"rank": 8}, {"method": "all", "lr": 1e-3}, LABELS | {"rank": 8, "lr": 2e-3}])
def test_after_20_steps_the_loss_of_bf16_is_within_2_percent_of_fp32_s(changes: dict[str, Any]) -> None:
    full, half = losses(**changes), losses(precision="bf16", **changes)
    assert full != half
    assert full[-1] < 0.9 * full[0]
    assert half[-1] == pytest.approx(full[-1], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.2, "dropout": 0.1},
        {"method": "last", "blocks": 1},
        LABELS | {"method": "all", "dropout": 0.1},
    ],
)
def test_gradient_checkpointing_changes_no_bit(
    changes: dict[str, Any], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(finetune, config(precision=precision, **changes), 4, tmp_path / "kept")
    again: list[object] = []
    compute = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "transformers.modeling_utils.checkpoint",
        lambda *given, **named: again.append(given) or compute(*given, **named),
    )
    run(finetune, config(precision=precision, gradient_checkpointing=True, **changes), 4, tmp_path / "again")
    assert len(again) == 4 * 2 * 2  # steps, micro-batches, blocks
    kept, recomputed = (load_file(tmp_path / name / "state.safetensors") for name in ("kept", "again"))
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@BOTH
def test_all_that_a_trial_and_its_model_ask_is_computed_in_the_precision_asked_for(
    system: Any, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    forward = decoding.Decoder._forward
    monkeypatch.setattr(
        decoding.Decoder, "_forward", lambda *given: (seen.append(forward(*given).dtype), forward(*given))[1]
    )
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        settings = config(system, precision=precision)
        run(system, settings, 2, tmp_path / precision)
        system.test(settings, 7, tmp_path / precision)
        system.ready(settings, system.export(settings, 7, tmp_path / precision)).answer("Where?")
        assert {*seen} == {dtype}
        seen.clear()


# Answers


def test_a_model_learns_answers_with_periods_and_ends_them_by_its_end_token(tmp_path: Path) -> None:
    settings = config(shots=8, batch=8, micro_batch=8, rank=8, lr=0.02, eval_every_steps=60, stop_at=None)
    run(finetune, settings, 120, tmp_path / "home")
    state = finetune._State.fresh(settings, 0, torch.device("cpu")).restored(tmp_path / "home")
    drawn = finetune._draw(state.config, 7)
    assert any("." in example.answer for example in drawn)
    told = [finetune._told(state.config, state, example.text) for example in drawn]
    assert told == [example.answer for example in drawn]
    found = finetune._score(state.config, state, [state.encode(example) for example in drawn])
    assert finetune._answers(state.config, state, drawn, found) == told  # read off the scores
    encoded = state.encode(drawn[0])
    assert state.tokenizer.decode(list(encoded.ids)) == f"{drawn[0].text} {drawn[0].answer}<|end|>"
    assert encoded.answer == len(drawn[0].answer) + 2  # bytes, a blank and the end token


def test_in_context_examples_are_a_blank_line_apart_and_an_answer_ends_with_its_line() -> None:
    settings = config(icl, data="labels.jsonl").resolved(("Up", "down"))
    asking = language.asking("text", settings.asking, chat=False, in_context=True, tokenizer=None, model="tiny")
    assert asking.prefix([("It rose.", "Up")]) + asking.prompt("It fell.") == (
        "It rose.\nLabel: Up\n\nIt fell.\nLabel:"
    )
    assert asking.stop == "\n"
    own_way = config(icl, data="labels.jsonl", prompt="custom", template="{text} =>").resolved(("Up", "down"))
    assert own_way.asking.prompt("It fell.") == "It fell. =>"


def test_a_conversation_is_that_of_the_template_and_its_turns_end_answers(chatty: str) -> None:
    _, tokenizer = models.causal(chatty, device=torch.device("cpu"))
    asking = language.asking("text", prompts.Asking("none"), chat=True, in_context=True, tokenizer=tokenizer, model="m")
    shots = [("Who?", "Al"), ("When?", "now")]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": said} for shot in shots for role, said in zip(roles, shot, strict=True)]
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": "Where?"}], tokenize=False, add_generation_prompt=True
    )
    assert asking.prefix(shots) + asking.prompt("Where?") == whole
    assert asking.answer("Where?", "here") == "here<|pad|>"
    assert asking.ends(tokenizer) == {tokenizer.pad_token_id} != {tokenizer.eos_token_id}
    begin = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    assert tokenizer("Be")["input_ids"] == [tokenizer.eos_token_id, *asking.tokens(tokenizer, "Be")]


def test_a_template_that_writes_something_before_an_answer_is_refused(chatty: str) -> None:
    _, tokenizer = models.causal(chatty, device=torch.device("cpu"))
    thinking = "assistant: {% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
    tokenizer.chat_template = TEMPLATE.replace(
        "{{ m['content'] }}", "{{ '<no>' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant: ", thinking)
    assert prompts.Chat("none", None, tokenizer).answer("Where?", "here") == "here<|pad|>"  # told not to think
    for template, why in (
        (TEMPLATE.replace("{{ m['role'] }}: ", "{{ m['role'] }}: <think>"), "right behind the question"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "right behind the question"),
        ("{{ messages[9]['content'] }}{{ raise_exception('only one turn') }}", "fails: "),
    ):
        tokenizer.chat_template = template
        with pytest.raises(SpecError, match=rf"^chat: the chat template .*{why}.*; set chat = false$"):
            prompts.Chat("none", None, tokenizer).answer("Where?", "here")


# A model without the file


@BOTH
@pytest.mark.parametrize(
    ("data", "answers"), [("words.jsonl", None), ("labels.jsonl", None), ("labels.jsonl", "words")]
)
def test_an_export_answers_as_the_test_does_on_a_machine_without_the_file(
    system: Any, small: dict[str, Any], data: str, answers: str | None, tmp_path: Path
) -> None:
    settings = config(system, data, **({"answers": answers} if answers and system is finetune else {}))
    run(system, settings, 4, tmp_path / "home")
    exported = system.export(settings, 7, tmp_path / "home")
    asked = settings.texts.part("test")[:4]
    scores = system.test(settings, 7, tmp_path / "home").items["test_accuracy"][:4]
    (tmp_path / data).unlink()
    own._table.cache_clear()
    notes = json.loads(json.dumps(exported.notes))  # as a directory gives it back
    model = system.ready(settings, Weights(exported.tensors, notes))
    if data == "words.jsonl":
        assert isinstance(model, Responder)
        assert "model.answer(prompt)" in exported.card
        told = [model.answer(example.text) for example in asked]
    else:
        assert isinstance(model, Labeller)
        assert model.labels == ("Up", "down")
        assert "model.label(text)" in exported.card
        told = [model.label(example.text) for example in asked]
        assert answers or system is icl or {*told} <= {"Up", "down"}
    right = [float(answer == example.answer) for answer, example in zip(told, asked, strict=True)]
    assert right == [item.score for item in scores]
    assert data in exported.card
    assert str(tmp_path) not in exported.card


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [("The Attic.", "the attic", 1.0), ("a  b", "A b", 1.0), ("attic", "the attic", 0.0), ("5", "-5", 0.0),
     ("35", "3.5", 0.0), ("C", "C++", 0.0), (":)", ":(", 0.0), ("", ".", 0.0)],
)  # fmt: skip
def test_an_answer_of_one_s_own_is_the_same_but_for_case_blanks_and_a_last_period(
    prediction: str, answer: str, right: float
) -> None:
    for system in (finetune, icl):
        found = language.scores(config(system).texts, [prediction], [answer], rouge=False)
        assert found == {"accuracy": [right]}


def test_what_is_said_is_a_label_in_any_case_or_none() -> None:
    said = iter(["up.", " DOWN", "sideways", ""])
    model = Labeller(lambda _: next(said), ("Up", "down"))
    assert [model.label("x") for _ in range(4)] == ["Up", "down", None, None]
    classes = iter(["us", "US"])  # a classifier's may differ in case alone
    model = Labeller(lambda _: next(classes), ("US", "us"))
    assert [model.label("x") for _ in range(2)] == ["us", "US"]


@BOTH
@pytest.mark.parametrize("labels", [[], [1], "Up", {"a": 1}])
def test_labels_of_an_export_that_are_none_are_refused_in_one_line(
    system: Any, small: dict[str, Any], labels: object
) -> None:
    notes = {"labels": labels, "shots": [], "base": "tiny", "base_digest": models.digest("tiny")}
    with pytest.raises(DataError, match=r"^labels: expected a list of texts, or null, got something else"):
        system.ready(config(system, "labels.jsonl"), Weights({}, notes))


# Scores of one's own


@pytest.fixture
def metric(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Write a module with a metric; its name in a study."""
    monkeypatch.syspath_prepend(here)

    def written(name: str, body: str) -> str:
        (here / f"{name}.py").write_text(f"def score(prediction, answer):\n    {body}\n")
        return f"{name}:score"

    return written


@BOTH
def test_a_metric_of_one_s_own_is_asked_of_each_prediction_and_answer(
    system: Any, small: dict[str, Any], metric: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = metric(f"lengths_{system.__name__[-3:]}", "return len(answer) / 2")
    settings = config(system, metric=name)
    history = run(system, settings, 4, tmp_path / "home")
    asked = settings.texts.part("val")[:4]
    wanted = sum(len(example.answer) / 2 for example in asked) / 4
    assert history[-1][1]["val_score"] == wanted
    items = system.test(settings, 7, tmp_path / "home").items["test_score"]
    assert [item.score for item in items[:4]] == [len(e.answer) / 2 for e in settings.texts.part("test")[:4]]


def test_the_digest_of_the_data_is_that_of_the_metric_too(metric: Any, here: Path) -> None:
    plain = finetune.prepare(config())
    name = metric("first_form", "return 1.0")
    before = finetune.prepare(config(metric=name))
    (here / "first_form.py").write_text("def score(prediction, answer):\n    return 2.0\n")
    assert len({plain, before, finetune.prepare(config(metric=name))}) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return None",
            r"metric: expected a finite number from 'bad\d:score', got None for 'an answer' and 'an answer'",
        ),
        ("return float('nan')", "got nan for"),
        ("return '1'", "got '1' for"),
        (
            "return 1 / 0",
            r"metric: 'bad\d:score' must score a prediction by its answer, but raised ZeroDiv.*bad\d.py:2",
        ),
        (
            "this is no Python",
            r"metric: expected package\.module:function that can be imported, got 'bad\d:score', .*:2",
        ),
    ],
)
def test_a_metric_that_gives_no_number_is_one_line_before_any_trial(
    body: str, message: str, metric: Any, request: pytest.FixtureRequest
) -> None:
    name = metric(f"bad{len(body) % 10}", body)
    with pytest.raises(SpecError, match=message) as caught:
        finetune.prepare(config(metric=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module:score",
            r"raised ModuleNotFoundError: .*; check the name, and set PYTHONPATH to the directory",
        ),
        ("operator:no_such", "raised AttributeError: .*no_such"),
        ("math:pi", r"metric: expected a function, got 'math:pi', which is 3\.14"),
    ],
)
def test_a_metric_that_is_not_there_is_one_line(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        finetune.prepare(config(metric=name))


# What is refused


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, 'data: expected the path of a file with dataset = "text", got none'),
        (
            {"dataset": "babi", "data": "x.csv"},
            r"data: expected only with dataset = .text., got 'x\.csv'; leave it out",
        ),
        ({"dataset": "babi", "data": None, "chat": True}, "chat: expected only with dataset = .text., got True"),
        ({"task": 3}, "task: expected only with a published dataset, got 3; leave it out"),
        ({"max_words": 3}, "max_words: expected only with a published dataset, got 3"),
        ({"metric": "operator.eq"}, "metric"),
        ({"precision": "fp16"}, "'fp32' or 'bf16'"),
    ],
)
def test_fields_that_mean_nothing_are_refused(
    system: Any, small: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(system, **changes)


@BOTH
def test_more_examples_of_evaluation_than_the_published_have_may_be_asked_of_a_file(
    system: Any, small: dict[str, Any]
) -> None:
    assert config(system, eval_examples=5000).eval_examples == 5000


LONG = {"prompt": "word " * 500, "answer": "x"}


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        (
            finetune,
            {"answers": "classes"},
            r"answers: expected labels for classes, got answers in words in words\.jsonl",
        ),
        (finetune, LABELS | {"prompt": "qa"}, "prompt: answers must be words for it to count, but got 'qa'"),
        (finetune, LABELS | {"chat": True}, "chat: answers must be words"),
        (
            icl,
            {"data": "case.csv"},
            r"case\.csv: label: expected labels that differ in more .* 'US' and 'us'; rename",
        ),
        (finetune, {"data": "case.csv", "answers": "words"}, r"case\.csv: label: .* 'US' and 'us'; rename one"),
        (finetune, {"layers": 1}, "layers: answers must be classes"),
        (finetune, {"chat": True}, "chat: expected a model with a chat template, got tiny without; set chat = false"),
        (icl, {"chat": True}, "chat: expected a model with a chat template, got tiny without; set chat = false"),
        (icl, {"ordering": "globalE"}, "ordering: expected seed, since answers in words are no set .*, got globalE"),
        (
            finetune,
            {"targets": "query"},
            r"targets: expected attention, .*\(q_proj, k_proj, .*down_proj\), got 'query'",
        ),
        (finetune, {"targets": "q_proj, lm_head"}, "got 'lm_head'"),
        (finetune, {"shots": 99}, r"words\.jsonl: shots: `shots <= 15`, .*; lower shots or add rows"),
        (
            finetune,
            {"data": "long.jsonl"},
            r"long\.jsonl: line \d: prompt and answer must fit into the 2048 tokens of tiny",
        ),
        (
            icl,
            {"data": "long.jsonl"},
            r"long\.jsonl: line \d: prompt: at most 2048 tokens fit the model's window, but got",
        ),
        (
            icl,
            {"data": "lines.jsonl"},
            r"lines\.jsonl: line \d: answer: expected one line, .* got 'a\\nb'; write it in",
        ),
    ],
)
def test_what_a_model_or_a_file_cannot_do_is_one_line_before_any_trial(
    system: Any, changes: dict[str, Any], message: str, here: Path
) -> None:
    (here / "case.csv").write_text("text,label\n" + "".join(f"{at},{'US' if at % 2 else 'us'}\n" for at in range(20)))
    for name, row in {"long": LONG, "lines": {"prompt": "x", "answer": "a\nb"}}.items():
        rows = [row | {"prompt": f"{row['prompt']} {at} "} for at in range(9)]
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Cs330rayError, match=message) as caught:
        system.prepare(config(system, **changes))
    assert "\n" not in str(caught.value)


def test_a_schedule_that_falls_has_a_length_of_its_own() -> None:
    with pytest.raises(
        ValidationError, match=r"schedule_steps: expected more than warmup_steps \(0\) .*, got None; set"
    ):
        config(lr_schedule="cosine")
    with pytest.raises(
        ValidationError, match=r"expected more than warmup_steps \(9\) with lr_schedule = linear, got 9"
    ):
        config(lr_schedule="linear", schedule_steps=9, warmup_steps=9)
    assert config(schedule_steps=9).last_step is None  # ready for the trials whose schedule falls


def test_chance_is_one_of_the_labels_and_not_known_of_words() -> None:
    for system in (finetune, icl):
        assert system.chance(config(system, "labels.jsonl")) == {"val_accuracy": 1 / 2}
        assert system.chance(config(system)) == {}


def test_all_linear_is_what_peft_has_by_that_name() -> None:
    from peft import LoraConfig, get_peft_model

    from cs330ray.course.learners import lora

    ours, theirs = (models.causal("tiny", device=torch.device("cpu"))[0] for _ in range(2))
    lora.tune(ours, lora.Tuning(targets="all-linear", rank=2), torch.Generator())
    with pytest.warns(FutureWarning):
        get_peft_model(theirs, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    assert lora.trained(ours).keys() == lora.trained(theirs).keys()


# The study to start from


@pytest.mark.parametrize("data", ["words.jsonl", "labels.jsonl"])
def test_the_study_to_start_from_reads_either_file_and_trains(data: str) -> None:
    template = (package.source() / "templates" / "text" / "study.toml").read_text()
    file = template.replace('"NAME"', '"mine"').replace('"DATA"', json.dumps(data))
    study = reading.parse(tomllib.loads(file), "mine")
    check(study, "mine")
    (cell,) = study.cells
    settings = named.configuration(finetune, cell, first_values(cell))
    finetune.prepare(settings)
    (first, *_) = finetune.train(settings, 0, 10)
    assert set(study.objective) <= first.metrics.keys()
    for line in re.findall(r"^# (\w+ = [^#]*?)  #", template, re.MULTILINE):  # what may be written
        name, value = next(iter(tomllib.loads(line).items()))
        more = {"schedule_steps": 40} if name == "lr_schedule" else {}
        assert getattr(config(data=data, **{name: value}, **more), name) == value
