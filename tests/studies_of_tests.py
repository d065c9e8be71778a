"""Studies of the toy trainable, and readers of what they left, for the tests of the service."""

from pathlib import Path
from typing import Any

from cs330ray.ledger.writer import Writer
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study

TOY: dict[str, Any] = {
    "name": "toy",
    "trainable": "tests.toy",
    "objective": ["val_loss"],
    "fixed": {"eval_every_steps": 5},
    "search": {"lr": {"low": 1e-3, "high": 1.0, "log": True}, "body": ["small", "large"]},
    "prune": {"kind": "none"},
    "budget": {"trials": 4, "steps": 20},
    "resources": {"checkpoint": "1s"},
}
TOY["search"]["width"] = {"low": 1, "high": 8, "when": {"body": "large"}}


def toy(**changes: Any) -> Study:
    """The toy study with whole tables replaced or, where both are tables, merged."""
    raw = {**TOY}
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    return parse(raw, "toy")


def toml(study: Study, path: Path) -> Path:
    """Write a study as a file, by its JSON: every table of it is inline TOML-compatible except null."""
    lines = []
    for key, value in study.model_dump(mode="json", exclude_none=True).items():
        lines.append(f"{key} = {_inline(value)}")
    path.write_text("\n".join(lines))
    return path


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def whole(home: Path, name: str = "toy") -> list[tuple[Any, ...]]:
    """All that a study's trials are, without times: for comparing one study with another."""
    ledger = Writer.at(home)
    study = ledger.study(name)
    return [
        (
            cell.key, trial.number, trial.state, trial.reason, dict(trial.params), trial.seed, trial.values,
            [(row.step, dict(row.metrics)) for row in ledger.rows(study, cell, trial.number)],
        )
        for cell in study.cells
        for trial in ledger.trials(study, cell)
    ]  # fmt: skip
