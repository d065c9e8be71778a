"""Properties of study files: what is read is what was written, what makes the identity, what is refused and how."""

import json
import math
import os
import random
import re
import subprocess
import sys
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cs330ray.cli import app
from cs330ray.errors import SpecError
from cs330ray.service.search import ask
from cs330ray.spec import reading
from cs330ray.spec.places import is_own
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.spec.tables import Choice, Range
from cs330ray.trial import check, named
from tests.mutated_specs import mutated
from tests.studies_of_tests import TOY
from tests.toml_writer import document

ROOT = Path(__file__).parents[2]
MUTATIONS = int(os.environ.get("CS330RAY_MUTATIONS", "1000"))
LONGEST_LINE = 1000

# Studies

OF_DOMAINS = {"low", "high", "choices"}  # what tells a domain from a trainable's table
names = st.text(min_size=1, max_size=5).filter(lambda name: name not in OF_DOMAINS | {"trainable", "maml", "mann"})
integers = st.integers(-(2**63) + 1, 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | integers | floats | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3)
choices = st.lists(scalars, min_size=1, max_size=4, unique=True)
seconds = st.sampled_from(["2h", "90m", "1h30m", "45s"]) | st.integers(1, 10**9) | st.floats(0.1, 1e9)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    """A range of integers or of real numbers, plain, with steps or on a log scale."""
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    low = draw(st.integers(1, 999) | st.decimals(1, 999, places=3))
    step = draw(st.integers(1, 99) if isinstance(low, int) else st.sampled_from([Decimal("0.1"), Decimal("0.125")]))
    high = low + step * draw(st.integers(1, 99))
    if isinstance(low, Decimal):
        low, high, step = float(low), float(high), float(step)
    extra = {"plain": {}, "log": {"log": True}, "step": {"step": step}}[kind]
    return {"low": low, "high": high, **extra}


@st.composite
def spaces(draw: st.DrawFn, known: dict[str, Any], taken: set[str]) -> dict[str, Any]:
    """Domains of new names; some hang on those before them or on what is `known`."""
    space: dict[str, Any] = {}
    for name in draw(st.lists(names.filter(lambda name: name not in taken), unique=True, max_size=4)):
        domain = draw(ranges() | choices.map(lambda drawn: {"choices": drawn}))
        if conditions := [*known, *space]:
            when = draw(st.dictionaries(st.sampled_from(conditions), values, max_size=2))
            domain |= {"when": when} if when and draw(st.booleans()) else {}
        space[name] = domain
    return space


@st.composite
def growing(draw: st.DrawFn) -> dict[str, Any]:
    """The tables that make no other study of it."""
    drawn: dict[str, Any] = {
        "budget": {"trials": draw(st.integers(1, 10**6)), "steps": draw(st.integers(1, 2**31 - 1))},
        "resources": {
            "cpus": draw(st.floats(0.01, 64)),
            "gpus": draw(st.floats(0, 1) | st.integers(0, 8)),
            "require_gpu": draw(st.booleans()),
            "checkpoint": draw(seconds),
        },
    }
    if draw(st.booleans()):
        drawn["budget"]["time"] = draw(seconds)
        drawn["resources"]["slots"] = draw(st.integers(1, 99))
        drawn["confirm"] = {"top": draw(st.integers(1, 9)), "seeds": draw(st.integers(1, 9))}
    return drawn


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """A study that is as a study must be, as plain tables."""
    fixed = draw(st.dictionaries(names, values, max_size=3))
    compare = draw(st.dictionaries(names.filter(lambda name: name not in fixed), choices, max_size=2))
    taken = {*fixed, *compare}
    raw: dict[str, Any] = {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)),
        "objective": draw(st.lists(names, unique=True, min_size=1, max_size=2)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "search": draw(spaces({**fixed, **compare}, taken)),
        "sampler": {"kind": draw(st.sampled_from(["tpe", "random"])), "startup": draw(st.integers(1, 99))},
    }
    assume(not is_own(raw["name"]))
    if len(raw["objective"]) == 1:
        raw["prune"] = {
            "kind": draw(st.sampled_from(["asha", "median", "none"])),
            "min_steps": draw(st.integers(1, 99)),
        }
    if draw(st.booleans()):
        raw["trainable"] = "maml"
    else:
        compare["trainable"] = draw(st.permutations(["maml", "mann"]))
    known, taken = dict(fixed), taken | set(raw["search"])
    for trainable in compare.get("trainable", ["maml"]):
        own = draw(st.dictionaries(names.filter(lambda name: name not in taken), values, max_size=2))
        raw["search"][trainable] = draw(spaces({**known, **own}, taken | set(own)))
        fixed[trainable] = own
    return {**raw, "fixed": fixed, "compare": compare, **draw(growing())}


studies = tables().map(lambda raw: parse(raw, "here"))
seldom = settings(max_examples=25, deadline=None)


@seldom
@given(studies)
def test_a_study_written_as_toml_is_read_as_the_same_study(tmp_path_factory, study: Study):
    path = tmp_path_factory.getbasetemp() / "study.toml"
    path.write_text(document(study.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    assert same(reading.read(path), study)


@seldom
@given(studies)
def test_a_study_written_as_the_ledgers_json_is_read_as_the_same_study(study: Study):
    assert same(parse(json.loads(study.model_dump_json()), "ledger"), study)


def same(one: Study, other: Study) -> bool:
    """Equal, and alike in the types of numbers, which `==` does not tell apart."""
    return one == other and repr(one) == repr(other) and one.digest == other.digest and one.cells == other.cells


# Identity


def shuffled(table: Any, order: random.Random) -> Any:
    """Tables in another order of keys, those of a condition still before what hangs on them."""
    if not isinstance(table, dict):
        return table
    keys = list(table)
    order.shuffle(keys)
    if any(isinstance(value, dict) and "when" in value for value in table.values()):
        keys = list(table)
    return {key: shuffled(table[key], order) for key in keys}


@seldom
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_keys_is_no_part_of_the_identity(raw, order):
    one, other = parse(raw, "here"), parse(shuffled(raw, order), "here")
    assert one.digest == other.digest
    assert {cell.key for cell in one.cells} == {cell.key for cell in other.cells}


@seldom
@given(tables(), growing())
def test_budget_resources_and_confirmation_are_no_part_of_the_identity(raw, others):
    kept = {key: value for key, value in raw.items() if key not in ("budget", "resources", "confirm")}
    assert parse(kept | others, "here").digest == parse(raw, "here").digest


@seldom
@given(tables(), st.lists(scalars, min_size=2, max_size=4, unique_by=json.dumps))
def test_a_further_compared_value_is_no_part_of_the_identity_and_adds_cells_alone(raw, compared):
    fewer, more = (raw | {"compare": raw["compare"] | {"one more": some}} for some in (compared[:-1], compared))
    one, other = parse(fewer, "here"), parse(more, "here")
    assert other.digest == one.digest
    assert {cell.key for cell in one.cells} < {cell.key for cell in other.cells}


OTHERWISE = {
    "name": lambda name: "a" if name != "a" else "b",
    "objective": lambda objective: [f"{objective[0]}x", *objective[1:]],
    "seed": lambda seed: seed - 1 if seed else 1,
    "sampler": lambda sampler: {**sampler, "startup": sampler["startup"] + 1},
    "prune": lambda prune: {**prune, "min_steps": prune["min_steps"] + 1},
    "fixed": lambda fixed: {**fixed, "one more": 1},
    "search": lambda space: {**space, "one more": [1, 2]},
}


@pytest.mark.parametrize("part", OTHERWISE)
@settings(max_examples=15, deadline=None)
@given(raw=tables())
def test_whatever_else_changes_is_another_study(raw, part):
    assume(part in raw)
    changed = raw | {part: OTHERWISE[part](raw[part])}
    assume(part != "objective" or len(set(changed["objective"])) == len(changed["objective"]))
    assert parse(changed, "here").digest != parse(raw, "here").digest


@seldom
@given(tables(), ranges(), st.sampled_from(["low", "high", "log", "step"]))
def test_each_part_of_a_range_is_a_part_of_the_identity(raw, domain, part):
    wide = {"low": domain["low"], "high": domain["high"]}
    other = wide | {part: {"low": wide["low"] / 2, "high": wide["high"] + 1, "log": True, "step": _span(wide)}[part]}
    one, changed = (raw | {"search": {"one more": range_}} for range_ in (wide, other))
    assert parse(changed, "here").digest != parse(one, "here").digest


def _span(domain: dict[str, Any]) -> Any:
    low, high = domain["low"], domain["high"]
    return high - low if isinstance(low, int) else float(Decimal(str(high)) - Decimal(str(low)))


# Accepted rightly

numbers = st.integers(-20, 20) | st.sampled_from([0.5, 1.5, -0.0, 1e-5, 1e308, -1e308, 0.1, 0.3, 2**63 - 1, math.inf])


def is_a_range(low: Any, high: Any, log: bool, step: Any) -> bool:
    """In exact arithmetic: numbers in order, positive on a log scale, an even number of steps."""
    given_numbers = [number for number in (low, high, step) if number is not None]
    if not all(math.isfinite(number) for number in given_numbers) or not low < high:
        return False
    span = Fraction(high) - Fraction(low)
    if span > Fraction(sys.float_info.max) or (log and low <= 0):
        return False
    if step is None or log or step <= 0:
        return step is None
    if any(isinstance(number, float) for number in given_numbers) and step < 1e9 * math.ulp(max(abs(low), abs(high))):
        return False  # Optuna takes what is off the grid by 1e-8 of a step for no value of the domain
    return ((Fraction(str(high)) - Fraction(str(low))) / Fraction(str(step))).denominator == 1


@settings(max_examples=250, deadline=None)
@given(numbers, numbers, st.booleans(), st.none() | numbers)
def test_a_range_is_accepted_exactly_where_its_numbers_fit_together(low, high, log, step):
    assume(step is None or max(map(abs, (low, high, step))) < 1e20)  # beyond the digits that decimals have
    domain = {"low": low, "high": high, "log": log} | ({} if step is None else {"step": step})
    assert accepted({"search": {"lr": domain}}) is is_a_range(low, high, log, step)


def whole(low: int, high: int):
    return lambda value: type(value) is int and low <= value <= high


def counted(low: int, high: int):
    return lambda value: type(value) in (int, float) and value == value // 1 and low <= value <= high  # 1e3 is 1000


def real(low: float, above: bool = False):
    def verdict(value: Any) -> bool:
        if type(value) is int and not -(2**63) < value < 2**63:
            return False
        return type(value) in (int, float) and math.isfinite(value) and (value > low or (value == low and not above))

    return verdict


def of_seconds(value: Any) -> bool:
    return real(0, above=True)(value) or (
        isinstance(value, str) and bool(re.fullmatch("(?=.*[1-9])([0-9]+h)?([0-9]+m)?([0-9]+s)?", value))
    )


PLACES = {  # what a study may hold at each place, stated anew
    "name": lambda value: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", value, re.ASCII)),
    "trainable": lambda value: isinstance(value, str),
    "objective": lambda value: (
        isinstance(value, str)
        or (
            isinstance(value, list)
            and value != []
            and all(isinstance(one, str) for one in value)
            and len({*value}) == len(value)
        )
    ),
    "seed": whole(0, 2**63 - 1),
    "sampler.kind": lambda value: value in ("tpe", "random", "qmc"),  # nsga2 needs two objectives
    "sampler.startup": whole(1, 2**63 - 1),
    "sampler.population": whole(2, 2**63 - 1),
    "prune.kind": lambda value: value in ("asha", "median", "none"),
    "prune.min_steps": whole(1, 2**63 - 1),
    "prune.reduction": whole(2, 2**63 - 1),
    "prune.startup": whole(1, 2**63 - 1),
    "budget.trials": counted(1, 10**6),
    "budget.steps": counted(1, 2**31 - 1),
    "budget.time": of_seconds,
    "budget.cost": lambda value: value in ("8 cpu-hours", "0.5 cpu-hour"),
    "resources.cpus": real(0.01),
    "resources.gpus": lambda value: real(0)(value) and (value <= 1 or value == int(value)),
    "resources.workers": whole(1, 2**63 - 1),
    "resources.require_gpu": lambda value: isinstance(value, bool),
    "resources.slots": whole(1, 2**63 - 1),
    "resources.checkpoint": of_seconds,
    "confirm.top": whole(1, 2**63 - 1),
    "confirm.seeds": whole(1, 1000),
}
anything = st.deferred(
    lambda: (
        scalars
        | st.integers(-3, 3)
        | st.floats(0, 2)
        | st.sampled_from(
            [
                math.nan,
                math.inf,
                2**63,
                10**400,
                date(1979, 5, 27),
                "tpe",
                "asha",
                "none",
                "1h",
                "2m30s",
                "nsga2",
                "8 cpu-hours",
                "0.5 cpu-hour",
                "0 cpu-hours",
            ]
        )
        | st.lists(anything, max_size=3)
        | st.dictionaries(st.text(max_size=5), anything, max_size=2)
    )
)


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=25, deadline=None)
@given(value=anything)
def test_a_value_is_accepted_exactly_where_it_has_the_type_and_bounds_of_its_place(place, value):
    table, _, key = place.rpartition(".")
    assume(place != "prune.kind" or value != "qmc")
    assert accepted({table: {key: value}} if table else {key: value}) is PLACES[place](value)


@settings(max_examples=100, deadline=None)
@given(
    anything, st.sampled_from(["fixed", "compare", "search", "sampler", "prune", "budget", "resources", "confirm", "x"])
)
def test_anything_in_place_of_a_table_is_accepted_or_refused_in_one_line(value, table):
    accepted({table: value})


SMALL = {"name": "small", "trainable": "maml", "objective": ["x"], "budget": {"trials": 4, "steps": 10}}


def accepted(changes: dict[str, Any]) -> bool:
    """Whether a small study is still one with `changes`; what is refused is refused in one line from its place on."""
    raw: dict[str, Any] = dict(SMALL)
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    try:
        study = parse(raw, "study.toml")
    except SpecError as error:
        is_a_line(str(error), "study.toml")
        return False
    assert all(isinstance(domain, dict | Range | Choice) for domain in study.search.values())
    return True


def is_a_line(message: str, source: str) -> None:
    """A message is one line: place, rule, value and next step; and no longer than a person reads."""
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    _place, rule = re.fullmatch(rf"{re.escape(source)}: ([^ ]+: )?(.+)", message).groups()
    assert rule
    assert len(message) <= len(source) + LONGEST_LINE


# Mutated files


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "study.toml"


def refused(path: Path) -> str | None:
    """What a person is told of a study file, None where it may run; a study that may run can be asked for a trial."""
    try:
        study = reading.read(path)
        check.check(study, str(path))
    except SpecError as error:
        return str(error)
    for cell in study.cells[:2]:
        metrics = named.load(cell.trainable).METRICS
        assert ask.ask(study, cell, [metrics[name].goal for name in study.objective], []).params.keys() <= {*cell.space}
    return None


@pytest.mark.timeout(0)
def test_a_thousand_mutated_study_files_give_no_traceback(path: Path) -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(MUTATIONS):
        what, content = mutated(seed)
        path.write_bytes(content)
        try:
            message = refused(path)
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{what}: {error!r}")
        if message is not None:
            is_a_line(message, str(path))
        verdicts[message is None] += 1
    assert min(verdicts.values()) > MUTATIONS / 50  # the mutations are neither harmless nor all deadly


def dry_run(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["cs330ray", "run", str(path), "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_mutated_study_ends_a_dry_run_with_one_line_and_exit_code_2(
    path: Path, home: Path, capsys, monkeypatch
) -> None:
    refusals = 0
    for seed in range(MUTATIONS, MUTATIONS + 60):
        what, content = mutated(seed)
        path.write_bytes(content)
        if refused(path) is not None:  # others would train a dozen steps
            code, shown = dry_run(path, capsys, monkeypatch)
            assert (code, shown.count("\n"), shown.startswith(f"{path}: ")) == (2, 1, True), what
            refusals += 1
    assert refusals > 30
    assert not home.exists()


def test_a_mutated_study_that_may_run_is_planned(path: Path, home: Path, capsys, monkeypatch) -> None:
    """Of a trainable of almost no work, so that those that are accepted are timed too."""
    toy = {"toy": document(TOY).encode()}
    codes = []
    for seed in range(80):
        what, content = mutated(seed, toy)
        path.write_bytes(content)
        code, shown = dry_run(path, capsys, monkeypatch)
        assert (code, shown.count("\n")) in ((0, 0), (2, 1)), f"{what}: {shown}"
        codes.append(code)
    assert {*codes} == {0, 2}
    assert not home.exists()


@pytest.mark.parametrize("content", [b"\xff\0\n\x1b[31m = 1", b"seed = " + b"[" * 5000, b"seed = " + b"9" * 5000])
def test_a_process_says_one_line_about_a_file_that_is_no_study(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    command = [sys.executable, "-m", "cs330ray", "run", str(path), "--dry-run"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
