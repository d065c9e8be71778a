"""What the rows of a recommender's tables are: users and items by their ids and titles, and who rated what."""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from cs330ray.course.data import movielens
from cs330ray.errors import DataError, SpecError
from cs330ray.words import short

Kind = Literal["user", "item"]


class Catalogue(Protocol):
    """The users and items of a recommender."""

    def row(self, kind: Kind, asked: object, rows: int) -> int:
        """Find the row of a user or an item, of so many. Raises SpecError where there is none."""
        ...

    def item_id(self, row: int) -> str:
        """The id of an item, as text."""
        ...

    def title(self, row: int) -> str:
        """The title of an item; where it has none, what else it is called."""
        ...

    def known(self, row: int) -> Tensor:
        """The items that a user rated in training and validation. Raises DataError where that cannot be had."""
        ...


@dataclass(frozen=True)
class Numbered:
    """Published ratings, or planted ones: users and items are counted from 1, as MovieLens does; ratings are read."""

    dataset: str
    split: str
    data_seed: int

    def row(self, kind: Kind, asked: object, rows: int) -> int:
        """Find the row of a number from 1."""
        if not 1 <= (found := whole(kind, asked)) <= rows:
            raise SpecError(f"{kind}: a number from 1 to {rows} is needed, but got {asked!r}")
        return found - 1

    def item_id(self, row: int) -> str:
        """The number."""
        return str(row + 1)

    def title(self, row: int) -> str:
        """The title where the publisher's archive is here, else `item 17`."""
        return self._titles[row] if self._titles else f"item {row + 1}"

    def known(self, row: int) -> Tensor:
        """Those of the data, which are read for it."""
        users_B, items_B = self._rated
        return items_B[users_B == row]

    @cached_property
    def _rated(self) -> tuple[Tensor, Tensor]:
        """Users and items of all ratings but those of the test."""
        try:
            parts = [movielens.ratings(self.dataset, self.split, self.data_seed, part) for part in ("train", "val")]
        except DataError as error:  # what else it advises is for a study: another dataset is no use to this model
            raise DataError(
                f"known_removed: expected the ratings of {self.dataset}, to leave out what the user rated, got none "
                f"({str(error).partition(';')[0]}); see `cs330ray data`, or say recommend(..., known_removed=False)"
            ) from None
        users_B, items_B = (
            torch.cat([torch.from_numpy(column) for column in columns])
            for columns in ([part.users for part in parts], [part.items for part in parts])
        )
        return users_B, items_B

    @cached_property
    def _titles(self) -> list[str] | None:
        return movielens.titles() if self.dataset == "movielens" else None


@dataclass(frozen=True)
class Own:
    """Ratings of one's own, as an export holds them: ids and titles as JSON in bytes, and the rated items by user."""

    NAMES: ClassVar[tuple[str, ...]] = ("own/names", "own/items", "own/ends")

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, users: Sequence[str], items: Sequence[str], titles: Sequence[str | None], users_B: Tensor, items_B: Tensor
    ) -> "Own":
        """Pack ids and titles by row, and who rated what: four bytes a rating."""
        order_B = (users_B * len(items) + items_B).argsort()
        names = json.dumps([[*users], [*items], [*titles]]).encode()
        ends_U = torch.bincount(users_B, minlength=len(users)).cumsum(0)
        packed = (torch.frombuffer(bytearray(names), dtype=torch.uint8), items_B[order_B].int(), ends_U)
        return cls(dict(zip(cls.NAMES, packed, strict=True)))

    def __post_init__(self) -> None:
        """Raise DataError where the tensors are no catalogue."""
        wanted = dict(zip(self.NAMES, (torch.uint8, torch.int32, torch.int64), strict=True))
        found = {name: tensor.dtype for name, tensor in self.tensors.items() if tensor.dim() == 1}
        if found != wanted or not self._is_whole():
            raise DataError(
                f"tensors: expected {', '.join(self.NAMES)}, the users and items of the model and who rated what, got "
                "others; export the model again"
            )

    def _is_whole(self) -> bool:
        items_B, ends_U = self.tensors["own/items"], self.tensors["own/ends"]
        try:
            users, items, titles = self._names
        except (ValueError, TypeError, RecursionError):
            return False
        texts = [*users, *items, *(title for title in titles if title is not None)]
        bounds = torch.cat([ends_U.new_zeros(1), ends_U, ends_U.new_tensor([len(items_B)])])
        return (
            all(isinstance(text, str) for text in texts)
            and len({*users}) == len(users) == len(ends_U)
            and len({*items}) == len(items) == len(titles) > 0
            and bool((bounds.diff() >= 0).all() and bounds[-2] == bounds[-1])
            and bool(((items_B >= 0) & (items_B < len(items))).all())
        )

    @cached_property
    def _names(self) -> tuple[list[str], list[str], list[str | None]]:
        users, items, titles = json.loads(self.tensors["own/names"].numpy().tobytes())
        return list(users), list(items), list(titles)

    @property
    def users(self) -> list[str]:
        """The ids of the users, by row."""
        return self._names[0]

    @property
    def items(self) -> list[str]:
        """The ids of the items, by row."""
        return self._names[1]

    @cached_property
    def _rows(self) -> dict[Kind, dict[str, int]]:
        ids: dict[Kind, list[str]] = {"user": self.users, "item": self.items}
        return {kind: {each: row for row, each in enumerate(held)} for kind, held in ids.items()}

    def row(self, kind: Kind, asked: object, rows: int) -> int:  # noqa: ARG002 - there are as many as ids
        """Find the row of an id; a number is the id that reads like it."""
        found = self._rows[kind].get(str(asked).strip())
        if found is None:
            first = (self.users if kind == "user" else self.items)[0]
            raise SpecError(f"{kind}: expected an id of the ratings, such as {short(first)}, got {short(asked)}")
        return found

    def item_id(self, row: int) -> str:
        """The id as the ratings have it."""
        return self.items[row]

    def title(self, row: int) -> str:
        """The title, else the id."""
        title = self._names[2][row]
        return self.items[row] if title is None else title

    def known(self, row: int) -> Tensor:
        """Those that the export holds."""
        ends_U = self.tensors["own/ends"]
        first = int(ends_U[row - 1]) if row else 0
        return self.tensors["own/items"][first : int(ends_U[row])].long()


def whole(name: str, number: object) -> int:
    """A whole number, numpy's too. Raises SpecError."""
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise SpecError(f"{name}: a whole number is needed, but got {number!r}") from None
