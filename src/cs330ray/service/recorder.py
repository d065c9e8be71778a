"""The recorder: the one object that takes each result of a trial, in the one order that loses nothing.

Rows first, then the pruner, then the end of the trial, or word to Optuna of the rung behind which it goes on.
"""

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cs330ray.checkpoints.copies import Copies
from cs330ray.errors import Cs330rayError, StudyError
from cs330ray.ledger import confirm
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import finished
from cs330ray.ledger.records import Ending, Loss, Trial
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Listener
from cs330ray.service.messages import Assignment, News, Start
from cs330ray.service.search.prune import asha_stops, last_rung, median_stops
from cs330ray.service.thin import thin
from cs330ray.spec.study import Cell, Study
from cs330ray.trial import bounds
from cs330ray.words import plural

DISK_PATIENCE_S = 60.0  # how long a trial waits at its end for a disk that takes its checkpoint
LOSSES_ALLOWED = 3  # a trial whose worker is lost more often than this has failed
GIVEN_UP = Ending("FAIL", "stopped by hand", cause="stopped")
NODES_ALLOWED = 20  # and one that loses more nodes than this: it may be what ends them


class Recorder:
    """Takes results, writes the ledger, and says whether a trial stops."""

    def __init__(
        self,
        ledger: Writer,
        study: Study,
        listener: Listener,
        place: Callable[[Cell, int], Path] | None = None,
        copies: Callable[[Cell, int], Copies] | None = None,
        given_up: set[tuple[str, int]] | None = None,
    ) -> None:
        self._ledger = ledger
        self._study = study
        self._listener = listener
        self._place = place  # where a trial's checkpoints lie; nothing is thinned without
        self._copies = copies  # those in a store
        self._all_fail = True  # so far, as this one knows
        self.failure: Cs330rayError | None = None  # why the study cannot go on
        self._unsaved: set[tuple[str, int]] = set()  # the trials whose last checkpoint could not be written
        self._waits_s: dict[tuple[str, int], float] = {}  # since when a trial waits for room to end
        self._given_up = set() if given_up is None else given_up  # the trials that a person wants ended
        self._cells = {cell.key: cell for cell in [*study.cells, *confirm.fresh_cells(study)]}
        self._goals = ledger.goals(study)
        self._metrics = {name: ledger.metrics(study, name) for name in study.trainables()}
        self._testing: set[tuple[str, int]] = set()  # the trials that have trained to their end, and are tested
        self._outside: set[tuple[str, str]] = set()  # metrics of trainables of which a value outside bounds was said
        self._to_say: list[Callable[[], None]] = []  # once the news at hand is recorded
        self._taken: dict[str, tuple[int, bool]] = {}  # Tune's trial -> (its last iteration taken, what was said)

    def take(self, trial_id: str, iteration: int, assignment: Assignment, news: News) -> bool:
        """Record the news of Tune's trial `trial_id` in an iteration, once; whether the trial stops here.

        So with those that train beside it: where one of them stops, all leave their worker, with the checkpoints that
        are about to come.
        """
        if news.parts and self._taken.get(f"{trial_id}.0", (None, False))[0] != iteration:
            self.parted(assignment, news.parts)
        stops = [
            self._take(f"{trial_id}.{place}", iteration, member, of_member, len(news.members))
            for place, (member, of_member) in enumerate(zip(assignment.members, news.members, strict=True))
        ]
        return any(stops) and not news.saves

    def _take(self, trial_id: str, iteration: int, assignment: Assignment, news: News, among: int) -> bool:
        cell, number = self.cell(assignment), assignment.trial
        taken, has_ended = self._taken.get(trial_id, (None, False))
        if taken == iteration:
            return has_ended
        if has_ended:  # and its worker, which waits for those beside it, may have written a checkpoint all the same
            self._taken[trial_id] = (iteration, True)
            self._thin(cell, number)
            return True
        self._to_say = []
        with self._ledger.at_once():  # all that the news says; files go, and people hear of it, behind it
            begins = news.start is not None and assignment.continues is not None
            begins = begins and self._ledger.last_step(self._study, cell, number) == 0
            self._record(cell, number, assignment, news, among)
            ending = self._prune_before(cell, number, assignment) if begins else None
            ending = ending or self._prune(cell, number, assignment, news) or news.end
            if ending is None and (cell.key, number) in self._given_up:
                ending = GIVEN_UP
            if ending is not None:
                ending = self._ledger.end(self._study, cell, number, ending)
        for say in self._to_say:
            say()
        if ending is not None:
            self._ended(cell, number, ending)
        self._taken[trial_id] = (iteration, ending is not None)
        return ending is not None

    def _later(self, hears: Callable[..., None], *what: Any) -> None:
        """Have the listener hear of something once it is recorded: a screen that stands still holds no ledger up."""
        self._to_say.append(functools.partial(hears, *what))

    def _say(self, line: str) -> None:
        self._later(self._listener.says, line)

    def lose(self, assignment: Assignment, reason: str, live: Collection[str] | None = None) -> bool:
        """Record that a trial's worker was lost; whether the trial is to be taken up again.

        On a cluster `live` are the nodes that live: a loss whose nodes do not is no fault of the trial.
        """
        cell, number = self.cell(assignment), assignment.trial
        loss = self._loss(cell, number, reason, on_cluster=live is not None)
        losses = self._ledger.write_loss(self._study, cell, number, loss)
        own = [each for each in losses if live is None or each.nodes.issubset(live)]
        self._waits_s.pop((cell.key, number), None)
        if len(own) <= LOSSES_ALLOWED and len(losses) <= NODES_ALLOWED:
            self._listener.lost(cell, number, len(losses))
            return True
        times = f"{len(losses)} times: {loss.reason}"
        if "OutOfMemoryError" in loss.reason:  # as Ray says it
            self._end(cell, number, Ending("FAIL", f"out of memory: worker ended {times}", cause="memory"))
        else:
            self._end(cell, number, Ending("FAIL", f"worker lost {times}", cause="lost"))
        return False

    def silent(self, assignment: Assignment, how: str) -> bool:
        """End a trial that has said nothing for too long; whether it is to be taken up again.

        One that was silent in its test has trained to its end: the next worker reads its last checkpoint, and tests no
        more.
        """
        cell, number, reason = self.cell(assignment), assignment.trial, f"silent: {how}"
        if (cell.key, number) in self._testing:
            self._ledger.write_untested(self._study, cell, number, reason, "")
            return True
        self._end(cell, number, Ending("FAIL", reason, cause="silent"))
        return False

    def still_open(self, assignment: Assignment) -> list[Assignment]:
        """Those of the trials that train together that have no end."""
        found = [(each, self._found(each)) for each in assignment.members]
        return [each for each, trial in found if trial is None or trial.state == "RUNNING"]

    def has_pruned(self, assignment: Assignment) -> bool:
        """Whether one of the trials that train together was stopped by the pruner, with a value or without one."""
        ended = [self._found(each) for each in assignment.members]
        return any(trial is not None and trial.cause in ("pruned", "unscored") for trial in ended)

    def _found(self, assignment: Assignment) -> Trial | None:
        """A trial by the record; None where it is not in it, since it has not begun."""
        trials = self._ledger.trials(self._study, self.cell(assignment), [assignment.trial])
        return next((trial for trial in trials if trial.number == assignment.trial), None)

    def parted(self, assignment: Assignment, why: str) -> None:
        """Say that trials trained together and go on alone, and why."""
        fresh = [(each.trial, self.cell(each).fresh) for each in self.still_open(assignment)]
        runs = ", ".join(str(number) if seed is None else f"{number} on fresh seed {seed}" for number, seed in fresh)
        self._listener.says(f"trials {runs} go on alone: {why}")

    def give_up(self, assignment: Assignment) -> None:
        """Have a trial end with its next news."""
        self._given_up.add((assignment.cell, assignment.trial))

    def is_given_up(self, assignment: Assignment) -> bool:
        """Whether a person wants a trial ended."""
        return (assignment.cell, assignment.trial) in self._given_up

    def end_given_up(self, assignment: Assignment) -> bool:
        """End a trial that was given up where it stands; False where it was not given up."""
        if not self.is_given_up(assignment):
            return False
        self._end(self.cell(assignment), assignment.trial, GIVEN_UP)
        return True

    def overtaken(self, assignment: Assignment, why: str) -> None:
        """Say that a trial stops, and why: which budget is spent."""
        self._listener.says(f"trial {assignment.trial} stops: {why}; it is resumed when that is raised")

    def end_waiting(self, cell_key: str, number: int, waiting: Collection[Cell], working: Collection[str]) -> None:
        """End a trial that was given up, and the runs that confirm it, but for what has a worker or has ended.

        Those that are `waiting` may not have begun; `working` are the keys of the cells whose run has a worker.
        """
        for cell in self._cells.values():
            if cell.searched.key != cell_key or cell.key in working:
                continue
            found = self._ledger.trials(self._study, cell, [number])
            if cell in waiting or any(trial.number == number and trial.state == "RUNNING" for trial in found):
                self._end(cell, number, GIVEN_UP)

    def _loss(self, cell: Cell, number: int, reason: str, *, on_cluster: bool) -> Loss:
        """A loss with the nodes of the trial's last start, where there is a cluster."""
        attempts = self._ledger.attempts(self._study, cell, number) if on_cluster else []
        if not attempts:
            return Loss(reason, frozenset())
        nodes = attempts[-1]["nodes"]
        return Loss(f"{reason} [on {' '.join(nodes)}]", frozenset(nodes))

    def _end(self, cell: Cell, number: int, ending: Ending) -> None:
        self._ended(cell, number, self._ledger.end(self._study, cell, number, ending))

    def _ended(self, cell: Cell, number: int, ending: Ending) -> None:
        """Say that a trial has ended, as it is recorded, and see what that changes."""
        searched = self._ledger.entered(self._study, cell.searched, number).params
        self._listener.ended(cell, number, searched, ending, self._ledger.values(self._study, cell, number))
        if cell.fresh is None:
            self._thin(cell, number)
            self._all_fail &= ending.state == "FAIL"
            if self._all_fail:
                self.failure = self.failure or why_to_stop(self._ledger, self._study)

    def _thin(self, cell: Cell, number: int) -> None:
        """Remove the checkpoints that are not to be kept now that a trial has ended."""
        if self._place is not None and cell.fresh is None:
            thin(self._ledger, self._study, cell, self._place, [number], self._copies, self._goals)

    def _complete_lines(self, cell: Cell) -> set[int]:
        """The trials that are COMPLETE with all steps, and those that they continue."""
        trials = self._ledger.trials(self._study, cell)
        ends = [trial for trial in finished(self._study, trials) if trial.state == "COMPLETE"]
        return self._ledger.lines(self._study, cell, [trial.number for trial in ends])

    def cell(self, assignment: Assignment) -> Cell:
        """The cell of an assignment."""
        return self._cells[assignment.cell]

    def _record(self, cell: Cell, number: int, assignment: Assignment, news: News, among: int) -> None:
        study, ledger = self._study, self._ledger
        if news.start is not None:
            self._testing.discard((cell.key, number))
            self._begin(cell, number, assignment, news.start, among)
        if news.tests:
            self._testing.add((cell.key, number))
        self._saved(cell, number, news)
        if (kept := news.checkpoint) is not None:
            ledger.write_checkpoint(study, cell, number, kept.step, kept.path, kept.digest)
        ledger.write_rows(study, cell, number, news.rows)
        if news.scores is not None:
            ledger.write_scores(study, cell, number, news.scores)
        if news.untested is not None:
            ledger.write_untested(study, cell, number, news.untested.reason, news.untested.traceback)
        for row in news.rows:
            self._say_what_is_outside(cell, row.metrics, f"trial {number} at step {row.step}")
            self._later(self._listener.reached, cell, number, row)
        if news.scores is not None:
            self._say_what_is_outside(cell, news.scores.metrics, f"the test of trial {number}")

    def _say_what_is_outside(self, cell: Cell, values: Mapping[str, float], where: str) -> None:
        """Say of each metric, once, that a value is outside its declared bounds; it is recorded as it is."""
        metrics = self._metrics[cell.trainable]
        for name, value in bounds.outside(metrics, values).items():
            if (cell.trainable, name) not in self._outside:
                self._outside.add((cell.trainable, name))
                self._say(bounds.said(metrics, name, value, where))

    def _begin(self, cell: Cell, number: int, assignment: Assignment, start: Start, among: int) -> None:
        """Record a start of a trial, and say so where a continuation has to train from scratch."""
        own = self._ledger.attempts(self._study, cell, number)
        self._compare(cell, number, start, own)
        if cell.command is not None:
            self._supersede(cell, number, start.resumed_from_step or 0)
        self._ledger.write_attempt(
            self._study, cell, number, start.recorded() | assignment.taken(among), attempt=len(own)
        )
        self._later(self._listener.took_up, cell, number, assignment.config, start.resumed_from_step)
        if assignment.continues is not None and start.resumed_from_step is None:
            before = self._ledger.lineage(self._study, cell, number)[-2]
            self._say(
                f"trial {number} continues trial {before}, of which no checkpoint is left: it trains again from the "
                "start"
            )

    def _supersede(self, cell: Cell, number: int, after_step: int) -> None:
        """Set aside what earlier attempts of a process of one's own reported: the next need not report the same.

        So with the rows of a trial that it continues, where that reported rows after its last checkpoint.
        """
        line = self._ledger.lineage(self._study, cell, number)
        rows = sum(self._ledger.supersede(self._study, cell, each, after_step) for each in line)
        if rows:
            where = f"again from step {after_step}" if after_step else "again from the start: it reported no checkpoint"
            self._say(f"trial {number} starts {where}; {plural(rows, 'earlier row')} set aside")

    def _saved(self, cell: Cell, number: int, news: News) -> None:
        """Say so, once, when a checkpoint cannot be kept, and give up where a trial cannot begin or end for that."""
        key = (cell.key, number)
        if news.waits is None:
            self._waits_s.pop(key, None)
        if news.unsaved is None:
            if news.checkpoint is not None or news.start is not None:
                self._unsaved.discard(key)
            return
        if key not in self._unsaved:
            self._unsaved.add(key)
            done = "read" if news.waits == "begin" else "written"
            self._say(f"trial {number}: no checkpoint can be {done} ({news.unsaved}); it is tried again")
        if news.waits and time.monotonic() - self._waits_s.setdefault(key, time.monotonic()) > DISK_PATIENCE_S:
            remedy = "mend the store" if "://" in news.unsaved else "make room"
            self.failure = StudyError(
                f"{self._study.name}: trial {number} needs its checkpoint to {news.waits}, but {news.unsaved} for "
                f"{DISK_PATIENCE_S:.0f}s; {remedy}, and the same command goes on"
            )

    def _compare(self, cell: Cell, number: int, start: Start, own: Sequence[Mapping[str, Any]]) -> None:
        """Say so where a trial goes on, or is confirmed, under other code or data than before."""
        now, earlier = start.circumstances, own
        if not own and cell.fresh is not None:
            earlier = self._ledger.attempts(self._study, cell.searched, number)
        for before in earlier[-1:]:
            changed = " and ".join(
                what for what, digest in (("code", now.code), ("data", now.data)) if before[what] != digest
            )
            if changed and own and start.resumed_from_step is not None:
                self._say(f"trial {number} goes on under other {changed} than it began with")
            if changed and not own:
                self._say(f"trial {number} is confirmed under other {changed} than it was searched with")

    def _prune(self, cell: Cell, number: int, assignment: Assignment, news: News) -> Ending | None:
        """The pruner's word where a row of the news decides the newest rung of a trial that has steps to come."""
        if self._study.prune.kind == "none" or cell.fresh is not None or assignment.is_start:
            return None
        newest = self._ledger.last_step(self._study, cell, number)
        if newest >= self._study.budget.steps:
            return None
        return self._asked_pruner(cell, number, newest, [row.step for row in news.rows])

    def _prune_before(self, cell: Cell, number: int, assignment: Assignment) -> Ending | None:
        """The pruner's word on the last row of the trial that this one continues, where it was not asked there.

        Nobody is pruned at the last of the steps that it has; one that ended itself before them was judged.
        """
        before = assignment.continues
        if before is None or self._study.prune.kind == "none" or assignment.is_start:
            return None
        continued = self._ledger.entered(self._study, cell, self._ledger.lineage(self._study, cell, number)[-2])
        if before.after_step < continued.user_attrs.get("steps", before.after_step):
            return None
        return self._asked_pruner(cell, number, before.after_step, [before.after_step])

    def _asked_pruner(self, cell: Cell, number: int, newest: int, steps: Sequence[int]) -> Ending | None:
        """The pruner's word on the last rung of a trial at step `newest`, where one of `steps` decides it.

        A rung that was decided by a row of the trial's own is not decided again, beside rivals that came later: Optuna
        has been told of that row. A decision that a crash cut off is made again.
        """
        ledger, study, prune, metric = self._ledger, self._study, self._study.prune, self._study.objective[0]
        rung = last_rung(prune, newest)
        if not rung or not steps:
            return None
        line, past = ledger.lineage(study, cell, number), ledger.first_past(study, cell, rung, metric)
        row = next((past[each] for each in line if each in past), None)
        if row is None or row.step not in steps:
            return None
        if row.step in ledger.entered(study, cell, number).intermediate_values:
            return None
        sign = -1.0 if self._goals[0] == "max" else 1.0
        losses = {n: sign * found.metrics[metric] for n, found in past.items() if n not in line}
        if prune.kind == "asha":
            stops = asha_stops(sign * row.metrics[metric], list(losses.values()), prune.reduction)
        else:
            complete = self._complete_lines(cell)
            rivals = [loss for n, loss in losses.items() if n in complete]
            rows = [each for one in line for each in ledger.rows(study, cell, one) if each.step <= row.step]
            own = [sign * each.metrics[metric] for each in rows if metric in each.metrics]
            stops = median_stops(min((x for x in own if not math.isnan(x)), default=math.nan), rivals, prune.startup)
        where = f"step {row.step}" if row.step == rung else f"step {row.step} (rung {rung})"
        reason = f"{prune.kind} at {where}, {plural(len(losses), 'rival')}"
        if not stops and row is past.get(number):  # behind the decision; a trial's end tells of its last row
            ledger.report(study, cell, number, row.step, row.metrics[metric])
        return Ending("PRUNED", reason, cause="pruned") if stops else None


def why_to_stop(ledger: Ledger, study: Study) -> StudyError | None:
    """Why a study stops: a share of its trials, of every cell one, has ended, more are to come, and all failed."""
    total = study.budget.trials * len(study.compared)  # of the first search: a later one asks the same again
    by_cell = [
        [trial for trial in finished(study, ledger.trials(study, cell)) if trial.cause != "stopped"]
        for cell in study.compared
    ]
    ended = [trial for trials in by_cell for trial in trials]
    if not all(by_cell) or not math.ceil(study.budget.fail_share * total) <= len(ended) < total:
        return None
    if any(trial.state != "FAIL" for trial in ended):
        return None
    reason, times = Counter(trial.reason for trial in ended).most_common(1)[0]
    one = next(trial for trial in ended if trial.reason == reason)
    which = f" --cell '{one.cell.title}'" if len(study.compared) > 1 else ""
    return StudyError(
        f"{study.name}: some trial must do well, but all {len(ended)} that ended have failed, {times} of them with: "
        f"{reason}; see `cs330ray show {study.name} {one.number}{which} --log`. Mend it and `--fork NAME`, or go on "
        f"with `--set budget.fail_share=1` (now {study.budget.fail_share:g})"
    )
