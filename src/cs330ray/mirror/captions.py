"""What MLflow shows of cells and trials at a glance: names of runs, marks, and figures to sort by.

Pure functions of what the ledger holds, so that to say it again changes nothing.
"""

import statistics
from collections.abc import Sequence

from cs330ray.analysis.standing import Standing
from cs330ray.analysis.statistics import over_seeds, with_interval
from cs330ray.ledger.confirm import Confirmed, Run, on_test
from cs330ray.ledger.records import Trial
from cs330ray.spec.study import Study
from cs330ray.words import params, shown

STAR = "★"
TOP = 10  # that many trials of a cell say their rank, and that many rows has the description's table
NAME_LIMIT = 200  # MLflow's tables hold 250

UNMARKED = "none"  # what a trial says of itself only where it was marked before


def figures(cell: Standing) -> dict[str, float]:
    """What the cell's run can be sorted by: the best of each objective, and what confirmation gave."""
    said = {}
    for index, (name, goal) in enumerate(zip(cell.study.objective, cell.goals, strict=True)):
        values = [(trial.values or ())[index] for trial in cell.placed]
        if values:
            said[f"best_{name}"] = max(values) if goal == "max" else min(values)
        if cell.chosen is not None:
            said[f"confirmed_{name}"] = cell.chosen.means[index]
            values = test_values(cell.chosen.complete, name)
            said |= {f"confirmed_{on_test(name)}": statistics.fmean(values)} if values else {}
    return said


def figure_names(study: Study) -> list[str]:
    """All names that `figures` may have; other metrics of these runs are a person's."""
    kinds = [("best", name) for name in study.objective] + [("confirmed", name) for name in study.objective]
    return [f"{kind}_{name}" for kind, name in [*kinds, *(("confirmed", on_test(name)) for name in study.objective)]]


def best_tags(cell: Standing) -> dict[str, str]:
    """What the cell's run says of its best trial, and of the choice: "none" where there is none any more."""
    said = {}
    if len(cell.goals) == 1 and cell.placed:
        best = cell.placed[0]
        said = {"best_trial": str(best.number), f"best_{cell.study.objective[0]}": repr((best.values or ())[0])}
    if cell.chosen is not None:
        said |= {"confirmed_trial": str(cell.chosen.searched.number)} | means(cell.study, cell.chosen)
    elif cell.candidates:
        said |= dict.fromkeys(["confirmed_trial", *(f"confirmed_{name}" for name in cell.study.objective)], "none")
    return said


def marks(cell: Standing, trial: Trial) -> dict[str, str]:
    """A trial's rank among the first of its cell, and whether it is its best; of several objectives, the front."""
    place = next((place for place, one in enumerate(cell.placed[:TOP], 1) if one.number == trial.number), None)
    starred = trial.number in {one.number for one in cell.starred}
    best = ("search" if cell.chosen is None else "confirmed") if starred else UNMARKED
    front = {}
    if len(cell.goals) > 1 and trial.state == "COMPLETE":
        front = {"front": str(trial.number in {one.number for one in cell.placed}).lower()}
    return {"rank": UNMARKED if place is None else str(place), "best": best, **front}


def cell_name(cell: Standing, *, star: bool) -> str:
    """The name of the cell's run: what is compared, and how well it did."""
    title = cell.cell.label if cell.cell.values or cell.cell.replicate else "all trials"
    return caption(f"{STAR} " * star + title, *_reached(cell))


def _reached(cell: Standing) -> list[str]:
    if len(cell.starred) > 1:
        return [f"{len(cell.starred)} trials on the front"]
    if not cell.starred:
        return []
    return [f"{reached(cell, cell.starred[0])} by trial {cell.starred[0].number}"]


def trial_name(cell: Standing, trial: Trial) -> str:
    """The name of a trial's run: the star of the best, number, what it reached, parameters."""
    star = f"{STAR} " * (trial.number in {one.number for one in cell.starred})
    return caption(f"{star}trial {trial.number}", reached(cell, trial), params(trial.params))


def means(study: Study, one: Confirmed) -> dict[str, str]:
    """A candidate's mean of each objective over its fresh seeds, as tags."""
    return {f"confirmed_{name}": repr(value) for name, value in zip(study.objective, one.means, strict=True)}


def fresh_name(study: Study, run: Run) -> str:
    """The name of a run of confirmation."""
    tested = [
        f"{shown(run.test[on_test(name)])} {on_test(name)}" for name in study.objective if on_test(name) in run.test
    ]
    return caption(
        f"fresh seed {run.trial.cell.fresh} of trial {run.trial.number}",
        ", ".join(filter(None, [_outcome(study, run.trial), *tested])),
    )


def reached(cell: Standing, trial: Trial) -> str:
    """What a trial came to: its mean over the fresh seeds, else its value in the search, or why it has none."""
    one = cell.confirmed(trial.number)
    if one is None:
        return _outcome(cell.study, trial)
    columns = zip(cell.study.objective, zip(*one.values, strict=True), strict=True)
    return ", ".join(f"{mean(values)} {name}" for name, values in columns) + " confirmed"


def _outcome(study: Study, trial: Trial) -> str:
    held = zip(study.objective, trial.values, strict=True) if trial.values else ()
    values = ", ".join(f"{shown(value)} {name}" for name, value in held)
    going_on = "" if trial.continued_as is None else f" (continued as trial {trial.continued_as})"
    words = {"COMPLETE": values, "PRUNED": f"pruned at {values}" if values else "pruned", "FAIL": "failed"}
    return words.get(trial.state, "") + going_on


def test_values(runs: Sequence[Run], name: str) -> list[float]:
    """What runs of confirmation reached on test, beside an objective; without those whose test failed."""
    return [run.test[on_test(name)] for run in runs if on_test(name) in run.test]


def mean(values: Sequence[float]) -> str:
    """The mean over seeds with its 95 % interval, Student's t: `0.8402 ±0.043`; alone for one seed."""
    return with_interval(over_seeds(values))


def caption(*parts: str) -> str:
    """Parts of a run's name as one, cut where MLflow's tables end."""
    name = " · ".join(filter(None, parts))
    return name if len(name) <= NAME_LIMIT else f"{name[: NAME_LIMIT - 1]}…"
