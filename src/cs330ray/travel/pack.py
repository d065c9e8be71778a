"""Packing: a study as it is at one moment, and what lies beside it, into one file. Nothing of the study is written."""

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial

from cs330ray import files
from cs330ray.checkpoints import copies, local, store
from cs330ray.checkpoints.local import Checkpoint
from cs330ray.checkpoints.store import StoreFault
from cs330ray.errors import CheckpointError, DataError
from cs330ray.ledger import confirm
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.tables import CHECKPOINTS
from cs330ray.spec import places
from cs330ray.spec.study import Cell, Study
from cs330ray.travel import archive, record
from cs330ray.travel.archive import Packing

REPORTS = {".": ("*.html", "*.md"), "figures": ("*.svg",)}  # by its folders


@dataclass
class Packed:
    """What was packed, which trials' recorded checkpoints cannot be had here, and what beside them is unreadable."""

    trials: int = 0
    checkpoints: int = 0
    without: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # logs, marks, pages: `PATH (why)`


def pack(ledger: Ledger, study: Study, home: Path, final: Path) -> Packed:
    """Pack a study of a ledger that was opened for reading into the new file `final`; what that came to.

    Raises SpecError where the file cannot be made, DataError where the store of the checkpoints does not answer.
    """
    packed = Packed()
    with archive.packing(final) as packing:
        packing.lines(archive.STUDY, [study.model_dump(mode="json")])
        # Optuna's trials first: what is recorded beyond them has not happened yet. Those that somebody added with
        # Optuna's own tools are among them: without those the numbers of the others would change.
        histories = {cell.key: ledger.in_optuna(study, cell) for cell in study.cells}
        asked = [key for key, history in histories.items() if history]
        packing.lines(archive.OPTUNA, [record.optuna_study(ledger.database, study.name, key) for key in asked])
        packing.lines(archive.TRIALS, (record.trial(key, each) for key, each in _in_order(histories)))
        counts = {key: len(history) for key, history in histories.items()}  # Optuna leaves out no number
        packed.trials = sum(len(ledger.history(study, cell)) for cell in study.cells)
        with record.one_moment(ledger.database) as connection:
            for name, table in record.TRAVELS.items():
                found = record.rows(ledger.database, connection, table, study, counts)
                if table is CHECKPOINTS:
                    found = iter(_checkpoints(packing, ledger, study, list(found), packed))
                packing.lines(f"{archive.TABLES}{name}.jsonl", found)
        _beside(packing, study, home, counts, packed)
        packing.end(study.name, ledger.asking(study))
    return packed


def _in_order(histories: Mapping[str, list[FrozenTrial]]) -> Iterator[tuple[str, FrozenTrial]]:
    return ((key, frozen) for key, history in histories.items() for frozen in history)


def _checkpoints(
    packing: Packing, ledger: Ledger, study: Study, rows: list[dict[str, object]], packed: Packed
) -> list[dict[str, object]]:
    """Pack the newest checkpoint of each trial that is as it was recorded; the rows of those."""
    cells = {cell.key: cell for cell in [*study.cells, *confirm.fresh_cells(study)]}
    by_trial: dict[tuple[str, int], list[dict[str, object]]] = {}
    for row in rows:  # by step
        by_trial.setdefault((str(row["cell"]), int(str(row["trial"]))), []).insert(0, row)
    kept = []
    for (key, number), held in by_trial.items():
        for row in held:
            step, digest = int(str(row["step"])), str(row["digest"])
            with _found(ledger, study, cells[key], number, step) as found:
                whole = found is not None and (found.step, found.digest) == (step, digest)
                if found is not None and whole and _pack_checkpoint(packing, found, _folder(cells[key], number)):
                    kept.append(row)
                    break
        else:
            packed.without.append(f"trial {number} of {cells[key].label}")
    packed.checkpoints = len(kept)
    return kept


@contextmanager
def _found(ledger: Ledger, study: Study, cell: Cell, number: int, step: int) -> Iterator[Checkpoint | None]:
    """A recorded checkpoint, fetched where it lies in a store; None where it is not whole, or not here."""
    place = ledger.checkpoint_at(study, cell, number, step)
    if place is None or "://" not in place:
        try:
            found = local.read(Path(place)) if place else None
        except CheckpointError:
            found = None
        yield found
        return
    url = store.wanted()
    with files.Scratch("pack") as folder:
        try:
            fetched = copies.fetched(place, folder, store.at(url) if url else None)
        except CheckpointError:
            fetched = None
        except StoreFault as fault:
            raise DataError(
                f"{study.name}: trial {number}: expected its checkpoint at {place}, but {fault}; set "
                f"{store.VARIABLE} as the study had it"
            ) from None
        yield fetched
        if fetched is not None:
            shutil.rmtree(fetched.path, ignore_errors=True)


def _pack_checkpoint(packing: Packing, found: Checkpoint, trial: str) -> bool:
    """Pack a checkpoint; False where a driver that is at work has removed it meanwhile."""
    with contextlib.ExitStack() as stack:
        try:  # what is open stays readable
            paths = sorted(path for path in found.path.rglob("*") if path.is_file())
            opened = {path: stack.enter_context(path.open("rb")) for path in [*paths, found.path / local.MANIFEST]}
        except OSError:
            return False
        for path, file in opened.items():
            packing.file(f"{trial}/{local.name_of(found.step)}/{path.relative_to(found.path).as_posix()}", file)
    return True


def _folder(cell: Cell, number: int) -> str:
    """Where a trial's files lie in the archive."""
    return f"{archive.FILES}checkpoints/{places.slug(cell)}/trial-{number:05d}"


def _beside(packing: Packing, study: Study, home: Path, counts: Mapping[str, int], packed: Packed) -> None:
    """Pack the logs and marks that lie beside checkpoints, and the report; what cannot be read is left out."""
    for cell in [*study.cells, *confirm.fresh_cells(study)]:
        for number in range(counts[cell.searched.key]):
            folder = places.checkpoints_of(home, study.name, cell, number)
            for path in _in(folder, ["[!.]*"], packed):
                _pack_plain(packing, f"{_folder(cell, number)}/{path.name}", path, packed)
    report = home / study.name / places.REPORT
    for part, kinds in REPORTS.items():
        for path in _in(report / part, kinds, packed):
            _pack_plain(packing, f"{archive.FILES}report/{path.relative_to(report).as_posix()}", path, packed)


def _in(folder: Path, kinds: Sequence[str], packed: Packed) -> list[Path]:
    """Find what lies in a folder under a name of some kinds, in order; nothing where there is no folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - `glob` says nothing of a folder that it may not read
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        packed.unread.append(f"{folder} ({error.strerror or error})")
        return []
    return [folder / name for name in sorted(names) if any(fnmatch.fnmatch(name, kind) for kind in kinds)]


def _pack_plain(packing: Packing, name: str, path: Path, packed: Packed) -> None:
    """Pack a file that is none where it is a link, a folder, or gone by now."""
    with contextlib.ExitStack() as stack:
        try:
            if path.is_symlink() or not path.is_file():
                return
            opened = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            return
        except OSError as error:
            packed.unread.append(f"{path} ({error.strerror or error})")
            return
        packing.file(name, opened)
