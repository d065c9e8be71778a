"""What the rivals share: a search at given points, the best again on fresh seeds, the choice, its test."""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Fit = Callable[..., Mapping[str, Mapping[str, float]]]  # of an experiment's name and its points, by name; `test` or not


def answer(folder: Path, task: Mapping[str, Any], fit: Fit) -> None:
    """Write FOLDER/answer.json: each trial's validation, the choice, and its test by fresh seed.

    A trial that was lost, as a kill may do, is left out.
    """
    points, seeds = task["points"], task["fresh_seeds"]
    search = fit("search", {f"trial {number}": point for number, point in enumerate(points)}, test=False)
    values = {number: search[name]["val_mse"] for number in range(len(points)) if (name := f"trial {number}") in search}
    best = sorted(values, key=lambda number: values[number])[: task["top"]]
    fresh_points = {
        f"trial {number} on fresh seed {index}": points[number] | {"seed": seed}
        for number in best
        for index, seed in enumerate(seeds)
    }
    fresh = fit("fresh", fresh_points, test=True)
    runs = {number: [row for name, row in fresh.items() if name.startswith(f"trial {number} ")] for number in best}
    choice = min(filter(runs.get, runs), key=lambda number: statistics.fmean(row["val_mse"] for row in runs[number]))
    test = [row["test_mse"] for row in runs[choice]]
    (folder / "answer.json").write_text(json.dumps({"values": values, "choice": choice, "test": test}))
