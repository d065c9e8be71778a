"""Two studies of one name: their difference in words, and whether one is the other grown."""

import json
import math

from cs330ray.errors import SpecError
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study

FREE = ("question", "budget.fail_share", "budget.time", "budget.cost", "command.folder")  # may change in any way


def difference(old: Study, new: Study) -> list[str]:
    """What differs between two studies, a line a place, in words: `search.inner_lr.high: 1.0 -> 2.0`."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{place}: {was} -> {now}"
        for place in dict.fromkeys([*before, *after])
        if (was := _say(before.get(place)))
        != (now := _say(after.get(place)))  # as text: 1, 1.0 and true are three values
    ]


def as_recorded(old: Study, new: Study) -> Study:
    """Take what the file leaves open of [sampler] from the recorded study of its name; the file's study so completed.

    A default may become another with a new version; a study goes on with the one that it began with. Raises SpecError
    where that does not fit the rest of the file.
    """
    given = {name: getattr(new.sampler, name) for name in new.sampler.model_fields_set}
    sampler = old.sampler.model_copy(update=given)
    if sampler == new.sampler:
        return new
    return parse(new.model_dump(mode="json") | {"sampler": sampler.model_dump(mode="json")}, new.name)


def kept(file: Study, completed: Study) -> list[str]:
    """What a study keeps of [sampler] that its file leaves open, and that would be another by default; a line each."""
    return [
        f"{file.name}: sampler.{name} is {getattr(completed.sampler, name)}, as the study began; its file does not say"
        for name in type(file.sampler).model_fields
        if getattr(file.sampler, name) != getattr(completed.sampler, name)
    ]


def growth(old: Study, new: Study, begun: int | None = None) -> list[str]:
    """Check that `new` is `old` or has only grown; what has grown, in words. Raises SpecError with the difference.

    The trials may become fewer where the cell with most of them has `begun` no more.
    """
    places = {line.split(":", 1)[0]: line for line in difference(old, new)}
    fewer = new.budget.trials < old.budget.trials
    if fewer and begun is not None and new.budget.trials < begun:
        raise SpecError(
            f"{new.name}: budget.trials: expected at least {begun}, since so many trials have begun, got "
            f"{new.budget.trials}; write {begun}, and the search ends with them"
        )
    if fewer and begun is not None:
        places.pop("budget.trials")
    shrunk = [line for place, line in places.items() if not _may_change(old, new, place)]
    if shrunk:
        raise SpecError(
            f"{new.name}: a study of this name exists and differs: {'; '.join(shrunk)}. Only [budget], [confirm] (but "
            "not its bounds), repeat.searches and values of [compare] may grow; rename the study, `--fork NAME`, or "
            f"`cs330ray delete {new.name}`"
        )
    return [line for line in difference(old, new) if not line.startswith(("resources", "question", "command.folder"))]


def _may_change(old: Study, new: Study, place: str) -> bool:
    table, _, key = place.partition(".")
    if table == "resources" or place in FREE:
        return True
    if table == "budget":
        return bool(getattr(new.budget, key) >= getattr(old.budget, key))
    if place == "repeat.searches":
        return new.repeat.searches >= old.repeat.searches
    if table == "confirm":
        return _confirmation_has_grown(old, new)
    if table == "compare":
        return old.compare.keys() == new.compare.keys() and {cell.key for cell in old.compared} <= {
            cell.key for cell in new.compared
        }
    return False


def _confirmation_has_grown(old: Study, new: Study) -> bool:
    """Whether more is confirmed; how it chooses stands from the first, since test may have been read since."""
    if old.confirm is None or new.confirm is None:
        return old.confirm is None
    before, after = (study.confirm.most(len(old.objective)) or math.inf for study in (old, new) if study.confirm)
    return after >= before and new.confirm.seeds >= old.confirm.seeds and new.confirm.bounds == old.confirm.bounds


def _flat(value: object, place: str = "") -> dict[str, object]:
    if isinstance(value, dict) and value:
        return {
            leaf: item
            for key, inner in value.items()
            for leaf, item in _flat(inner, f"{place}.{key}" if place else key).items()
        }
    return {place: value}


def _say(value: object) -> str:
    return "absent" if value is None or value == {} else json.dumps(value)
