"""Whether a study fits its trainables: parameters, metrics, domains and pruning, before anything starts."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from cs330ray.errors import SpecError
from cs330ray.spec.columns import DRAWN, TAKEN
from cs330ray.spec.study import NESTED, Cell, Study
from cs330ray.spec.tables import Choice, Domain, Value
from cs330ray.trial import declared
from cs330ray.trial.contract import Trainable
from cs330ray.trial.domains import misfits, never_searched, refused
from cs330ray.trial.named import configuration, of
from cs330ray.trial.starts import starts
from cs330ray.words import short


def check(study: Study, source: str, *, recorded: bool = False) -> list[str]:
    """Check every cell of a study against its trainable. Raises SpecError in one line that begins with `source`.

    A study that is `recorded` as it is may have begun before some of the rules: what breaks these is returned instead.
    """
    try:
        for cell in study.cells:
            for problem in _problems(study, cell, of(cell)):
                raise SpecError(problem)
        for problem in (later := list(dict.fromkeys(_later_rules(study)))):
            if not recorded:
                raise SpecError(problem)
        for cell in study.cells:
            first = {name: _first(domain) for name, domain in cell.space.items() if not domain.when}
            configuration(of(cell), cell, first)
            starts(study, cell)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None
    return later


def _later_rules(study: Study) -> Iterator[str]:
    """What breaks a rule that studies of earlier versions did not know."""
    for cell in study.cells:
        trainable = of(cell)
        for name in study.objective:
            if name in {*TAKEN, *DRAWN}:
                yield f"objective: the record has a {name!r} of its own beside each value; give the metric another name"
        if names := declared.taken(trainable):
            yield f"{cell.trainable}: {names}"
        for name, domain in cell.space.items():
            found = misfits(trainable, name, domain, trainable.Config.model_fields[name])
            yield from (f"search.{name}: {problem}" for problem in found)
    yield from never_searched(study)
    if any(cell.quoted for cell in study.compared):
        titles = Counter(replace(cell, quoted=False).title for cell in study.compared)
        yield (
            f"compare: expected cells that differ in writing, got {max(titles.values())} that read "
            f"{short(max(titles, key=lambda title: titles[title]))}; remove a value, or write it another way"
        )
    if len(study.start) > study.budget.trials:
        yield (
            f"start: expected at most {study.budget.trials} configurations, since they count among budget.trials, got "
            f"{len(study.start)}; raise budget.trials"
        )


def _problems(study: Study, cell: Cell, trainable: Trainable) -> Iterator[str]:
    for name in study.objective:
        if name not in trainable.METRICS:
            known = ", ".join(trainable.METRICS)
            yield f"objective: {cell.trainable} reports {known}, but got {short(name)}{_near(name, trainable.METRICS)}"
        elif name.startswith("test_"):
            yield f"objective: the search never reads test, but got {name!r}; take {name.replace('test_', 'val_', 1)!r}"
    fields = trainable.Config.model_fields
    if study.resources.workers > 1 and not hasattr(trainable, "SPLITS"):
        yield (
            f"resources.workers: {cell.trainable} splits nothing between workers, so that 1 is needed, "
            f"but got {study.resources.workers}"
        )
    if study.resources.fuse > 1 and not hasattr(trainable, "train_many"):
        yield (
            f"resources.fuse: {cell.trainable} has no train_many, which trains several trials together, so that 1 is "
            f"needed, but got {study.resources.fuse}"
        )
    for name in [*cell.fixed, *cell.space]:
        if name not in fields:
            where = "compare" if name in cell.values else "fixed" if name in cell.fixed else "search"
            known = ", ".join(fields)
            if name.partition(".")[0] in fields:
                yield f"{where}.{name}: {NESTED}"
            yield f"{where}.{name}: {cell.trainable} has no such parameter{_near(name, fields)} (known: {known})"
    for name, value in cell.fixed.items():
        where = "compare" if name in cell.values else "fixed"
        for problem in refused(trainable, name, value):
            yield f"{where}.{name}: {problem}"
    if study.prune.kind != "none" and "eval_every_steps" in cell.space:
        yield "search.eval_every_steps: rungs need one spacing of rows; fix it, or do not prune"


def _first(domain: Domain) -> Value:
    return domain.choices[0] if isinstance(domain, Choice) else domain.low


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
