import tomllib

import pytest

from cs330ray.errors import SpecError
from cs330ray.spec.growth import as_recorded, difference, growth, kept
from cs330ray.spec.reading import parse

STUDY = """
name = "growing"
trainable = "maml"
objective = ["val_accuracy"]
[fixed]
ways = 5
[compare]
shots = [1, 5]
[search]
inner_lr = { low = 1e-3, high = 1.0, log = true }
body = [1, 2]
[budget]
trials = 16
steps = 2000
time = "2h"
cost = "8 cpu-hours"
[resources]
cpus = 1
[confirm]
top = 3
seeds = 5
"""


def parsed(text):
    return parse(tomllib.loads(text), "study.toml")


def changed(old, new):
    assert STUDY.count(old) == 1
    return parsed(STUDY.replace(old, new))


DIGEST_BEFORE = "0a2d095c10f308ecb3615c93dcdb84b957e5dff8d4fadecda6bec4203f47bc69"  # as versions without a cost had it


SAMPLER = "[budget]\ntrials = 16"


def sampled(table):
    """The study with a table of the sampler, or without one."""
    return changed(SAMPLER, f"[sampler]\n{table}\n{SAMPLER}") if table else parsed(STUDY)


@pytest.mark.parametrize("kind", ["gp", "random", "nsga2", "tpe"])
def test_a_file_that_names_no_sampler_goes_on_with_the_recorded_one(kind):
    """So that a default that becomes another changes no study that has begun."""
    objectives = ', "val_loss"' if kind == "nsga2" else ""
    began = parse(tomllib.loads(STUDY.replace('"val_accuracy"', f'"val_accuracy"{objectives}')) | {
        "sampler": {"kind": kind, "startup": 7}
    }, "study.toml")  # fmt: skip
    file = parse(tomllib.loads(STUDY.replace('"val_accuracy"', f'"val_accuracy"{objectives}')), "study.toml")
    completed = as_recorded(began, file)
    assert (completed.digest, completed) == (began.digest, began)
    said = [] if kind == "gp" else [f"growing: sampler.kind is {kind}, as the study began; its file does not say"]
    assert kept(file, completed) == [*said, "growing: sampler.startup is 7, as the study began; its file does not say"]
    assert growth(began, completed) == []


def test_what_a_file_says_of_its_sampler_is_taken_at_its_word():
    began, file = sampled('kind = "gp"\nstartup = 7'), sampled('kind = "tpe"')
    completed = as_recorded(began, file)
    assert (completed.sampler.kind, completed.sampler.startup) == ("tpe", 7)
    with pytest.raises(SpecError, match=r'sampler\.kind: "gp" -> "tpe"'):
        growth(began, completed)


def test_the_recorded_sampler_must_fit_what_the_file_asks_now():
    with pytest.raises(SpecError, match=r"^growing: sampler\.kind: expected at most 250 trials with gp"):
        as_recorded(sampled('kind = "gp"'), changed("trials = 16", "trials = 300"))


def test_a_study_that_began_with_the_default_of_before_grows_as_it_began():
    file, grown = parsed(STUDY), changed("trials = 16", "trials = 300")
    assert (file.sampler.kind, grown.sampler.kind) == ("gp", "tpe")
    completed = as_recorded(sampled('kind = "tpe"'), grown)
    assert growth(sampled('kind = "tpe"'), completed) == ["budget.trials: 16 -> 300"]


def test_a_study_does_not_differ_from_itself():
    assert difference(parsed(STUDY), parsed(STUDY)) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ways = 5", "ways = 20", ["fixed.ways: 5 -> 20"]),
        ("ways = 5", "ways = 5.0", ["fixed.ways: 5 -> 5.0"]),
        ("ways = 5", "ways = 5\nqueries = 3", ["fixed.queries: absent -> 3"]),
        ("[fixed]\nways = 5\n", "", ["fixed.ways: 5 -> absent"]),
        ("high = 1.0", "high = 2.0", ["search.inner_lr.high: 1.0 -> 2.0"]),
        ("body = [1, 2]", "body = [1, 2.0]", ["search.body.choices: [1, 2] -> [1, 2.0]"]),
        ("body = [1, 2]", "body = [true, 2]", ["search.body.choices: [1, 2] -> [true, 2]"]),
        ("[confirm]\ntop = 3\nseeds = 5\n", "", ["confirm.top: 3 -> absent", "confirm.seeds: 5 -> absent"]),
        ("[budget]\ntrials = 16", "[budget]\ntrials = 32", ["budget.trials: 16 -> 32"]),
    ],
)
def test_a_difference_is_said_place_by_place(old, new, words):
    assert difference(parsed(STUDY), changed(old, new)) == words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("trials = 16", "trials = 32", ["budget.trials: 16 -> 32"]),
        ('time = "2h"', 'time = "3h"', ["budget.time: 7200.0 -> 10800.0"]),
        ('time = "2h"', 'time = "1h"', ["budget.time: 7200.0 -> 3600.0"]),
        ('time = "2h"', "", ["budget.time: 7200.0 -> absent"]),
        ('cost = "8 cpu-hours"', 'cost = "9 cpu-hours"', ['budget.cost: "8 cpu-hours" -> "9 cpu-hours"']),
        ('cost = "8 cpu-hours"', 'cost = "7 cpu-hours"', ['budget.cost: "8 cpu-hours" -> "7 cpu-hours"']),
        ('cost = "8 cpu-hours"', 'cost = "8.0 cpu-hours"', []),
        ('cost = "8 cpu-hours"', "", ['budget.cost: "8 cpu-hours" -> absent']),
        ("top = 3", "top = 4", ["confirm.top: 3 -> 4"]),
        ("seeds = 5", "seeds = 6", ["confirm.seeds: 5 -> 6"]),
        ("shots = [1, 5]", "shots = [1, 5, 10]", ["compare.shots: [1, 5] -> [1, 5, 10]"]),
        ("shots = [1, 5]", "shots = [10, 5, 1]", ["compare.shots: [1, 5] -> [10, 5, 1]"]),
    ],
)
def test_what_may_grow_grows(old, new, words):
    assert growth(parsed(STUDY), changed(old, new)) == words


def test_a_confirmation_may_be_added_later():
    old, new = changed("[confirm]\ntop = 3\nseeds = 5\n", ""), parsed(STUDY)
    assert growth(old, new) == ["confirm.top: absent -> 3", "confirm.seeds: absent -> 5"]


def test_resources_change_freely_and_are_no_growth():
    assert growth(parsed(STUDY), changed("cpus = 1", "cpus = 4\ngpus = 1")) == []
    assert growth(changed("cpus = 1", "cpus = 4\ngpus = 1"), parsed(STUDY)) == []


def test_compared_parameters_may_change_places_and_grow():
    old = changed("shots = [1, 5]", "shots = [1, 5]\nfilters = [16]")
    new = changed("shots = [1, 5]", "filters = [16, 32]\nshots = [1, 5]")
    assert growth(old, new) == ["compare.filters: [16] -> [16, 32]"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('trainable = "maml"', 'trainable = "protonet"', 'trainable: "maml" -> "protonet"'),
        ('["val_accuracy"]', '["val_loss"]', 'objective: ["val_accuracy"] -> ["val_loss"]'),
        ("ways = 5", "ways = 20", "fixed.ways: 5 -> 20"),
        ("high = 1.0", "high = 2.0", "search.inner_lr.high: 1.0 -> 2.0"),
        ("body = [1, 2]", "body = [1, 2.0]", "search.body.choices: [1, 2] -> [1, 2.0]"),
        ("[search]", "[sampler]\nstartup = 9\n[search]", "sampler.startup: 4 -> 9"),
        ("[search]", "[prune]\nkind = 'asha'\n[search]", 'prune.kind: "none" -> "asha"'),
        ("trials = 16", "trials = 8", "budget.trials: 16 -> 8"),
        ("steps = 2000", "steps = 1000", "budget.steps: 2000 -> 1000"),
        ("top = 3", "top = 2", "confirm.top: 3 -> 2"),
        ("[confirm]\ntop = 3\nseeds = 5\n", "", "confirm.top: 3 -> absent"),
        ("shots = [1, 5]", "shots = [1]", "compare.shots: [1, 5] -> [1]"),
        ("shots = [1, 5]", "shots = [1.0, 5, 10]", "compare.shots: [1, 5] -> [1.0, 5, 10]"),
        ("shots = [1, 5]", "shots = [1, 5]\nfilters = [16]", "compare.filters: absent -> [16]"),
        ("[compare]\nshots = [1, 5]\n", "", "compare.shots: [1, 5] -> absent"),
    ],
)
def test_any_other_change_is_refused_in_one_line_with_the_difference_and_the_ways_out(old, new, words):
    with pytest.raises(SpecError) as caught:
        growth(parsed(STUDY), changed(old, new))
    message = str(caught.value)
    assert message.startswith("growing: ")
    assert words in message
    assert "absent -> absent" not in message
    assert "--fork" in message
    assert "cs330ray delete growing" in message
    assert "\n" not in message


def test_a_comparison_added_to_a_study_without_one_is_said_once():
    old = changed("[compare]\nshots = [1, 5]\n", "")
    assert difference(old, parsed(STUDY)) == ["compare.shots: absent -> [1, 5]"]


def test_a_time_limit_may_be_added_later():
    assert growth(changed('time = "2h"', ""), parsed(STUDY)) == ["budget.time: absent -> 7200.0"]


def test_a_cost_may_be_added_later_and_leaves_the_digest_as_it_was():
    after = STUDY + '[sampler]\nkind = "tpe"\n'
    before = parsed(after.replace('cost = "8 cpu-hours"', ""))
    assert growth(before, parsed(after)) == ['budget.cost: absent -> "8 cpu-hours"']
    assert before.digest == parsed(after).digest == DIGEST_BEFORE


def test_trials_may_become_fewer_down_to_those_that_have_begun():
    fewer = changed("trials = 16", "trials = 8")
    assert growth(parsed(STUDY), fewer, begun=8) == ["budget.trials: 16 -> 8"]
    with pytest.raises(SpecError, match=r"budget\.trials: expected at least 9, since .*, got 8; write 9"):
        growth(parsed(STUDY), fewer, begun=9)


def repeated(searches, split=None):
    """The study with so many searches, of splits of their own where `split` names the field."""
    named = f'\nsplit = "{split}"' if split else ""
    return changed("seeds = 5\n", f"seeds = 5\n[repeat]\nsearches = {searches}{named}\n")


def test_searches_may_be_added_and_grow_and_never_fall():
    assert growth(parsed(STUDY), repeated(3)) == ["repeat.searches: 1 -> 3"]
    assert growth(repeated(3), repeated(5)) == ["repeat.searches: 3 -> 5"]
    with pytest.raises(SpecError, match=r"a study of this name exists and differs: repeat.searches: 5 -> 3\. Only"):
        growth(repeated(5), repeated(3))


def test_the_split_is_identity_and_searches_are_not():
    assert parsed(STUDY).digest == repeated(3).digest
    assert repeated(3).digest != repeated(3, "ways").digest
    with pytest.raises(SpecError, match=r'repeat.split: absent -> "ways"'):
        growth(repeated(3), repeated(3, "ways"))


def test_steps_may_grow():
    assert growth(parsed(STUDY), changed("steps = 2000", "steps = 4000")) == ["budget.steps: 2000 -> 4000"]


def test_the_share_of_failures_that_stops_a_study_may_change_either_way():
    for share in ("0.1", "1.0"):
        changes = growth(parsed(STUDY), changed("steps = 2000", f"steps = 2000\nfail_share = {share}"))
        assert changes == [f"budget.fail_share: 0.5 -> {share}"]
