"""Whether a study fits its trainables: parameters, metrics, domains and pruning, before anything starts."""

import difflib
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cs330ray.errors import SpecError
from cs330ray.spec.study import Cell, Study
from cs330ray.spec.tables import Choice, Domain, Range, Value
from cs330ray.trial.contract import Trainable
from cs330ray.trial.named import configuration, load, said
from cs330ray.words import short

OF_THE_RECORD = {
    "cell", "fresh", "reason", "seconds", "seed", "state", "step", "steps", "superseded", "trial", "wall_s",
}  # fmt: skip


def check(study: Study, source: str) -> None:
    """Check every cell of a study against its trainable. Raises SpecError in one line that begins with `source`."""
    try:
        for cell in study.cells:
            for problem in _problems(study, cell, load(cell.trainable)):
                raise SpecError(problem)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None


def _problems(study: Study, cell: Cell, trainable: Trainable) -> Iterator[str]:
    for name in study.objective:
        if name not in trainable.METRICS:
            known = ", ".join(trainable.METRICS)
            yield f"objective: {cell.trainable} reports {known}, but got {short(name)}{_near(name, trainable.METRICS)}"
        elif name in OF_THE_RECORD:
            yield f"objective: the record has a {name!r} of its own beside each value; give the metric another name"
        elif name.startswith("test_"):
            yield f"objective: the search never reads test, but got {name!r}; take {name.replace('test_', 'val_', 1)!r}"
    fields = trainable.Config.model_fields
    if study.resources.workers > 1 and not hasattr(trainable, "SPLITS"):
        yield (
            f"resources.workers: {cell.trainable} splits nothing between workers, so that 1 is needed, "
            f"but got {study.resources.workers}"
        )
    for name in [*cell.fixed, *cell.space]:
        if name not in fields:
            where = "compare" if name in cell.values else "fixed" if name in cell.fixed else "search"
            known = ", ".join(fields)
            yield f"{where}.{name}: {cell.trainable} has no such parameter{_near(name, fields)} (known: {known})"
    for name, value in cell.fixed.items():
        where = "compare" if name in cell.values else "fixed"
        for problem in _refused(trainable, name, value):
            yield f"{where}.{name}: {problem}"
    for name, domain in cell.space.items():
        yield from (f"search.{name}: {problem}" for problem in _misfits(trainable, name, domain, fields[name]))
    config = configuration(
        trainable, cell, {name: _first(domain) for name, domain in cell.space.items() if not domain.when}
    )
    yield from _pruning_problems(study, cell, config)


def _pruning_problems(study: Study, cell: Cell, config: BaseModel) -> Iterator[str]:
    every = getattr(config, "eval_every_steps", 1)
    if study.prune.kind == "none":
        return
    if "eval_every_steps" in cell.space:
        yield "search.eval_every_steps: rungs need one spacing of rows; fix it, or do not prune"
    if study.prune.min_steps % every:
        yield f"prune.min_steps: a multiple of eval_every_steps={every} is needed, but got {study.prune.min_steps}"


def _misfits(trainable: Trainable, name: str, domain: Domain, field: FieldInfo) -> Iterator[str]:
    if isinstance(domain, Range) and not domain.whole and field.annotation is int:
        yield f"{name} is an integer, but got low={domain.low}, high={domain.high}; write whole numbers"
    if isinstance(domain, Range) and domain.whole and field.annotation is float:
        yield f"{name} is a real number, but got whole ends; write {float(domain.low)} and {float(domain.high)}"
    ends = domain.choices if isinstance(domain, Choice) else [domain.low, domain.high]
    for value in ends:
        yield from _refused(trainable, name, value)


def _refused(trainable: Trainable, name: str, value: Value) -> Iterator[str]:
    """Why the Config refuses `value` for `name`, all else at its default."""
    try:
        trainable.Config(**{name: value})
    except ValidationError as error:
        for found in error.errors(include_url=False):
            if found["loc"][:1] == (name,):
                yield said(found)


def _first(domain: Domain) -> Value:
    return domain.choices[0] if isinstance(domain, Choice) else domain.low


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
