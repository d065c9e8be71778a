import pytest
import torch

from cs330ray.course.systems import baseline, fewshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),  # pools; ours do not overlap
]


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_twenty_steps_on_cuda_reach_what_they_reach_on_a_cpu(classifier, monkeypatch):
    """float32 drifts by ReLU and pool flips, so the losses agree to a few hundredths."""
    classes_MRHW = (torch.rand(30, 20, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8) * 255
    monkeypatch.setattr(fewshot, "image_classes", lambda *_: classes_MRHW)
    config = baseline.Config(classifier=classifier, batch=64, lr=1e-4, eval_every_steps=5, val_tasks=50)
    rows = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        rows[device] = [progress.metrics for progress in baseline.train(config, 0, 20)]
    for row in (0, -1):
        assert rows["cuda"][row]["train_loss"] == pytest.approx(rows["cpu"][row]["train_loss"], rel=5e-2)
    assert rows["cuda"][-1]["val_accuracy"] == pytest.approx(rows["cpu"][-1]["val_accuracy"], abs=0.05)
