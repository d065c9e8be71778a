import pytest
import torch

from cs330ray.course.systems import multitask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),  # of the evaluation's sums
]


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_twenty_steps_on_cuda_reach_what_they_reach_on_a_cpu(sharing, monkeypatch):
    """A step is an epoch of the same batches; sums in another order drift apart to less than a hundredth."""
    config = multitask.Config(
        dataset="planted", sharing=sharing, dim=8, dropout=0.1, regression_bias=True, factorization_weight=0.5, lr=3e-3,
        weight_decay=5e-4, batch=1024, eval_every_steps=5,
    )  # fmt: skip
    rows = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        rows[device] = [progress.metrics for progress in multitask.train(config, 0, 20)]
    for name, tolerance in (("train_loss", 1e-2), ("val_mse_last", 1e-2), ("val_mrr_last", 5e-2)):
        assert rows["cuda"][0][name] == pytest.approx(rows["cpu"][0][name], rel=tolerance)
        assert rows["cuda"][-1][name] == pytest.approx(rows["cpu"][-1][name], rel=tolerance)


def test_a_checkpoint_of_a_cpu_is_tested_on_cuda_to_the_same_figures(monkeypatch, tmp_path):
    config = multitask.Config(dataset="planted", dim=4, batch=1024)
    found = {}
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    for progress in multitask.train(config, 0, 1):
        progress.save(tmp_path)
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("CS330RAY_DEVICE", device)
        found[device] = multitask.test(config, 0, tmp_path).metrics
    for name, value in found["cpu"].items():
        assert found["cuda"][name] == pytest.approx(value, rel=1e-2)
