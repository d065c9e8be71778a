"""Several trials in one worker, trained as one computation: each with the numbers that it has alone.

A cohort only trains: it reports starts, rows and checkpoints, and ends nobody. What else is to be said of a member, its
end and its test too, is said by the worker that has it alone afterwards, from its checkpoint. So whatever one process
cannot do to one member alone, such as to fail it or to bound its memory, ends the cohort, and its members go on alone.

Whom a pruner stops is the driver's word. At a rung nobody trains on before the driver has the checkpoints of all: where
it has stopped one, the cohort ends there, and the others go on from the rung.
"""

import hashlib
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cs330ray.errors import WorkerLost
from cs330ray.service.messages import Assignment, News
from cs330ray.service.workers import memory
from cs330ray.service.workers.alone import Alone
from cs330ray.service.workers.trial_run import SAVE_AGAIN_S, TrialRun
from cs330ray.spec.places import LOG
from cs330ray.trial import named, run
from cs330ray.trial.contract import Member, Moment, Progress
from cs330ray.trial.environment import reason_of

PROOF_STEPS = 3
UNEQUAL = "together they would not be equal to the bit on this machine"

_proofs: dict[str, bool] = {}  # of this process: whether members are equal together, by what they have alike


class CohortRun:
    """The trials of an assignment between two batches; arguments as those of `TrialRun`."""

    def __init__(self, assignment: Assignment, store_url: str | None, told: Callable[[], bool]) -> None:
        self._told = told
        self._members = [_Beside(each, store_url, told) for each in assignment.members]
        self._moments: Iterator[Moment] | None = None
        self._fresh: set[int] = set()  # of those who stand at a row that is not kept yet
        self._at_rung = False  # some stand at a row that the pruner may judge
        self._over = False  # nobody trains any more
        for other in assignment.beside:
            _refer(other, assignment)

    def next_batch(self) -> News:
        """Train until a batch of rows is worth a message; that message. At its start checkpoints are written."""
        for member in self._members:
            member.begin_batch()
        parts, unequal, kept = None, False, self._at_rung
        self._at_rung = False
        try:
            if self._moments is None:
                unequal = not self._begin()
                parts = UNEQUAL if unequal else None
            elif self._keep() and self._over:
                parts = ""
            if parts is None and not kept and not any(member.waits for member in self._members):
                self._advance()
        except WorkerLost:
            raise
        except BaseException as error:
            if self._told():
                raise
            traceback.print_exc()  # for its log: alone, whoever raises it again ends by it
            parts = reason_of(error)
        first, *others = (member.news for member in self._members)
        saves = self._at_rung or None
        return replace(first, beside=tuple(others), saves=saves, parts=parts, unequal=unequal or None)

    def close(self) -> None:
        """End the generator, and give its memory back."""
        try:
            close = getattr(self._moments, "close", None)
            if close is not None:
                close()
        except Exception:  # noqa: BLE001 - after all is said: for the log
            traceback.print_exc()
        self._moments = None
        for member in self._members:
            member.close()

    def _begin(self) -> bool:
        """Begin or resume all; False where together they are not equal to what they are alone."""
        for member in self._members:
            member.begin()
        members, first = [each.member for each in self._members], self._members[0]
        if not _is_equal(first.trainable, members):
            return False
        seeds = [each.seed for each in members]
        for place, each in enumerate(self._members):
            each.note_company(seeds[:place] + seeds[place + 1 :])
        if first.memory_gib is not None:
            memory.watch(first.home, first.memory_gib * len(members), marks=False)
        self._moments = first.trainable.train_many(members, ())
        return True

    def _keep(self) -> bool:
        """Write the checkpoints that are due; False where one that has trained to its end waits for room."""
        for place in sorted(self._fresh):
            if self._members[place].save_if_due():
                self._fresh.discard(place)
        if any(member.waits for member in self._members):
            time.sleep(SAVE_AGAIN_S)
            return False
        return True

    def _advance(self) -> None:
        """Train until some member's batch is worth a message, or none trains any more."""
        assert self._moments is not None
        until = time.monotonic() + self._members[0].batch_s
        while (moment := next(self._moments, None)) is not None:
            self._fresh, sends = set(), False
            for place, reached in moment.items():
                if isinstance(reached, Exception):  # it trains no more; alone, it comes to the same end again
                    continue
                self._fresh.add(place)
                sends |= self._members[place].take(reached, until)
                self._at_rung |= self._members[place].is_at_rung
            if sends:
                return
        self._over = True
        for place in self._fresh:  # who ended by a rule of its own, behind the row that it has just reached
            self._members[place].is_last()


class _Fed:
    """In the place of a trainable: its rows are those that somebody else brings."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def train(self, config: Any, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
        while self.progress is not None:
            yield self.progress


class _Seat(Alone):
    """Where a member's generator would run."""

    def __init__(self) -> None:
        super().__init__()
        self.fed = _Fed()
        self.member: Member | None = None

    @property
    def trainable(self) -> Any:
        return self._trainable

    def train(self, resume: Path | None, begin_step: int) -> Any:
        """Remember where the member begins; the rows that it is brought, held to the contract."""
        assert self._assignment is not None
        seed, steps = self._assignment.seed, self._assignment.steps
        self.member = Member(self._config, seed, steps, resume)
        return run.train(self.fed, self._config, seed, steps, resume, begin_step=begin_step)  # type: ignore[arg-type]

    def leave(self) -> None:
        """Let go of the member's state, and give back its memory."""
        self.fed.progress = self.member = None
        super().leave()


class _Beside(TrialRun):
    """One member: a trial whose moments are brought by the cohort."""

    def __init__(self, assignment: Assignment, store_url: str | None, told: Callable[[], bool]) -> None:
        self._seat = _Seat()
        self.is_at_rung = False  # its newest row is one that the pruner may judge, and it has steps to come
        super().__init__(assignment, self._seat, store_url, told)

    @property
    def trainable(self) -> Any:
        return self._seat.trainable

    @property
    def member(self) -> Member:
        assert self._seat.member is not None
        return self._seat.member

    @property
    def home(self) -> Path:
        return self._home

    @property
    def memory_gib(self) -> float | None:
        return self._terms.memory_gib

    @property
    def batch_s(self) -> float:
        return self._terms.batch_s

    @property
    def news(self) -> News:
        return replace(self._news, rows=tuple(self._unsent))

    def begin_batch(self) -> None:
        self._news, self._unsent = News(), []

    def begin(self) -> None:
        self._start()

    def note_company(self, seeds: Sequence[int]) -> None:
        """Note with whom it trains, as part of its start."""
        start = self._news.start
        assert start is not None
        together = {"seeds": list(seeds), "proof": "bits"}
        self._note(start=replace(start, circumstances=replace(start.circumstances, together=together)))

    def take(self, progress: Progress, until: float) -> bool:
        """Take a moment; whether the batch is worth a message now."""
        assert self._rows is not None
        self._seat.fed.progress = progress
        before, every = self._step, self._terms.prune_every
        sends = self._took(next(self._rows), until)
        self.is_at_rung = bool(every) and self._step // every > before // every and not self._last
        if self.is_at_rung:
            self._saved_s = -math.inf  # its checkpoint is due at once
        return sends

    @property
    def waits(self) -> bool:
        """Whether it has trained to its end, and its last checkpoint cannot be kept."""
        return self._news.waits == "end"

    def is_last(self) -> None:
        """Hear that no moment comes after the newest."""
        self._last = True

    def save_if_due(self) -> bool:
        """Keep the moment where that is due; whether it is kept."""
        self._save_if_due()
        if self._last and self._news.unsaved is not None:
            self._note(waits="end")
        return self._news.checkpoint is not None


def _is_equal(trainable: Any, members: Sequence[Member]) -> bool:
    """Whether the first of them, trained for a few steps from scratch, has the same bits alone and beside the others.

    Found out once a process for as many that are alike but for what may differ. It stands for those who are left when
    others have ended, too.
    """
    alike = f"{trainable.__name__} {named.signature(trainable, members[0].config)} {len(members)}"
    if alike not in _proofs:
        few = [replace(member, steps=PROOF_STEPS, resume=None) for member in members]
        _proofs[alike] = _reached(trainable, few[:1]) == _reached(trainable, few)
    return _proofs[alike]


def _reached(trainable: Any, members: Sequence[Member]) -> list[str]:
    """What the first of some members reaches: its rows, the bytes of its checkpoints, and how it fails."""
    found = []
    for moment in trainable.train_many(members, ()):
        reached = moment.get(0)
        if isinstance(reached, Progress):
            assert reached.save is not None
            with tempfile.TemporaryDirectory() as folder:
                reached.save(Path(folder))
                files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
                held = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
            found.append(f"{reached.step} {sorted(reached.metrics.items())} {held}")
        elif reached is not None:
            found.append(str(reached))
    return found


def _refer(member: Assignment, first: Assignment) -> None:
    """Say in the log of a member where what it prints is."""
    try:
        member.terms.home.mkdir(parents=True, exist_ok=True)
        with (member.terms.home / LOG).open("a") as log:
            log.write(f"It trains together with others; what they print is in {first.terms.home / LOG}\n")
    except OSError:  # a disk that takes nothing
        return
