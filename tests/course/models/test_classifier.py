"""A classifier's side of the bargain: labels in and out, and tasks that it does not know."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cs330ray.course.models.classifier import Classifier
from cs330ray.errors import SpecError

CPU = torch.device("cpu")


def by_ink(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
    """Score a class by how near its mean ink is to a query's."""
    ink_N, ink_B = support_NKCHW.flatten(1).mean(dim=1), query_BCHW.flatten(1).mean(dim=1)
    return -(ink_B[:, None] - ink_N).abs()


def dot(ink: int) -> np.ndarray:
    """An image whose first pixels have this much ink."""
    image = np.zeros((28, 28), np.uint8)
    image[0, :ink] = 255
    return image


@pytest.mark.parametrize("labels", [["low", "high"], [7, -1], [("a", 1), None]])
def test_a_query_gets_one_of_the_labels_as_it_was_given(labels: list[object]):
    model = Classifier(by_ink, 2, CPU)
    found = model.classify([dot(2), dot(20)], labels, [dot(19), dot(3), dot(21)])
    assert found == [labels[1], labels[0], labels[1]]


def test_images_of_a_class_need_not_lie_together():
    """Class a has 2 and 6 dots, a mean of 4; b has 10 and 14. Seven dots are nearer to 4, eight and more to 12."""
    model = Classifier(by_ink, None, CPU)
    found = model.classify([dot(2), dot(14), dot(6), dot(10)], ["a", "b", "a", "b"], [dot(7), dot(9)])
    assert found == ["a", "b"]


def test_more_queries_than_go_at_once_are_all_answered():
    model = Classifier(by_ink, None, CPU)
    found = model.classify([dot(2), dot(20)], [0, 1], [dot(20), *[dot(2)] * 1100, dot(20)])
    assert found == [1, *[0] * 1100, 1]


def test_no_queries_have_no_answers():
    assert Classifier(by_ink, None, CPU).classify([dot(2), dot(20)], ["a", "b"], []) == []


@pytest.mark.parametrize(
    ("ways", "labels", "fragment"),
    [
        (5, ["a", "b", "c"], "5, as many as in training, different labels are needed, but got 3"),
        (None, ["a", "a", "a"], "2 or more different labels are needed, but got 1"),
        (None, ["a", "b"], "one for each of 3 support images is needed, but got 2"),
        (None, ["a", "b", "a"], "but got 1 of 'b' and 2 of 'a'"),
    ],
)
def test_a_task_that_the_model_does_not_know_is_refused_in_one_line(ways: int | None, labels: list[str], fragment: str):
    with pytest.raises(SpecError) as caught:
        Classifier(by_ink, ways, CPU).classify([dot(1), dot(2), dot(3)], labels, [dot(1)])
    assert str(caught.value).startswith("support_labels: ")
    assert fragment in str(caught.value)
