"""A few-shot classifier of images: shown some of each class, it tells the classes of others."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cs330ray.course.models import drawings
from cs330ray.errors import SpecError

AT_ONCE = 512  # queries; none hangs on another

Score = Callable[[Tensor, Tensor], Tensor]  # support (N, K, C, H, W) and queries (B, C, H, W), as in training -> (B, N)
Label = TypeVar("Label", bound=Hashable)


class Reading(Protocol):
    """How images are read as training read them: `drawings`, or `Pictures` of one's own."""

    def image(self, drawing: Any) -> NDArray[np.uint8]:
        """Turn an image, however it is given, into what a model reads."""
        ...

    def stacked(self, name: str, drawings: Iterable[Any], device: torch.device) -> Tensor:
        """Stack what a model reads: (B, C, H, W), float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class Classifier:
    """What a meta-learner has become: it learns a task of new classes from their support in one call."""

    score: Score
    ways: int | None  # classes that it tells apart; None: any number
    device: torch.device
    read: Reading = drawings

    def classify(
        self, support_images: Iterable[Any], support_labels: Iterable[Label], query_images: Iterable[Any]
    ) -> list[Label]:
        """Tell the label of each query, given as many labelled images of each class: a list of such labels.

        An image is a path, an image of Pillow, or an array or tensor. A model of characters expects drawings with dark
        ink on light paper, as arrays (28, 28) with paper 0: uint8 with ink 255, as `image` gives it, or floats with ink
        1. One of your own images takes any size and colours (`pictures.Pictures`). Labels are of any kind, in an array
        or tensor too, and are then told as Python's own. A query's answer depends on the support alone, and on no other
        query. Raises SpecError where images and labels do not make a task that this model knows, DataError for a spoilt
        file.
        """
        support_BCHW = self.read.stacked("support_images", support_images, self.device)
        query_BCHW = self.read.stacked("query_images", query_images, self.device)
        labels = _listed(support_labels)
        classes = self._classes(labels, len(support_BCHW))
        places = [[at for at, label in enumerate(labels) if label == one] for one in classes]
        support_NKCHW = torch.stack([support_BCHW[of_one] for of_one in places])
        parts = [query_BCHW[first : first + AT_ONCE] for first in range(0, len(query_BCHW), AT_ONCE)]
        told = [self.score(support_NKCHW, part).argmax(dim=1).tolist() for part in parts]
        return [classes[place] for part in told for place in part]

    def image(self, drawing: Any) -> NDArray[np.uint8]:
        """Turn an image, a file's path or an array, into what `classify` takes as an array, as training read images."""
        return self.read.image(drawing)

    def _classes(self, labels: list[Label], images: int) -> list[Label]:
        """The different labels, as they first appear. Raises SpecError."""
        if len(labels) != images:
            raise SpecError(f"support_labels: expected one for each of {images} support images, got {len(labels)}")
        if (odd := next((label for label in labels if not isinstance(label, Hashable)), None)) is not None:
            raise SpecError(
                f"support_labels: expected a name or a number for each image, got {str(odd)!r:.80}; give one each"
            )
        classes = list(dict.fromkeys(labels))
        if len(classes) < 2 or (self.ways is not None and len(classes) != self.ways):
            wanted = "2 or more" if self.ways is None else f"{self.ways}, as many as in training,"
            raise SpecError(f"support_labels: {wanted} different labels are needed, but got {len(classes)}")
        counts = {label: labels.count(label) for label in classes}
        if len(set(counts.values())) > 1:
            few, many = min(classes, key=counts.__getitem__), max(classes, key=counts.__getitem__)
            raise SpecError(
                f"support_labels: as many images of each class are needed, but got {counts[few]} of {few!r} and "
                f"{counts[many]} of {many!r}; leave some out"
            )
        return classes


def _listed(labels: Iterable[Any]) -> list[Any]:
    """The labels one by one; those of arrays and tensors as Python's own, which are equal where they say the same."""
    if not isinstance(labels, Iterable):
        raise SpecError(f"support_labels: expected one for each support image, got {labels!r:.80}")
    return [label.tolist() if isinstance(label, Tensor | np.ndarray | np.generic) else label for label in labels]
