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
OWN_IMAGES = "images: a folder of images of the person who trained it, on the terms of their owners"
CLASSIFY = ["labels = model.classify(shown, names, asked)  # paths of drawings, or arrays (28, 28), ink 255"]
CLASSIFY_PICTURES = ["labels = model.classify(shown, names, asked)  # paths of images, images of Pillow, or arrays"]
SUPPORT_NORM = (
    "Queries are normalised by the support's statistics, so that no answer hangs on other queries: the figure to "
    "expect is `test_accuracy_support_norm`"
)
OF_DRAWINGS = (
    "Characters in single lines of pen, dark on white, a page each: no photographs, no pictures of things",
    "It always names one of the classes that it is shown, however unlike them the query is",
)


def of_pictures(size: int, channels: int) -> tuple[str, ...]:
    """The limits of a model of one's own images."""
    colours = "grey" if channels == 1 else "in colour"
    return (
        f"Images are read as in training: stretched to {size}x{size} pixels, {colours}, levels divided by 255 and not "
        "inverted; what looks otherwise than the images of training, it has not learned",
        OF_DRAWINGS[-1],
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
    if dataset == "images":
        return OWN_IMAGES
    held = next((archive for archive in archives.archives() if archive.name == dataset), None)
    if held is None:
        return f"{dataset}: data that cs330ray does not carry; ask for their terms before you pass a model of them on"
    ask = ": ask them before you pass a model of it on" if held.licence.startswith("research") else ""
    return f"{dataset}, from {held.url.rpartition('/')[0]}: {held.licence}{ask}"


def _base(model: str) -> str:
    """A pre-trained model with its terms, as far as they are known here."""
    if Path(model).is_dir():
        return (
            f"on top of the model in a folder {Path(model).name} of the machine that exported: under the terms of its "
            "publisher. It is not in here: loading this one looks for it at the path in `config.json`, or "
            "where you say: `cs330ray.load(DIR, base=PATH)`; it must be the same, byte for byte"
        )
    carried = known.KNOWN.get(model)
    terms = f"licence {carried.licence}; {carried.note}" if carried is not None else "under the terms of its publisher"
    return f"on top of the model {model}: {terms}. It is not in here: loading this one finds or fetches it"
