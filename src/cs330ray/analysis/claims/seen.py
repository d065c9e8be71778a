"""Looks at a study that the ledger holds: the one that its driver records now, and the one that readers repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cs330ray.analysis import replicates
from cs330ray.analysis.claims.claim import may_claim
from cs330ray.analysis.claims.look import Look
from cs330ray.analysis.replicates import Replicates
from cs330ray.errors import LedgerError
from cs330ray.ledger.confirm import on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Study
from cs330ray.words import shown


@dataclass(frozen=True)
class Seen:
    """What is to be said of a study's cells: a look, and how much of each has come since."""

    look: Look
    since: int  # units that are whole and that the look has not


def due(cells: Replicates, recorded: Sequence[Look], held: Mapping[str, Any] | None = None) -> Look | None:
    """The look to be recorded now; None where something is still to come, and where nothing can be claimed.

    `held` are the values that nobody tuned, where nothing is searched. A study is looked at once as it is: again only
    where it has grown, so that what is seen is another.
    """
    if len(cells.whole) < cells.study.repeat.searches:
        return None
    look = look_at(cells, len(recorded) + 1, held)
    if look is None or not may_claim(look):
        return None
    return None if recorded and replace(look, number=len(recorded)) == recorded[-1] else look


def seen(ledger: Ledger, cells: Replicates) -> Seen | None:
    """What is to be said of a study's cells; None before any is whole.

    It is the last recorded look, or the one that is due: the driver records that before it trains anything more. Where
    there is neither, it is what is whole so far, of which nothing is claimed.
    """
    recorded, held = recorded_looks(ledger, cells.study), _held(ledger, cells)
    if (look := due(cells, recorded, held)) is not None:
        return Seen(look, 0)
    now = look_at(cells, 0, held)
    if recorded:
        return Seen(recorded[-1], 0 if now is None else _newer(recorded[-1], now))
    return None if now is None else Seen(now, 0)


def _newer(last: Look, now: Look) -> int:
    """How many units are whole now that the last look has not: all, where the study has grown in more than these."""
    same = (last.trials, last.cells) == (now.trials, now.cells) and (last.unit == "seed" or last.seeds == now.seeds)
    return max(now.units - last.units, 0) if same else now.units


def record(ledger: Any, study: Study) -> None:
    """Have the driver record the look that is due, if one is."""
    recorded = recorded_looks(ledger, study)
    cells = replicates.read(ledger, study)
    look = due(cells, recorded, _held(ledger, cells))
    if look is not None:
        ledger.write_look(study, look.number, look.to_json())


def recorded_looks(ledger: Ledger, study: Study) -> list[Look]:
    """The looks that a study's driver has recorded, the first first. Raises LedgerError for what is none."""
    try:
        return [Look.from_json(text) for text in ledger.looks(study)]
    except ValueError as error:
        raise LedgerError(f"{study.name}: {error}; see `cs330ray restore --help`") from None


def look_at(cells: Replicates, number: int, held: Mapping[str, Any] | None = None) -> Look | None:
    """A look at the whole replicates of a study, 0 for one that is not taken yet; None before there is one."""
    study, goals = cells.study, cells.standings[0].goals
    if not cells.whole or study.confirm is None:
        return None
    searched = study.searched
    test = cells.test()
    return Look(
        number=number,
        unit=study.unit,
        searches=study.repeat.searches,
        trials=study.budget.trials,
        seeds=study.confirm.seeds,
        metric=study.objective[0],
        goal=goals[0],  # type: ignore[arg-type] # `max` or `min`
        validation=cells.validation(),
        tested=on_test(study.objective[0]) if test else None,
        test=test,
        sampler=study.sampler.kind if searched else None,
        searched=tuple(searched),
        held=held or {},
        split=study.repeat.split,
        left_out=cells.left_out,
        objectives={name: cells.test(place) or cells.validation(place) for place, name in _further(study)},
    )


def _further(study: Study) -> list[tuple[int, str]]:
    return list(enumerate(study.objective))[1:]


def _held(ledger: Ledger, cells: Replicates) -> Mapping[str, Any]:
    """What a study that searches nothing might have tuned, as its trials had it: rates and the like; else nothing.

    These are the parameters that are no whole numbers, fixed or by default; where cells have several values, all.
    """
    found: dict[str, list[float]] = {}
    if cells.study.searched:
        return {}
    for cell in (held[0] for held in cells.of.values()):
        starts = ledger.attempts(cells.study, cell.cell, cell.best.number) if cell.best is not None else []
        values = {**(starts[-1].get("config") or {} if starts else {}), **cell.cell.fixed}
        for name, value in values.items():
            if isinstance(value, float) and name not in cell.cell.values:
                found.setdefault(name, []).append(value)
    return {name: " or ".join(map(shown, dict.fromkeys(values))) for name, values in found.items()}
