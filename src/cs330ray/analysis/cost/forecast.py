"""The forecast: what a study will have cost at its end, and what its cap leaves undone, by what its trials took so far.

A trial to come is expected to train to each step with the share of trials that went on where others ended (Kaplan &
Meier 1958), at the seconds a step of its cell. As long as none has ended early, each is taken to train to its end.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cs330ray.analysis.cost.spent import Effort, efforts, taken, total
from cs330ray.ledger import confirm
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import finished, standing
from cs330ray.ledger.records import Trial
from cs330ray.spec.study import Cell, Study
from cs330ray.spec.tables import Processor
from cs330ray.words import number as written
from cs330ray.words import plural

MARGIN = 1.1  # of what confirmation is expected to take, so much is set aside: for its tests, and trials that are cut
OF_A_FRONT = 3  # members of a front that are taken to be confirmed, before it is known
HOUR_S = 3600.0


@dataclass(frozen=True)
class Forecast:
    """What a study has cost and will cost, in seconds of one GPU or CPU."""

    of: Processor
    spent_s: float
    total_s: float | None  # at the end, within the cap; None where nothing is known of its trials
    uncapped_s: float | None  # at the end, were there no cap
    reserve_s: float  # set aside for confirmation
    cap_s: float | None
    trials: int  # of the search, in all
    undone: int  # of them the cap leaves so many without an end
    runs_undone: int  # and so many runs of confirmation
    left_s: float  # that trials are still to be under way, one after another, were there no cap
    step_s: Mapping[str, float]  # seconds a step by title of a compared cell, where the record tells

    @property
    def said(self) -> str:
        """The forecast in one line: `3.2 of 20 gpu-hours spent, about 14 in all`."""
        of_cap = "" if self.cap_s is None else f" of {_hours(self.cap_s)}"
        spent = f"{_hours(self.spent_s)}{of_cap} {self.of}-hours spent"
        if self.total_s is None or self.uncapped_s is None:
            return spent
        if self.undone or self.runs_undone:
            left = [f"{self.undone} of {plural(self.trials, 'trial')}"] if self.undone else []
            left += [f"{plural(self.runs_undone, 'run')} of confirmation"] if self.runs_undone else []
            all_of_it = f"all would take about {_hours(self.uncapped_s)}"
            return f"{spent}; {all_of_it}, so the cap leaves about {' and '.join(left)} undone"
        return f"{spent}, about {_hours(self.total_s)} in all" if self.total_s > self.spent_s else spent


def _hours(seconds: float) -> str:
    return written(seconds / HOUR_S, 3)


def most_confirmed(study: Study) -> int:
    """How many runs confirm a cell at most; of a front of unknown size, as if it were three."""
    if study.confirm is None:
        return 0
    candidates = (study.confirm.most(len(study.objective)) or OF_A_FRONT) + len(study.start)
    return min(candidates, study.budget.trials) * study.confirm.seeds


def steps_to_come(reached: Sequence[tuple[int, bool]], at: int, whole: int) -> float:
    """Expect how many steps a trial at step `at` of `whole` will train.

    `reached` has of each trial so far its last step, and whether it ended there.
    """
    ends = sorted({step for step, ended in reached if ended and step < whole and (step > at or step == at == 0)})
    expected, share = 0.0, 1.0
    for before, step in itertools.pairwise([at, *ends]):
        expected += share * (step - before)
        share *= 1 - reached.count((step, True)) / sum(last >= step for last, _ in reached)
    return expected + share * (whole - max([at, *ends]))


@dataclass
class _Kind:
    """What is known of the trials of one compared cell, in all its replicates."""

    steps: int = 0  # that its trials trained
    seconds: float = 0.0  # that they were under way
    reached: list[tuple[int, bool]] = field(default_factory=list)  # of each: its last step, and whether it ended there
    whole: list[float] = field(default_factory=list)  # seconds of each that is COMPLETE
    confirmed: list[float] = field(default_factory=list)  # and of each run of confirmation that is, with its test

    def run_s(self, steps: int, step_s: float) -> float:
        """Seconds of a run of confirmation: as others took, else as COMPLETE trials did, else by the step."""
        return statistics.fmean(self.confirmed or self.whole or [steps * step_s])


@dataclass
class _Cell:
    """One cell's search and confirmation, as far as they are."""

    cell: Cell
    unended: list[int] = field(default_factory=list)  # the last step of each trial that has begun and not ended
    to_begin: int = 0  # trials of the search
    runs_ended: int = 0  # of confirmation
    runs_at: dict[tuple[str, int], int] = field(default_factory=dict)  # the last step of each that was taken up


@dataclass(frozen=True)
class _Left:
    """What is to come of one replicate: for how many seconds each trial and each run will be under way."""

    search: Sequence[float]
    planned: Sequence[float]  # runs of confirmation, as the study asks for
    pending: Sequence[float]  # those of whom the search has found so far
    begun: bool

    @property
    def runs(self) -> Sequence[float]:
        """The runs of confirmation to expect: as many as are asked for until the search is over."""
        return self.planned if self.search else self.pending


def forecast(ledger: Ledger | None, study: Study, timed: Mapping[str, float] | None = None) -> Forecast:
    """Forecast a study by its record, where it has one.

    `timed` has seconds a step by title of a compared cell, for those that the record says nothing of.
    """
    kinds, spent = {cell.title: _Kind() for cell in study.compared}, list[Effort]()
    cells = {cell.key: _Cell(cell, to_begin=study.budget.trials) for cell in study.cells}
    if ledger is not None:
        for one in cells.values():
            spent += _read_search(ledger, study, one, kinds[one.cell.title])
        for cell in confirm.fresh_cells(study):
            spent += _read_runs(ledger, study, cell, cells[cell.searched.key], kinds[cell.title])
    so_far, cap = total(spent), study.budget.cap
    of: Processor = cap.of if cap is not None else "gpu" if so_far.gpu_s else "cpu"
    spent_s, each = so_far.of(of), taken(study)[f"{of}s"]
    known = {title: kind.seconds / kind.steps for title, kind in kinds.items() if kind.steps}
    step_s = _of_all(dict(timed or {}) | known, kinds)
    left = _left(ledger, study, list(cells.values()), kinds, step_s) if step_s else []
    left_s = sum(sum(one.search) + sum(one.runs) for one in left)
    reserved_s = MARGIN * sum(sum(one.runs) for one in left if one.begun)
    room_s = math.inf if cap is None or not each else (cap.seconds - spent_s) / each
    within_s, undone, runs_undone = _within(room_s, left, several=study.repeat.searches > 1)
    return Forecast(
        of=of,
        spent_s=spent_s,
        total_s=spent_s + each * within_s if step_s else None,
        uncapped_s=spent_s + each * left_s if step_s else None,
        reserve_s=each * reserved_s if any(kind.whole for kind in kinds.values()) else 0.0,
        cap_s=None if cap is None else cap.seconds,
        trials=study.budget.trials * len(study.cells),
        undone=undone,
        runs_undone=runs_undone,
        left_s=left_s,
        step_s=known,
    )


# Reading the record -------------------------------------------------------------------------------------------------


def _read_search(ledger: Ledger, study: Study, one: _Cell, kind: _Kind) -> Iterable[Effort]:
    """Add what a cell's search shows to what is known; what each trial has taken."""
    trials, last = ledger.trials(study, one.cell), ledger.last_steps(study, one.cell)
    took = efforts(ledger, study, one.cell)
    by_number = {trial.number: trial for trial in trials}
    ended = {trial.number for trial in finished(study, trials)}
    for number, effort in took.items():
        before = _last(by_number[number].continues, by_number, last) if number in by_number else 0
        kind.steps += max(last.get(number, before) - before, 0)
        kind.seconds += effort.seconds
    lines = standing(trials)
    for trial in lines:
        at = _last(trial.number, by_number, last)
        kind.reached.append((at, trial.number in ended))
        if trial.number not in ended:
            one.unended.append(at)
        elif trial.state == "COMPLETE":
            kind.whole.append(sum(took.get(number, Effort()).seconds for number in _line(trial, by_number)))
    one.to_begin = max(study.budget.trials - len(lines), 0)
    return took.values()


def _line(trial: Trial, by_number: Mapping[int, Trial]) -> list[int]:
    """A trial and those that it continues."""
    line = [trial.number]
    while (before := by_number[line[-1]].continues) is not None:
        line.append(before)
    return line


def _last(number: int | None, by_number: Mapping[int, Trial], last: Mapping[int, int]) -> int:
    """The last step of a trial, or of those that it continues; 0 before any."""
    return 0 if number is None else max(last.get(each, 0) for each in _line(by_number[number], by_number))


def _read_runs(ledger: Ledger, study: Study, cell: Cell, one: _Cell, kind: _Kind) -> Iterable[Effort]:
    """Add what the runs of a cell under a fresh seed show to what is known; what each has taken."""
    took = efforts(ledger, study, cell)
    if not took:
        return ()
    last = ledger.last_steps(study, cell)
    for trial in ledger.trials(study, cell):
        one.runs_at[cell.key, trial.number] = last.get(trial.number, 0)
        one.runs_ended += trial.state != "RUNNING"
        if trial.state == "COMPLETE" and trial.number in took:
            kind.confirmed.append(
                took[trial.number].cpu_s / taken(study)["cpus"]
            )  # its share, where several had a worker
    return took.values()


# What is to come ----------------------------------------------------------------------------------------------------


def _of_all(known: Mapping[str, float], titles: Iterable[str]) -> dict[str, float]:
    """Seconds a step of every compared cell: the mean of the others where one is not known; empty where none is."""
    return {title: known.get(title, statistics.fmean(known.values())) for title in titles} if known else {}


def _left(
    ledger: Ledger | None,
    study: Study,
    cells: Sequence[_Cell],
    kinds: Mapping[str, _Kind],
    step_s: Mapping[str, float],
) -> list[_Left]:
    """What is to come, replicate by replicate."""
    steps, left, by_key = study.budget.steps, [], {one.cell.key: one for one in cells}
    for replicate in range(study.repeat.searches):
        begun, to_begin, planned = list[float](), list[float](), list[float]()
        some = [one for one in cells if one.cell.replicate == replicate]
        for one in some:
            kind, second = kinds[one.cell.title], step_s[one.cell.title]
            to_come = {at: second * steps_to_come(kind.reached, at, steps) for at in set(one.unended)}
            begun += [to_come[at] for at in one.unended]
            to_begin += [second * steps_to_come(kind.reached, 0, steps)] * one.to_begin
            planned += [kind.run_s(steps, second)] * max(most_confirmed(study) - one.runs_ended, 0)
        pending = list[float]()
        for cell, number in [] if ledger is None else confirm.pending(ledger, study, replicate):
            one = by_key[cell.searched.key]
            share = 1 - min(one.runs_at.get((cell.key, number), 0) / steps, 1.0)
            pending.append(share * kinds[cell.title].run_s(steps, step_s[cell.title]))
        has_begun = any(one.unended or one.to_begin < study.budget.trials for one in some)
        left.append(_Left([*begun, *to_begin], planned, pending, has_begun))
    return left


def _within(room_s: float, left: Sequence[_Left], *, several: bool) -> tuple[float, int, int]:
    """What fits into the room that a cap leaves: its seconds, and how many trials and runs do not.

    Of `several` replicates one that is not searched whole is not confirmed.
    """
    taken_s, trials, runs = 0.0, 0, 0
    for one in left:
        for_search_s = max(room_s - taken_s - MARGIN * sum(one.runs), 0.0)
        fitting = _fitting(one.search, for_search_s)
        is_cut = fitting < len(one.search)
        taken_s += for_search_s if is_cut else sum(one.search)  # what is cut is paid for too
        trials += len(one.search) - fitting
        if is_cut and several:
            runs += len(one.runs)
            continue
        confirmed = one.pending if is_cut and not for_search_s else one.runs
        for_runs_s = max(room_s - taken_s, 0.0)
        runs += len(confirmed) - _fitting(confirmed, for_runs_s)
        taken_s += min(sum(confirmed), for_runs_s)
    return taken_s, trials, runs


def _fitting(costs: Sequence[float], room_s: float) -> int:
    """How many costs, in their order, fit into a room."""
    return sum(so_far <= room_s for so_far in itertools.accumulate(costs))
