"""What was recorded beside what is now: equal to the bit, the first difference, the verdict's words."""

import math
from dataclasses import replace
from typing import cast

import pytest

from cs330ray.analysis.statistics import Interval
from cs330ray.ledger.confirm import Confirmed, Run
from cs330ray.ledger.records import Row, Trial
from cs330ray.ledger.writer import Writer
from cs330ray.reproduce import verdict as reproduction
from cs330ray.reproduce.verdict import EQUAL, NOT, WITHIN, Again, Pair, table, verdict
from tests.studies_of_tests import toy

STUDY = toy()
TENTH = 0.1
NEXT = math.nextafter(TENTH, 1.0)


def trial(state: str = "COMPLETE", reason: str = "") -> Trial:
    cause = None if state == "COMPLETE" else "raised"
    return Trial(STUDY.cells[0], 3, state, {}, 0, None, reason, cause, "", 0.0, 1.0, steps=20)


def rows(*values: float, start: int = 5) -> list[Row]:
    return [Row(start + 5 * index, {"val_loss": value}, 0.0) for index, value in enumerate(values)]


def judged(again: Again, low: float | None = None, high: float = math.inf) -> tuple[str, str]:
    return verdict(STUDY, again, {} if low is None else {"val_loss": Interval(0.0, low, high, 5)})


@pytest.mark.parametrize(
    ("recorded", "now", "equal"),
    [
        (TENTH, TENTH, True), (TENTH, NEXT, False), (0.0, -0.0, False), (math.nan, math.nan, True),
        (math.nan, TENTH, False), (TENTH, None, False), (None, TENTH, False), (math.inf, math.inf, True),
    ],
)  # fmt: skip
def test_a_pair_is_equal_to_the_bit(recorded: float | None, now: float | None, equal: bool) -> None:
    assert Pair(5, "val_loss", recorded, now).equal is equal


def test_one_bit_in_one_row_is_not_equal() -> None:
    assert judged(Again(trial(), rows(1.0, TENTH), rows(1.0, TENTH)))[0] == EQUAL
    word, why = judged(Again(trial(), rows(1.0, TENTH), rows(1.0, NEXT)))
    assert word == NOT
    assert why.startswith("val_loss at step 10 was 0.1 and is 0.10000000000000002; there is no seed interval")


def test_the_end_alone_is_held_against_the_interval_and_its_ends_belong_to_it() -> None:
    again = Again(trial(), rows(1.0, 0.5), rows(9.0, 0.7))
    assert judged(again, 0.7, 0.8)[0] == WITHIN
    assert judged(again, 0.4, 0.7)[0] == WITHIN
    assert judged(again, 0.4, 0.6)[0] == NOT


def test_rows_that_are_missing_or_too_many_are_not_equal() -> None:
    assert judged(Again(trial(), rows(1.0, 0.5), rows(1.0)))[1].startswith("val_loss at step 10 was 0.5 and is none")
    assert judged(Again(trial(), rows(1.0), rows(1.0, 0.5)))[1].startswith("val_loss at step 10 was none and is 0.5")
    assert judged(Again(trial(), [*rows(1.0), Row(10, {}, 0.0)], rows(1.0))) == (
        NOT,
        "the rows ended at step 10 and end at step 5; there is no seed interval to hold it against: that needs the "
        "configuration COMPLETE on 2 fresh seeds beside its own (see [confirm])",
    )


@pytest.mark.parametrize("state", ["PRUNED", "FAIL"])
def test_a_trial_that_was_not_complete_is_equal_or_not_whatever_the_interval(state: str) -> None:
    again = Again(trial(state), rows(1.0), rows(2.0))
    assert judged(again, 0.0) == (NOT, "val_loss at step 5 was 1.0 and is 2.0")


def test_a_trial_must_end_by_the_same_words() -> None:
    failed = trial("FAIL", "raised: RuntimeError: one")
    assert judged(Again(failed, rows(1.0), rows(1.0), "raised: RuntimeError: one", must_raise=True))[0] == EQUAL
    assert judged(Again(failed, rows(1.0), rows(1.0), "raised: RuntimeError: two", must_raise=True)) == (
        NOT,
        "it ended by 'raised: RuntimeError: two' after step 5, before by 'raised: RuntimeError: one'",
    )
    assert judged(Again(trial("PRUNED", "asha"), rows(1.0), rows(1.0), "raised: KeyError: 1")) == (
        NOT,
        "it ended by 'raised: KeyError: 1' after step 5, before by 'PRUNED'",
    )


def test_metrics_without_an_interval_are_named_apart_from_those_outside() -> None:
    again = Again(trial(), rows(1.0), rows(0.9), test={"test_loss": (0.5, 0.6)})
    word, why = judged(again, 0.0, 1.0)
    assert word == NOT
    assert why.endswith(
        "there is no seed interval to hold test_loss against: that needs it of 2 fresh seeds beside its own"
    )


def test_of_what_test_showed_only_the_objectives_are_judged_by_an_interval() -> None:
    again = Again(trial(), rows(1.0), rows(0.9), test={"test_extra": (0.5, 0.6)})
    assert judged(again, 0.0, 1.0)[0] == WITHIN
    assert ["test_extra", "1", "0", "20", "0.5", "0.6"] in table(again).rows


def test_a_seed_counts_once_though_the_configuration_was_confirmed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trial 4 became a candidate with the parameters of trial 3, which had been one before."""

    def confirmed(number: int) -> Confirmed:
        runs = [
            Run(replace(trial(), number=number, seed=seed, values=(value,)), {}) for seed, value in ((7, 1.0), (8, 3.0))
        ]
        return Confirmed(replace(trial(), number=number), runs, 2)

    found = {STUDY.cells[0].key: [confirmed(4), confirmed(3)]}
    monkeypatch.setattr(reproduction.confirm, "confirmed", lambda *_: found)
    interval = reproduction.intervals(cast("Writer", None), STUDY, Again(trial(), rows(1.0), rows(2.0)))["val_loss"]
    half = 12.706205 * 2**0.5 * 1.5**0.5  # Student's t, one degree of freedom
    assert interval.n == 2
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half))


def test_the_table_counts_rows_by_metric_and_names_the_first_that_differs() -> None:
    recorded = [Row(5, {"val_loss": 1.0, "extra": 2.0}, 0.0), Row(10, {"val_loss": 0.5}, 0.0)]
    now = [Row(5, {"val_loss": 1.0, "extra": 2.5}, 0.0), Row(10, {"val_loss": 0.5}, 0.0)]
    assert table(Again(trial(), recorded, now)).rows == [
        ["val_loss", "2", "2", "", "", ""],
        ["extra", "1", "0", "5", "2.0", "2.5"],
    ]


def test_what_test_showed_is_compared_behind_the_rows() -> None:
    again = Again(trial(), rows(1.0), rows(1.0), test={"test_loss": (0.5, 0.6)})
    assert judged(again)[1].startswith("test_loss at step 20 was 0.5 and is 0.6")
