"""The trials of a cell's search as a ledger holds them in memory, in the orders in which they are asked for."""

from collections.abc import Collection

from optuna.trial import FrozenTrial, TrialState

from cs330ray.ledger.records import continues


class Held:
    """The trials of a cell: all by Optuna's id, and ours by number. A trial is never changed, but put in place anew."""

    def __init__(self) -> None:
        self.known: dict[int, FrozenTrial] = {}  # by Optuna's id
        self.read_to = -1  # the highest of its ids that was read; what a driver enters is known before
        self.own: set[int] = set()  # the numbers of trials that are ours by our tables: they stay so
        self.ours: dict[int, FrozenTrial] = {}  # by number
        self.standing: dict[int, FrozenTrial] = {}  # those that none continues, by the first that they go back to
        self.successors: dict[int, int] = {}  # who continues a trial
        self._first: dict[int, int] = {}  # the first trial that each goes back to

    def arrange(self) -> None:
        """Find ours among all that are known. They carry a seed; what has ended is ours by our tables alone."""
        self.ours, self.standing, self.successors, self._first = {}, {}, {}, {}
        for trial in sorted(self.known.values(), key=lambda trial: trial.number):
            if "seed" in trial.user_attrs and (trial.number in self.own or trial.state == TrialState.RUNNING):
                self._place(trial)

    def put(self, trial: FrozenTrial) -> None:
        """Take a trial of ours as it is now."""
        self.known[trial._trial_id] = trial
        if trial.state.is_finished():
            self.own.add(trial.number)
        if self.ours and trial.number < next(reversed(self.ours)) and trial.number not in self.ours:
            self.arrange()  # it was not known for ours
        else:
            self._place(trial)

    def _place(self, trial: FrozenTrial) -> None:
        number, before = trial.number, continues(trial)
        self.ours[number] = trial
        first = self._first[number] = number if before is None else self._first.get(before, number)
        if before is not None:
            self.successors[before] = number
        if first not in self.standing or self.standing[first].number <= number:
            self.standing[first] = trial

    def get(self, number: int) -> FrozenTrial | None:
        """The trial of a number, ours or not."""
        if (found := self.ours.get(number)) is not None:
            return found
        return next((trial for trial in self.known.values() if trial.number == number), None)

    def is_ours(self, number: int) -> None:
        """Take note that our tables have a trial, whatever Optuna's say of it."""
        self.own.add(number)
        if number not in self.ours:
            self.arrange()

    def line(self, number: int) -> list[int]:
        """A trial and those that it continues, oldest first."""
        found = [number]
        while found[0] in self.ours and (before := continues(self.ours[found[0]])) is not None:
            found.insert(0, before)
        return found

    def unknown(self) -> Collection[int]:
        """The numbers of trials that have ended and are not known for ours."""
        return {
            trial.number for trial in self.known.values() if trial.state.is_finished() and trial.number not in self.own
        }

    def foreign(self) -> list[int]:
        """The numbers of the trials that are not ours."""
        return sorted(trial.number for trial in self.known.values() if trial.number not in self.ours)
