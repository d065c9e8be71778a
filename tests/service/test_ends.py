"""How trials end in workers of Ray's, whatever they do to their process: one study, one slot."""

from pathlib import Path

import pytest

from cs330ray.ledger.writer import Writer
from cs330ray.service.run import run
from cs330ray.spec import places
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.reading import parse

DOES = ["nothing", "exits", "closes", "is interrupted", "is told to end"]


@pytest.mark.slow
def test_what_a_trial_raises_is_its_end_and_only_a_process_that_is_gone_is_a_lost_worker(
    tmp_path: Path, ray_here: str
) -> None:
    raw = {
        "name": "unruly",
        "trainable": "tests.unruly",
        "objective": ["val_loss"],
        "compare": {"does": DOES},
        "fixed": {"mark": str(tmp_path / "told")},
        "budget": {"trials": 1, "steps": 3},
        "resources": {"slots": 1, "checkpoint": 0.001},
    }
    study = parse(raw, "unruly")
    run(study, tmp_path, mirror=False)
    ledger = Writer.at(tmp_path)
    trials = {str(cell.values["does"]): ledger.trials(study, cell)[0] for cell in study.cells}
    assert {does: trial.state for does, trial in trials.items()} == dict.fromkeys(DOES, "COMPLETE") | {"exits": "FAIL"}
    exits = trials["exits"]
    assert (exits.cause, exits.reason) == ("raised", "raised: SystemExit: no data for this fold")
    assert 'sys.exit("no data for this fold")' in exits.traceback

    losses = {str(cell.values["does"]): len(ledger.losses(study, cell, 0)) for cell in study.cells}
    assert losses == dict.fromkeys(DOES, 0) | {"is told to end": 1}
    pids = {does: [row.metrics["pid"] for row in ledger.rows(study, trials[does].cell, 0)] for does in DOES}
    *same, last = [set(pids[does]) for does in DOES]
    assert len(set.union(*same)) == 1
    assert last.isdisjoint(same[0])

    for does, cell in zip(DOES, study.cells, strict=True):
        text = (checkpoints_of(tmp_path, "unruly", cell, 0) / places.LOG).read_text()
        said = {"exits": 2, "closes": 2}.get(does, 3)  # what closes its streams says no more
        assert text.count(f"{does} at step ") >= said, (does, text)
        assert not any(f"{other} at step" in text for other in DOES if other != does)
