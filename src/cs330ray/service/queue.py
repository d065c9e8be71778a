"""The queue: which trial is next. First those that were cut off, then the cells in turn, then confirmation.

Trials may train together that wait, and that are drawn: what a model chooses hangs on those before it.

Replicates follow one another, each with its confirmation; the next begins while the last drains. The queue knows the
ledger and nothing of Tune: it is told when a trial has begun, must come again, or has left its worker.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from cs330ray.ledger import confirm
from cs330ray.ledger.lease import Lease
from cs330ray.ledger.records import continues
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Listener
from cs330ray.service.messages import Assignment, Continuation, Terms
from cs330ray.service.meter import Meter
from cs330ray.service.search.ask import ask, draw, is_drawn
from cs330ray.service.search.samplers import LEARNS_FROM
from cs330ray.spec.study import Cell, Study, fresh_seed, trial_seed
from cs330ray.trial import named


class Queue:
    """Names one trial after another until the budget is spent and what it found is confirmed."""

    def __init__(
        self,
        ledger: Writer,
        study: Study,
        terms: Callable[[Cell, int], Terms],
        *,
        lease: Lease,
        listener: Listener,
        interrupted: Sequence[tuple[Cell, int]] = (),
        starts: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        slots: int = 1,
    ) -> None:
        self._ledger = ledger
        self._study = study
        self._goals = ledger.goals(study)
        self._cells = {cell.key: cell for cell in [*study.cells, *confirm.fresh_cells(study)]}
        self._terms = terms  # on which a trial of a cell runs
        self._starts = starts or {}  # by key of the cell: the configurations that it tries first
        self._asking = ledger.asking(study)
        self._lease = lease
        self._listener = listener
        self._waiting = list(interrupted)
        self._live: set[tuple[str, int]] = set()  # the trials under way, by key of the cell and number
        self._again: set[tuple[str, int]] = set()  # those taken up again that have not begun: none goes before them
        self._left_s: float | None = None  # of the study's time, when this session began
        self._deadline = math.inf
        self._unconfirmed = 0  # the first replicate whose confirmation has not been put into the queue
        self._slots = slots
        self._busy: set[tuple[str, int]] = set()  # the trials under way, those beside them left out: one a worker
        self._parted: set[tuple[str, int]] = set()  # the trials that train beside no other any more
        self._signatures: dict[tuple[str, int], Any] = {}  # what trials must have alike to train together
        self.fuse = study.resources.fuse  # how many may train together
        self.meter = Meter(ledger, study, listener)
        self.ran_out: str | None = None  # the key of the budget that was spent before all was done
        self.is_over = False

    def start_clock(self) -> None:
        """Count the study's time from the first trial on; what earlier sessions worked, and took, is spent."""
        self.meter.read()
        if self._study.budget.time is not None:
            self._left_s = self._study.budget.time - self._ledger.worked_s(self._study)
            self._deadline = math.inf if self._left_s > 0 else time.monotonic()

    def next(self) -> Assignment | None:
        """Name the next trial, which is under way from now on; None while others must end first, or all `is_over`.

        Raises LedgerError where another driver has taken the study over.
        """
        trial = self._waiting_trial() or self._confirming_trial() or self._searched_trial()
        if trial is None and not self._live:
            self.is_over = True
        if trial is not None:
            trial = replace(trial, beside=self._beside(trial))
            self._live |= {(each.cell, each.trial) for each in trial.members}
            self._busy.add((trial.cell, trial.trial))
        return trial

    def _beside(self, trial: Assignment) -> tuple[Assignment, ...]:
        """Take from what waits, and then from what is to be drawn, those that train together with a first trial.

        Those that are alike are shared out evenly, over as many workers as are free. A draw joins none that has begun,
        and does not go before one that waits.
        """
        if self.fuse == 1 or not self._may_fuse(trial):
            return ()
        is_search, wanted = self._cells[trial.cell].fresh is None, self._signature(trial)
        waiting = [(cell, number) for cell, number in self._waiting if (cell.fresh is None) == is_search]
        others = [
            self._assignment(cell, self._ledger.entered(self._study, cell.searched, number)) for cell, number in waiting
        ]
        alike = [each for each in others if self._may_fuse(each) and self._signature(each) == wanted]
        free = max(self._slots - len(self._busy), 1)
        may_draw = is_search and len(alike) == len(waiting) and not any(each.begun for each in (trial, *alike))
        draws = self._draws(trial, self.fuse * free - 1 - len(alike)) if may_draw else []
        together = 1 + len(alike) + len(draws)
        among = max(math.ceil(together / self.fuse), min(free, together))
        room = math.ceil(together / among) - 1
        taken = alike[:room]
        keys = {(each.cell, each.trial) for each in taken}
        self._waiting = [(cell, number) for cell, number in self._waiting if (cell.key, number) not in keys]
        self._again |= keys
        return (*taken, *(self._entered(cell) for cell in draws[: room - len(taken)]))

    def _draws(self, trial: Assignment, most: int) -> list[Cell]:
        """The cells of the next trials that are drawn and like a first one, in the order in which they are asked.

        Where time or cost may run out, no cell gets ahead of one whose next trial is unlike.
        """
        study, wanted = self._study, self._signature(trial)
        if self._asking == "own":
            return []
        found, bounded = [], study.budget.time is not None or study.budget.cost is not None
        ahead = math.inf  # the first number that is unlike in some cell
        for place, cell in enumerate(study.replicate(self._cells[trial.cell].replicate)):
            starts, entered = self._starts.get(cell.key, ()), len(self._ledger.standing(study, cell))
            for number in range(entered, min(study.budget.trials, entered + most)):
                if not is_drawn(study, number, len(starts)):
                    break
                config = {**cell.fixed, **draw(study, cell, number, starts)}
                if self._signature_of(cell.trainable, config) != wanted:
                    ahead = min(ahead, number)
                    break
                found.append((number, place, cell))
        in_step = sorted((each for each in found if not bounded or each[0] <= ahead), key=lambda each: each[:2])
        return [cell for _, _, cell in in_step[: max(most, 0)]]

    def _may_fuse(self, trial: Assignment) -> bool:
        """Whether a trial has steps to train, continues no other, and has not parted from others."""
        parted = (trial.cell, trial.trial) in self._parted
        trains = trial.continues is None and trial.recorded_step < trial.steps
        return trains and not parted and self._signature(trial) is not None

    def _signature(self, trial: Assignment) -> Any:
        """What trials must have alike to train together; None where one cannot, or its configuration is refused."""
        key = (trial.cell, trial.trial)
        if key not in self._signatures:
            self._signatures[key] = self._signature_of(trial.trainable, trial.config)
        return self._signatures[key]

    @staticmethod
    def _signature_of(name: str, config: Mapping[str, Any]) -> Any:
        trainable = named.load(name)
        try:
            found = named.signature(trainable, trainable.Config(**config))
        except Exception:  # noqa: BLE001 - other people's code: alone, the trial fails by it
            return None
        return None if found is None else (name, found)

    @property
    def is_late(self) -> bool:
        """Whether the study's time or its cost is spent: no trial of the search runs after it."""
        return time.monotonic() >= self._deadline or self.meter.ends_search

    def overtakes(self, cell: Cell) -> bool:
        """Whether no trial of a cell may run any more: of the search, or after all that the study may cost, of any."""
        return self.meter.ends_all or (cell.fresh is None and self.is_late)

    def runs_out(self) -> str:
        """Note that the budget is spent before all is done; which one, in words."""
        if not self.meter.ends_search and not self.meter.ends_all:
            self.ran_out = "budget.time"
            return f"{self.ran_out} is spent"
        self.ran_out = "budget.cost"
        return f"{self.ran_out} is spent{'' if self.meter.ends_all else ' but for confirmation'}"

    def drop(self, cell_key: str, number: int) -> list[Cell]:
        """Forget a trial that waits, and the runs that confirm it: a person has given it up; the cells of those."""

        def is_meant(cell: Cell, waiting: int) -> bool:
            return (cell.searched.key, waiting) == (cell_key, number)

        dropped = [cell for cell, waiting in self._waiting if is_meant(cell, waiting)]
        self._waiting = [place for place in self._waiting if not is_meant(*place)]
        return dropped

    def began(self, trial: Assignment) -> None:
        """Hear that a trial has begun to train."""
        if self._left_s is not None and self._deadline == math.inf:
            self._deadline = time.monotonic() + self._left_s
        self._again.discard((trial.cell, trial.trial))

    def left(self, trial: Assignment) -> None:
        """Hear that a trial, and those beside it, have left their worker: they have ended, or the worker is lost."""
        self._busy.discard((trial.cell, trial.trial))
        for each in trial.members:
            self._live.discard((each.cell, each.trial))
            self._again.discard((each.cell, each.trial))

    def again(self, trial: Assignment) -> None:
        """Put a trial whose worker was lost first in the queue."""
        self._waiting.insert(0, (self._cells[trial.cell], trial.trial))

    def part(self, trials: Sequence[Assignment]) -> None:
        """Put trials that trained together first in the queue; each goes on alone."""
        for trial in reversed(trials):
            self._parted.add((trial.cell, trial.trial))
            self.again(trial)

    def _waiting_trial(self) -> Assignment | None:
        """Take up the first of the trials that wait; an assignment, or None where none waits."""
        while self._waiting:
            cell, number = self._waiting.pop(0)
            if self.overtakes(cell):
                self.runs_out()
                continue
            self._again.add((cell.key, number))
            return self._assignment(cell, self._ledger.entered(self._study, cell.searched, number))
        return None

    def _searched_trial(self) -> Assignment | None:
        """Ask and enter the next trial of the cell that has fewest; None where no cell may have another just now."""
        if any(self._cells[key].fresh is None for key, _ in self._again):
            return None
        for replicate in range(self._unconfirmed, self._study.repeat.searches):
            cells = self._study.replicate(replicate)
            begun = {cell.key: len(self._ledger.standing(self._study, cell)) for cell in cells}
            open_cells = [cell for cell in cells if begun[cell.key] < self._study.budget.trials]
            if open_cells:
                break
        else:
            return None
        if self.is_late:
            self.runs_out()
            return None
        return self._entered(min(open_cells, key=lambda candidate: begun[candidate.key]))

    def _entered(self, cell: Cell) -> Assignment:
        """Ask for the next trial of a cell, and enter it."""
        history = self._ledger.standing(self._study, cell)
        learns = self._study.sampler.kind in LEARNS_FROM
        lost = self._ledger.lost(self._study, cell) if learns else ()
        starts = self._starts.get(cell.key, ())
        asked = ask(self._study, cell, self._goals, history, lost, starts=starts, asking=self._asking)
        with self._ledger.at_once():
            self._lease.fence()
            seed = trial_seed(self._study.seed, len(history), cell.replicate)
            number = self._ledger.enter(self._study, cell, asked, seed)
        return self._assignment(cell, self._ledger.entered(self._study, cell, number), is_new=True)

    def _confirming_trial(self) -> Assignment | None:
        """Name the first run of the next confirmation that is due; None where none is."""
        while self._unconfirmed < self._study.repeat.searches and self._has_searched(self._unconfirmed):
            replicate, self._unconfirmed = self._unconfirmed, self._unconfirmed + 1
            self._waiting = confirm.pending(self._ledger, self._study, replicate)
            if self._waiting:
                self._listener.confirms(len(self._waiting), replicate)
                return self._waiting_trial()
        return None

    def _has_searched(self, replicate: int) -> bool:
        """Whether a replicate's search is over: every trial has begun, or the budget is spent, and none is under way.

        Who is confirmed depends on every end: a worker may yet be lost, and its trial come again.
        """
        cells = self._study.replicate(replicate)
        if {key for key, _ in self._live | self._again} & {cell.key for cell in cells}:
            return False
        begun = [len(self._ledger.standing(self._study, cell)) for cell in cells]
        short = min(begun) < self._study.budget.trials
        if short and self.is_late:
            self.runs_out()
        return not short or self.is_late

    def _assignment(self, cell: Cell, trial: FrozenTrial, *, is_new: bool = False) -> Assignment:
        """An assignment of a trial, of which the record holds nothing yet if it `is_new`."""
        study, ledger, number = self._study, self._ledger, trial.number
        searched = cell.fresh is None
        if searched and trial.user_attrs.get("steps") != study.budget.steps:
            ledger.retarget(study, cell, number)
        continuation = self._continuation(cell, trial)
        after_step = continuation.after_step if continuation else 0
        return Assignment(
            cell=cell.key,
            trial=number,
            trainable=cell.trainable,
            config={**cell.fixed, **trial.params},
            seed=trial.user_attrs["seed"] if searched else fresh_seed(study.seed, cell.fresh or 0, cell.replicate),
            steps=study.budget.steps,
            test=not searched and ledger.untested(study, cell, number) is None,
            recorded_step=0 if is_new else max(ledger.last_step(study, cell, number), after_step),
            begun=not is_new and ledger.begun(study, cell, number),
            continues=continuation,
            terms=self._terms(cell, number),
            command=cell.command,
            is_start="start" in trial.user_attrs,
        )

    def _continuation(self, cell: Cell, trial: FrozenTrial) -> Continuation | None:
        """After which rows of the record a trial continues another, and from which checkpoint."""
        before = continues(trial) if cell.fresh is None else None
        if before is None:
            return None
        ledger, study = self._ledger, self._study
        after = max(ledger.last_step(study, cell, number) for number in ledger.lineage(study, cell, before))
        return Continuation(after, ledger.checkpoint(study, cell, before))
