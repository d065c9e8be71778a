"""A claim in words, each case as people read it."""

from collections.abc import Mapping
from typing import Any

import pytest

from cs330ray.analysis.claims.look import Look
from cs330ray.analysis.claims.sentence import claim_said
from tests.analysis.looks import DEEP, THIN, WIDE, searched, unsearched

# Of WIDE: mean .912, sd .01304, half 2.776 * .01304 / sqrt(5) = .0162. Its difference to DEEP is .1 with sd .01, half
# at 96 % 2.999 * .01 / sqrt(5) = .0134; to THIN .003 with sd .01304, half .0175.
WHAT = "what a search of 8 trials by tpe over lr and wd chooses there, trained again on 3 fresh seeds, averages"
SCORES = f"{WHAT} test_accuracy 0.912 ±0.016 (95 % for the mean of 5 searches)"
USE, PICKS = f"Use wide: {SCORES}.", f"Validation picks wide: {SCORES}."
BY = "by 0.1 [0.087, 0.11] (96 %)"
NOT_KNOWN = "so whether the cells differ is not known."
MORE = "A claim takes 3 searches of each cell, and 5 are advised: `cs330ray run s.toml --set repeat.searches=5`."
CHOSEN: Mapping[str, Mapping[str, Any]] = {"wide": {"lr": 0.01, "wd": 0.1}, "deep": {"lr": 0.02, "wd": 0.0}}


def said(look: Look, **others: Any) -> str:
    """What a claim says, which is three sentences at most."""
    text = claim_said(look, file="s.toml", **others)
    assert text.count(". ") <= 2
    return text


def other(values: list[float], by: float) -> list[float]:
    return [value + by for value in values]


# What the replicates tell


def test_two_cells_that_are_told_apart() -> None:
    assert said(searched({"wide": WIDE, "deep": DEEP})) == f"{USE} It is better than deep (0.812) {BY}."


def test_a_cell_that_is_told_from_all_others() -> None:
    """The second is nearest; Tukey's half is wider than the pair's own."""
    cells = {"wide": WIDE, "deep": DEEP, "flat": other(DEEP[::-1], -0.1)}
    text = said(searched(cells))
    assert text.startswith(
        f"{USE} It is better than both others, deep (0.812) and flat (0.712); the closest is behind by 0.1 ["
    )
    assert text.endswith("] (96 % jointly).")
    text = said(searched(cells | {"low": other(DEEP, -0.2)}))
    assert text.startswith(f"{USE} It is better than all 3 others; the closest, deep (0.812), is behind by 0.1 [")


def test_a_cell_that_is_told_from_some_is_not_said_to_be_the_one_to_use() -> None:
    look = searched({"wide": WIDE, "deep": DEEP, "thin": THIN})
    assert said(look) == (
        f"{PICKS} It is better than deep (0.812), but not told apart from thin (0.909): its lead on test is 0.003 "
        "[-0.014, 0.02] (96 % jointly)."
    )


def test_a_cell_that_is_told_from_none_is_not_said_to_be_the_one_to_use() -> None:
    assert said(searched({"wide": WIDE, "thin": THIN})) == (
        f"{PICKS} It is not told apart from thin (0.909): its lead on test is 0.003 [-0.014, 0.02] (96 %)."
    )
    three = {"wide": WIDE, "thin": THIN, "b": other(THIN[::-1], -0.01)}
    assert said(searched(three)).startswith(
        f"{PICKS} It is not told apart from thin (0.909) or b (0.899): its lead on test over the best of them is "
        "0.003 ["
    )
    four = three | {"c": other(WIDE[::-1], -0.02)}
    assert said(searched(four)).startswith(
        f"{PICKS} It is not told apart from any of the 3 others: its lead on test over the best of them, thin (0.909), "
        "is 0.003 ["
    )


def test_many_cells_are_not_all_named() -> None:
    cells = {"wide": WIDE, "thin": THIN} | {f"deep{place}": other(DEEP, -0.01 * place) for place in range(5)}
    few = "deep0 (0.812), deep1 (0.802), deep2 (0.792) and 2 more"
    assert f"It is better than {few}, but not told apart from thin (0.909): its" in said(searched(cells))


def test_a_later_look_is_said_to_be_stricter() -> None:
    """At 99.5 % the half is 5.598 * .01 / sqrt(5) = .025."""
    look = searched({"wide": WIDE, "deep": DEEP}, number=2)
    assert said(look).endswith("than deep (0.812) by 0.1 [0.075, 0.13] (99.5 %, stricter as this is look 2).")


def test_a_metric_to_be_small_reads_the_same() -> None:
    look = searched({"wide": WIDE, "deep": DEEP}, goal="min", metric="val_mse", tested="test_mse")
    assert said(look) == (
        f"Use deep: {WHAT} test_mse 0.812 ±0.01 (95 % for the mean of 5 searches). It is better than wide (0.912) {BY}."
    )


def test_of_several_searches_the_best_choice_is_named_as_an_example() -> None:
    """It is of the cell to use, and stands behind the average: this is not its own score."""
    look = searched({"wide": WIDE, "deep": DEEP})
    assert said(look, chosen=CHOSEN) == (
        f"Use wide: {SCORES}; the best choice on validation so far is lr=0.01 wd=0.1. It is better than deep (0.812) "
        f"{BY}."
    )
    assert "; the choice on the first split is lr=0.01 wd=0.1. It is" in said(
        searched({"wide": WIDE, "deep": DEEP}, split="data_seed"), chosen=CHOSEN
    )


# Where test and validation disagree, and where there is no test


def test_where_test_tells_another_cell_above_the_reader_is_warned_not_to_switch() -> None:
    look = searched({"wide": WIDE, "deep": DEEP}, test={"wide": DEEP, "deep": WIDE})
    assert said(look) == (
        f"Validation picks wide: {WHAT} test_accuracy 0.812 ±0.01 (95 % for the mean of 5 searches). On test deep "
        f"(0.912) beats it {BY}, but to switch now would be to choose on test."
    )


def test_the_others_are_said_too_where_test_tells_some_above() -> None:
    test = {"wide": THIN, "deep": DEEP, "thin": WIDE, "best": other(WIDE[::-1], 0.1), "top": other(THIN[::-1], 0.2)}
    text = said(searched({"wide": WIDE} | dict.fromkeys(("deep", "thin", "best", "top"), DEEP), test=test))
    assert text.startswith("Validation picks wide: ")
    assert "On test top (1.109) and best (1.012) beat it, the first by 0.2 [" in text
    assert text.endswith(
        "(96 % jointly), but to switch now would be to choose on test; wide is better than deep (0.812) and not told "
        "apart from thin (0.912)."
    )


def test_a_lead_on_test_that_chance_can_explain_is_negative() -> None:
    look = searched({"wide": WIDE, "deep": DEEP}, test={"wide": THIN, "deep": WIDE})
    assert said(look).endswith(
        "It is not told apart from deep (0.912): its lead on test is -0.003 [-0.02, 0.014] (96 %)."
    )


def test_without_a_test_validation_is_said_to_have_chosen_too() -> None:
    where = "val_accuracy 0.912 ±0.016 (95 % for the mean of 5 searches) on validation, which also chose it"
    assert said(searched({"wide": WIDE, "deep": DEEP}, tested=None, test={})) == (
        f"Use wide: {WHAT} {where}. It is better than deep (0.812) {BY}."
    )
    assert said(searched({"wide": WIDE, "thin": THIN}, tested=None, test={})).endswith(
        f"{where}. It is not told apart from thin (0.909): its lead is 0.003 [-0.014, 0.02] (96 %)."
    )


# Too little to claim anything


def test_of_one_search_each_configurations_are_named_and_nothing_is_said_of_cells() -> None:
    look = searched({"wide": WIDE[:1], "deep": DEEP[:1], "thin": THIN[:1]}, searches=1)
    assert said(look, chosen=CHOSEN) == (
        f"One search each, {NOT_KNOWN} Validation picks wide: its search of 8 trials by tpe over lr and wd chose "
        "lr=0.01 wd=0.1, with which 3 fresh seeds average test_accuracy 0.9 (0.89 for thin and 0.8 for deep with "
        f"lr=0.02 wd=0). {MORE}"
    )


def test_one_search_without_a_test_says_so() -> None:
    look = searched({"wide": WIDE[:1], "deep": DEEP[:1]}, searches=1, seeds=1, tested=None, test={})
    assert said(look) == (
        f"One search each, {NOT_KNOWN} Validation picks wide: its search of 8 trials by tpe over lr and wd chose a "
        "configuration, with which 1 fresh seed scores val_accuracy 0.9 (0.8 for deep) on validation, which also chose "
        f"it. {MORE}"
    )


def test_two_searches_claim_nothing_of_cells() -> None:
    """The mean of .9 and .91 has the half 12.71 * .00707 / sqrt(2) = .064."""
    look = searched({"wide": WIDE[:2], "deep": DEEP[:2]}, searches=2)
    assert said(look) == (
        f"Two searches each, {NOT_KNOWN} Validation picks wide: {WHAT} test_accuracy 0.905 ±0.064 (95 % for the mean "
        f"of 2 searches; 0.81 for deep). {MORE}"
    )


def test_searches_that_were_asked_for_and_are_to_come_need_no_more_than_a_run() -> None:
    look = searched({"wide": WIDE[:2], "deep": DEEP[:2]})
    text = said(look)
    assert text.startswith(f"Two searches each so far, {NOT_KNOWN} Validation picks wide: ")
    assert text.endswith(" `cs330ray run s.toml` completes the 5 searches of each cell that were asked for.")


def test_before_the_first_look_nothing_is_said_of_the_cells() -> None:
    cells = {"wide": WIDE, "deep": DEEP}
    assert said(searched(cells, number=0, searches=8)) == (
        f"5 of 8 searches of each cell are done, so whether the cells differ is not known yet. {PICKS[:-2]}; 0.812 for "
        "deep). `cs330ray run s.toml` completes the 8 searches of each cell that were asked for."
    )


def test_eight_cells_are_advised_eight_searches() -> None:
    look = searched({f"c{place}": WIDE[:1] for place in range(8)}, searches=1)
    assert said(look).endswith("and 8 are advised: `cs330ray run s.toml --set repeat.searches=8`.")


def test_one_trial_a_search_claims_nothing_of_cells() -> None:
    text = said(searched({"wide": WIDE, "deep": DEEP}, trials=1))
    assert text.startswith(f"Searches of 1 trial each, {NOT_KNOWN} Validation picks wide: ")
    assert text.endswith(
        " A claim takes 2 trials a search, and 8 are advised: `cs330ray run s.toml --set budget.trials=8`."
    )


def test_two_searches_of_one_trial_lack_both() -> None:
    text = said(searched({"wide": WIDE[:2], "deep": DEEP[:2]}, trials=1, searches=2))
    assert text.startswith(f"Two searches of 1 trial each, {NOT_KNOWN} ")
    assert text.endswith(
        " A claim takes 3 searches of each cell and 2 trials a search, and 5 and 8 are advised: "
        "`cs330ray run s.toml --set repeat.searches=5 --set budget.trials=8`."
    )


@pytest.mark.parametrize(
    ("units", "count", "scores"),
    [
        (1, "One fresh seed", "1 fresh seed scores test_accuracy 0.9 (0.8 for deep)."),
        (2, "Two fresh seeds", "fresh seeds average test_accuracy 0.905 ±0.064 (95 % for the mean of 2 fresh seeds; "),
    ],
)
def test_too_few_seeds_claim_nothing_of_cells(units: int, count: str, scores: str) -> None:
    text = said(unsearched({"wide": WIDE[:units], "deep": DEEP[:units]}, seeds=units))
    assert text.startswith(
        f"{count} each, {NOT_KNOWN} Validation picks wide: at lr=0.001, which nobody tuned, {scores}"
    )
    assert text.endswith(
        " A claim takes 3 fresh seeds of each cell, and 5 are advised: `cs330ray run s.toml --set confirm.seeds=5`."
    )


# Where nothing is searched


def test_both_sentences_say_that_nobody_tuned_the_values_at_which_seeds_hold() -> None:
    assert said(unsearched({"wide": WIDE, "deep": DEEP}, held={"lr": 0.001, "norm": "batch"})) == (
        "Validation picks wide: at lr=0.001 and norm=batch, which nobody tuned, fresh seeds average test_accuracy "
        f"0.912 ±0.016 (95 % for the mean of 5 fresh seeds). At these values it is better than deep (0.812) {BY}."
    )


def test_untuned_cells_that_test_tells_above_or_that_are_not_told_hold_at_these_values_too() -> None:
    above = unsearched({"wide": WIDE, "deep": DEEP}, test={"wide": DEEP, "deep": WIDE})
    assert " At these values on test deep (0.912) beats it by" in said(above)
    assert " At these values it is not told apart from thin" in said(unsearched({"wide": WIDE, "thin": THIN}))


def test_of_many_values_that_nobody_tuned_the_first_are_named() -> None:
    held = {"lr": 0.001, "norm": "batch", "ways": 5, "shots": 1, "filters": 32}
    assert "at lr=0.001, norm=batch, ways=5 and 2 more, which nobody tuned, fresh seeds" in said(
        unsearched({"wide": WIDE, "deep": DEEP}, held=held)
    )


def test_where_there_is_nothing_to_tune_the_cell_that_is_told_is_to_be_used() -> None:
    assert said(unsearched({"wide": WIDE, "deep": DEEP}, held={})).startswith("Use wide: fresh seeds average ")


def test_splits_overlap() -> None:
    """Each split has a seed of its own, so it is no value at which the answer holds."""
    look = unsearched(
        {"wide": WIDE, "deep": DEEP}, unit="split", searches=5, seeds=3, split="data_seed", held={"data_seed": 0}
    )
    assert said(look) == (
        "Use wide: 3 fresh seeds on each split of the data average test_accuracy 0.912 ±0.016 (95 % for the mean of 5 "
        f"splits). It is better than deep (0.812) {BY}. Random splits of one data set overlap, so that new data would "
        "scatter more than the intervals say."
    )


def test_one_split_claims_nothing_of_cells() -> None:
    look = unsearched({"wide": WIDE[:1], "deep": DEEP[:1]}, unit="split", seeds=1, split="data_seed", held={})
    assert said(look) == (
        f"One split each, {NOT_KNOWN} Validation picks wide: 1 fresh seed on one split of the data scores "
        f"test_accuracy 0.9 (0.8 for deep). {MORE.replace('searches of', 'splits of')}"
    )


def test_splits_of_searches_overlap_too() -> None:
    assert said(searched({"wide": WIDE, "deep": DEEP}, split="data_seed")).endswith(
        "(96 %). Random splits of one data set overlap, so that new data would scatter more than the intervals say."
    )


# Values without scatter


def test_cells_that_are_equal_in_every_search() -> None:
    assert said(searched({"wide": WIDE, "deep": WIDE})) == (
        f"{PICKS} It is not told apart from deep (0.912): its lead on test is 0 in each of the 5 searches, so that "
        "chance cannot be judged."
    )


def test_a_difference_that_is_the_same_in_every_search() -> None:
    assert said(searched({"wide": WIDE, "deep": other(WIDE, -0.02)})) == (
        f"{PICKS} It is not told apart from deep (0.892): its lead on test is 0.02 in each of the 5 searches, so that "
        "chance cannot be judged."
    )


def test_cells_that_are_equal_on_average() -> None:
    """Apart by -.1, 0, .3 and -.2, whose sum is not zero by rounding: sd .216, half 3.482 * .216 / 2 = .376."""
    look = searched({"wide": [0.1, 0.7, 0.4, 0.2], "deep": [0.2, 0.7, 0.1, 0.4]})
    assert sum(a - b for a, b in zip(*look.values.values(), strict=True)) > 0
    assert said(look).endswith("It is not told apart from deep (0.35): its lead on test is 0 [-0.38, 0.38] (96 %).")


# One cell, and none


def test_of_a_single_cell_nothing_is_said_of_others() -> None:
    assert said(searched({"all": WIDE}), chosen={"all": {"lr": 0.01}}) == (
        "What a search of 8 trials by tpe over lr and wd chooses, trained again on 3 fresh seeds, averages "
        "test_accuracy 0.912 ±0.016 (95 % for the mean of 5 searches); the best choice on validation so far is lr=0.01."
    )
    assert said(searched({"all": WIDE[:1]}, searches=1), chosen={"all": {"lr": 0.01}}) == (
        "The search of 8 trials by tpe over lr and wd chose lr=0.01, with which 3 fresh seeds average test_accuracy "
        "0.9."
    )
    assert said(unsearched({"all": WIDE[:1]}, seeds=1)) == (
        "At lr=0.001, which nobody tuned, 1 fresh seed scores test_accuracy 0.9."
    )


def test_a_cell_that_alone_is_complete() -> None:
    assert said(searched({"wide": WIDE}, left_out={"deep": "2 of 5 searches found nothing"})) == (
        f"Only wide is complete: {SCORES}. Not compared: deep (2 of 5 searches found nothing)."
    )


def test_no_cell_that_can_be_compared() -> None:
    left_out = {"deep": "2 of 5 searches found nothing", "thin": "no test score"}
    assert said(searched({}, test={}, left_out=left_out)) == (
        "No cell can be compared: deep (2 of 5 searches found nothing) and thin (no test score)."
    )
    assert said(searched({}, test={}, left_out={"all": "every trial failed"})) == (
        "There is no result: every trial failed."
    )


# What to bear in mind


def test_what_was_left_out_has_no_verdict_or_came_since_is_one_sentence() -> None:
    look = searched(
        {"wide": WIDE, "deep": DEEP},
        left_out={"thin": "2 of 5 searches found nothing"},
        objectives={"test_mse": {"wide": DEEP, "deep": WIDE}},
    )
    assert said(look, since=3) == (
        f"{PICKS} It is better than deep (0.812) {BY}. Not compared: thin (2 of 5 searches found nothing); nothing is "
        "claimed by test_mse; not counted yet: 3 newer searches of each cell (`cs330ray run s.toml` counts them, as "
        "look 2)."
    )


def test_of_a_newer_unit_the_next_look_counts_it() -> None:
    assert said(searched({"wide": WIDE, "deep": DEEP}, number=2), since=1).endswith(
        " Not counted yet: 1 newer search of each cell (`cs330ray run s.toml` counts it, as look 3)."
    )


def test_rivals_that_are_left_out_are_none_of_the_others_that_it_beats() -> None:
    cells = {"wide": WIDE, "deep": DEEP, "flat": other(DEEP[::-1], -0.1)}
    assert "It is better than both others compared, deep" in said(searched(cells, left_out={"thin": "no test score"}))


def test_a_file_with_a_space_is_quoted() -> None:
    look = searched({"wide": WIDE[:1], "deep": DEEP[:1]}, searches=1)
    assert claim_said(look, file="my study.toml").endswith("`cs330ray run 'my study.toml' --set repeat.searches=5`.")


def test_a_sampler_that_is_not_known_is_not_named() -> None:
    assert "a search of 8 trials over lr and wd chooses" in said(searched({"wide": WIDE, "deep": DEEP}, sampler=None))
