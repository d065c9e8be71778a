"""Properties of asking over generated spaces: all is inside, conditionals hold, and asking is a pure function."""

import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.service.search.ask import ask
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.spec.tables import Choice, Domain

KINDS = ["random", "tpe", "qmc", "nsga2"]
STATES = [TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
FIXED = {"body": "pooled", "depth": 3, "flag": True}
names = st.from_regex(r"[a-z]{1,4}", fullmatch=True).filter(lambda name: name not in {*FIXED, "low", "high", "toy"})
scalars = st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, -2.25, "a", "b", "", "é"])
choices = st.lists(scalars, min_size=1, max_size=4, unique=True).map(lambda drawn: {"choices": drawn})


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    """Integers or real numbers, from narrow to wide: plain, with steps, on a log scale."""
    if draw(st.booleans()):
        low, step = draw(st.integers(-(10**6), 10**6)), draw(st.integers(1, 1000))
        smallest, widths = 1, st.integers(1, 1000)
    else:
        low, step = draw(st.floats(-1e6, 1e6)), draw(st.sampled_from(["0.1", "0.25", "0.003", "7.5"]))
        smallest, widths = 1e-9, st.floats(1e-3, 1e3)
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    if kind == "step":
        if isinstance(step, str):  # in decimals, as a person writes them
            low, count = round(low / 1000, 3), draw(st.integers(1, 50))
            return {"low": low, "high": float(Decimal(str(low)) + Decimal(step) * count), "step": float(step)}
        return {"low": low, "high": low + step * draw(st.integers(1, 50)), "step": step}
    low = max(low, smallest) if kind == "log" else low
    return {"low": low, "high": low + draw(widths), "log": kind == "log"}


@st.composite
def studies(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """A study as plain tables; where the sampler can, some parameters hang on those before them or on fixed ones."""
    space: dict[str, Any] = {}
    for name in draw(st.lists(names, unique=True, max_size=5)):
        domain = draw(choices | ranges())
        told = [*FIXED, *(key for key in space if "choices" in space[key])]
        if kind != "qmc" and draw(st.booleans()):
            key = draw(st.sampled_from(told))
            held = draw(st.sampled_from([FIXED[key]] if key in FIXED else space[key]["choices"]))
            domain["when"] = {key: draw(st.sampled_from([held, [held, "no"], "no"]))}
        space[name] = domain
    return {
        "name": "asked",
        "trainable": "toy",
        "objective": ["val_loss", "val_speed"] if kind == "nsga2" else ["val_loss"],
        "seed": draw(st.integers(0, 2**63 - 1)),
        "fixed": FIXED,
        "search": space,
        "sampler": {"kind": kind, "startup": draw(st.integers(1, 4)), "population": draw(st.integers(2, 4))},
        "budget": {"trials": 16, "steps": 10},
    }


LOST = range(1, 99, 2)  # every other trial: where it failed, its worker was lost


def goals(study: Study) -> list[str]:
    return ["min", "max"][: len(study.objective)]


def ended(trial: FrozenTrial, number: int, study: Study, order: random.Random) -> FrozenTrial:
    """The trial with an end by chance; some run on, as where there are several slots."""
    state = order.choice(STATES)
    over = create_trial(
        state=state,
        values=[order.uniform(-1, 1) for _ in study.objective] if state == TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )
    over.number = number
    return over


def asked_in_turn(study: Study, trials: int, order: random.Random) -> list[FrozenTrial]:
    history: list[FrozenTrial] = []
    for number in range(trials):
        asked = ask(study, study.cells[0], goals(study), history, LOST)
        history.append(ended(asked, number, study, order))
    return history


def inside(domain: Domain, value: Any) -> bool:
    """Of the domain's own type and bounds; on the grid of its steps, which binary fractions meet only nearly."""
    if isinstance(domain, Choice):
        return any(value == choice and type(value) is type(choice) for choice in domain.choices)
    within = domain.low <= value <= domain.high
    if domain.whole:
        return within and type(value) is int and (value - domain.low) % (domain.step or 1) == 0
    steps = 0 if domain.step is None else (value - domain.low) / domain.step
    return within and isinstance(value, float) and abs(steps - round(steps)) < 1e-5


def holds(domain: Domain, params: dict[str, Any]) -> bool:
    """Whether a domain's condition holds, by what the file says: each key has the value, or one of the values."""
    told = FIXED | params
    return all(
        key in told and told[key] in (wanted if isinstance(wanted, list) else [wanted])
        for key, wanted in (domain.when or {}).items()
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), order=st.randoms(use_true_random=False))
def test_all_that_is_asked_is_inside_its_domain_and_there_exactly_where_its_condition_holds(kind, data, order):
    all_is_inside(parse(data.draw(studies(kind)), "here"), order, trials=7)


@settings(max_examples=3, deadline=None)  # of a second each
@given(data=st.data(), order=st.randoms(use_true_random=False))
def test_all_that_gp_asks_is_inside_its_domain_and_there_exactly_where_its_condition_holds(data, order):
    all_is_inside(parse(data.draw(studies("gp")), "here"), order, trials=5)


def all_is_inside(study: Study, order: random.Random, trials: int) -> None:
    for trial in asked_in_turn(study, trials, order):
        assert {*trial.params} == {name for name, domain in study.search.items() if holds(domain, trial.params)}
        assert all(inside(study.search[name], value) for name, value in trial.params.items())


def turned_round(space: dict[str, Any], draw: Any) -> dict[str, Any]:
    """The space in another order, each parameter still behind what its condition speaks of."""
    turned: dict[str, Any] = {}
    while rest := [name for name in space if name not in turned]:
        free = [name for name in rest if not {*space[name].get("when", {})} & {*rest}]
        name = draw(st.sampled_from(free))
        turned[name] = space[name]
    return turned


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), order=st.randoms(use_true_random=False))
def test_a_history_is_asked_the_same_twice_and_in_any_order_of_the_file(kind, data, order):
    raw = data.draw(studies(kind))
    study = parse(raw, "here")
    history = asked_in_turn(study, 6, order)
    again = ask(study, study.cells[0], goals(study), history, LOST).params
    turned = parse(raw | {"search": turned_round(raw["search"], data.draw)}, "here")
    assert turned.digest == study.digest
    assert ask(study, study.cells[0], goals(study), history, LOST).params == again
    assert ask(turned, turned.cells[0], goals(turned), history, LOST).params == again


@settings(max_examples=100, deadline=None)
@given(domain=ranges() | choices, number=st.integers(0, 2**20), seed=st.integers(0, 2**31))
def test_every_point_of_the_sobol_sequence_is_inside(domain, number, seed):
    raw = {"name": "a", "trainable": "toy", "objective": ["x"], "seed": seed, "budget": {"trials": 1, "steps": 1}}
    study = parse(raw | {"search": {"x": domain}, "sampler": {"kind": "qmc"}}, "here")
    blank = create_trial(value=0.0)
    asked = ask(study, study.cells[0], ["min"], [blank] * number).params["x"]
    assert inside(study.search["x"], asked)
