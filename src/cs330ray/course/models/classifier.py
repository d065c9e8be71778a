"""A few-shot classifier of drawings: shown some of each class, it tells the classes of others."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cs330ray.course.models import drawings
from cs330ray.errors import SpecError

AT_ONCE = 512  # queries; none hangs on another

Score = Callable[[Tensor, Tensor], Tensor]  # support (N, K, C, H, W) and queries (B, C, H, W), ink 1 -> (B, N)
Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True)
class Classifier:
    """What a meta-learner has become: it learns a task of new classes from their support in one call."""

    score: Score
    ways: int | None  # classes that it tells apart; None: any number
    device: torch.device

    def classify(
        self, support_images: Iterable[Any], support_labels: Sequence[Label], query_images: Iterable[Any]
    ) -> list[Label]:
        """Tell the label of each query, given as many labelled images of each class: a list of such labels.

        An image is the path of a drawing with dark ink on white, or an array (28, 28) with paper 0: uint8 with ink 255,
        as `image` gives it, or floats with ink 1. A query's answer hangs on the support alone, and on no other query.
        Raises SpecError where images and labels do not make a task that this model knows, DataError for a spoilt file.
        """
        support_BCHW = drawings.stacked("support_images", support_images, self.device)
        query_BCHW = drawings.stacked("query_images", query_images, self.device)
        labels = list(support_labels)
        classes = self._classes(labels, len(support_BCHW))
        places = [[at for at, label in enumerate(labels) if label == one] for one in classes]
        support_NKCHW = torch.stack([support_BCHW[of_one] for of_one in places])
        parts = [query_BCHW[first : first + AT_ONCE] for first in range(0, len(query_BCHW), AT_ONCE)]
        told = [self.score(support_NKCHW, part).argmax(dim=1).tolist() for part in parts]
        return [classes[place] for part in told for place in part]

    def image(self, drawing: Any) -> NDArray[np.uint8]:
        """Turn a drawing with dark ink on white, a file's path or an array, into an image for `classify`."""
        return drawings.image(drawing)

    def _classes(self, labels: list[Label], images: int) -> list[Label]:
        """The different labels, as they first appear. Raises SpecError."""
        if len(labels) != images:
            raise SpecError(f"support_labels: one for each of {images} support images is needed, but got {len(labels)}")
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
