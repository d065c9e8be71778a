"""A member's numbers do not depend on its company: whoever trains beside it, leaves or diverges, it is as if alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cs330ray.course.data import movielens
from cs330ray.course.systems import fewshot, maml, mann, multitask
from cs330ray.course.systems.together import Trainee
from cs330ray.errors import Diverged
from cs330ray.trial.contract import Member

USERS, ITEMS, RATINGS = 12, 20, 90
Reached = list[tuple[int, dict[str, float], dict[str, bytes]]]


def image_classes(dataset: str, split: str, data_seed: int, part: str) -> Tensor:
    generator = torch.Generator().manual_seed(data_seed + len(part))
    return (torch.rand(6, 20, 28, 28, generator=generator) < 0.2).to(torch.uint8) * 255


def ratings(dataset: str, split: str, data_seed: int, part: str) -> movielens.Ratings:
    random = np.random.RandomState(data_seed + len(part))
    pairs = random.permutation(USERS * ITEMS)[:RATINGS]
    return movielens.Ratings(pairs // ITEMS, pairs % ITEMS, random.normal(3, 1, RATINGS).astype(np.float32))


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fewshot, "image_classes", image_classes)
    monkeypatch.setattr(multitask.movielens, "ratings", ratings)
    monkeypatch.setattr(multitask.movielens, "sizes", lambda _: (USERS, ITEMS))
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


STRUCTURES: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    maml: {
        "body": st.sampled_from(["pooled", "course"]), "filters": st.sampled_from([4, 8, 12, 16]),
        "tasks": st.integers(1, 4), "ways": st.integers(2, 3), "queries": st.integers(1, 3),
        "inner_steps": st.integers(1, 2), "affine": st.booleans(), "first_order": st.booleans(),
        "learn_inner_lrs": st.sampled_from(["none", "tensor", "tensor_step"]),
        "query_norm": st.sampled_from(["query", "support"]),
        "eval_every_steps": st.integers(1, 2), "val_tasks": st.just(2),
    },
    mann: {
        "cell": st.sampled_from(["lstm", "gru", "rnn"]), "layers": st.integers(1, 2), "hidden": st.integers(3, 9),
        "encoder": st.sampled_from(["none", "conv"]), "filters": st.just(3), "tasks": st.integers(1, 7),
        "ways": st.integers(2, 3), "shots": st.integers(1, 2), "protocol": st.sampled_from(["clean", "leaky"]),
        "eval_every_steps": st.integers(1, 2), "val_tasks": st.just(3),
    },
    multitask: {
        "dim": st.integers(1, 9), "layers": st.sampled_from(["8", "7-5", "32"]), "batch": st.sampled_from([13, 32, 64]),
        "sharing": st.sampled_from(["shared", "separate"]), "regression_bias": st.booleans(),
        "candidates": st.integers(1, 2), "eval_every_steps": st.integers(1, 2),
    },
}  # fmt: skip
OWN: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    maml: {"inner_lr": st.floats(0.01, 1.0), "outer_lr": st.floats(1e-4, 0.1)},
    mann: {"lr": st.floats(1e-4, 0.1)},
    multitask: {
        "lr": st.floats(1e-4, 0.1), "weight_decay": st.sampled_from([0.0, 1e-3]), "dropout": st.sampled_from([0, 0.3]),
        "pairwise": st.sampled_from(["sigmoid", "bpr"]), "factorization_weight": st.floats(0.1, 0.9),
        "keep_best_by": st.sampled_from(["val_mse", "val_mrr"]), "patience": st.sampled_from([None, 1]),
        "embedding_std": st.floats(0.01, 1.0), "regression_weight": st.floats(0.1, 0.9),
    },
}  # fmt: skip


def test_what_may_differ_here_is_what_may_differ():
    assert {system: frozenset(own) for system, own in OWN.items()} == {system: system.FUSIBLE for system in OWN}


@dataclass(frozen=True)
class Company:
    members: list[Member]
    leaves_after: dict[int, int]  # members by place, and after how many moments they are let go
    diverges_at: dict[int, int]  # and from which step on their losses are not finite


@st.composite
def companies(draw: st.DrawFn, system: Any) -> Company:
    count = draw(st.integers(2, 4))
    common = {name: draw(values) for name, values in STRUCTURES[system].items()}
    members = [
        Member(
            system.Config(**common, **{name: draw(values) for name, values in OWN[system].items()}),
            seed=draw(st.integers(0, 3)),
            steps=draw(st.integers(1, 4)),
        )
        for _ in range(count)
    ]
    places = st.integers(0, count - 1)
    leaves = draw(st.dictionaries(places, st.integers(1, 3), max_size=1))
    return Company(members, leaves, draw(st.dictionaries(places, st.integers(1, 4), max_size=1)))


@contextmanager
def diverging(company: Company) -> Iterator[None]:
    """Let the losses of those who diverge not be finite from a step on."""
    since = {id(company.members[place].config): step for place, step in company.diverges_at.items()}
    is_finite = Trainee.is_finite

    def spoilt(one: Trainee[Any], loss: float) -> bool:
        bad = one.state.step >= since.get(id(one.config), one.steps + 1)
        return is_finite(one, float("nan") if bad else loss)

    with patch.object(Trainee, "is_finite", spoilt):
        yield


def kept(progress: Any) -> tuple[int, dict[str, float], dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        progress.save(Path(folder))
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return progress.step, dict(progress.metrics), files


def alone(system: Any, member: Member) -> tuple[Reached, str]:
    found, end = [], ""
    try:
        found.extend(map(kept, system.train(member.config, member.seed, member.steps, member.resume)))
    except Diverged as error:
        end = str(error)
    return found, end


def together(system: Any, company: Company) -> list[tuple[Reached, str]]:
    found: list[Reached] = [[] for _ in company.members]
    ends, left = [""] * len(found), set[int]()
    for count, moment in enumerate(system.train_many(company.members, left), start=1):
        for place, progress in moment.items():
            assert place not in left
            assert not ends[place]
            if isinstance(progress, Exception):
                ends[place] = str(progress)
            else:
                found[place].append(kept(progress))
        left |= {place for place, after in company.leaves_after.items() if count >= after}
    return list(zip(found, ends, strict=True))


def check(system: Any, company: Company) -> None:
    """Each member is as if alone, up to where it left."""
    with diverging(company):
        beside = together(system, company)
        for place, member in enumerate(company.members):
            rows, end = alone(system, member)
            own_rows, own_end = beside[place]
            if place in company.leaves_after:
                assert own_rows == rows[: len(own_rows)]
            else:
                assert (own_rows, own_end) == (rows, end)


SYSTEMS = pytest.mark.parametrize("system", list(OWN), ids=lambda system: system.__name__.rpartition(".")[2])


@SYSTEMS
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_a_member_s_numbers_do_not_depend_on_its_company(system, data):
    check(system, data.draw(companies(system)))


@pytest.mark.slow
@SYSTEMS
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_nor_do_they_in_many_companies(system, data):
    check(system, data.draw(companies(system)))


@SYSTEMS
def test_members_go_on_from_checkpoints_of_their_own_in_new_company(system, tmp_path):
    small = {
        maml: {"tasks": 2, "filters": 16, "val_tasks": 2},
        mann: {"tasks": 4, "hidden": 8},
        multitask: {"batch": 32},
    }
    config = system.Config(eval_every_steps=2, **small[system])
    members = [Member(config, seed, 6) for seed in range(3)]
    whole = [alone(system, member)[0] for member in members]
    resumed = []
    for place, cut in enumerate((0, 2, 4)):
        for progress in system.train(config, place, cut):
            if progress.step == cut:
                (tmp_path / str(place)).mkdir()
                progress.save(tmp_path / str(place))
        resumed.append(replace(members[place], resume=tmp_path / str(place) if cut else None))
    rest = [rows for rows, _ in together(system, Company(resumed, {}, {}))]
    assert rest == [rows[cut // 2 :] for rows, cut in zip(whole, (0, 2, 4), strict=True)]
