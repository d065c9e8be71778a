"""What version 0.1.0 left is read, resumed, extended, reported, exported, reproduced and loaded for ever after.

`tests/before/README.md` says what is there. No test writes there: each works on a copy, and the record of the copy
names either the place of the copy itself, or the place where it was made, which is not on this machine.
"""

import base64
import gc
import hashlib
import json
import math
import re
import shlex
import shutil
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cs330ray
from cs330ray.course.pretrained import models as weights
from cs330ray.errors import DataError
from cs330ray.ledger import lease
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Silent
from cs330ray.spec import reading
from cs330ray.spec.study import Cell, Study
from tests import in_process
from tests.before import slope
from tests.cli.test_cli import ran

BEFORE = Path(__file__).parent / "before"
MADE_AT = "/home/ada/studies/runs"
STUDIES = ("endings", "slope", "front", "grown", "interrupted")
DRAWINGS, LANGUAGE = ("maml", "protonet", "mann"), ("finetune", "icl")

pytestmark = pytest.mark.filterwarnings("ignore:.*trained by other code:UserWarning")


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone in which it was made: a ledger holds when a trial started by the local clock."""
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def moved(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the home elsewhere."""
    monkeypatch.delenv("COLUMNS", raising=False)  # as into a pipe
    monkeypatch.setattr(lease, "SILENCE_S", 0.0)  # the driver of before is dead, and not of this machine
    return Path(shutil.copytree(BEFORE / "home", home))


@pytest.fixture
def settled(moved: Path) -> Path:
    """The home as it would be had it been made here: its record names the places where its files are."""
    with closing(sqlite3.connect(moved / "ledger.db")) as ledger, ledger:
        ledger.execute("update cs330ray_checkpoints set path = replace(path, ?, ?)", (MADE_AT, str(moved)))
    return moved


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Path:
    """The home by the name of its fixture."""
    return Path(request.getfixturevalue(request.param))


def in_both() -> pytest.MarkDecorator:
    """Run a test where the home was made, and in a copy elsewhere."""
    return pytest.mark.parametrize("place", ["settled", "moved"], indirect=True)


# What is in it ---------------------------------------------------------------------------------------------------


def opened(home: Path, name: str) -> tuple[Ledger, Study]:
    ledger = Ledger.at(home)
    return ledger, ledger.study(name)


def rows_of(config: slope.Config, seed: int, steps: int) -> list[tuple[int, dict[str, float]]]:
    """The rows of an undisturbed trial, whose end does not matter to its numbers."""
    undisturbed = config.model_copy(update={"ends": "well"})
    return [(row.step, dict(row.metrics)) for row in slope.train(undisturbed, seed, steps)]


def as_pairs(rows: list[Row]) -> list[tuple[int, dict[str, float]]]:
    return [(row.step, dict(row.metrics)) for row in rows]


def whole_line(ledger: Ledger, study: Study, cell: Cell, number: int) -> list[tuple[int, dict[str, float]]]:
    """The rows of a trial and of those that it continues."""
    return [pair for one in ledger.lineage(study, cell, number) for pair in as_pairs(ledger.rows(study, cell, one))]


def config_of(cell: Cell, params: Any) -> slope.Config:
    return slope.Config(**{**cell.fixed, **params})


def test_each_kind_of_ending_is_in_the_record(settled: Path) -> None:
    ledger, study = opened(settled, "endings")
    first = {cell.values["ends"]: ledger.trials(study, cell)[0] for cell in study.cells}
    assert [(trial.state, trial.reason) for trial in (first["well"], first["loses"])] == [("COMPLETE", "")] * 2
    assert {ends: trial.state for ends, trial in first.items() if ends not in ("well", "loses")} == dict.fromkeys(
        ["raises", "diverges", "nan", "hoards", "kills"], "FAIL"
    )
    assert first["raises"].reason == "raised: RuntimeError: planted"
    assert "RuntimeError: planted" in first["raises"].traceback
    assert first["diverges"].reason == "diverged: the loss is inf at step 6"
    assert first["nan"].reason == "val_loss must be finite, but got (nan,)"
    assert first["hoards"].reason.endswith("GiB, but resources.memory allows 1.5")
    assert first["kills"].reason.startswith("worker lost 4 times: ")
    pruned = [trial for cell in study.cells for trial in ledger.trials(study, cell) if trial.state == "PRUNED"]
    assert pruned
    assert all(trial.reason.startswith("median at step") for trial in pruned)


def test_a_trial_that_lost_its_worker_once_resumed_from_its_checkpoint(settled: Path) -> None:
    ledger, study = opened(settled, "endings")
    (cell,) = [cell for cell in study.cells if cell.values["ends"] == "loses"]
    assert [start["resumed_from_step"] for start in ledger.attempts(study, cell, 0)] == [None, 4]


@pytest.mark.parametrize("name", STUDIES)
def test_each_row_of_the_record_is_what_the_trainable_computes_here(settled: Path, name: str) -> None:
    ledger, study = opened(settled, name)
    trials = [trial for cell in study.cells for trial in ledger.trials(study, cell)]
    assert trials
    for trial in trials:
        recorded = whole_line(ledger, study, trial.cell, trial.number)
        computed = rows_of(config_of(trial.cell, trial.params), trial.seed, trial.steps)
        if trial.continues is not None:  # a seam has a row, whichever the spacing
            computed = [pair for pair in computed if pair[0] in {step for step, _ in recorded}]
        if trial.reason.startswith("val_loss must be finite"):
            assert math.isnan(recorded[-1][1]["val_loss"])
            recorded = [pair for pair in recorded if not math.isnan(pair[1]["val_loss"])]
        assert recorded == computed[: len(recorded)]
        assert len(recorded) == len(computed) or trial.state != "COMPLETE"


# Read ------------------------------------------------------------------------------------------------------------


def transcript(name: str) -> list[tuple[list[str], str]]:
    """Commands, and what they printed."""
    blocks = (BEFORE / "expected" / f"{name}.txt").read_text().split("\n$ ")
    said = [block.removeprefix("$ ").partition("\n") for block in blocks]
    return [(shlex.split(command), text.removesuffix("\n")) for command, _, text in said]


@in_both()
def test_list_prints_every_study(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "list") == (0, (BEFORE / "expected" / "list.txt").read_text(), "")


@pytest.mark.parametrize("name", STUDIES)
@in_both()
def test_show_and_best_print_each_trial_with_its_checkpoint_where_it_is(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, text in transcript(name):
        code, out, err = ran(capsys, *words)
        before, now = without_claims(text.replace(MADE_AT, str(place))), without_claims(out.removesuffix("\n"))
        assert (code, now, err) == (0, before, ""), words


def without_claims(text: str) -> str:
    """What a command printed, but for what it said of the cells: version 0.1.0 compared those after one search each.

    And but for what the study has cost, of which that version said nothing.
    """
    return re.sub(
        r"\n(between cells: .*(\n  .* paired by seed)*|One search each, so .*|[\d.e-]+ cpu-hours spent.*)", "", text
    )


@in_both()
def test_what_was_claimed_of_cells_after_one_search_each_is_claimed_no_more(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["show", "slope"], ["report", "slope", "--markdown", "--to", str(place / "out")]):
        code, out, err = ran(capsys, *words)
        assert (code, err) == (0, "")
        (said,) = [line for line in out.splitlines() if "Validation picks body=flat: " in line]
        assert "One search each, so whether the cells differ is not known. " in said
        assert "paired" not in out.replace("paired by seed, ", "")


@pytest.mark.parametrize("name", STUDIES)
@in_both()
def test_a_report_has_the_same_tables(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "report", name, "--markdown", "--to", str(tmp_path / "report"))
    assert (code, err) == (0, "")
    assert tables(tmp_path / "report" / "report.md") == tables(BEFORE / "expected" / f"{name}.md")


def tables(file: Path) -> list[str]:
    """The lines of a summary that hold its numbers.

    But for those of what it claims of cells, whose words may change, and the sources of variance, which came later.
    """
    of_cells = (
        r"\n\| (?:alternative \|.* seeds to tell|cell \|.* told apart|cell \| test_loss \| val_loss) \|(?:\n\|.*)*"
    )
    text = re.sub(of_cells, "", file.read_text())
    text = re.sub(r"\n(?:!\[Sources of variance\].*|\| source \|.*(?:\n\|.*)*)", "", text)
    return [line for line in text.splitlines() if line.startswith(("|", "![", "# "))]


@in_both()
def test_a_study_is_opened_in_python(place: Path) -> None:
    study = cs330ray.open("slope")
    assert len(study.trials) == 2 * 6
    assert len(study.runs) == 2 * 2 * 2
    best = study.best
    assert best is not None
    confirmed = study.confirmed
    chosen = confirmed[confirmed["chosen"] & (confirmed["cell"] == best.cell.title)]
    assert chosen["trial"].tolist() == [best.trial]
    for number, row in study.trials.iterrows():
        assert row["state"] in ("COMPLETE", "PRUNED"), number


READING = {
    "list": ["list"],
    "show": ["show", "slope"],
    "show one": ["show", "slope", "0", "--cell", "body=flat", "--log"],
    "best": ["best", "slope"],
    "report": ["report", "slope", "-o"],
    "export": ["best", "slope", "--export"],
    "reproduce": ["reproduce", "slope", "0", "--cell", "body=flat"],
}


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file, by its name."""
    gc.collect()  # connections to the ledger that nobody holds
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("words", READING.values(), ids=[*READING])
def test_what_reads_changes_no_file_and_adds_none(
    settled: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(settled)
    elsewhere = [str(tmp_path / "out")] if words[-1] in ("-o", "--export") else []
    assert ran(capsys, *words, *elsewhere)[0] == 0
    assert contents(settled) == before


def test_a_study_that_is_opened_in_python_changes_no_file_and_adds_none(settled: Path) -> None:
    before = contents(settled)
    study = cs330ray.open("slope", settled)
    assert len(study.rows) > 0
    assert study.answer
    assert contents(settled) == before


# Go on -----------------------------------------------------------------------------------------------------------


def study_file(name: str) -> Path:
    return BEFORE / "studies" / f"{name}.toml"


def run_again(name: str, home: Path, *overrides: str) -> tuple[Ledger, Study]:
    in_process.run(reading.read(study_file(name), overrides), home, mirror=False)
    return opened(home, name)


def test_an_interrupted_study_resumes_and_ends_as_an_undisturbed_one(moved: Path) -> None:
    place = moved
    ledger, study = opened(place, "interrupted")
    (cell,) = study.cells
    finished, running = ledger.trials(study, cell)
    assert (finished.state, running.state) == ("COMPLETE", "RUNNING")
    kept = ledger.kept(study, cell, 1)
    assert kept is not None
    assert 0 < kept.step < ledger.last_step(study, cell, 1) < running.steps
    ledger, study = run_again("interrupted", place)
    trials = ledger.trials(study, cell)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert [start["resumed_from_step"] for start in ledger.attempts(study, cell, 1)] == [None, kept.step]
    for trial in trials:
        computed = rows_of(config_of(cell, trial.params), trial.seed, 40)
        recorded = as_pairs(ledger.rows(study, cell, trial.number))
        assert recorded == (computed if trial.state == "COMPLETE" else computed[:20])
        assert trial.values == (recorded[-1][1]["val_loss"],)


def test_a_resumed_study_asks_for_the_trials_of_an_undisturbed_one(moved: Path, tmp_path: Path) -> None:
    """One that began before cells drew in common, and so asks each cell for itself to its end."""
    said: list[str] = []
    listener = Silent()
    listener.says = said.append  # type: ignore[method-assign]
    in_process.run(reading.read(study_file("interrupted")), moved, listener, mirror=False)
    ledger, study = opened(moved, "interrupted")
    assert said.count("interrupted: it asks as it began, each cell with draws of its own") == 1
    undisturbed = tmp_path / "undisturbed"
    Writer.at(undisturbed).open(study, {study.trainables()[0]: slope.METRICS})
    with closing(sqlite3.connect(undisturbed / "ledger.db")) as database, database:
        database.execute("update cs330ray_studies set asking = 'own'")
    other, same = run_again("interrupted", undisturbed)
    (cell,) = study.cells
    asked, wanted = ([(trial.params, trial.seed, trial.state, trial.values) for trial in each.trials(of, cell)]
                     for each, of in ((ledger, study), (other, same)))  # fmt: skip
    assert asked == wanted


def test_a_finished_study_is_given_more_trials_and_more_steps(moved: Path) -> None:
    place = moved
    before, old = opened(place, "slope")
    complete = {cell.key: [trial for trial in before.trials(old, cell) if trial.state == "COMPLETE"]
                for cell in old.cells}  # fmt: skip
    kept = {(cell.key, number): path for cell in old.cells for number, path in before.checkpoints(old, cell).items()}
    ledger, study = run_again("slope", place, "budget.trials=7", "budget.steps=15")
    for cell in study.cells:
        trials = ledger.trials(study, cell)
        further = {trial.continues: trial for trial in trials if trial.continues is not None}
        assert {*further} == {trial.number for trial in complete[cell.key]}
        assert len(trials) == 7 + len(further)
        for trial in complete[cell.key]:
            start = ledger.attempts(study, cell, further[trial.number].number)[0]
            assert start["resumed_from_step"] == (12 if (cell.key, trial.number) in kept else None)
        for trial in trials:
            computed = rows_of(config_of(cell, trial.params), trial.seed, trial.steps)
            recorded = whole_line(ledger, study, cell, trial.number)
            assert recorded == computed[: len(recorded)]
            assert len(recorded) == len(computed) or trial.state == "PRUNED"


def test_what_is_confirmed_after_more_steps_is_scored_as_the_trainable_scores(moved: Path) -> None:
    ledger, study = run_again("slope", moved, "budget.steps=15", "confirm.seeds=3")
    cells = [cell.under(fresh) for cell in study.cells for fresh in range(3)]
    longest = [run for cell in cells for run in ledger.trials(study, cell) if run.steps == 15]
    assert len(longest) >= 3 * len(study.cells)
    for one in longest:
        computed = rows_of(config_of(one.cell, one.params), one.seed, 15)
        assert as_pairs(ledger.rows(study, one.cell, one.number)) == computed
        assert ledger.test_metrics(study, one.cell, one.number) == {
            "test_loss": computed[-1][1]["val_loss"] + 0.125, "test_cost": float(one.params["scale"]),
        }  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["slope", "0", "--cell", "body=flat"],
        ["grown", "3"],
        ["endings", "0", "--cell", "ends=raises"],
        ["endings", "0", "--cell", "ends=diverges"],
    ],
    ids=" ".join,
)
@in_both()
def test_a_trial_is_reproduced(place: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "reproduce", *words)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("equal:")


@in_both()
def test_the_confirmed_choice_is_exported_and_loads(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "best", "slope", "--export", str(tmp_path / "model"))
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "model" / "config.json").read_text())
    loss, step, seed = cs330ray.load(tmp_path / "model", "tests.before.slope")
    assert (step, seed) == (12, told["seed"])
    assert loss == rows_of(slope.Config(**told["config"]), seed, 12)[-1][1]["val_loss"]


@in_both()
def test_the_mirror_shows_every_trial(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mlflow

    assert ran(capsys, "sync", "grown")[0] == 0
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    (study,) = [one for one in client.search_experiments() if one.name == "grown"]
    kinds = [one.data.tags["cs330ray.kind"] for one in client.search_runs([study.experiment_id])]
    assert sorted(kinds) == ["cell", "study"] + ["trial"] * 5
    assert MADE_AT.encode() not in (place / "mlflow.db").read_bytes()


# Load ------------------------------------------------------------------------------------------------------------


def loaded(system: str) -> tuple[Any, Any]:
    """The model of an export, and what was asked of it."""
    return cs330ray.load(BEFORE / "exports" / system), json.loads((BEFORE / "exports" / f"{system}.json").read_text())


@pytest.fixture
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")


def image(text: str) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(28, 28)


@pytest.mark.parametrize("system", DRAWINGS)
@pytest.mark.usefixtures("_on_a_cpu")
def test_an_exported_classifier_names_the_same_letters(system: str) -> None:
    model, expected = loaded(system)
    names, shown = zip(*expected["shown"], strict=True)
    told = model.classify([image(one) for one in shown], names, [image(one["image"]) for one in expected["asked"]])
    clear = [(label, one["label"]) for label, one in zip(told, expected["asked"], strict=True) if one["label"]]
    assert len(clear) >= 4
    assert all(label == wanted for label, wanted in clear)


@pytest.mark.parametrize("system", DRAWINGS)
@pytest.mark.usefixtures("_on_a_cpu")
def test_an_exported_classifier_is_as_sure_as_it_was(system: str) -> None:
    model, expected = loaded(system)
    ways = len(expected["asked"][0]["chances"])
    shown_BHW, asked_BHW = (
        torch.from_numpy(np.stack([image(one) for one in images])).float() / 255
        for images in ([one for _, one in expected["shown"]], [one["image"] for one in expected["asked"]])
    )
    support_NKCHW = shown_BHW.reshape(ways, -1, 1, 28, 28)
    chances_BN = model.score(support_NKCHW, asked_BHW[:, None]).softmax(dim=-1)
    wanted_BN = torch.tensor([one["chances"] for one in expected["asked"]])
    torch.testing.assert_close(chances_BN.detach(), wanted_BN, atol=2e-3, rtol=0)


def test_an_exported_recommender_ranks_the_same_films(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    model, expected = loaded("multitask")
    for wanted in expected["users"]:
        recommended = model.recommend(wanted["user"], 3, known_removed=False)
        assert [one.title for one in recommended] == wanted["items"]
        assert [one.score for one in recommended] == pytest.approx(wanted["scores"], abs=1e-4)
        assert [one.stars for one in recommended] == pytest.approx(wanted["stars"], abs=1e-4)
    for pair in expected["pairs"]:
        assert model.predict(pair["user"], pair["item"]) == pytest.approx(pair["stars"], abs=1e-4)


@pytest.mark.parametrize("system", LANGUAGE)
@pytest.mark.usefixtures("_on_a_cpu")
def test_an_exported_language_model_gives_the_same_answers(system: str) -> None:
    """Or it is refused where this processor draws another tiny model: its numbers come from vectorised logarithms."""
    pytest.importorskip("peft")
    told = json.loads((BEFORE / "exports" / system / "config.json").read_text())
    if weights.digest(told["config"]["model"]) != told["notes"]["base_digest"]:
        with pytest.raises(DataError, match="on which this was trained"):
            loaded(system)
        return
    model, expected = loaded(system)
    assert [model.answer(one["story"], one["question"]) for one in expected["asked"]] == [
        one["answer"] for one in expected["asked"]
    ]
    assert len(expected["asked"]) >= 3


def test_the_exports_warn_where_other_code_trained_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the answers are not taken for those of the code here."""
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded("protonet")
    told = json.loads((BEFORE / "exports" / "protonet" / "config.json").read_text())
    from cs330ray.trial import named as trainables

    other = told["code"] != trainables.code_digest("protonet")
    assert any("trained by other code" in str(one.message) for one in caught) is other
