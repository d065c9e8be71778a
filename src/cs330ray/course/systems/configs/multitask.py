"""What a study may set of the multi-task recommender."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cs330ray.course.data.movielens import FOLDS
from cs330ray.course.data.ratings import own
from cs330ray.course.data.ratings.columns import Columns
from cs330ray.course.learners.recommender import multitask
from cs330ray.course.learners.recommender.multitask import Multitask

COLUMNS = ("user_column", "item_column", "rating_column", "time_column")


def _joined(value: object) -> object:
    """Read 64 or [96, 64] as "64" or "96-64": the choices of a search are single values."""
    sizes = value if isinstance(value, list | tuple) else [value]
    return "-".join(map(str, sizes)) if all(type(size) is int for size in sizes) else value


Layers = Annotated[str, BeforeValidator(_joined), Field(pattern=r"^[1-9]\d{0,3}(-[1-9]\d{0,3}){0,7}$")]


class Config(BaseModel):
    """Every hyperparameter of a trial of the recommender, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"data", "item_column", "rating_column", "time_column", "user_column"}
    )  # than version 0.1.0

    dataset: Literal["movielens", "planted", "ratings"] = Field(
        "movielens", description="ratings to learn from; `ratings` are those of one's own at `data`"
    )
    data: str | None = Field(
        None, min_length=1, description="of `ratings`: a file, folder or .zip, absolute or below where the command runs"
    )
    user_column: str | None = Field(None, min_length=1, description="of `ratings`: the users' column; a usual name")
    item_column: str | None = Field(None, min_length=1, description="of `ratings`: the items' column; a usual name")
    rating_column: str | None = Field(
        None, description='of `ratings`: the stars\' column; a usual name. "", or none there: each row is a positive'
    )
    time_column: str | None = Field(None, min_length=1, description="of `ratings`: the times' column; a usual name")
    split: Literal["course", "time", "u1", "u2", "u3", "u4", "u5"] = Field(
        "course",
        description="which ratings test: 5 % at random, of each user of `ratings` the newest, or the publishers' test "
        "part of a fold of movielens",
    )
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split; `time` draws nothing")
    dim: int = Field(32, ge=1, le=1024, description="features of an embedding (the course's d)")
    embedding_std: float | None = Field(
        None, gt=0, le=10, description="standard deviation of the first embeddings; 1/dim, as the course's code draws"
    )
    layers: Layers = Field(
        "64", description="hidden layers of the regression head, 64 or 96-64; the course's [96, 64] counts its input"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden values of the regression head that is dropped")
    regression_bias: bool = Field(False, description="mean stars, users' and items' biases in the regression head")
    sharing: multitask.Sharing = Field("shared", description="one pair of embedding tables for both heads, or two")
    pairwise: multitask.Pairwise = Field(
        "sigmoid", description="the factorization head's loss: the course's, or Rendle's -log sigmoid"
    )
    candidates: int = Field(
        1, ge=1, le=256, description="items drawn against a rated one, of which the hardest that is not rated counts"
    )
    factorization_weight: float = Field(0.99, ge=0, le=1, description="of the pairwise loss (the course's lambda_F)")
    regression_weight: float | None = Field(
        None, ge=0, le=1, description="of the squared error (the course's lambda_R); 1 - factorization_weight"
    )
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="added to the gradient for each unit of a parameter (L2, not decoupled)"
    )
    batch: int = Field(256, ge=1, le=100_000, description="ratings of an optimiser's step")
    keep_best_by: Literal["val_mse", "val_mrr", "val_mrr_first"] = Field(
        "val_mse", description="the metric whose best moment's weights are kept and reported"
    )
    patience: int | None = Field(
        None, ge=1, description="epochs without a better moment after which training ends; never"
    )
    eval_every_steps: int = Field(1, ge=1, description="epochs from one validation to the next")

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if self.algorithm.factorization_weight == self.algorithm.regression_weight == 0:
            raise ValueError("factorization_weight, regression_weight: one must be above 0, but got 0 and 0; raise one")
        return self

    @model_validator(mode="after")
    def _ratings_are_where_they_are_read(self) -> Self:
        told = [name for name in ("data", *COLUMNS) if getattr(self, name) is not None]
        if self.dataset == "ratings" and self.data is None:
            raise ValueError('data: expected the path of ratings with dataset = "ratings", got none; write one')
        if self.dataset != "ratings" and told:
            raise ValueError(
                f'{told[0]}: expected dataset = "ratings" beside it, got {self.dataset!r}; remove one of the two'
            )
        splits = ("course", "time") if self.dataset == "ratings" else ("course", *FOLDS)
        if self.split not in splits:
            raise ValueError(
                f"split: expected one of {', '.join(splits)} with dataset = {self.dataset!r}, got {self.split!r}; "
                "take one of those"
            )
        return self

    @property
    def source(self) -> own.Source | None:
        """Where ratings of one's own are, and their columns; None with another dataset."""
        if self.data is None:
            return None
        user, item, rating, time = (getattr(self, name) for name in COLUMNS)
        return own.Source(self.data, Columns(user, item, rating, time, by_time=self.split == "time"))

    @property
    def algorithm(self) -> Multitask:
        """The algorithm as it trains."""
        weight = 1 - self.factorization_weight if self.regression_weight is None else self.regression_weight
        return Multitask(self.pairwise, self.factorization_weight, weight, self.dropout, self.candidates)

    @property
    def widths(self) -> list[int]:
        """Units of each hidden layer."""
        return [int(width) for width in self.layers.split("-")]
