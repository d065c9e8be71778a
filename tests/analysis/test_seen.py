"""Looks at a study that the ledger holds: which is due, which is repeated, and that growing spends the next."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cs330ray.analysis import replicates
from cs330ray.analysis.claims import seen
from cs330ray.errors import LedgerError
from cs330ray.ledger.tables import LOOKS
from cs330ray.ledger.writer import Writer
from cs330ray.report.open_study import opened
from cs330ray.spec.study import Study
from tests import filled
from tests.analysis.test_replicates import study

FIRST = {1.0: [0.50, 0.52, 0.51, 0.53, 0.52], 2.0: [0.80, 0.81, 0.83, 0.82, 0.80]}


def filled_study(ledger: Writer, searches: int, whole: int | None = None) -> Study:
    """A study of two trials a search, of which the first `whole` replicates are searched and confirmed."""
    asked = study(searches, budget={"trials": 2, "steps": 20})
    filled.opened(ledger, asked)
    for cell in asked.cells:
        if cell.replicate < (searches if whole is None else whole) and not ledger.trials(asked, cell):
            value = FIRST[float(cell.fixed["cost"])][cell.replicate]  # type: ignore[arg-type]
            numbers = [filled.search(ledger, asked, cell, reached) for reached in (value, value - 0.2)]
            filled.confirm(ledger, asked, cell, numbers[0], [value, value + 0.01])
    return asked


@pytest.fixture
def ledger(tmp_path: Path) -> Writer:
    return Writer.at(tmp_path)


def looked(ledger: Writer, asked: Study) -> Sequence[tuple[int, int, int]]:
    """Have the driver look; the number, searches and units of every recorded look."""
    seen.record(ledger, asked)
    return [(look.number, look.searches, look.units) for look in seen.recorded_looks(ledger, asked)]


def test_a_whole_study_is_looked_at_once(ledger: Writer) -> None:
    asked = filled_study(ledger, 3)
    assert looked(ledger, asked) == [(1, 3, 3)]
    assert looked(ledger, asked) == [(1, 3, 3)]


def test_a_study_that_may_claim_nothing_spends_no_look(ledger: Writer) -> None:
    for searches in (1, 2):
        assert looked(ledger, filled_study(ledger, searches)) == []
    assert looked(ledger, filled_study(ledger, 3)) == [(1, 3, 3)]


def test_what_is_not_whole_is_not_looked_at_and_claims_nothing(ledger: Writer, tmp_path: Path) -> None:
    asked = filled_study(ledger, 5, whole=4)
    assert looked(ledger, asked) == []
    claim = opened("letters", tmp_path).claim
    assert claim is not None
    assert (claim.look.number, claim.look.units, claim.silent) == (0, 4, True)
    assert not any(pair.told for pair in claim.pairs)


def test_a_grown_study_repeats_its_last_look_until_it_is_whole_again(ledger: Writer, tmp_path: Path) -> None:
    looked(ledger, filled_study(ledger, 3))
    asked = filled_study(ledger, 5, whole=4)
    assert looked(ledger, asked) == [(1, 3, 3)]
    now = seen.seen(ledger, replicates.read(ledger, asked))
    assert now is not None
    assert (now.look.number, now.since) == (1, 1)
    assert "Not counted yet: 1 newer search of each cell (" in opened("letters", tmp_path).answer
    assert looked(ledger, filled_study(ledger, 5)) == [(1, 3, 3), (2, 5, 5)]


def test_where_searches_grew_by_trials_all_that_is_whole_is_newer_than_the_look(ledger: Writer) -> None:
    looked(ledger, filled_study(ledger, 3))
    asked = study(5, budget={"trials": 3, "steps": 20})
    filled.opened(ledger, asked)
    for cell in asked.cells:
        if cell.replicate < 4:
            missing = 3 - len(ledger.trials(asked, cell))
            numbers = [filled.search(ledger, asked, cell, 0.95 - 0.1 * place) for place in range(missing)]
            filled.confirm(ledger, asked, cell, numbers[0], [0.9, 0.9])
    now = seen.seen(ledger, replicates.read(ledger, asked))
    assert now is not None
    assert (now.look.number, now.look.units, now.since) == (1, 3, 4)


def test_of_several_searches_the_answer_names_the_choice_to_use(ledger: Writer, tmp_path: Path) -> None:
    """Of the cell to use, cost=2.0, replicate 2 of 5 has the best validation, .83, at a quality of .415."""
    filled_study(ledger, 5)
    study = opened("letters", tmp_path)
    assert study.answer.startswith("Use cost=2.0: what a search of 2 trials ")
    assert "; the best choice on validation so far is quality=0.415. " in study.answer
    assert study.best is not None
    assert study.best.config["quality"] == 0.415


def test_of_one_search_the_answer_names_its_own_choice_whatever_a_later_one_chose(
    ledger: Writer, tmp_path: Path
) -> None:
    asked = filled_study(ledger, 5, whole=1)
    behind, ahead = asked.replicate(1)
    for cell in (behind, ahead):
        for reached in (0.9, 0.7):
            filled.search(ledger, asked, cell, reached)
    filled.confirm(ledger, asked, ahead, 0, [0.9, 0.91])
    assert replicates.read(ledger, asked).used["cost=2.0"].cell == asked.cells[1]  # of what is whole
    said = opened("letters", tmp_path).answer
    assert said.startswith("One search each so far, so whether the cells differ is not known. ")
    assert "chose quality=0.4, with which 2 fresh seeds average test_accuracy 0.795 (" in said


def test_a_reader_is_shown_the_look_that_the_driver_then_records(ledger: Writer, tmp_path: Path) -> None:
    """A driver may be killed before it records it; a ledger of before has none."""
    asked = filled_study(ledger, 3)
    before = opened("letters", tmp_path).answer
    assert "It is better than cost=1.0" in before
    looked(ledger, asked)
    assert opened("letters", tmp_path).answer == before


def test_other_values_at_the_same_numbers_are_another_look(ledger: Writer) -> None:
    asked = filled_study(ledger, 3)
    looked(ledger, asked)
    filled.search(ledger, asked, asked.cells[0], 0.99)  # by hand: of a cell that had no third trial
    more = study(3, budget={"trials": 2, "steps": 20}, confirm={"top": 2, "seeds": 2})
    filled.opened(ledger, more)
    for cell in more.cells:
        filled.confirm(ledger, more, cell, 1, [0.9, 0.9])
    assert looked(ledger, more) == [(1, 3, 3), (2, 3, 3)]


def test_a_look_that_cannot_be_read_is_one_line(ledger: Writer) -> None:
    asked = filled_study(ledger, 3)
    looked(ledger, asked)
    ledger.database.execute(LOOKS.update().values(seen='{"number": 1}'))
    with pytest.raises(LedgerError, match="letters: expected a look at cells as JSON, got"):
        seen.seen(ledger, replicates.read(ledger, asked))


def test_what_might_have_been_tuned_is_held_where_nothing_is_searched(ledger: Writer) -> None:
    """What the file fixes, and what the trials had by default."""
    fixed = {"noise": 0.2, "eval_every_steps": 4, "on_test": "same"}
    asked = study(1, search={}, fixed=fixed)
    filled.opened(ledger, asked)
    for cell in asked.cells:
        number = ledger.enter(asked, cell, optuna.trial.create_trial(state=TrialState.RUNNING), seed=7)
        ledger.write_attempt(asked, cell, number, {**filled.ON, "config": {**cell.fixed, "bonus": 0.5}})
        filled.end(ledger, asked, cell, number, 0.9)
        filled.confirm(ledger, asked, cell, number, [0.5, 0.6])
    now = seen.seen(ledger, replicates.read(ledger, asked))
    assert now is not None
    assert now.look.held == {"noise": "0.2", "bonus": "0.5"}
