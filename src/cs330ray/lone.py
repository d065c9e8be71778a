"""`python -m cs330ray.studies.NAME`: run the system's study, or with `--trial` one trial alone, without Ray."""

import argparse
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from cs330ray import checkpoint, spec
from cs330ray.errors import SpecError
from cs330ray.home import home, study_file
from cs330ray.spec import Study, canonical
from cs330ray.trial import Scores, Trainable, run_alone


def study_command(name: str, arguments: Sequence[str], run_study: Callable[[Study, str, str], None]) -> None:
    """Take the command line of `python -m cs330ray.studies.name`. Raises Cs330rayError."""
    from cs330ray.service import trainables

    trainable = trainables.load(name)
    options = _parser(name, trainable).parse_args(arguments)
    if options.device:
        os.environ["CS330RAY_DEVICE"] = options.device
    given = {
        field: getattr(options, field) for field in trainable.Config.model_fields if getattr(options, field) is not None
    }
    path = study_file(options.study or name)
    if options.trial:
        study = spec.read(path, options.set or ())
        run_trial(name, trainable, study, given, options)
        return
    if given or options.test:
        raise SpecError("one trial's options need --trial; for a study use --set KEY=VALUE")
    command = shlex.join(["python", "-m", f"cs330ray.studies.{name}", *arguments])
    run_study(spec.read(path, options.set or ()), str(path), command)


def run_trial(name: str, trainable: Trainable, study: Study, given: dict[str, Any], options: Any) -> None:
    """Run one trial in this process, with a line a row; resume it if it was cut; score it on test if asked."""
    from cs330ray.service import trainables
    from cs330ray.service.ledger import Ledger

    cell = study.cells[0]
    config = trainables.configuration(trainable, cell, {key: _read(value) for key, value in given.items()})
    steps = study.budget.steps if options.steps is None else options.steps
    if steps < 1:
        raise SpecError(f"--steps: at least 1 is needed, but got {steps}")
    trainable.prepare(config)
    ledger = Ledger.at(home())
    identity = canonical({"trainable": name, "config": config.model_dump(mode="json"), "seed": options.seed})
    folder = home() / "alone" / name / hashlib.sha256(identity.encode()).hexdigest()[:12]
    newest = checkpoint.newest(folder)
    if newest is not None and newest.step > steps:
        raise SpecError(f"--steps: at least the {newest.step} that {folder} holds are needed, but got {steps}")
    print(f"{name}: {config!r}, seed {options.seed}, {steps} steps; checkpoints in {folder}")
    began = time.perf_counter()
    for progress in run_alone(
        trainable, config, options.seed, steps, folder, save_every_steps=options.save_every_steps
    ):
        shown = "  ".join(f"{key} {value:.4f}" for key, value in progress.metrics.items())
        print(f"step {progress.step:>6}  {time.perf_counter() - began:8.1f}s  {shown}", flush=True)
    newest = checkpoint.newest(folder)
    if newest is None:
        raise SpecError(f"{folder}: a checkpoint is needed, but the trial left none; train at least one row")
    print(f"{name}: {newest.step} steps, {time.perf_counter() - began:.1f}s in this process; checkpoint {newest.path}")
    if options.test:
        began = time.perf_counter()
        opening = ledger.write_opening(name, config.model_dump_json(), str(newest.path))
        scores = trainable.test(config, options.seed, newest.path)
        ledger.write_opened(opening, scores.metrics)
        _print_scores(name, scores, time.perf_counter() - began)


def _print_scores(name: str, scores: Scores, seconds: float) -> None:
    for metric, value in scores.metrics.items():
        print(f"{metric:<40} {value:.4f}")
    print(f"{name}: the test split was read once ({seconds:.1f}s), and the ledger says so")


def _parser(name: str, trainable: Trainable) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m cs330ray.studies.{name}", allow_abbrev=False, description=__doc__)
    parser.add_argument("--study", metavar="FILE", help=f"a study file (default: {name}.toml of studies/)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override the study file")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: CUDA where there is one, else CPU")
    trial = parser.add_argument_group("one trial alone")
    trial.add_argument("--trial", action="store_true", help="run one trial in this process, without Ray")
    trial.add_argument(
        "--test", action="store_true", help="score it on the test split at the end; the ledger records it"
    )
    trial.add_argument("--seed", type=int, default=0)
    trial.add_argument("--steps", type=int, help="outer steps (default: the study's)")
    trial.add_argument("--save-every-steps", type=int, default=100, metavar="N")
    fields = parser.add_argument_group("its hyperparameters (default: what the study fixes, else what is said here)")
    for field, info in trainable.Config.model_fields.items():
        text = f"{info.description or ''} ({info.get_default(call_default_factory=True)})".replace("%", "%%")
        fields.add_argument(f"--{field.replace('_', '-')}", dest=field, metavar="VALUE", help=text)
    return parser


def _read(text: str) -> Any:
    """A value as in a study file where it reads as one, else the text itself."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
