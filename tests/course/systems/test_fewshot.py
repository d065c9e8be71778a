"""What the few-shot systems share."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch

from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.systems import fewshot

TASKS = Batch(torch.zeros(2, 5, 3, 1, 28, 28), torch.zeros(2, 5, 4, 1, 28, 28))


@pytest.mark.parametrize(
    ("query_norm", "passes"),
    [("query", [(1, "query", ("support",)), (3, "query", ())]), ("support", [(1, "support", ()), (3, "support", ())])],
)
def test_no_pass_over_the_test_is_made_twice(query_norm: Literal["query", "support"], passes: list[Any]) -> None:
    made = []

    def score(tasks: Batch, norm: str, also: Sequence[str]) -> dict[str, torch.Tensor]:
        made.append((tasks.support_TNKCHW.shape[2], norm, also))
        value = 0.1 * len(made)
        found = {"loss": torch.full((2,), -1.0), "accuracy": torch.tensor([value, value + 0.2])}
        return found | {f"accuracy/{other}": torch.tensor([0.7, 0.9]) for other in also}

    found = fewshot.test_scores(score, TASKS, shots=1, sweep=(1, 3, 3), query_norm=query_norm, accuracy="accuracy")
    assert made == passes
    figures = found.metrics
    assert figures["test_accuracy"] == figures["test_accuracy/shots/1"] == pytest.approx(0.2)
    assert figures["test_accuracy/shots/3"] == pytest.approx(0.3)
    assert figures["test_accuracy_support_norm"] == pytest.approx(0.2 if query_norm == "support" else 0.8)
    assert set(figures) == {
        "test_loss", "test_accuracy", "test_accuracy_ci95", "test_accuracy_support_norm", "test_accuracy/shots/1",
        "test_accuracy/shots/3",
    }  # fmt: skip
    assert [item.score for item in found.items["test_accuracy"]] == pytest.approx([0.1, 0.3])
