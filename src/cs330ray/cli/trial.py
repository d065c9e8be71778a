"""One trial alone, without Ray: `python -m cs330ray.studies.NAME --trial`, and `cs330ray reproduce`."""

import argparse
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs330ray.checkpoints import local
from cs330ray.cli.arguments import writer_here
from cs330ray.errors import DataError, SpecError
from cs330ray.files import Scratch
from cs330ray.spec import reading
from cs330ray.spec.places import ALONE, home, study_file
from cs330ray.spec.study import Study, canonical
from cs330ray.trial.contract import Scores, Trainable
from cs330ray.trial.run import run_alone, scores
from cs330ray.words import printable

if TYPE_CHECKING:
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.records import Row, Trial
    from cs330ray.reproduce.rerun import Change, Recorded


def study_command(name: str, arguments: Sequence[str], run_study: Callable[[Study, str, str], None]) -> None:
    """Take the command line of `python -m cs330ray.studies.name`. Raises Cs330rayError."""
    from cs330ray.trial import named

    trainable = named.load(name)
    options = _parser(name, trainable).parse_args(arguments)
    if options.device:
        os.environ["CS330RAY_DEVICE"] = options.device
    given = {
        field: getattr(options, field) for field in trainable.Config.model_fields if getattr(options, field) is not None
    }
    path = study_file(options.study or name)
    if options.trial:
        study = reading.read(path, options.set or ())
        run_trial(name, trainable, study, given, options)
        return
    if given or options.test:
        raise SpecError("one trial's options need --trial; for a study use --set KEY=VALUE")
    command = shlex.join(["python", "-m", f"cs330ray.studies.{name}", *arguments])
    run_study(reading.read(path, options.set or ()), str(path), command)


def run_trial(name: str, trainable: Trainable, study: Study, given: dict[str, Any], options: Any) -> None:
    """Run one trial in this process, with a line a row; resume it if it was cut; score it on test if asked."""
    from cs330ray.ledger.writer import Writer
    from cs330ray.trial import named

    cell = study.cells[0]
    config = named.configuration(trainable, cell, {key: read_value(value) for key, value in given.items()})
    steps = study.budget.steps if options.steps is None else options.steps
    if steps < 1:
        raise SpecError(f"--steps: at least 1 is needed, but got {steps}")
    named.prepared(trainable, name, config)
    ledger = Writer.at(home())
    folder = home().resolve() / ALONE / name / identity(name, config, options.seed)
    newest = local.newest(folder)
    if newest is not None and newest.step > steps:
        raise SpecError(f"--steps: at least the {newest.step} that {folder} holds are needed, but got {steps}")
    print(f"{name}: {config!r}, seed {options.seed}, {steps} steps; checkpoints in {folder}")
    began = time.perf_counter()
    rows = run_alone(trainable, config, options.seed, steps, folder, save_every_steps=options.save_every_steps)
    try:
        for progress in rows:
            _print_row(progress.step, progress.metrics, began)
    except local.DiskFault as fault:
        raise DataError(f"{folder}: room for a checkpoint is needed, but {fault}; set CS330RAY_HOME") from None
    newest = local.newest(folder)
    if newest is None:
        raise SpecError(f"{folder}: a checkpoint is needed, but the trial left none; train at least one row")
    print(f"{name}: {newest.step} steps, {time.perf_counter() - began:.1f}s in this process; checkpoint {newest.path}")
    if options.test:
        began = time.perf_counter()
        opening = ledger.write_opening(name, config.model_dump_json(), str(newest.path))
        found = scores(trainable.test(config, options.seed, newest.path))
        ledger.write_opened(opening, found.metrics)
        _print_scores(name, found, time.perf_counter() - began)


def identity(name: str, config: Any, seed: int) -> str:
    """Name the folder of a lone trial, so that the same command resumes it: a digest of its configuration and seed.

    Fields that came later, `LATER` of its Config, count only where they are not at their default: a trial that began
    before them is found.
    """
    later, fields = getattr(config, "LATER", ()), type(config).model_fields
    told = {
        field: value
        for field, value in config.model_dump(mode="json").items()
        if field not in later or value != fields[field].default
    }
    text = canonical({"trainable": name, "config": told, "seed": seed})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _print_row(step: int, metrics: Mapping[str, float], began: float, said: str = "") -> None:
    shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    print(f"step {step:>6}  {time.perf_counter() - began:8.1f}s  {shown}{said}", flush=True)


def _print_scores(name: str, scores: Scores, seconds: float) -> None:
    for metric, value in scores.metrics.items():
        print(f"{metric:<40} {value:.4f}")
    print(f"{name}: the test split was read once ({seconds:.1f}s), and the ledger says so")


def reproduce(ledger: "Ledger", study: Study, trial: "Trial", *, test: bool, keep: Path | None) -> bool:
    """Run a recorded trial again with a line a row, and print what differs and the verdict; whether it is reproduced.

    The ledger is only read, but for the opening of the test split where `test` asks for it. Raises Cs330rayError.
    """
    from cs330ray.cli.tables import print_table
    from cs330ray.reproduce import rerun as service
    from cs330ray.reproduce import verdict

    recorded = service.read(ledger, study, trial)
    known = _recorded_test(ledger, study, trial) if test else {}
    with service.as_recorded(recorded) as trainable, _folder(keep) as home:
        print(printable(_what(recorded)), flush=True)
        for change in service.changes(recorded, trainable):
            print(printable(_warning(change)), flush=True)
        outcome = service.run(recorded, trainable, home, _hearer(recorded.rows))
        now, raised = dict[str, float](), outcome.reason
        if test and outcome.rows and not raised:
            now, raised = service.test(writer_here(), recorded, trainable, home)
    again = verdict.Again(
        trial, recorded.rows, outcome.rows, raised, recorded.raised,
        {name: (known.get(name), now.get(name)) for name in [*known, *(name for name in now if name not in known)]},
    )  # fmt: skip
    intervals = verdict.intervals(ledger, study, again)
    for sheet in (verdict.table(again), verdict.objectives(study, again, intervals)) if again.pairs else ():
        print_table(sheet.title, sheet.columns, sheet.rows)
    word, why = verdict.verdict(study, again, intervals)
    print(printable(f"{word}: {why}"))
    return word != verdict.NOT


def _recorded_test(ledger: "Ledger", study: Study, trial: "Trial") -> Mapping[str, float]:
    """What a run of confirmation reached on test. Raises SpecError where there is nothing to compare."""
    if trial.cell.fresh is None:
        raise SpecError("--test: a run of confirmation is needed, since a search never reads test; add --fresh N")
    if not (known := ledger.test_metrics(study, trial.cell, trial.number)):
        untested = ledger.untested(study, trial.cell, trial.number)
        why = untested[0] if untested else f"it is {trial.state}"
        raise SpecError(f"--test: test metrics to compare are needed, but there are none ({why}); leave --test out")
    return known


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """An empty directory for checkpoints, which is removed at the end unless it is to be kept. Raises SpecError."""
    if keep is None:
        with Scratch("reproduce") as folder:
            yield folder
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        held = next(keep.iterdir(), None)
    except OSError as error:
        raise SpecError(f"--keep: an empty directory is needed, but {keep}: {error.strerror}; name another") from None
    if held is not None:
        raise SpecError(f"--keep: an empty directory is needed, but {keep} holds {held.name}; name another")
    yield keep


def _what(recorded: "Recorded") -> str:
    """What is run again, in one line."""
    trial, steps = recorded.trial, recorded.steps
    of = f" of {trial.cell.label}" if trial.cell.values or trial.cell.replicate else ""
    of += f" on fresh seed {trial.cell.fresh}" if trial.cell.fresh is not None else ""
    ended = trial.state + (f" [{trial.reason}]" if trial.reason else "")
    many = f"; {recorded.workers} workers trained it and one does here, so bits may differ" * (recorded.workers > 1)
    cut = "; what ended it lay outside, and its rows alone are made again" * recorded.was_cut
    return (
        f"{recorded.study.name}: trial {trial.number}{of} again: {trial.cell.trainable}, seed {trial.seed}, "
        f"{steps} steps; it was {ended}{cut}{many}"
    )


def _warning(change: "Change") -> str:
    first, *later = change.recorded
    was = f"recorded {first[1]}" + "".join(f", from step {step} on {value}" for step, value in later)
    resumed = " (it was resumed)" if later else ""
    return f"warning: {change.what}: {was}{resumed}, now {change.now}"


def _hearer(recorded: Sequence["Row"]) -> Callable[["Row"], None]:
    """Prints each row with whether it is as recorded."""
    from cs330ray.reproduce.verdict import pairs

    known, began = {row.step: row for row in recorded}, time.perf_counter()

    def hear(row: "Row") -> None:
        differs = [
            pair.metric for pair in pairs([known[row.step]] if row.step in known else [], [row]) if not pair.equal
        ]
        said = "as recorded" if not differs else f"differs in {', '.join(differs)}"
        _print_row(row.step, row.metrics, began, f"  {said if row.step in known else 'not recorded'}")

    return hear


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


def read_value(text: str) -> Any:
    """A value as in a study file where it reads as one, else the text itself."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
