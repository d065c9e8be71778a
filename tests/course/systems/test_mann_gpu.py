import pytest
import torch

from cs330ray.course.systems import fewshot, mann

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize(
    "changes", [{}, {"cell": "gru", "layers": 2}, {"cell": "rnn", "encoder": "conv"}, {"protocol": "leaky"}]
)
def test_twenty_steps_on_cuda_reach_what_they_reach_on_a_cpu(changes, monkeypatch):
    """The same tasks, and sums of float32 in another order: the losses agree to a thousandth."""
    classes_MRHW = (torch.rand(30, 20, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8) * 255
    monkeypatch.setattr(fewshot, "image_classes", lambda *_: classes_MRHW)
    config = mann.Config(tasks=32, eval_every_steps=5, val_tasks=100, **changes)
    rows = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        rows[device] = [progress.metrics for progress in mann.train(config, 0, 20)]
    for on_cpu, on_cuda in zip(rows["cpu"], rows["cuda"], strict=True):
        assert on_cuda["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=1e-3)
        assert on_cuda["val_loss"] == pytest.approx(on_cpu["val_loss"], rel=1e-3)
        assert on_cuda["val_accuracy"] == pytest.approx(on_cpu["val_accuracy"], abs=0.02)
