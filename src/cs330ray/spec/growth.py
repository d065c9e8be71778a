"""Two studies of one name: their difference in words, and whether one is the other grown."""

import json
import math

from cs330ray.errors import SpecError
from cs330ray.spec.study import Study


def difference(old: Study, new: Study) -> list[str]:
    """What differs between two studies, a line a place, in words: `search.inner_lr.high: 1.0 -> 2.0`."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{place}: {was} -> {now}"
        for place in dict.fromkeys([*before, *after])
        if (was := _say(before.get(place)))
        != (now := _say(after.get(place)))  # as text: 1, 1.0 and true are three values
    ]


def growth(old: Study, new: Study) -> list[str]:
    """Check that `new` is `old` or has only grown; what has grown, in words. Raises SpecError with the difference."""
    shrunk = [line for line in difference(old, new) if not _may_change(old, new, line.split(":", 1)[0])]
    if shrunk:
        raise SpecError(
            f"{new.name}: a study of this name exists and differs: {'; '.join(shrunk)}. Only [budget], [confirm] (but "
            "not its bounds) and values of [compare] may grow; rename the study, `--fork NAME`, or "
            f"`cs330ray delete {new.name}`"
        )
    return [line for line in difference(old, new) if not line.startswith(("resources", "question"))]


def _may_change(old: Study, new: Study, place: str) -> bool:
    table, _, key = place.partition(".")
    if table == "resources" or place in ("question", "budget.fail_share"):
        return True
    if table == "budget":
        before, after = (getattr(study.budget, key) or math.inf for study in (old, new))
        return bool(after >= before)
    if table == "confirm":
        return _confirmation_has_grown(old, new)
    if table == "compare":
        return old.compare.keys() == new.compare.keys() and {cell.key for cell in old.cells} <= {
            cell.key for cell in new.cells
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
