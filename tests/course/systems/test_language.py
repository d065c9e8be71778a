"""What the systems on language models share."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cs330ray.course.data import text
from cs330ray.course.pretrained import models
from cs330ray.course.systems import finetune, icl
from cs330ray.errors import Cs330rayError, DataError

BOTH = pytest.mark.parametrize("system", [finetune, icl], ids=["finetune", "icl"])


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Evaluations of no more questions than rooms has stories."""
    monkeypatch.setattr(text, "EVALUATION", 20)
    text._split.cache_clear()
    yield
    text._split.cache_clear()


@BOTH
@pytest.mark.parametrize(("questions", "of_a_story"), [("first", 1), ("all", 5)])
def test_a_trial_asks_and_shows_as_many_questions_of_a_story_as_it_is_told(
    system: Any, questions: str, of_a_story: int, few_questions: None
) -> None:
    told = {} if questions == "all" else {"questions": questions}  # all, as ever, where nothing is said
    texts = system.Config(dataset="rooms", model="tiny", **told).texts
    for part in text.PARTS:
        examples = texts.part(part)
        assert max(sum(one.unit == unit for one in examples) for unit in {one.unit for one in examples}) == of_a_story
    every = {one.text for one in texts.part("train")}
    assert {one.text for one in texts.draw(100, 0, classes=False)} <= every


@BOTH
def test_a_dataset_with_too_few_stories_for_their_first_questions_is_refused_before_a_trial(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    config = system.Config(dataset="rooms", model="tiny", questions="first")
    with pytest.raises(DataError, match=r'^rooms: test needs 125 .* 100; set questions = "all"$'):
        system.prepare(config)


# A model's folder that no trial could use is refused before any starts


def no_tokenizer(folder: Path, tokenizer: Any) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def pads_beyond_the_model(folder: Path, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    tokenizer.save_pretrained(folder)


def neither_pad_nor_end(folder: Path, tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def ends_every_text(folder: Path, tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.save_pretrained(folder)


def few_positions(folder: Path, tokenizer: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))


def few_tokens(folder: Path, tokenizer: Any) -> None:
    """An end token that the model lacks: the others fit."""
    tokenizer.add_tokens(["Where"])
    tokenizer.save_pretrained(folder)


SPOILT = {
    no_tokenizer: "a model and a tokenizer that transformers can load",
    pads_beyond_the_model: "expected a pad token below 258, the tokens that the model has, got 258; set pad_token",
    neither_pad_nor_end: "a pad or end token is needed, but its tokenizer has neither",
    ends_every_text: "expected a tokenizer that leaves texts open, got one that appends '<|end|>'; set add_eos_token",
    few_positions: "40",
    few_tokens: "a model that can read a text by its tokenizer",
}


@BOTH
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_model_that_no_trial_could_use_is_refused_in_one_line_before_any_starts(
    system: Any, spoil: Callable[[Path, Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    model, tokenizer = models.causal("tiny", device=torch.device("cpu"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = system.Config(dataset="rooms", model=str(tmp_path), shots=1, eval_examples=5)
    assert system.prepare(config)
    spoil(tmp_path, tokenizer)
    with pytest.raises(Cs330rayError) as caught:
        system.prepare(config)
    assert SPOILT[spoil] in str(caught.value)
    assert "\n" not in str(caught.value)
