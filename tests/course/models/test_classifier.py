"""A classifier's side of the bargain: labels in and out, and tasks that it does not know."""

from collections.abc import Iterable

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


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, 0, 1]), [torch.tensor(0), torch.tensor(1), torch.tensor(0), torch.tensor(1)],
        np.array([0, 1, 0, 1]), [np.int64(0), 1, np.uint8(0), torch.tensor(1)], iter([0, 1, 0, 1]),
    ],
)  # fmt: skip
def test_labels_in_tensors_and_arrays_are_told_as_python_s_own(labels: Iterable[object]):
    found = Classifier(by_ink, 2, CPU).classify([dot(2), dot(20), dot(3), dot(21)], labels, [dot(19), dot(3)])
    assert found == [1, 0]
    assert all(type(label) is int for label in found)


@pytest.mark.parametrize("labels", [[["a", 1], ["b", 2]], torch.eye(2), np.eye(2), [{}, {}], 3, None])
def test_labels_that_are_no_names_are_one_line(labels: object):
    with pytest.raises(SpecError, match=r"^support_labels: expected .*, got .*"):
        Classifier(by_ink, 2, CPU).classify([dot(2), dot(20)], labels, [dot(19)])


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
        (None, ["a", "b"], "expected one for each of 3 support images, got 2"),
        (None, ["a", "b", "a"], "but got 1 of 'b' and 2 of 'a'"),
    ],
)
def test_a_task_that_the_model_does_not_know_is_refused_in_one_line(ways: int | None, labels: list[str], fragment: str):
    with pytest.raises(SpecError) as caught:
        Classifier(by_ink, ways, CPU).classify([dot(1), dot(2), dot(3)], labels, [dot(1)])
    assert str(caught.value).startswith("support_labels: ")
    assert fragment in str(caught.value)
