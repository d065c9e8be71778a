"""What a person sees while a study runs: at a terminal a live table, in a log file a line a trial."""

import io
import re

from rich.console import Console

from cs330ray.cli.live import StudyConsole
from cs330ray.ledger.records import Ending, Row, Trial
from cs330ray.spec.study import Cell
from tests.studies_of_tests import toy


def shown(*, terminal: bool) -> tuple[StudyConsole, io.StringIO]:
    study = toy(compare={"data_seed": [0, 1]}, budget={"trials": 4, "steps": 20})
    seen = StudyConsole(study, ["min"])
    text = io.StringIO()
    seen.out = Console(file=text, force_terminal=terminal, width=140, highlight=False, color_system=None)
    return seen, text


def test_a_log_file_gets_one_line_a_trial_with_its_value_parameters_and_reason() -> None:
    seen, text = shown(terminal=False)
    cell = seen._study.cells[1]
    with seen:
        seen.took_up(cell, 0, {"lr": 0.25, "data_seed": 1, "eval_every_steps": 5}, None)
        seen.reached(cell, 0, Row(5, {"val_loss": 0.5}, 0.0))
        seen.ticked()
        seen.ended(cell, 0, {"lr": 0.25}, Ending("PRUNED", "asha at step 5, 3 rivals", cause="pruned"), (0.5,))
    assert (
        text.getvalue()
        == "    1/8  trial 0   of data_seed=1 PRUNED   val_loss=0.5  lr=0.25 [asha at step 5, 3 rivals]\n"
    )


def test_a_terminal_shows_the_running_trials_how_far_they_are_and_the_time_left() -> None:
    seen, text = shown(terminal=True)
    cell = seen._study.cells[0]
    with seen:
        seen.took_up(cell, 3, {"lr": 0.25}, 10)
        seen.reached(cell, 3, Row(15, {"val_loss": 0.125}, 0.0))
        seen.ticked()
    picture = text.getvalue()
    assert "trial 3 of data_seed=0 goes on from its checkpoint at step 10" in picture
    assert "15/20" in picture
    assert "0.125" in picture
    assert "left" in picture


def test_a_terminal_shows_below_the_table_what_the_study_has_cost_and_will() -> None:
    seen, text = shown(terminal=True)
    with seen:
        seen.foresees("3.2 of 20 gpu-hours spent, about 14 in all")
        seen.ticked()
    assert "parameters\n3.2 of 20 gpu-hours spent, about 14 in all\n" in re.sub(r" +\n", "\n", text.getvalue())


def test_a_trial_that_failed_before_its_first_row_shows_its_parameters_and_is_never_the_best() -> None:
    seen, text = shown(terminal=False)
    cell = seen._study.cells[0]
    seen.ended(cell, 0, {"lr": 0.25}, Ending("COMPLETE"), (0.5,))
    seen.ended(cell, 1, {"lr": 0.25}, Ending("FAIL", "raised: RuntimeError: planted", cause="raised"), (0.1,))
    assert seen._best() == 0.5
    assert "trial 1   of data_seed=0 FAIL     val_loss=0.1  lr=0.25 [raised: RuntimeError: planted]" in text.getvalue()


def trial(cell: Cell, number: int, value: float) -> Trial:
    return Trial(cell, number, "COMPLETE", {}, 7, (value,), reason="", cause=None, traceback="", started_s=0.0,
                 ended_s=1.0, steps=20)  # fmt: skip


def test_trials_of_earlier_sessions_count_but_not_for_the_time_left() -> None:
    study = toy(budget={"trials": 4, "steps": 20})
    seen = StudyConsole(study, ["max"])
    seen.had_ended([trial(study.cells[0], 0, 0.3), trial(study.cells[0], 1, 0.7)])
    assert seen._best() == 0.7
    assert seen._left_s() is None
