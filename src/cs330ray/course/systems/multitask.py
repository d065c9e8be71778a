"""The multi-task recommender on ratings of films, planted ones, or one's own: CS330 homework 0. A step is an epoch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from cs330ray.course.data import movielens
from cs330ray.course.data.ratings import own
from cs330ray.course.learners.recommender import descent, multitask, ranking
from cs330ray.course.learners.recommender.ratings import Ratings
from cs330ray.course.models import card
from cs330ray.course.models.catalogues import Catalogue, Numbered, Own
from cs330ray.course.models.recommender import Recommender
from cs330ray.course.systems.configs.multitask import Config
from cs330ray.course.systems.together import Trainee, in_lock_step, moment, trainees
from cs330ray.errors import DataError, SpecError
from cs330ray.training import parallel
from cs330ray.training.adam import Adam
from cs330ray.training.device import device, flushing_denormals, generator
from cs330ray.training.state import Trained, fill, load_notes, load_tensors, mean
from cs330ray.trial.contract import Item, Member, Metric, Moment, Scores, Weights, alone, finite

__all__ = [
    "FUSIBLE", "METRICS", "SPLITS", "Config", "chance", "export", "prepare", "ready", "test", "train", "train_many",
]  # fmt: skip

SPLITS = "ratings"  # of a batch, among workers
FUSIBLE = frozenset(  # in which members that train together may differ
    {
        "dropout", "embedding_std", "factorization_weight", "keep_best_by", "lr", "pairwise", "patience",
        "regression_weight", "weight_decay",
    }
)  # fmt: skip
MOST_ITEMS = 100_000  # behind a metric; of more ratings or users the mean alone is recorded

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
    _scored(config)
    return movielens.pack(config.dataset).digest if config.source is None else own.pack(config.source).digest


def chance(config: Config) -> Mapping[str, float]:
    """What a random order reaches: the mean of 1/rank over all items, a little more where known ones are removed."""
    _, items = _sizes(config)
    return {"val_mrr": sum(1 / rank for rank in range(1, items + 1)) / items}


def train_many(members: Sequence[Member], left: Collection[int] = ()) -> Iterator[Moment]:
    """Train each up to its epochs, or until `patience` ends it; a Progress every `eval_every_steps` and at the end.

    A row holds the validation of the best moment so far and, as `_last`, of its own; the `train_` losses are means
    over its epoch. Only multiples of `eval_every_steps` can be best, so that a longer budget finds the same; before
    the first of them the last moment is.
    """
    where, config = device(), members[0].config
    scored = _scored(config)
    ratings, val = (_ratings(config, part, where) for part in ("train", "val"))
    room = multitask.Room(len(members)) if len(members) > 1 else None
    begun = trainees(members, lambda told, seed: _State.fresh(told, seed, ratings, where, room=room))
    for each in begun:
        each.over = each.state.exhausted(each.config)
    for now in in_lock_step(begun, left):
        losses = _epoch([each.config for each in now], [each.state for each in now], ratings)
        rows = {}
        for each, of_epoch in zip(now, losses, strict=True):
            if each.is_finite(of_epoch["train_loss"]) and each.due:
                reached = _means(_scores(scored, each.state.weights.params, val, ratings))
                if each.is_finite(sum(reached.values())):
                    rows[each.place] = _row(each, reached, of_epoch)
            each.over = each.state.exhausted(each.config)
        if found := moment(now, rows):
            yield found


train = alone(train_many)


def _row(each: Trainee["_State"], reached: dict[str, float], losses: Mapping[str, float]) -> dict[str, float]:
    state = each.state
    state.keep_if_better(each.config, reached, due=state.step % each.config.eval_every_steps == 0)
    row = {f"val_{name}": value for name, value in state.best_metrics.items()}
    row |= {f"val_{name}_last": value for name, value in reached.items()}
    row |= {name: loss for name, loss in losses.items() if "mse" in reached or name != "train_regression_loss"}
    return row | {"best_step": state.best_step}


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
        (losses,) = _epoch([config], [refit], known)
        finite(losses["train_loss"], refit.step)
        if refit.step == state.best_step:
            found["_refit"] = {name: param.clone() for name, param in refit.weights.params.items()}
    found["_refit_last"] = refit.weights.params
    metrics: dict[str, float] = {}
    items: dict[str, list[Item]] = {}
    for weights, params in found.items():
        scores = _scores(_scored(config), params, held_out, known)
        metrics |= {f"test_{name}{weights}": value for name, value in _means(scores).items()}
        if "mse" in scores:
            metrics[f"test_rmse{weights}"] = metrics[f"test_mse{weights}"] ** 0.5
        few = {name: values for name, values in scores.items() if len(values) <= MOST_ITEMS}
        items |= {f"test_{name}{weights}": _items(name, values, held_out) for name, values in few.items()}
    return Scores(metrics, items)


OF_STARS = "Its stars mean nothing: regression_weight 0 left the head that predicts them untrained"
OF_RANKS = "Its ranking means nothing: factorization_weight 0 left the head that ranks untrained"


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The best moment's parameters of a checkpoint, and what a card says of them. A refit is in no checkpoint.

    With ratings of one's own the ids, the titles and who rated what in training and validation go with them. Raises
    DataError where those are not the ratings of the trial.
    """
    notes = load_notes(checkpoint / "state.json")
    held = load_tensors(checkpoint)
    best = {name.removeprefix("best/"): tensor for name, tensor in held.items() if name.startswith("best/")}
    use = ["for title, score, stars in model.recommend(user=1, n=10):", "    print(title, round(stars, 1))"]
    limits = [
        "It knows the users and items of its data alone, by their numbers there, counted from 1",
        "A score ranks the items of one user; between users it says nothing. Stars are not cut to 1 to 5",
        "What a user rated in training and validation is left out, for which the data are read; what was kept "
        "for the test is recommended like any other",
    ]
    said_of = {"best_step": notes["best_step"]}
    if config.source is not None:
        taken, use, limits = _own(config, checkpoint, held)
        best, said_of = best | taken, said_of | {"stars": own.has_stars(config.source)}
    said = card.sections(
        weights=f"Those of the best moment by {config.keep_best_by}, epoch {notes['best_step']}, trained on the "
        "training ratings alone: their figures are those without `_last` and `_refit`. A refit on training and "
        "validation together is made for the test and not kept.",
        dataset=config.dataset,
        use=use,
        limits=[
            *([OF_STARS] if config.algorithm.regression_weight == 0 and said_of.get("stars", True) else []),
            *([OF_RANKS] if config.algorithm.factorization_weight == 0 else []),
            *limits,
        ],
    )
    return Weights(best, said_of, said)


def _own(
    config: Config, checkpoint: Path, held: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Take what an export on ratings of one's own holds besides, and what its card says of use and limits."""
    assert config.source is not None
    _same_ratings(checkpoint, _digest(config), held.get(DIGEST))
    names, where = own.names(config.source), torch.device("cpu")
    known = _together(*(_ratings(config, part, where) for part in ("train", "val")))
    catalogue = Own.of(names.users, names.items, names.titles, known.users_B, known.items_B)
    has_stars = own.has_stars(config.source)
    low, high = known.stars_B.min().item(), known.stars_B.max().item()
    use = [
        f"for title, score, {'stars' if has_stars else '_'} in model.recommend(user={names.users[0]!r}, n=10):",
        f"    print(title, round({'stars' if has_stars else 'score'}, 1))",
    ]
    limits = [
        "It knows the users and items of its data alone, by their ids there",
        "A score ranks the items of one user; between users it says nothing"
        + (f". Stars are not cut to the data's {low:g} to {high:g}" if has_stars else ""),
        "This directory holds all ids and titles, and which items each user rated in training and validation (without "
        "the stars): pass it on only where you may pass those on",
        "What a user rated there is left out; what was kept for the test is recommended like any other",
    ]
    return dict(catalogue.tensors), use, limits


def ready(config: Config, exported: Weights) -> Recommender:
    """A recommender. Raises DataError where the tensors are of another net."""
    if config.source is None:
        given, sizes = dict(exported.tensors), _sizes(config)
        catalogue: Catalogue = Numbered(config.dataset, config.split, config.data_seed)
    else:
        given = {name: tensor for name, tensor in exported.tensors.items() if name not in Own.NAMES}
        held = Own({name: tensor for name, tensor in exported.tensors.items() if name in Own.NAMES})
        catalogue, sizes = held, (len(held.users), len(held.items))
    state = _State.fresh(config, 0, None, device(), sizes)
    fill(state.best, given)
    return Recommender(state.best, catalogue, exported.notes.get("stars") is not False)


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment: the weights, and those of its best moment."""

    NOTES: ClassVar[tuple[str, ...]] = ("step", "best_step", "best_metrics")

    weights: multitask.Weights
    best: dict[str, Tensor]
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fresh(
        cls,
        config: Config,
        seed: int,
        ratings: Ratings | None,
        where: torch.device,
        sizes: tuple[int, int] | None = None,
        room: multitask.Room | None = None,
    ) -> Self:
        """Draw the moment before the first epoch on `ratings`; None where tensors are about to be read into it.

        Users and items are as many as `sizes` says, else as the data have: a model has none. The weights of members
        that train together share a `room`.
        """
        stream = generator("train", seed)  # of shuffles, drawn items and dropout
        users, items = sizes or _sizes(config)
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
        weights = multitask.Weights.of(drawn, where, room)
        best = {name: param.clone() for name, param in weights.params.items()}
        last = {f"param/{name}": param for name, param in weights.params.items()}
        of_own = config.source is not None and sizes is None
        return cls(
            tensors=last
            | {f"best/{name}": param for name, param in best.items()}
            | ({DIGEST: _digest(config)} if of_own else {}),
            optimizer=Adam([weights.flat], lr=config.lr, weight_decay=config.weight_decay, fused=True),
            generator=stream,
            weights=weights,
            best=best,
        )

    def restored(self, checkpoint: Path) -> Self:
        """Become the moment that `save` wrote. Raises CheckpointError, or DataError where the ratings are others."""
        here = self.tensors[DIGEST].clone() if DIGEST in self.tensors else None
        super().restored(checkpoint)
        if here is not None:
            _same_ratings(checkpoint, here, self.tensors[DIGEST])
        return self

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


DIGEST = "data/digest"  # of the ratings of one's own that a checkpoint learned from: their ids are its rows


def _digest(config: Config) -> Tensor:
    assert config.source is not None
    return torch.frombuffer(bytearray.fromhex(own.pack(config.source).digest), dtype=torch.uint8)


def _same_ratings(checkpoint: Path, here: Tensor, trained_on: Tensor | None) -> None:
    if trained_on is None or not torch.equal(here, trained_on):
        raise DataError(f"data: expected the ratings that {checkpoint} was trained on, got others; put those back")


def _sizes(config: Config) -> tuple[int, int]:
    """How many users and items there are."""
    return movielens.sizes(config.dataset) if config.source is None else own.sizes(config.source)


def _scored(config: Config) -> Sequence[str]:
    """What is scored: where there are no stars, the ranking alone. Raises SpecError where that does not fit."""
    if config.source is None or own.has_stars(config.source):
        return ("mse", "mrr", "mrr_first")
    why = f"since {config.data} is read without ratings, so that each row is a positive"
    if config.algorithm.regression_weight != 0:
        raise SpecError(
            f"regression_weight: expected 0, {why}, got {config.algorithm.regression_weight:g}; write 0, or name the "
            "column of the ratings with rating_column"
        )
    if config.keep_best_by == "val_mse":
        raise SpecError(f'keep_best_by: expected val_mrr or val_mrr_first, {why}, got val_mse; write "val_mrr"')
    return ("mrr", "mrr_first")


def _ratings(config: Config, part: str, where: torch.device) -> Ratings:
    if config.source is None:
        read = movielens.ratings(config.dataset, config.split, config.data_seed, part)
    else:
        read = own.part(config.source, config.split, config.data_seed, part)
    return Ratings(*(torch.from_numpy(column).to(where) for column in (read.users, read.items, read.stars)))


def _together(one: Ratings, other: Ratings) -> Ratings:
    return Ratings(
        torch.cat([one.users_B, other.users_B]),
        torch.cat([one.items_B, other.items_B]),
        torch.cat([one.stars_B, other.stars_B]),
    )


@flushing_denormals()
def _epoch(configs: Sequence[Config], states: Sequence[_State], ratings: Ratings) -> list[dict[str, float]]:
    """Train an epoch, one step of each trial; the means of its losses, finite or not."""
    told, several = [config.algorithm for config in configs], parallel.workers() > 1
    found = descent.train_epoch_many(
        told, [state.weights for state in states], [state.optimizer for state in states], ratings,
        batch=configs[0].batch, generators=[state.generator for state in states],
        share=parallel.share if several else None, add_gradients=parallel.add_gradients if several else None,
    )  # fmt: skip
    losses = []
    for each, state, (factorization, regression) in zip(told, states, found, strict=True):
        factorization, regression = parallel.add(factorization), parallel.add(regression)
        state.step += 1
        losses.append(
            {
                "train_loss": each.factorization_weight * factorization + each.regression_weight * regression,
                "train_factorization_loss": factorization,
                "train_regression_loss": regression,
            }
        )
    return losses


@flushing_denormals()
def _scores(names: Sequence[str], params: Mapping[str, Tensor], held_out: Ratings, known: Ratings) -> dict[str, Tensor]:
    """Score held-out ratings, and users by all of theirs: each worker takes a share of the users."""
    if parallel.workers() == 1:
        scored = ranking.evaluate(params, held_out, known)
    else:
        users = torch.unique(held_out.users_B)
        mine_B = torch.isin(held_out.users_B, users[parallel.share(len(users))])
        place_B = mine_B.nonzero().squeeze(1).cpu()
        found = {"place": place_B, **ranking.evaluate(params, held_out[mine_B], known)} if len(place_B) else {}
        scored = parallel.gather_scores(found)
        scored["mse"] = scored["mse"][scored.pop("place").argsort()]  # in the order of the ratings
    return {name: scored[name] for name in names}


def _means(scored: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: mean(values) for name, values in scored.items()}


def _items(name: str, values: Tensor, held_out: Ratings) -> list[Item]:
    """Scores of single ratings (`mse`) or of users, each with its user for unit."""
    users = held_out.users_B if name == "mse" else torch.unique(held_out.users_B)
    return [Item(unit=str(user), score=score) for user, score in zip(users.tolist(), values.tolist(), strict=True)]
