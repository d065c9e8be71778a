"""Thinning: of the finished trials of a cell the best keep their last checkpoint, of the others the rows stay.

Runs of confirmation keep theirs: they are what a study is for.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cs330ray.analysis.standing import Standing
from cs330ray.checkpoints import local
from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.copies import Copies, must_be_seen
from cs330ray.checkpoints.store import StoreFault
from cs330ray.errors import StudyError
from cs330ray.ledger import confirm
from cs330ray.ledger.writer import Writer
from cs330ray.spec import places
from cs330ray.spec.study import Cell, Study


def thin(
    ledger: Writer,
    study: Study,
    cell: Cell,
    place: Callable[[Cell, int], Path],
    ended: Sequence[int] | None = None,
    copies: Callable[[Cell, int], Copies] | None = None,
    goals: Sequence[str] | None = None,
) -> list[int]:
    """Remove the checkpoints of a cell that are not to be kept, recorded or not; of which trials.

    `place` is where a trial's lie, `copies` those in a store, `ended` who has just ended; by default every trial is
    looked at. `goals` are those of the study, where they have been read. The files go first: cut off between, the
    record names what is gone, and the next call goes on. What this machine does not see stays, and what is in a store
    that does not answer.
    """
    held = ledger.checkpoints(study, cell)
    trials = ledger.trials(study, cell, None if ended is None else {*held, *ended})
    stay = Standing(study, goals or ledger.goals(study), cell, trials).to_keep(study.resources.keep)
    removed = []
    for trial in trials:
        if trial.number in stay:
            continue
        home, recorded = place(cell, trial.number), held.get(trial.number)
        here = home.exists() and (recorded is not None or any(home.glob("step-*")))
        maybe_there = recorded is not None or trial.number in (ended or ())
        there = copies(cell, trial.number) if copies is not None and maybe_there else None
        if (here or there is not None) and _remove(home, there, recorded):
            ledger.forget_checkpoints(study, cell, trial.number)
            removed.append(trial.number)
    return removed


def remove_copies(ledger: Writer, study: Study) -> list[str]:
    """Remove a study's folder in the store; the recorded copies that are left elsewhere. Raises StudyError."""
    cells = [*study.cells, *confirm.fresh_cells(study)]
    left = sorted({place for cell in cells for place in ledger.checkpoints(study, cell).values() if "://" in place})
    folder, url = ledger.folder(study), stores.wanted()
    if folder is None or url is None:
        return left
    try:
        store = stores.at(url)
        if any(place.startswith(f"{store.address}/{folder}/") for place in left):
            must_be_seen(store, folder)
        store.remove(folder)
    except StoreFault as fault:
        raise StudyError(
            f"{study.name}: its checkpoints must be removed first, but {fault}; mend the store, or unset "
            f"{stores.VARIABLE} to leave them there"
        ) from None
    return [place for place in left if not place.startswith(f"{store.address}/{folder}/")]


def remove_folder(home: Path, study: str) -> list[Path]:
    """Remove a study's own files under the home, and its folder with them; what is left there, not the study's."""
    folder = home / study
    if (folder / places.CHECKPOINTS).is_symlink():  # to a folder on another disk, which may hold more
        for cell in (folder / places.CHECKPOINTS).glob("*"):
            if re.fullmatch("[0-9a-f]{12}", cell.name):
                shutil.rmtree(cell, ignore_errors=True)
    for own in (places.CHECKPOINTS, places.FILE, places.UNPACKING, *places.OF_MIRROR):
        _discard(folder / own)
    for report in folder.glob(f"{places.REPORT}*"):
        if re.fullmatch(rf"{places.REPORT}(-over-\d+-splits)?", report.name):
            _discard(report)
    with contextlib.suppress(OSError):
        folder.rmdir()
    with contextlib.suppress(OSError):  # a link to a folder elsewhere: the folder may be more than ours
        if folder.is_symlink() and not any(folder.iterdir()):
            folder.unlink()
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if not places.is_own(study))
    return []


def _discard(path: Path) -> None:
    """Remove a file, a folder or a link; what a link leads to stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _remove(home: Path, copies: Copies | None, recorded: str | None) -> bool:
    """Remove a trial's checkpoints here and in the store; whether what is recorded is gone."""
    local.remove(home)
    if copies is not None:
        try:
            copies.remove()
        except StoreFault:
            return False
    if recorded is not None and "://" in recorded:
        return copies is not None and copies.holds(recorded)
    return home.exists()
