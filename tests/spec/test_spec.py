import json
import random
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs330ray.errors import SpecError
from cs330ray.spec import reading
from cs330ray.spec import study as spec
from cs330ray.spec.reading import parse
from cs330ray.spec.tables import Cap, Choice, Range, applies

DESIGN = """
name = "maml-adaptation"
trainable = "maml"
objective = ["val_accuracy"]
seed = 0
[fixed]
ways = 5
[compare]
inner_steps = [1, 5]
[search]
inner_lr = { low = 1e-3, high = 1.0, log = true }
body = ["course", "pooled"]
filters = { low = 16, high = 64, step = 16, when = { body = "pooled" } }
[sampler]
kind = "tpe"
startup = 4
[prune]
kind = "asha"
min_steps = 200
[budget]
trials = 16
steps = 2000
time = "2h"
[resources]
cpus = 1
gpus = 0.25
workers = 1
[confirm]
top = 3
seeds = 5
"""
SMALL = """
name = "small"
trainable = "maml"
objective = ["val_accuracy"]
[budget]
trials = 4
steps = 10
"""


SEARCH = """
[search]
inner_steps = [1, 5]
"""


def parsed(text):
    return parse(tomllib.loads(text), "study.toml")


def rewritten(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.fixture
def written(tmp_path):
    """Write a text as a study file; its path."""

    def write(text):
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, *overrides):
    with pytest.raises(SpecError) as caught:
        reading.read(path, overrides)
    return str(caught.value)


# What a file says


def test_every_section_of_the_design_is_understood(written):
    study = reading.read(written(DESIGN))
    assert (study.name, study.trainable, study.objective, study.seed) == (
        "maml-adaptation",
        "maml",
        ["val_accuracy"],
        0,
    )
    assert study.fixed == {"ways": 5}
    assert study.compare == {"inner_steps": [1, 5]}
    assert study.search == {
        "inner_lr": Range(low=0.001, high=1.0, log=True),
        "body": Choice(choices=["course", "pooled"]),
        "filters": Range(low=16, high=64, step=16, when={"body": "pooled"}),
    }
    assert (study.sampler.kind, study.sampler.startup) == ("tpe", 4)
    assert (study.prune.kind, study.prune.min_steps) == ("asha", 200)
    assert (study.budget.trials, study.budget.steps, study.budget.time) == (16, 2000, 7200.0)
    assert (study.resources.cpus, study.resources.gpus, study.resources.workers) == (1.0, 0.25, 1)
    assert study.confirm is not None
    assert (study.confirm.top, study.confirm.seeds) == (3, 5)


def test_a_question_and_a_budget_are_enough():
    study = parsed(SMALL)
    assert (study.sampler.kind, study.prune.kind, study.confirm, study.budget.time) == ("tpe", "none", None, None)
    assert parsed(f"{SMALL}{SEARCH}").sampler.kind == "gp"


@pytest.mark.parametrize(
    "more",
    [
        "[prune]\nkind = 'asha'",
        "[search]\ninner_steps = [1, 5]\nfilters = { low = 16, high = 64, when = { inner_steps = 5 } }",
        "[search.maml]\ninner_steps = [1, 5]\nfilters = { low = 16, high = 64, when = { inner_steps = 5 } }",
    ],
    ids=["pruning", "a condition", "a condition of one trainable"],
)
def test_without_a_word_on_the_sampler_tpe_searches_what_gp_learns_too_little_of(more):
    text = f"{SMALL}{SEARCH if 'search' not in more else ''}{more}"
    assert parsed(text).sampler.kind == "tpe"
    assert parsed(f"{text}\n[sampler]\nkind = 'gp'").sampler.kind == "gp"


@pytest.mark.parametrize(("old", "new"), [("trials = 4", "trials = 33"), ("]", ', "val_loss"]')])
def test_nor_is_gp_taken_for_many_trials_or_several_objectives(old, new):
    """Where it is slow, or was not measured."""
    text = SMALL.replace(old, new, 1) + SEARCH
    assert text != SMALL + SEARCH
    assert parsed(text).sampler == parsed(text + "[sampler]\nkind = 'tpe'").sampler


@pytest.mark.parametrize(
    ("text", "seconds"),
    [('"2h"', 7200), ('"90m"', 5400), ('"1h30m"', 5400), ('"45s"', 45), ('"1h1m1s"', 3661), ("90", 90), ("0.5", 0.5)],
)
def test_a_time_is_words_or_a_number_of_seconds(text, seconds):
    assert parsed(SMALL + f"time = {text}").budget.time == seconds


@pytest.mark.parametrize(
    ("text", "spelling", "cap"),
    [
        ("20 gpu-hours", "20 gpu-hours", Cap("gpu", 72000.0)),
        ("1 gpu-hour", "1 gpu-hour", Cap("gpu", 3600.0)),
        ("1.0  gpu-hours", "1 gpu-hour", Cap("gpu", 3600.0)),
        ("0.5cpu-hours", "0.5 cpu-hours", Cap("cpu", 1800.0)),
    ],
)
def test_a_cost_is_hours_of_gpu_or_cpu_in_one_spelling(text, spelling, cap):
    budget = parsed(SMALL + f"cost = '{text}'\n[resources]\ngpus = 0.5").budget
    assert (budget.cost, budget.cap) == (spelling, cap)
    assert parsed(SMALL).budget.cap is None


@pytest.mark.parametrize(
    ("domain", "whole"),
    [
        ("{ low = 1, high = 9 }", True),
        ("{ low = 1, high = 9, step = 2 }", True),
        ("{ low = 1.0, high = 9 }", False),
        ("{ low = 1, high = 9, step = 2.0 }", False),
    ],
)
def test_a_range_is_one_of_integers_where_all_its_numbers_are_whole(domain, whole):
    assert parsed(SMALL + f"[search]\nwidth = {domain}").search["width"].whole is whole


def test_a_step_that_binary_fractions_only_nearly_divide_is_taken():
    assert parsed(SMALL + "[search]\nrate = { low = 0.0, high = 0.3, step = 0.1 }").search["rate"].step == 0.1


# Cells


def test_without_a_comparison_there_is_one_cell_for_all():
    (cell,) = parsed(SMALL + "[fixed]\nways = 5").cells
    assert (cell.key, cell.title, cell.trainable, cell.fixed) == ("{}", "all", "maml", {"ways": 5})


def test_every_combination_is_a_cell_in_the_order_of_the_file():
    cells = parsed(SMALL + '[compare]\nshots = [5, 1]\nbody = ["course", "pooled"]').cells
    assert [cell.title for cell in cells] == [
        "shots=5 body=course",
        "shots=5 body=pooled",
        "shots=1 body=course",
        "shots=1 body=pooled",
    ]


@pytest.mark.parametrize(
    ("compare", "titles"),
    [
        ({"ways": [1, "1"]}, ["ways=1", 'ways="1"']),
        ({"ways": [True, "True"]}, ["ways=true", 'ways="True"']),
        ({"ways": [1, "1", '"1"']}, ["ways=1", 'ways="1"', r'ways="\"1\""']),
        (
            {"a": ["1", "1 b=2"], "b": ["2", "2 b=2"]},
            ['a="1" b="2"', 'a="1" b="2 b=2"', 'a="1 b=2" b="2"', 'a="1 b=2" b="2 b=2"'],
        ),
        ({"ways": [1, 1.0, True]}, ["ways=1", "ways=1.0", "ways=True"]),
    ],
)
def test_no_two_cells_have_one_title(compare, titles):
    study = parse({**tomllib.loads(SMALL), "compare": compare}, "study.toml")
    assert [cell.title for cell in study.compared] == titles
    assert [cell.under(0).searched.title for cell in study.replicate(1)] == titles


def test_a_cell_is_named_by_its_canonical_json_whatever_the_order_of_the_file():
    one, other = (
        parsed(SMALL + "[compare]\nb = [0.001]\na = [true]"),
        parsed(SMALL + "[compare]\na = [true]\nb = [1e-3]"),
    )
    assert [cell.key for cell in one.cells] == ['{"a":true,"b":0.001}'] == [cell.key for cell in other.cells]


def test_a_cell_fixes_what_it_compares():
    cells = parsed(SMALL + "[fixed]\nways = 5\n[compare]\nshots = [1, 5]").cells
    assert [cell.fixed for cell in cells] == [{"ways": 5, "shots": 1}, {"ways": 5, "shots": 5}]


def test_compared_trainables_take_their_own_tables_and_no_others():
    text = (
        rewritten(SMALL, 'trainable = "maml"\n', "")
        + """
    [compare]
    trainable = ["protonet", "maml"]
    [fixed]
    ways = 5
    [fixed.maml]
    inner_steps = 3
    [search]
    outer_lr = [0.001, 0.01]
    [search.protonet]
    distance = ["squared", "euclidean"]
    """
    )
    protonet, maml = parsed(text).cells
    assert (protonet.trainable, protonet.key) == ("protonet", '{"trainable":"protonet"}')
    assert (maml.trainable, maml.key) == ("maml", '{"trainable":"maml"}')
    assert protonet.fixed == {"ways": 5}
    assert maml.fixed == {"ways": 5, "inner_steps": 3}
    assert list(protonet.space) == ["outer_lr", "distance"]
    assert list(maml.space) == ["outer_lr"]
    assert parsed(text).trainables() == ["protonet", "maml"]


# Conditional parameters


@pytest.mark.parametrize(
    ("when", "values", "expected"),
    [
        (None, {}, True),
        ({"body": "pooled"}, {"body": "pooled"}, True),
        ({"body": "pooled"}, {"body": "course"}, False),
        ({"body": "pooled"}, {}, False),
        ({"layers": [2, 3]}, {"layers": 3}, True),
        ({"layers": [2, 3]}, {"layers": 1}, False),
        ({"body": "pooled", "layers": 2}, {"body": "pooled", "layers": 1}, False),
    ],
)
def test_a_conditional_parameter_applies_where_every_condition_holds(when, values, expected):
    assert applies(Choice(choices=[1], when=when), values) is expected


@pytest.mark.parametrize("table", ['[fixed]\nbody = "pooled"', '[compare]\nbody = ["pooled"]', ""])
def test_a_condition_may_speak_of_what_is_fixed_compared_or_searched_before(table):
    searched = "" if table else 'body = ["course", "pooled"]\n'
    text = f"{SMALL}{table}\n[search]\n{searched}filters = {{ low = 16, high = 64, when = {{ body = 'pooled' }} }}"
    assert parsed(text).search["filters"].when == {"body": "pooled"}


# Identity


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("low = 1e-3, high = 1.0", "high = 1.0, low = 0.001"),
        ("[fixed]", "# a comment\n[fixed]"),
        ('name = "maml-adaptation"\ntrainable = "maml"', 'trainable = "maml"\nname = "maml-adaptation"'),
        ("startup = 4\n", ""),  # the default
        ("trials = 16", "trials = 32"),
        ("steps = 2000", "steps = 4000"),
        ('time = "2h"', 'time = "3h"'),
        ('time = "2h"', 'time = "2h"\ncost = "9 gpu-hours"'),
        ("gpus = 0.25", "gpus = 1"),
        ("[confirm]\ntop = 3\nseeds = 5", ""),
        ("inner_steps = [1, 5]", "inner_steps = [1, 5, 10]"),
    ],
)
def test_the_identity_knows_nothing_of(old, new):
    assert parsed(rewritten(DESIGN, old, new)).digest == parsed(DESIGN).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("maml-adaptation", "another"),
        ('trainable = "maml"', 'trainable = "protonet"'),
        ("val_accuracy", "val_loss"),
        ("seed = 0", "seed = 1"),
        ("ways = 5", "ways = 20"),
        ("ways = 5", "ways = 5.0"),
        ("high = 1.0", "high = 2.0"),
        ('["course", "pooled"]', '["pooled", "course"]'),
        ('when = { body = "pooled" }', 'when = { body = "course" }'),
        ("startup = 4", "startup = 5"),
        ('kind = "asha"', 'kind = "median"'),
        ("min_steps = 200", "min_steps = 100"),
    ],
)
def test_the_identity_changes_with(old, new):
    assert parsed(rewritten(DESIGN, old, new)).digest != parsed(DESIGN).digest


names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(lambda name: name not in {"low", "high", "choices"})
scalars = (
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
choices = st.lists(scalars, min_size=1, max_size=4, unique=True)
ranges = st.tuples(st.integers(1, 9), st.integers(10, 99), st.booleans()).map(
    lambda drawn: dict(zip(("low", "high", "log"), drawn, strict=True))
)


@st.composite
def tables(draw):
    """The plain tables of a study whose parameters stand in one table each."""
    parameters = draw(st.lists(names, unique=True, max_size=6))
    fixed, compared, searched = parameters[:2], parameters[2:4], parameters[4:]
    return {
        "name": draw(st.from_regex(spec.NAME, fullmatch=True).filter(str.isascii)),
        "trainable": "maml",
        "objective": ["val_accuracy"],
        "seed": draw(st.integers(0, 2**63 - 1)),
        "fixed": {name: draw(scalars) for name in fixed},
        "compare": {name: draw(choices) for name in compared if name != "trainable"},
        "search": {name: draw(ranges | choices) for name in searched},
        "budget": {"trials": draw(st.integers(1, 99)), "steps": 10},
    }


@settings(max_examples=40, deadline=None)
@given(tables())
def test_a_study_survives_json(raw):
    study = parse(raw, "here")
    again = parse(json.loads(study.model_dump_json()), "there")
    assert again == study
    assert again.digest == study.digest
    assert [cell.key for cell in again.cells] == [cell.key for cell in study.cells]


@settings(max_examples=40, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_identity_does_not_depend_on_the_order_of_keys(raw, order: random.Random):
    def shuffled(value):
        if not isinstance(value, dict):
            return value
        keys = order.sample(list(value), len(value))
        return {key: shuffled(value[key]) for key in keys}

    assert parse(shuffled(raw), "here").digest == parse(raw, "here").digest


# --set and --fork


@pytest.mark.parametrize(
    ("override", "place", "expected"),
    [
        ("budget.trials=32", ("budget", "trials"), 32),
        ("seed=7", ("seed",), 7),
        ("name=another", ("name",), "another"),  # text needs no quotes
        ('name = "another"', ("name",), "another"),
        ("sampler.kind=random", ("sampler", "kind"), "random"),
        ("objective=val_loss", ("objective",), ["val_loss"]),  # one of them
        ("budget.trials=1e3", ("budget", "trials"), 1000),  # which TOML has for a real number
        ("budget.steps=2.5e3", ("budget", "steps"), 2500),
        ("budget.time=90m", ("budget", "time"), 5400.0),
        ("resources.require_gpu=true", ("resources", "require_gpu"), True),
        ("fixed.shots=1e-3", ("fixed", "shots"), 0.001),  # a table that the file does not have
        ('search.body=["a", "b"]', ("search", "body"), Choice(choices=["a", "b"])),
        ("search.lr={low = 1, high = 2}", ("search", "lr"), Range(low=1, high=2)),
    ],
)
def test_an_override_sets_one_place(written, override, place, expected):
    value = reading.read(written(SMALL), [override])
    for key in place:
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    assert value == expected


def test_the_last_of_several_overrides_wins(written):
    assert reading.read(written(SMALL), ["seed=1", "budget.trials=9", "seed=2"]).seed == 2


def test_a_fork_is_the_same_study_under_another_name(written):
    path = written(SMALL)
    fork = reading.read(path, fork="forked")
    assert fork == reading.read(path).model_copy(update={"name": "forked"})
    assert fork.digest != reading.read(path).digest


def test_a_forks_name_must_be_a_name(written):
    with pytest.raises(SpecError, match=r"study\.toml: name: .*'not/a name'"):
        reading.read(written(SMALL), fork="not/a name")


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("budget.trials", "`table.key=value` is needed"),
        ("=3", "`table.key=value` is needed"),
        ("budget..trials=3", "`table.key=value` is needed"),
        ("name.first=3", "'name' is a value and holds no keys"),
    ],
)
def test_an_override_that_names_no_place_is_refused_in_one_line(written, override, fragment):
    message = refusal(written(SMALL), override)
    assert message.startswith(f"--set {override}: ")
    assert fragment in message
    assert "\n" not in message


# Refusals: added text -> what the one line says

TEXTS = [
    # keys
    ("bugdet = 1", "bugdet: unknown key (did you mean 'budget'?)"),
    ("[sampler]\nkid = 'tpe'", "sampler.kid: unknown key (did you mean 'kind'?)"),
    ("[prune]\nmin_step = 5", "prune.min_step: unknown key (did you mean 'min_steps'?)"),
    ("[resources]\nram = 5", "resources.ram: unknown key (known: cpus, gpus, workers,"),
    (
        "[resources]\nworkers = 2\ngpus = 0.5",
        "resources.gpus: each of workers=2 needs whole GPUs, but got 0.5; write 1",
    ),
    ("[search]\nlr = { low = 1, high = 2, hgih = 3 }", "search.lr.hgih: unknown key (did you mean 'high'?)"),
    ("[search]\nlr = { choices = [1], low = 2 }", "search.lr.low: unknown key (known: choices, when)"),
    ("[search]\nlr = { low = 1 }", "search.lr.high: this key is needed"),
    ("[search.maml]\nlr = { low = 1 }", "search.maml.lr.high: this key is needed"),
    # bounds
    ("[search]\nlr = { low = 0.1, high = 0.001 }", "search.lr: `low < high` must hold, but got low=0.1, high=0.001"),
    ("[search]\nlr = { low = 1, high = 1 }", "search.lr: `low < high` must hold, but got low=1, high=1"),
    ("[search.maml]\nlr = { low = 2, high = 1 }", "search.maml.lr: `low < high` must hold, but got low=2, high=1"),
    (
        "[search]\nlr = { low = 0, high = 1, log = true }",
        "search.lr: `low > 0` must hold on a log scale, but got low=0",
    ),
    (
        "[search]\nlr = { low = -1.5, high = 1, log = true }",
        "search.lr: `low > 0` must hold on a log scale, but got low=-1.5",
    ),
    ("[search]\nlr = { low = 1, high = 8, step = 0 }", "search.lr: `step > 0` without `log` must hold, but got step=0"),
    ("[search]\nlr = { low = 1, high = 8, step = 1, log = true }", "search.lr: `step > 0` without `log` must hold"),
    ("[search]\nlr = { low = 1, high = 10, step = 4 }", "search.lr: `step` must divide `high - low`, but got low=1"),
    ("[search]\nlr = { low = 1, high = 10, step = 40 }", "search.lr: `step` must divide `high - low`, but got low=1"),
    # what cannot be searched, and what to write instead
    (
        "[search]\nlr = { low = 1, high = 8, step = 1, log = true }",
        "search.lr: `step > 0` without `log` must hold, but got step=1, log=true; on a log scale there are no steps: "
        "list the choices, or search whole numbers",
    ),
    (
        "[search]\nlayers = [[64, 64], [128]]",
        "search.layers.choices: each choice is a text, a number, true or false, but got [64, 64]; name it by a text "
        "that a validator of your Config turns into it",
    ),
    (
        "[search]\nlayers = [{ width = 64 }]",
        "search.layers.choices: each choice is a text, a number, true or false, but",
    ),
    (
        "[search.optimizer]\nlr = { low = 0.1, high = 0.2 }",
        "search.optimizer: a table here must name a trainable of the study (maml); a parameter is one field of Config, "
        "not one of a model within it; add a field, such as optimizer_lr",
    ),
    # not finite
    ("[fixed]\nlr = nan", "fixed.lr: text, a finite number, true or false is needed, but got nan"),
    ("[fixed]\nlr = -inf", "fixed.lr: text, a finite number, true or false is needed, but got -inf"),
    ("[fixed]\nlr = [1.0, nan]", "fixed.lr.1: text, a finite number, true or false is needed, but got nan"),
    ("[fixed.maml]\nlr = nan", "fixed.maml.lr: text, a finite number, true or false is needed, but got nan"),
    ("[compare]\nlr = [inf]", "compare.lr.0: text, a finite number, true or false is needed, but got inf"),
    ("[search]\nlr = { low = nan, high = 1.0 }", "search.lr.low: a finite number is needed, but got nan"),
    ("[search]\nlr = { low = 0.0, high = inf }", "search.lr.high: a finite number is needed, but got inf"),
    ("[search]\nlr = [1.0, nan]", "search.lr.choices.1: text, a finite number, true or false is needed, but got nan"),
    ("[resources]\ngpus = inf", "resources.gpus: input should be a finite number, but got inf"),
    ("[resources]\ncpus = nan", "resources.cpus: input should be a finite number, but got nan"),
    ("[resources]\ncheckpoint = inf", "resources.checkpoint: input should be a finite number, but got inf"),
    # types
    ("[fixed]\nlr = 2020-01-01", "fixed.lr: text, a finite number, true or false is needed, but got datetime.date"),
    ("[search]\nlr = 3", "search.lr: a list of choices or a table with `low` and `high` is needed, but got 3"),
    ("[search]\nlr = { hig = 1 }", "search.lr.hig: a list of choices or a table"),
    ("[search]\nlr = { low = 'a', high = 2 }", "search.lr.low: a finite number is needed, but got 'a'"),
    ("[search]\nlr = { low = true, high = 2 }", "search.lr.low: a finite number is needed, but got True"),
    (
        "[search]\nlr = { low = 1, high = 2, log = 'yes' }",
        "search.lr.log: input should be a valid boolean, but got 'yes'",
    ),
    ("[search]\nlr = { low = 1, high = 2, when = 'x' }", "search.lr.when: a table is needed, but got 'x'"),
    ("[search]\nlr = { choices = 3 }", "search.lr.choices: input should be a valid list, but got 3"),
    ("[compare]\nlr = 3", "compare.lr: input should be a valid list, but got 3"),
    ("[[search]]\nlr = 3", "search: a table is needed, but got [{'lr': 3}]"),
    ("[resources]\ncpus = '1'", "resources.cpus: input should be a valid number, but got '1'"),
    ("[resources]\ncpus = true", "resources.cpus: input should be a valid number, but got True"),
    # choices
    ("[search]\nlr = []", "search.lr.choices: list should have at least 1 item"),
    ("[search]\nlr = [1, 2, 1]", "search.lr: the choices must differ, but got [1, 2, 1]"),
    ("[search]\nlr = [0, false]", "search.lr: the choices must differ, but got [0, False]"),
    ("[search]\nlr = { low = 0, high = 9007199254740993, step = 2 }", "search.lr: `step` must divide `high - low`"),
    ("[search]\nlr = { low = -1e308, high = 1e308 }", "search.lr: `high - low` must be a finite number"),
    ("[search]\nlr = { low = 0.0, high = 1.0, step = 5e-324 }", "search.lr: `step` must be far above the rounding"),
    (
        "[search]\nlr = { low = 1e6, high = 1000001.0, step = 0.005 }",
        "search.lr: `step` must be far above the rounding",
    ),
    ("[search]\nlr = { low = 0.0, high = 1.0, step = 0.333333333 }", "search.lr: `step` must divide `high - low`"),
    # what no study has
    ("seed = 9223372036854775808", "seed: `-2**63 < value < 2**63` must hold of whole numbers, but got one of 64 bits"),
    ("seed = 0x" + "f" * 5000, "seed: `-2**63 < value < 2**63` must hold of whole numbers, but got one of 20000 bits"),
    ("seed = " + "9" * 5000, "a study file must be TOML, but Exceeds the limit (4300 digits)"),
    ("[fixed]\nlr = [[[[[[[[1]]]]]]]]", "fixed.lr.0.0.0.0.0.0: at most 8 tables and lists in each other are needed"),
    ("[fixed]\nlr = " + "[" * 5000, "a study file must be TOML, but maximum recursion depth exceeded"),
    (f"{'k' * 101} = 1", "a name has at most 100 characters; shorten it"),
    ("[compare]\nlr = [%s]\nmu = [%s]" % ((", ".join(map(str, range(32))),) * 2), "compare: at most 1000 combinations"),
    (f"[compare]\nlr = ['{'v' * 400}']", 'compare: a cell\'s values have at most 400 characters, but got \'{"lr":"vvv'),
    ("time = '9999999999h'", 'budget.time: a time such as "2h", "90m", "1h30m" or "45s" is needed'),
    (
        "cost = '1 gpu-hour'",
        "budget.cost: expected trials that take a GPU, but resources.gpus is 0, got '1 gpu-hour'; write cpu-hours, or",
    ),
    ('"a\\nb" = 1', "budget.a\\nb: unknown key"),
    ("[compare]\nlr = []", "compare.lr: at least one value, each once, is needed, but got []"),
    ("[compare]\nlr = [1, 1]", "compare.lr: at least one value, each once, is needed, but got [1, 1]"),
    ("[compare]\ntrainable = ['maml']", "trainable: exactly one of `trainable` and `compare.trainable` is needed"),
    # one place for each parameter, and one meaning for each table
    (
        "[fixed]\nlr = 1\n[search]\nlr = [1, 2]",
        "search.lr: a parameter stands in one table only, but it is in [fixed] too",
    ),
    (
        "[fixed.maml]\nlr = 1\n[search]\nlr = [1, 2]",
        "search.lr: a parameter stands in one table only, but it is in [fixed]",
    ),
    (
        "[compare]\nlr = [1]\n[search]\nlr = [1, 2]",
        "search.lr: a parameter stands in one table only, but it is in [compare]",
    ),
    (
        "[fixed]\nlr = 1\n[compare]\nlr = [1, 2]",
        "compare.lr: a parameter stands in one table only, but it is in [fixed] too",
    ),
    (
        "[fixed.maml]\nlr = 1\n[compare]\nlr = [1, 2]",
        "compare.lr: a parameter stands in one table only, but it is in [fixed]",
    ),
    ("[fixed.mann]\nlr = 1", "fixed.mann: a table here must name a trainable of the study (maml)"),
    ("[search.mann]\nlr = [1]", "search.mann: a table here must name a trainable of the study (maml)"),
    (
        "[search]\nlr = { low = 1, high = 2, when = { b = 1 } }\nb = [1, 2]",
        "search.lr.when: 'b' must be fixed, compared or",
    ),
    # doing it again
    ("[repeat]\nsearches = 0", "repeat.searches: input should be greater than or equal to 1, but got 0"),
    ("[repeat]\nsearches = 101", "repeat.searches: input should be less than or equal to 100, but got 101"),
    (
        "[search]\nlr = [1, 2]\n[repeat]\nsearches = 3",
        "repeat: replicates are compared by what confirmation gives, but there is no [confirm]; add one",
    ),
    (
        "[confirm]\n[repeat]\nsearches = 3",
        "repeat.searches: expected 1 where nothing is searched and no split is named, got 3; raise confirm.seeds",
    ),
    (
        f"[confirm]\n[search]\nlr = [1, 2]\n[compare]\nways = {[*range(11)]}\n[repeat]\nsearches = 91",
        "repeat.searches: expected at most 1000 searches in all, got 1001; compare or repeat less",
    ),
    *(
        (f"[confirm]\n[repeat]\nsplit = 'data_seed'\n{table}", f"repeat.split: {problem}")
        for table, problem in [
            (
                "",
                "expected a whole number in [fixed] for 'data_seed' (replicate r takes it + r), got none there",
            ),
            ("[fixed]\ndata_seed = 1.5", "expected a whole number in [fixed] for 'data_seed'"),
            ("[fixed]\ndata_seed = true", "expected a whole number in [fixed] for 'data_seed'"),
            ("[compare]\ndata_seed = [1, 2]", "expected a fixed parameter, got 'data_seed' of [compare]; put it into"),
            ("[search]\ndata_seed = [1, 2]", "expected a fixed parameter, got 'data_seed' of [search]; put it into"),
        ]
    ),
    # what does not go together
    (
        "[sampler]\nkind = 'grid'",
        "sampler.kind: input should be 'tpe', 'gp', 'random', 'qmc' or 'nsga2', but got 'grid'",
    ),
    ("[sampler]\nkind = 'nsga2'", "sampler.kind: nsga2 needs two objectives or more"),
    (
        "[fixed]\nb = 1\n[search]\nlr = { low = 1, high = 2, when = { b = 1 } }\n[sampler]\nkind = 'qmc'",
        "search.lr.when: qmc has no conditional parameters",
    ),
    ("[prune]\nmin_steps = 0", "prune.min_steps: input should be greater than or equal to 1, but got 0"),
    ("[prune]\nreduction = 1", "prune.reduction: input should be greater than or equal to 2, but got 1"),
    ("[confirm]\nseeds = 0", "confirm.seeds: input should be greater than or equal to 1, but got 0"),
    ("[resources]\ngpus = 1.5", "resources.gpus: more than one GPU must be a whole number, but got 1.5"),
    ("[resources]\ncpus = 0", "resources.cpus: input should be greater than or equal to 0.01, but got 0"),
    ("[resources]\ncheckpoint = '2 h'", 'resources.checkpoint: a time such as "2h", "90m", "1h30m" or "45s" is needed'),
    # not TOML
    ("seed = = 1", "a study file must be TOML, but Invalid value (at line 8, column 8)"),
    (
        "[search]\nx = [0.5, null]",
        "a study file must be TOML, but Invalid value (at line 9, column 11); mend that place; TOML has no null, see "
        "Choices in docs/guide/study-file.md",
    ),
    ("trials = 5", "a study file must be TOML, but Cannot overwrite a value"),
]
OVERRIDES = [
    ("name=a/b", "name: string should match pattern"),
    ("name=", "but got ''"),
    ("name=..", "but got '..'"),
    (f"name={'n' * 65}", "name: string should match pattern"),
    ("name=7", "name: input should be a valid string, but got 7"),
    ("seed=-1", "seed: input should be greater than or equal to 0, but got -1"),
    ("seed=1.0", "seed: input should be a valid integer, but got 1.0"),
    ("seed=true", "seed: input should be a valid integer, but got True"),
    ("objective=7", "objective: input should be a valid list, but got 7"),
    ("objective=[]", "objective: list should have at least 1 item"),
    ('objective=["a", "a"]', "objective: the metrics must differ, but got ['a', 'a']"),
    ("budget.trials=0", "budget.trials: input should be greater than or equal to 1, but got 0"),
    ("budget.trials=3.5", "budget.trials: input should be a valid integer, but got 3.5"),
    ("budget.trials=15e-1", "budget.trials: input should be a valid integer, but got 1.5"),
    ("budget.trails=3", "budget.trails: unknown key (did you mean 'trials'?)"),
    ("budget.time=0s", "budget.time: input should be greater than 0, but got '0s'"),
    ("budget.time=inf", "budget.time: input should be a finite number, but got inf"),
    ("budget.time=true", "budget.time: input should be a valid number, but got True"),
    *(
        (f"budget.cost={given}", f'budget.cost: expected hours above 0 of GPU or CPU, such as "20 gpu-hours" or {rest}')
        for given, rest in [
            ("20", '"0.5 cpu-hours", got 20'),
            ("true", '"0.5 cpu-hours", got True'),
            *(
                (given, f"\"0.5 cpu-hours\", got '{given}'")
                for given in ("20h", "0 cpu-hours", "30 cpu-minutes", "-1 cpu-hours", "1e3 cpu-hours", "8 tpu-hours")
            ),
        ]
    ),
    ("budget=5", "budget: a table is needed, but got 5"),
    ("budget={}", "budget.trials: this key is needed"),
    ("sampler=tpe", "sampler: a table is needed, but got 'tpe'"),
    ("search=3", "search: a table is needed, but got 3"),
    ("fixed=[1]", "fixed: a table is needed, but got [1]"),
]


def assert_is_one_line_of(message, path):
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@pytest.mark.parametrize(("text", "fragment"), TEXTS)
def test_a_study_that_cannot_be_meant_is_refused_in_one_line_with_place_and_value(written, text, fragment):
    top = text.startswith(("bugdet", "seed"))
    path = written(text + SMALL if top else SMALL + text)
    message = refusal(path) if "at line" not in fragment else refusal(written(SMALL + text))
    assert_is_one_line_of(message, path)
    assert f": {fragment}" in message


@pytest.mark.parametrize(("override", "fragment"), OVERRIDES)
def test_an_override_that_cannot_be_meant_is_refused_in_one_line_with_place_and_value(written, override, fragment):
    path = written(SMALL)
    message = refusal(path, override)
    assert_is_one_line_of(message, path)
    assert fragment in message


def test_several_objectives_are_not_pruned(written):
    path = written(SMALL + "[prune]\nkind = 'asha'")
    message = refusal(path, 'objective=["val_loss", "val_speed"]')
    assert_is_one_line_of(message, path)
    assert "prune.kind: several objectives cannot be pruned, but got 'asha'" in message


@pytest.mark.parametrize("missing", ["name", "objective", "trainable", "budget"])
def test_what_a_study_cannot_do_without_is_asked_for(missing):
    raw = {key: value for key, value in tomllib.loads(SMALL).items() if key != missing}
    with pytest.raises(SpecError, match=rf"^here: {missing}: .*needed"):
        parse(raw, "here")


def test_compared_trainables_are_named_by_text():
    raw = {**tomllib.loads(SMALL), "compare": {"trainable": ["maml", 1]}}
    del raw["trainable"]
    with pytest.raises(SpecError, match=r"^here: compare\.trainable: names are needed, but got \['maml', 1\]"):
        parse(raw, "here")


def test_further_problems_are_counted_one_a_place(written):
    message = refusal(written(SMALL + "[fixed]\nlr = nan\n[fixed.maml]\nwidth = nan\n[sampler]\nstartup = 0"))
    assert message.endswith("(and 2 more)")


def test_a_single_problem_counts_no_further_ones(written):
    assert "more)" not in refusal(written(SMALL + "[fixed.maml]\nwidth = nan"))


def test_a_long_value_is_cut(written):
    message = refusal(written(SMALL), f"budget.trials={'x' * 1000}")
    assert len(message) < 250 + len(str(written(SMALL)))


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b'name = "\xff"', "it is not UTF-8")]
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    message = refusal(path)
    assert_is_one_line_of(message, path)
    assert reason in message


def test_a_directory_is_no_study(tmp_path):
    message = refusal(tmp_path)
    assert_is_one_line_of(message, tmp_path)
    assert "Is a directory" in message
