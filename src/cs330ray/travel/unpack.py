"""Unpacking: a file becomes a study of this home, or nothing does.

The file is checked whole before anything is written. Its rows then go into the ledger under a name that no study can
have, its files into a folder that no reader looks into. That folder takes its name, and one transaction gives the rows
theirs. What a killed process leaves before that is not seen, and the next call removes it.
"""

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sql
import tomli_w
from optuna.study import StudyDirection

from cs330ray import files
from cs330ray.checkpoints import local
from cs330ray.clock import wall_s
from cs330ray.errors import DataError, SpecError
from cs330ray.ledger import confirm, lease, schema
from cs330ray.ledger.tables import CHECKPOINTS, METRICS, STUDIES
from cs330ray.ledger.writer import Writer
from cs330ray.spec import places
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.travel import archive, record
from cs330ray.travel.archive import Arrived, refused
from cs330ray.travel.checks import Checks
from cs330ray.words import first_line, short

HIDDEN = ".unpacking-"  # before a study's name, in the ledger
BATCH = 1000
OPTUNAS = sql.table("studies", sql.column("study_id"), sql.column("study_name"))


@dataclass(frozen=True)
class Unpacked:
    """What arrived."""

    study: Study
    packed_as: str
    trials: int
    checkpoints: int
    file: Path  # the study as a file, to go on by


def unpack(path: Path, home: Path, name: str | None) -> Unpacked:
    """Make a file that `pack` wrote a study of `home`, under another `name` if one is given; what arrived.

    Raises DataError where the file is not as it was written, SpecError where the study cannot have its name here.
    """
    with archive.arrived(path) as found:
        study = _study(found, name)
        trials, checkpoints = _checked(found, study)
        if places.is_own(study.name):
            raise SpecError(f"name: the home keeps files of its own under {study.name!r}; choose another with --as")
        ledger = Writer.at(home)
        with lease.held(ledger.database, study.name):
            ledger.upgrade(study.name, lambda _: None)
            _sweep(ledger, home, study.name)
            _must_be_free(ledger, home, study.name)
            _arrive(found, ledger, home, study)
    return Unpacked(study, found.manifest.study, trials, checkpoints, home / study.name / places.FILE)


def _study(found: Arrived, name: str | None) -> Study:
    values = list(found.lines(archive.STUDY)) if archive.STUDY in found.members else []
    if len(values) != 1 or not isinstance(values[0], dict):
        raise refused(found.path, f"it has no {archive.STUDY} of one study")
    study = parse(values[0], str(found.path))  # what is wrong with the file is not the new name's fault
    if study.command is not None:  # what arrives is not started: its folder is that of another machine
        study = study.model_copy(update={"command": study.command.model_copy(update={"folder": ""})})
    return study if name is None else parse(study.model_dump(mode="json") | {"name": name}, "--as")


# Checked, and nothing written -----------------------------------------------------------------------------------------


def _checked(found: Arrived, study: Study) -> tuple[int, int]:
    """Check every row and every checkpoint; how many trials and checkpoints there are. Raises DataError."""
    tables = {f"{archive.TABLES}{name}.jsonl": table for name, table in record.TRAVELS.items()}
    odd = [name for name in found.members if name.startswith(archive.TABLES) and name not in tables]
    if odd or not {archive.OPTUNA, archive.TRIALS} <= found.members.keys():
        raise refused(found.path, f"its tables are not those of a ledger ({short(odd)})")
    checkpoints, checks, folders = 0, Checks(study), _folders(study)
    for kind, value in _rows(found, checks):
        if kind is CHECKPOINTS:
            _must_be_whole(found, _checkpoint(folders, value), value)
            checkpoints += 1
        elif kind is METRICS:
            checks.described.add((value["trainable"], value["metric"]))
    _must_be_described(found, study, checks)
    slugs = {folder.split("/")[1] for folder in folders.values()}
    for name in found.members:
        parts = name.split("/")
        if parts[:2] == ["files", "checkpoints"] and parts[2] not in slugs:
            raise refused(found.path, f"{short(name)} is of no cell of the study")
    return len(checks.own), checkpoints


def _rows(found: Arrived, checks: Checks) -> Iterator[tuple[Any, Any]]:
    """Read all that is recorded: what of (`studies`, `trials` or a table), and it. Raises DataError."""
    try:
        for value in found.lines(archive.OPTUNA):
            yield "studies", (*checks.optuna_study(value), value)
        for value in found.lines(archive.TRIALS):
            yield "trials", checks.trial(value)
        for name, table in record.TRAVELS.items():
            if (member := f"{archive.TABLES}{name}.jsonl") in found.members:
                for value in found.lines(member):
                    yield table, checks.row(table, value)
        checks.end()
    except ValueError as error:
        raise refused(found.path, first_line(error)) from None


def _must_be_described(found: Arrived, study: Study, checks: Checks) -> None:
    wanted = {(trainable, metric) for trainable in study.trainables() for metric in study.objective}
    if missing := sorted(wanted - checks.described):
        raise refused(found.path, f"the metric {short(missing[0][1])} is not described")


def _must_be_whole(found: Arrived, checkpoint: str, row: Mapping[str, Any]) -> None:
    """Check that the files of a recorded checkpoint are there, by the digests that they were read by."""
    folder = f"{archive.FILES}{checkpoint}"
    manifest = found.members.get(f"{folder}/{local.MANIFEST}")
    if manifest is None or manifest.sha256 != row["digest"] or manifest.bytes > local.MANIFEST_BYTES:
        raise refused(found.path, f"{short(folder)} is not the checkpoint that was recorded")
    told = next(found.lines(f"{folder}/{local.MANIFEST}"), None)
    told = told if isinstance(told, dict) else {}
    wanted = told.get("files")
    if not isinstance(wanted, dict) or told.get("step") != row["step"]:
        raise refused(found.path, f"{short(folder)}/{local.MANIFEST} is of no checkpoint")
    for name, digest in wanted.items():
        member = found.members.get(f"{folder}/{name}")
        if member is None or member.sha256 != digest:
            raise refused(found.path, f"{short(f'{folder}/{name}')} is not there as the checkpoint has it")


def _folders(study: Study) -> dict[str, str]:
    """Where the checkpoints of each cell lie in the study's folder, by the cell's key."""
    return {cell.key: f"checkpoints/{places.slug(cell)}" for cell in [*study.cells, *confirm.fresh_cells(study)]}


def _checkpoint(folders: Mapping[str, str], row: Mapping[str, Any]) -> str:
    """Where a checkpoint lies in the study's folder."""
    return f"{folders[row['cell']]}/trial-{row['trial']:05d}/{local.name_of(row['step'])}"


# Written ----------------------------------------------------------------------------------------------------------


def _must_be_free(ledger: Writer, home: Path, name: str) -> None:
    if ledger.find(name) is not None:
        raise SpecError(f"{name}: a study of this name is here; unpack it as another with `--as NAME`")
    folder = home / name
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise SpecError(
            f"{folder}: expected no folder of this name, but it holds something; use `--as NAME`, or move it"
        )


def _arrive(found: Arrived, ledger: Writer, home: Path, study: Study) -> None:
    hidden = f"{HIDDEN}{study.name}"

    def fill(partial: Path) -> None:
        (partial / places.UNPACKING).touch()
        for member in found.members:
            if member.startswith(archive.FILES):
                found.extract(member, partial / member.removeprefix(archive.FILES))
        spec = study.model_dump(mode="json", exclude_none=True)
        (partial / places.FILE).write_text(tomli_w.dumps(spec), encoding="utf-8")
        _enter(found, ledger, study, hidden)

    final = home / study.name
    try:
        files.make_directory(final, fill)
        try:
            _reveal(found, ledger, study, hidden)
        except BaseException:
            shutil.rmtree(final, ignore_errors=True)
            raise
    except OSError as error:
        raise DataError(
            f"{home}: expected room for the study, but {error.strerror or error}; nothing was unpacked"
        ) from None
    except ValueError as error:  # of Optuna's, which knows more of its trials
        raise refused(found.path, first_line(error)) from None
    finally:
        with contextlib.suppress(Exception):  # rows that are left are not seen, and the next call removes them
            ledger.forget(hidden)
    with contextlib.suppress(OSError):  # the study is here: what says that it was not means nothing now
        (final / places.UNPACKING).unlink()


def _enter(found: Arrived, ledger: Writer, study: Study, hidden: str) -> None:
    """Write all rows under a name that no study can have."""
    database, storage = ledger.database, ledger.database.storage
    ids, folders = dict[str, int](), _folders(study)  # of Optuna's studies, by cell
    batch: list[dict[str, Any]] = []
    table: sql.Table = METRICS
    for kind, value in _rows(found, Checks(study)):
        if batch and (kind is not table or len(batch) == BATCH):
            database.insert(table, batch)
            batch = []
        if kind == "studies":
            cell, directions, told = value
            ids[cell] = _optuna_study(ledger, f"{hidden} {cell}", directions, told)
        elif kind == "trials":
            cell, trial = value
            with database.guarded():
                storage.create_new_trial(ids[cell], trial)
        else:
            table = kind
            at_home = {"path": f"{study.name}/{_checkpoint(folders, value)}"} if table is CHECKPOINTS else {}
            batch.append({**value, **at_home, "study": hidden})
    if batch:
        database.insert(table, batch)


def _optuna_study(ledger: Writer, name: str, directions: list[StudyDirection], told: Mapping[str, Any]) -> int:
    storage = ledger.database.storage
    with ledger.database.guarded():
        number = storage.create_new_study(directions, name)
        for key, value in told["user_attrs"].items():
            storage.set_study_user_attr(number, key, value)
        for key, value in told["system_attrs"].items():
            storage.set_study_system_attr(number, key, value)
    return int(number)


def _reveal(found: Arrived, ledger: Writer, study: Study, hidden: str) -> None:
    """Give all rows the study's name and enter the study, in one transaction."""
    row = {"name": study.name, "uid": uuid.uuid4().hex, "digest": study.digest, "spec": study.model_dump_json()}
    row |= {"asking": found.manifest.asking}
    with ledger.database.guarded(), schema.transaction(ledger.database.engine) as connection:
        for table in record.TRAVELS.values():
            connection.execute(table.update().where(table.c.study == hidden).values(study=study.name))
        for cell in study.cells:
            was, now = (f"{name} {cell.key}" for name in (hidden, study.name))
            connection.execute(OPTUNAS.update().where(OPTUNAS.c.study_name == was).values(study_name=now))
        connection.execute(STUDIES.insert().values(**row, wall_s=wall_s()))


def _sweep(ledger: Writer, home: Path, name: str) -> None:
    """Remove what earlier calls that were killed left of this study, and of others that nobody unpacks now."""
    if ledger.find(name) is None:
        ledger.forget(name)
        if (home / name / places.UNPACKING).exists():
            shutil.rmtree(home / name, ignore_errors=True)
    with ledger.database.guarded():
        held = {of_cell.partition(" ")[0] for of_cell in optuna.get_all_study_names(ledger.database.storage)}
    held |= {row.study for row in ledger.database.select(sql.select(METRICS.c.study).distinct())}
    for hidden in held:
        if hidden.startswith(HIDDEN) and _nobody_unpacks(ledger, name, hidden.removeprefix(HIDDEN)):
            ledger.forget(hidden)
    for folder in home.glob(files.PARTIAL):
        named = re.fullmatch(r"\.partial-(.+)-[0-9a-f]{8}", folder.name)
        if named and (folder / places.UNPACKING).exists() and _nobody_unpacks(ledger, name, named[1]):
            shutil.rmtree(folder, ignore_errors=True)


def _nobody_unpacks(ledger: Writer, name: str, other: str) -> bool:
    """Whether no process is at work on another study; this one is held by the caller."""
    return other == name or not lease.lives(ledger.database, other)
