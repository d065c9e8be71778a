import pytest
import torch

from cs330ray.course.data import text
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.systems import icl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_twenty_questions_on_cuda_are_answered_as_on_a_cpu(monkeypatch):
    """The logits agree to 1e-4 or so; only answers that two tokens are about equally good for may differ."""
    config = icl.Config(dataset="rooms", model="tiny", shots=4, eval_every_steps=5, eval_examples=20)
    asked = [config.asking.prompt(example.text) for example in text.examples("rooms", "val", 0)[:20]]
    rows, logits_BV, answers = {}, {}, {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        rows[device] = [progress.metrics for progress in icl.train(config, 0, 20)]
        model, tokenizer = icl.models.causal("tiny", device=torch.device(device))
        decoder = Decoder(model, tokenizer, window=2048, prefix="Anna ran to the attic. Where is Anna? In the attic. ")
        logits_BV[device] = decoder.logits(asked, batch=8)
        answers[device] = decoder.greedy(asked, max_new_tokens=6, batch=8)
    assert (logits_BV["cuda"] - logits_BV["cpu"]).abs().max() < 1e-3
    assert sum(map(str.__eq__, answers["cuda"], answers["cpu"])) >= 19
    assert rows["cuda"][-1].keys() == rows["cpu"][-1].keys()
    assert rows["cuda"][-1]["val_accuracy"] == pytest.approx(rows["cpu"][-1]["val_accuracy"], abs=0.05)
    assert rows["cuda"][-1]["val_rouge1"] == pytest.approx(rows["cpu"][-1]["val_rouge1"], abs=0.05)


def test_an_ordering_is_chosen_on_cuda(monkeypatch):
    monkeypatch.setenv("CS330RAY_DEVICE", "cuda")
    config = icl.Config(
        dataset="rooms", model="tiny", shots=3, ordering="localE", orderings=3, probes=2, eval_every_steps=5
    )
    (row,) = icl.train(config, 0, 5)
    assert row.metrics["ordering_entropy"] > 0
