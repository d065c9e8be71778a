"""What to do again so that a study tells its cells apart: in a table and in words, by its record where it has one."""

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cs330ray.analysis import replicates
from cs330ray.analysis.claims import rule, seen
from cs330ray.analysis.claims.look import Look
from cs330ray.analysis.claims.plan import UNITS, Cost, Option, Plan, advised_units, plan
from cs330ray.analysis.claims.sentence import KEYS
from cs330ray.analysis.claims.sentence import UNITS as NAMES
from cs330ray.analysis.cost.spent import taken
from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.table import Sheet
from cs330ray.analysis.variance import layout
from cs330ray.errors import SpecError
from cs330ray.ledger.confirm import on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import finished
from cs330ray.ledger.records import Trial
from cs330ray.spec.study import MOST_CELLS, Study
from cs330ray.words import number, plural

HOUR_S = 3600
MOST_SEARCHES, MOST_SEEDS = 100, 1000  # that a study file may ask for


@dataclass(frozen=True)
class Advice:
    """A study's plan, and what its record has that the plan goes by."""

    study: Study
    file: str  # what `cs330ray run` is given
    plan: Plan
    look: int  # the number of the look that the plan is for
    metric: str  # that a claim is about
    whole: int  # replicates, or seeds where they are the unit, whose scores are known
    cost: Cost | None
    hours: float | None  # that may still be spent

    @property
    def asked(self) -> Option | None:
        """The option that the study asks for already; None where that tells nothing, or was looked at."""
        return self._option(asked_units(self.study))

    @property
    def advised(self) -> Option | None:
        """The option to take: of those within the hours the one that tells the smallest lead, else the sensible one."""
        if self.hours is not None:
            return self.plan.finest
        return self._option(_sensible(self.study))

    def _option(self, units: int) -> Option | None:
        seeds = _seeds(self.study)
        return next((one for one in self.plan.options if one.units == units and one.seeds in (None, seeds)), None)

    @property
    def sheet(self) -> Sheet:
        """The options that no other one beats, fewest units first, with the one asked for and the advised one."""
        marked = {"as asked": self.asked, "advised": self.advised}
        kept = [one for one in self.plan.options if one in self.plan.efficient or one in marked.values()]
        many = NAMES[self.study.unit][1]
        columns = [
            many,
            *(["fresh seeds"] if self.study.unit != "seed" else []),
            f"lead told, {self.metric if self.plan.measured else 'sd'}",
        ]
        columns += ["95 %"] * self.plan.measured + ["more hours"] * (self.cost is not None) + [""]
        rows = []
        for one in kept:
            row = [str(one.units), *([] if one.seeds is None else [str(one.seeds)]), number(one.lead, 3)]
            if one.low is not None and one.high is not None:
                row.append(f"[{number(one.low, 2)}, {number(one.high, 2)}]")
            row += [] if one.hours is None else [number(one.hours, 3)]
            rows.append([*row, ", ".join(name for name, option in marked.items() if option is one)])
        at = f", at {plural(self.study.budget.trials, 'trial')} a search" if self.study.searched else ""
        look = f", at look {self.look}" if self.look > 1 else ""
        title = f"{self.study.name}: the lead of one of {self.plan.cells} cells over all others that is told{at}{look}"
        return Sheet(f"{title}, with power {self.plan.power:g}", columns, rows)

    @property
    def said(self) -> list[str]:
        """What the table rests on, and what is advised with the command that does it, a sentence each."""
        return [f"{self._basis}.", f"{self._advised}."]

    @property
    def line(self) -> str:
        """What the study as asked would tell, in one line."""
        if (one := self.asked) is not None:
            return f"{self._units(one)} of each cell tell {self._said(one)}"
        units, better = asked_units(self.study), self._option(_sensible(self.study))
        had = f"{plural(units, *NAMES[self.study.unit])} of each cell"
        if better is None:
            return f"{had} were looked at; more of them take another look"
        more = f"{better.units} tell {self._said(better)}"
        if rule.may_claim(units):
            return f"{had} were looked at; at look {self.look}, {more}"
        tell = "tells" if units == 1 else "tell"
        return f"{had} {tell} no cells apart; {more} (--set {KEYS[self.study.unit]}={better.units})"

    @property
    def _basis(self) -> str:
        one, many = NAMES[self.study.unit]
        if self.plan.measured:
            scatter = f"The scatter is that of {plural(self.whole, one, many)} of each cell"
        else:
            why = (
                "before two are whole" if self.whole < 2 else f"yet: so far the cells differ by the same in each {one}"
            )
            scatter = f"sd is the standard deviation{self._beside}, which is not known {why}"
        parts = [scatter]
        if self.cost is not None:
            parts.append("an hour is one of one slot, by the times of trials and confirmations so far")
        if self.look > 1:
            parts.append(f"a look was taken before, so that the next is at the level {rule.level_of(self.look):g}")
        return "; ".join(parts)

    @property
    def _advised(self) -> str:
        one, many = self.advised, NAMES[self.study.unit][1]
        if one is None:
            return f"The {asked_units(self.study)} {many} asked for were looked at; more take another look"
        sets = []
        if one.units != asked_units(self.study):
            sets.append(f" --set {KEYS[self.study.unit]}={one.units}")
        if one.seeds is not None and one.seeds != _seeds(self.study):
            sets.append(f" --set confirm.seeds={one.seeds}")
        seeds = "" if one.seeds is None else f", on {plural(one.seeds, 'fresh seed')} each"
        spent = "" if one.hours is None else f" for {number(one.hours, 3)} more hours"
        within = "Advised" if self.hours is None else f"Within {self.hours:g} hours"
        return (
            f"{within}: {self._units(one)} of each cell{seeds}, which tell {self._lead(one)}{spent}: "
            f"`cs330ray run {shlex.quote(self.file)}{''.join(sets)}`"
        )

    @property
    def _beside(self) -> str:
        """Whose standard deviation leads are in, where the scatter is not known."""
        what = "training on a fresh seed" if self.study.unit == "seed" else f"one {NAMES[self.study.unit][0]} of a cell"
        return "" if self.plan.measured else f" of what {what} scores beside its rivals"

    def _units(self, one: Option) -> str:
        return plural(one.units, *NAMES[self.study.unit])

    def _said(self, one: Option) -> str:
        """The lead of an option where no table says what it is in."""
        return f"{self._lead(one, f'standard deviations{self._beside}')}, with power {self.plan.power:g}"

    def _lead(self, one: Option, deviations: str = "sd") -> str:
        return f"a lead of {number(one.lead, 2)} {f'of {self.metric}' if self.plan.measured else deviations}"


def obstacle(study: Study) -> str:
    """Why a study tells no cells apart, however often it is done again, and the next step; empty where it may."""
    if len(study.compared) < 2:
        return "compare: expected two cells or more to tell apart, got 1; compare values of a parameter"
    if study.confirm is None:
        return "confirm: expected [confirm], since cells are compared on fresh seeds, got none; add it"
    if study.unit != "seed" and _most(study) < rule.LEAST_UNITS:
        return (
            f"compare: expected at most {MOST_CELLS // rule.LEAST_UNITS} cells, since a claim takes {rule.LEAST_UNITS} "
            f"searches of each, got {len(study.compared)}; compare fewer"
        )
    if study.unit == "replicate" and study.budget.trials < rule.LEAST_TRIALS:
        return (
            f"budget.trials: expected at least {rule.LEAST_TRIALS} in each search, got {study.budget.trials}; raise it"
        )
    return ""


def advice(study: Study, file: str, ledger: Ledger | None = None, hours: float | None = None) -> Advice:
    """Plan a study: by its record in a ledger, where it is there, else in standard deviations.

    `file` is what `cs330ray run` is given, `hours` what may still be spent, of one slot. Raises SpecError where no
    cells can be told apart, and for hours that nothing fits, or that no record says the worth of.
    """
    if why := obstacle(study):
        raise SpecError(f"{file}: {why}")
    cells = None if ledger is None else replicates.read(ledger, study)
    looks = [] if ledger is None else seen.recorded_looks(ledger, study)
    scores = {} if cells is None else cells.scores()
    cost = None if ledger is None or cells is None else _cost(ledger, cells)
    if hours is not None and cost is None:
        raise SpecError(
            f"--hours: expected a study with recorded trials, which say what one costs, got {file}; leave it out"
        )
    objective = study.objective[0]
    metric = on_test(objective) if cells is not None and cells.tests else objective
    made = plan(
        len(study.compared), study.budget.trials, _seeds(study) or 1, unit=study.unit, units=_grid(study),
        known=layout(scores) if scores else None, cost=cost, look=len(looks) + 1,
    )  # fmt: skip
    options = [one for one in made.options if not looks or not _was_seen(looks[-1], study, one)]
    within = tuple(one for one in options if hours is None or (one.hours or 0.0) <= hours)
    if options and not within:
        least = min(one.hours or 0.0 for one in options)
        raise SpecError(
            f"--hours: expected at least {least:.3g}, the cost of the least that tells cells apart, got {hours:g}"
        )
    whole = 0 if cells is None or not scores else cells.seeds if cells.by_seed else len(cells.whole)
    return Advice(study, file, replace(made, options=within), len(looks) + 1, metric, whole, cost, hours)


def asked_units(study: Study) -> int:
    """How many searches, splits or seeds of each cell a study asks for."""
    return (study.confirm.seeds if study.confirm else 0) if study.unit == "seed" else study.repeat.searches


def _seeds(study: Study) -> int | None:
    """How many fresh seeds a study asks for in each replicate; None where they are the unit."""
    return None if study.confirm is None or study.unit == "seed" else study.confirm.seeds


def _most(study: Study) -> int:
    """How many units a study may have at most."""
    return MOST_SEEDS if study.unit == "seed" else min(MOST_SEARCHES, MOST_CELLS // len(study.compared))


def _sensible(study: Study) -> int:
    """How many units are the sensible number for a study, which has no fewer than it asks for."""
    return max(asked_units(study), min(advised_units(len(study.compared)), _most(study)))


def _grid(study: Study) -> list[int]:
    """The numbers of units to plan for: from those asked for on, since they never fall."""
    asked, most = asked_units(study), _most(study)
    return sorted({asked, *(each for each in (*UNITS, _sensible(study), 2 * asked) if asked < each <= most)})


def _was_seen(look: Look, study: Study, one: Option) -> bool:
    """Whether a look was taken at all that an option would have."""
    titles = {cell.title for cell in study.compared}
    had = look.seeds if look.unit == "seed" else look.searches
    same = look.trials == study.budget.trials and {*look.cells, *look.left_out} == titles
    return same and had == one.units and one.seeds in (None, look.seeds)


# What it costs --------------------------------------------------------------------------------------------------------


def _cost(ledger: Ledger, cells: Replicates) -> Cost | None:
    """What trials and runs of confirmation took; None before one of each has ended that nothing interrupted."""
    study, trials, runs, candidates, ended, confirmed = cells.study, [], [], [], 0, 0
    for one in cells.standings:
        whole = finished(study, one.trials)
        ended += len(whole)
        trials += [_seconds(ledger, study, _line(trial, one.trials)) for trial in whole]
        current = [each for each in one.candidates if each.current]
        candidates += [len(current)] if current else []
        over = [run.trial for each in current for run in each.runs if run.trial.state != "RUNNING"]
        confirmed += len(over)
        runs += [_seconds(ledger, study, [run]) for run in over]
    of_trial, of_run = ([each for each in some if each is not None] for some in (trials, runs))
    if not of_trial or not of_run:
        return None
    trial_h, run_h = statistics.fmean(of_trial) / HOUR_S, statistics.fmean(of_run) / HOUR_S
    return Cost(trial_h, run_h, statistics.fmean(candidates), ended * trial_h + confirmed * run_h)


def _line(trial: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """A trial and those that it continues."""
    by_number, line = {each.number: each for each in trials}, [trial]
    while (before := line[-1].continues) is not None:
        line.append(by_number[before])
    return line


def _seconds(ledger: Ledger, study: Study, line: Sequence[Trial]) -> float | None:
    """What trials took; None where one has not ended, or was interrupted and nobody noted for how long it worked."""
    took = [_took_s(ledger, study, trial) for trial in line]
    return None if None in took else sum(each for each in took if each is not None)


def _took_s(ledger: Ledger, study: Study, trial: Trial) -> float | None:
    """What a trial took: from start to end, or where it had several attempts the time under way in each.

    Of the time in which it trained beside others, its share.
    """
    starts = ledger.attempts(study, trial.cell, trial.number)
    if trial.ended_s is None or (len(starts) > 1 and any("under_way_s" not in start for start in starts)):
        return None
    if len(starts) < 2:
        return max(trial.ended_s - trial.started_s, 0.0)
    cpus = taken(study)["cpus"]
    return sum((float(start["under_way_s"]) * float(start.get("cpus", cpus)) / cpus for start in starts), 0.0)
