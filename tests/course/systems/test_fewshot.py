"""What the few-shot systems share."""

from typing import Any, Literal

import pytest
import torch

from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.systems import fewshot

TASKS = Batch(torch.zeros(2, 5, 3, 1, 28, 28), torch.zeros(2, 5, 4, 1, 28, 28))


@pytest.mark.parametrize(
    ("query_norm", "passes"),
    [("query", [(1, "query"), (1, "support"), (3, "query")]), ("support", [(1, "support"), (3, "support")])],
)
def test_no_pass_over_the_test_is_made_twice(query_norm: Literal["query", "support"], passes: list[Any]) -> None:
    made = []

    def score(tasks: Batch, norm: Literal["query", "support"]) -> dict[str, torch.Tensor]:
        made.append((tasks.support_TNKCHW.shape[2], norm))
        value = 0.1 * len(made)
        return {"loss": torch.full((2,), -1.0), "accuracy": torch.tensor([value, value + 0.2])}

    found = fewshot.test_scores(score, TASKS, shots=1, sweep=(1, 3), query_norm=query_norm, accuracy="accuracy")
    assert made == passes
    figures = found.metrics
    assert figures["test_accuracy"] == figures["test_accuracy/shots/1"]
    assert figures["test_accuracy"] == pytest.approx(0.2)
    assert figures["test_accuracy/shots/3"] == pytest.approx(0.1 * len(passes) + 0.1)
    assert (figures["test_accuracy_support_norm"] == figures["test_accuracy"]) == (query_norm == "support")
    assert [item.score for item in found.items["test_accuracy"]] == pytest.approx([0.1, 0.3])
