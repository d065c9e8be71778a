"""The multi-task recommender on ratings of films, or planted ones: CS330 homework 0. A step is an epoch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from cs330ray.course.data import movielens
from cs330ray.course.learners import multitask
from cs330ray.course.learners.multitask import Multitask, Ratings
from cs330ray.course.models import card
from cs330ray.course.models.recommender import Recommender
from cs330ray.training import parallel
from cs330ray.training.device import device, generator
from cs330ray.training.state import Trained, fill, load_notes, load_tensors, mean
from cs330ray.trial.contract import Item, Metric, Progress, Scores, Weights, finite

SPLITS = "ratings"  # of a batch, among workers


def _joined(value: object) -> object:
    """Read 64 or [96, 64] as "64" or "96-64": the choices of a search are single values."""
    sizes = value if isinstance(value, list | tuple) else [value]
    return "-".join(map(str, sizes)) if all(type(size) is int for size in sizes) else value


Layers = Annotated[str, BeforeValidator(_joined), Field(pattern=r"^[1-9]\d{0,3}(-[1-9]\d{0,3}){0,7}$")]


class Config(BaseModel):
    """Every hyperparameter of a trial of the recommender, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Literal["movielens", "planted"] = Field("movielens", description="ratings to learn from")
    split: Literal["course", "u1", "u2", "u3", "u4", "u5"] = Field(
        "course", description="which ratings test: 5 % at random, or the publishers' test part of a fold"
    )
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split")
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

    @property
    def algorithm(self) -> Multitask:
        """The algorithm as it trains."""
        weight = 1 - self.factorization_weight if self.regression_weight is None else self.regression_weight
        return Multitask(self.pairwise, self.factorization_weight, weight, self.dropout, self.candidates)

    @property
    def widths(self) -> list[int]:
        """Units of each hidden layer."""
        return [int(width) for width in self.layers.split("-")]


_MSE = Metric("min", 0.0, unit="stars^2")
_RMSE = Metric("min", 0.0, unit="stars")
_MRR = Metric("max", 0.0, 1.0)
_FAMILY = {"mse": _MSE, "mrr": _MRR, "mrr_first": _MRR}
METRICS: Mapping[str, Metric] = {
    **{f"val_{name}": metric for name, metric in _FAMILY.items()},  # of the best moment so far, by `keep_best_by`
    **{f"val_{name}_last": metric for name, metric in _FAMILY.items()},  # of this moment
    "best_step": Metric("max", 0.0, unit="epochs"),
    "train_loss": Metric("min", 0.0),
    "train_factorization_loss": Metric("min", 0.0),
    "train_regression_loss": _MSE,
    **{
        f"test_{name}{weights}": metric
        for weights in ("", "_last", "_refit", "_refit_last")
        for name, metric in (_FAMILY | {"rmse": _RMSE}).items()
    },
}


def prepare(config: Config) -> str:
    """Find, verify and pack the ratings; their digest. Raises DataError, or SpecError where the device is not here."""
    device()
    return movielens.pack(config.dataset).digest


def chance(config: Config) -> Mapping[str, float]:
    """What a random order reaches: the mean of 1/rank over all items, a little more where known ones are removed."""
    _, items = movielens.sizes(config.dataset)
    return {"val_mrr": sum(1 / rank for rank in range(1, items + 1)) / items}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` epochs, or until `patience` ends; a Progress every `eval_every_steps` and at the end.

    A row holds the validation of the best moment so far and, as `_last`, of its own; the `train_` losses are means
    over its epoch. Only multiples of `eval_every_steps` can be best, so that a longer budget finds the same; before
    the first of them the last moment is.
    """
    where = device()
    ratings, val = (_ratings(config, part, where) for part in ("train", "val"))
    state = (
        _State.fresh(config, 0, None, where).restored(resume) if resume else _State.fresh(config, seed, ratings, where)
    )
    while state.step < steps and not state.exhausted(config):
        losses = _epoch(config, state, ratings)
        due = state.step % config.eval_every_steps == 0
        if due or state.step == steps:
            reached = _means(_scores(state.weights.params, val, ratings))
            finite(sum(reached.values()), state.step)
            state.keep_if_better(config, reached, due=due)
            row = {f"val_{name}": value for name, value in state.best_metrics.items()}
            row |= {f"val_{name}_last": value for name, value in reached.items()}
            yield Progress(state.step, row | losses | {"best_step": state.best_step}, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    """Score the checkpoint's best and last weights on the test ratings, and those of a refit, by name.

    The refit trains anew on train and validation together, with the same configuration and seed, and is scored after
    as many epochs as the best moment had, and as many as the last. All rank without the items known from both.
    """
    state = _State.fresh(config, 0, None, device()).restored(checkpoint)
    known = _together(*(_ratings(config, part, state.device) for part in ("train", "val")))
    held_out = _ratings(config, "test", state.device)
    found = {"": state.best, "_last": state.weights.params}
    refit = _State.fresh(config, seed, known, state.device)
    while refit.step < state.step:
        _epoch(config, refit, known)
        if refit.step == state.best_step:
            found["_refit"] = {name: param.clone() for name, param in refit.weights.params.items()}
    found["_refit_last"] = refit.weights.params
    metrics: dict[str, float] = {}
    items: dict[str, list[Item]] = {}
    for weights, params in found.items():
        scored = _scores(params, held_out, known)
        metrics |= {f"test_{name}{weights}": value for name, value in _means(scored).items()}
        metrics[f"test_rmse{weights}"] = metrics[f"test_mse{weights}"] ** 0.5
        items |= {f"test_{name}{weights}": _items(name, values, held_out) for name, values in scored.items()}
    return Scores(metrics, items)


OF_STARS = "Its stars mean nothing: regression_weight 0 left the head that predicts them untrained"
OF_RANKS = "Its ranking means nothing: factorization_weight 0 left the head that ranks untrained"


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The best moment's parameters of a checkpoint, and what a card says of them. A refit is in no checkpoint."""
    notes = load_notes(checkpoint / "state.json")
    held = load_tensors(checkpoint)
    best = {name.removeprefix("best/"): tensor for name, tensor in held.items() if name.startswith("best/")}
    said = card.sections(
        weights=f"Those of the best moment by {config.keep_best_by}, epoch {notes['best_step']}, trained on the "
        "training ratings alone: their figures are those without `_last` and `_refit`. A refit on training and "
        "validation together is made for the test and not kept.",
        dataset=config.dataset,
        use=["for title, score, stars in model.recommend(user=1, n=10):", "    print(title, round(stars, 1))"],
        limits=[
            *([OF_STARS] if config.algorithm.regression_weight == 0 else []),
            *([OF_RANKS] if config.algorithm.factorization_weight == 0 else []),
            "It knows the users and items of its data alone, by their numbers there, counted from 1",
            "A score ranks the items of one user; between users it says nothing. Stars are not cut to 1 to 5",
            "What a user rated in training and validation is left out, for which the data are read; what was kept "
            "for the test is recommended like any other",
        ],
    )
    return Weights(best, {"best_step": notes["best_step"]}, said)


def ready(config: Config, exported: Weights) -> Recommender:
    """A recommender. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, None, device())
    fill(state.best, exported.tensors)
    return Recommender(state.best, config.dataset, config.split, config.data_seed)


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment: the weights, and those of its best moment."""

    NOTES: ClassVar[tuple[str, ...]] = ("step", "best_step", "best_metrics")

    weights: multitask.Weights
    best: dict[str, Tensor]
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fresh(cls, config: Config, seed: int, ratings: Ratings | None, where: torch.device) -> Self:
        """Draw the moment before the first epoch on `ratings`; None where tensors are about to be read into it."""
        stream = generator("train", seed)  # of shuffles, drawn items and dropout
        users, items = movielens.sizes(config.dataset)
        mean_stars = mean(ratings.stars_B) if ratings is not None else 0.0
        drawn = multitask.init(
            users=users,
            items=items,
            dim=config.dim,
            layers=config.widths,
            sharing=config.sharing,
            std=config.embedding_std or 1 / config.dim,
            mean_stars=mean_stars if config.regression_bias else None,
            generator=stream,
        )
        weights = multitask.Weights.of(drawn, where)
        best = {name: param.clone() for name, param in weights.params.items()}
        last = {f"param/{name}": param for name, param in weights.params.items()}
        return cls(
            tensors=last | {f"best/{name}": param for name, param in best.items()},
            optimizer=torch.optim.Adam([weights.flat], lr=config.lr, weight_decay=config.weight_decay, fused=True),
            generator=stream,
            weights=weights,
            best=best,
        )

    def keep_if_better(self, config: Config, reached: dict[str, float], *, due: bool) -> None:
        """Keep this moment's weights where they are the best so far; one that is not due gives way to any that is."""
        name = config.keep_best_by.removeprefix("val_")
        sign = 1 if METRICS[config.keep_best_by].goal == "max" else -1
        stands = self.best_step > 0 and self.best_step % config.eval_every_steps == 0
        if not stands or (due and sign * reached[name] > sign * self.best_metrics[name]):
            self.best_step, self.best_metrics = self.step, reached
            for key, param in self.weights.params.items():
                self.best[key].copy_(param)

    def exhausted(self, config: Config) -> bool:
        """Whether `patience` epochs have brought nothing better, as of the last validation that was due."""
        validated = self.step // config.eval_every_steps * config.eval_every_steps
        return config.patience is not None and validated - self.best_step >= config.patience


def _ratings(config: Config, part: str, where: torch.device) -> Ratings:
    read = movielens.ratings(config.dataset, config.split, config.data_seed, part)
    return Ratings(*(torch.from_numpy(column).to(where) for column in (read.users, read.items, read.stars)))


def _together(one: Ratings, other: Ratings) -> Ratings:
    return Ratings(
        torch.cat([one.users_B, other.users_B]),
        torch.cat([one.items_B, other.items_B]),
        torch.cat([one.stars_B, other.stars_B]),
    )


def _epoch(config: Config, state: _State, ratings: Ratings) -> dict[str, float]:
    """Train an epoch, one step of the trial; the means of its losses. Raises Diverged."""
    told, several = config.algorithm, parallel.workers() > 1
    factorization, regression = multitask.train_epoch(
        told, state.weights, state.optimizer, ratings, batch=config.batch, generator=state.generator,
        share=parallel.share if several else None, add_gradients=parallel.add_gradients if several else None,
    )  # fmt: skip
    factorization, regression = parallel.add(factorization), parallel.add(regression)
    state.step += 1
    joint = told.factorization_weight * factorization + told.regression_weight * regression
    return {
        "train_loss": finite(joint, state.step),
        "train_factorization_loss": factorization,
        "train_regression_loss": regression,
    }


def _scores(params: Mapping[str, Tensor], held_out: Ratings, known: Ratings) -> dict[str, Tensor]:
    """Score held-out ratings, and users by all of theirs: each worker takes a share of the users."""
    if parallel.workers() == 1:
        return multitask.evaluate(params, held_out, known)
    users = torch.unique(held_out.users_B)
    mine_B = torch.isin(held_out.users_B, users[parallel.share(len(users))])
    place_B = mine_B.nonzero().squeeze(1).cpu()
    found = {"place": place_B, **multitask.evaluate(params, held_out[mine_B], known)} if len(place_B) else {}
    scored = parallel.gather_scores(found)
    scored["mse"] = scored["mse"][scored.pop("place").argsort()]  # in the order of the ratings
    return scored


def _means(scored: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: mean(values) for name, values in scored.items()}


def _items(name: str, values: Tensor, held_out: Ratings) -> list[Item]:
    """Scores of single ratings (`mse`) or of users, each with its user for unit."""
    users = held_out.users_B if name == "mse" else torch.unique(held_out.users_B)
    return [Item(unit=str(user), score=score) for user, score in zip(users.tolist(), values.tolist(), strict=True)]
