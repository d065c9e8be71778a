import pytest
import torch

from cs330ray.course.systems import finetune

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),  # attention's backward pass has no deterministic kernel
]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "tiny", "method": "lora"},
        {"model": "tiny", "method": "all"},
        {"model": "tiny-encoder", "answers": "classes", "method": "lora"},
    ],
    ids=["lora", "all", "classes"],
)
def test_twenty_steps_on_cuda_reach_what_they_reach_on_a_cpu(changes, monkeypatch):
    """Both draw the same adapters, heads and batches; without dropout, whose masks are the device's own."""
    config = finetune.Config(
        dataset="rooms",
        shots=4,
        lr=1e-3,
        dropout=0.0,
        early_stop=False,
        eval_every_steps=5,
        eval_examples=50,
        **changes,
    )
    rows = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        rows[device] = [progress.metrics for progress in finetune.train(config, 0, 20)]
    for on_cpu, on_cuda in zip(rows["cpu"], rows["cuda"], strict=True):
        assert on_cuda["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=1e-2)
        assert on_cuda["val_loss"] == pytest.approx(on_cpu["val_loss"], rel=1e-2)
        assert on_cuda["val_accuracy"] == pytest.approx(on_cpu["val_accuracy"], abs=0.04)
