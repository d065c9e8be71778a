import pytest
import torch

from cs330ray.course.systems import fewshot, maml

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),  # pools; ours do not overlap
]


def test_twenty_steps_on_cuda_reach_what_they_reach_on_a_cpu(monkeypatch):
    """float32 MAML drifts by ReLU and pool flips (gradients by up to 7e-3), so the losses agree to a few hundredths."""
    classes_MRHW = (torch.rand(30, 20, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8) * 255
    monkeypatch.setattr(fewshot, "image_classes", lambda *_: classes_MRHW)
    config = maml.Config(body="pooled", inner_steps=2, tasks=8, eval_every_steps=5, val_tasks=50)
    rows = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        rows[device] = [progress.metrics for progress in maml.train(config, 0, 20)]
    assert rows["cuda"][0]["train_loss"] == pytest.approx(rows["cpu"][0]["train_loss"], rel=2e-2)
    assert rows["cuda"][-1]["val_loss"] == pytest.approx(rows["cpu"][-1]["val_loss"], rel=5e-2)
    assert rows["cuda"][-1]["val_accuracy"] == pytest.approx(rows["cpu"][-1]["val_accuracy"], abs=0.05)
