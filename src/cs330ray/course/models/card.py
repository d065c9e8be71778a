"""What a model's card says of a system: which weights, on what data and on which terms, how it is used, its limits."""

from collections.abc import Sequence
from pathlib import Path

from cs330ray.course.data import archives
from cs330ray.course.pretrained import known

MADE_HERE = {  # data that cs330ray makes itself
    "glyphs": "letters drawn by cs330ray from the fonts that matplotlib carries (DejaVu, STIX, Computer Modern)",
    "planted": "ratings that cs330ray draws from a known model: no person gave them",
    "rooms": "stories that cs330ray draws by a grammar of its own",
}
CLASSIFY = ["labels = model.classify(shown, names, asked)  # paths of drawings, or arrays (28, 28), ink 255"]
SUPPORT_NORM = (
    "Queries are normalised by the support's statistics, so that no answer hangs on other queries: the figure to "
    "expect is `test_accuracy_support_norm`"
)
OF_DRAWINGS = (
    "Characters in single lines of pen, dark on white, that fill their square: no photographs, no pictures of things",
    "It always names one of the classes that it is shown, however unlike them the query is",
)


def sections(*, weights: str, dataset: str, use: Sequence[str], limits: Sequence[str], base: str | None = None) -> str:
    """The sections of a card: which moment's weights, the data and the model below, lines of code, and limits."""
    data = [f"- {_data(dataset)}", *([f"- {_base(base)}"] if base is not None else [])]
    parts = [
        ("Weights", [weights]),
        ("Data and terms", data),
        ("Use", ["```python", "import cs330ray", "", "model = cs330ray.load(DIR)  # this directory", *use, "```"]),
        ("Limits", [f"- {limit}" for limit in limits]),
    ]
    return "\n\n".join("\n".join([f"## {title}", "", *lines]) for title, lines in parts)


def _data(dataset: str) -> str:
    """A dataset with the terms of its publisher."""
    if dataset in MADE_HERE:
        return f"{dataset}: {MADE_HERE[dataset]}; they come from no publisher"
    held = next(archive for archive in archives.archives() if archive.name == dataset)
    ask = ": ask them before you pass a model of it on" if held.licence.startswith("research") else ""
    return f"{dataset}, from {held.url.rpartition('/')[0]}: {held.licence}{ask}"


def _base(model: str) -> str:
    """A pre-trained model with its terms, as far as they are known here."""
    if Path(model).is_dir():
        return (
            f"on top of the model in a folder {Path(model).name} of the machine that exported: under the terms of its "
            "publisher. It is not in here: loading this one looks for it at the path in `config.json`"
        )
    carried = known.KNOWN.get(model)
    terms = f"licence {carried.licence}; {carried.note}" if carried is not None else "under the terms of its publisher"
    return f"on top of the model {model}: {terms}. It is not in here: loading this one finds or fetches it"
