"""Whether the trainables of a study still are what they were when its trials ran: goals of metrics, and defaults."""

from collections.abc import Iterator, Mapping

from cs330ray.errors import SpecError
from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Cell, Study
from cs330ray.trial import named
from cs330ray.trial.starts import starts
from cs330ray.words import short

MOST_SAID = 5


def check(ledger: Ledger, study: Study) -> None:
    """Compare what a recorded study's trainables declare with the record. Raises SpecError with the difference.

    A trial of an earlier version, which recorded no whole configuration, has nothing to compare.
    """
    recorded = ledger.find(study.name)
    if recorded is None:
        return
    found = [line for name in recorded.trainables() for line in _goals(ledger, recorded, name)]
    found += dict.fromkeys(line for cell in recorded.cells for line in _defaults(ledger, recorded, cell))
    found += dict.fromkeys(line for cell in recorded.cells for line in _starts(ledger, recorded, cell))
    if found:
        more = f" (and {len(found) - MOST_SAID} more)" if len(found) > MOST_SAID else ""
        raise SpecError(
            f"{study.name}: a study of this name exists, and its trainable has changed since: "
            f"{'; '.join(found[:MOST_SAID])}{more}. Change it back, run another study with `--fork NAME`, or "
            f"`cs330ray delete {study.name}`"
        )


def data_said(ledger: Ledger, study: Study, data: Mapping[str, str]) -> Iterator[str]:
    """Say which cells have data, by their digests, that differ from those of their newest trial, a line each."""
    for cell in study.cells:
        starts = ledger.attempts_by_trial(study, cell)
        before = starts[max(starts)][-1].get("data") if starts else None
        if before is not None and before != data[cell.key]:
            what = "data" if cell.command is None else "folder"
            yield (
                f"{study.name}: {cell.label}: its {what} changed after trial {max(starts)} ({short(before, 12)} -> "
                f"{short(data[cell.key], 12)}); trials of both stand side by side, so that `--fork NAME` may be better"
            )


def _goals(ledger: Ledger, study: Study, trainable: str) -> Iterator[str]:
    now = named.metrics(study)[trainable]
    for name, metric in ledger.metrics(study, trainable).items():
        if name in now and now[name].goal != metric.goal:
            yield f"goal of {name}: {metric.goal} -> {now[name].goal}"


def _defaults(ledger: Ledger, study: Study, cell: Cell) -> Iterator[str]:
    """Say how the configurations that trials had differ from those that the same parameters give now."""
    trainable, starts = named.of(cell), ledger.attempts_by_trial(study, cell)
    for trial in ledger.history(study, cell):
        before = starts[trial.number][-1].get("config") if trial.number in starts else None
        if before is None:
            continue
        try:
            now, again = (named.whole(named.configuration(trainable, cell, trial.params)) for _ in range(2))
        except SpecError as error:
            yield f"trial {trial.number} is refused now: {error}"
            continue
        for name, value in before.items():
            if name not in now:
                yield f"{name}: {short(value)} -> no such parameter"
            elif now[name] != value and now[name] == again[name]:  # else it is another each time, as a random name
                yield f"{name}: {short(value)} -> {short(now[name])}"


def _starts(ledger: Ledger, study: Study, cell: Cell) -> Iterator[str]:
    """Say how the configurations tried first differ from those that [start] gives now, by the defaults of Config."""
    try:
        now = starts(study, cell)
    except SpecError as error:
        yield f"{error}"
        return
    for trial in ledger.history(study, cell):
        index = trial.user_attrs.get("start")
        if index is None:
            continue
        given = now[index] if index < len(now) else {}
        for name in dict.fromkeys([*trial.params, *given]):
            before, after = (short(params[name]) if name in params else "none" for params in (trial.params, given))
            if before != after:
                yield f"start {index}: {name}: {before} -> {after}"
