"""The mirror: what MLflow holds of a study, what a pass costs, and its process as a study's driver holds it."""

import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.experiments import tracking_uri
from cs330ray.mirror.runs import STUDY, Runs
from cs330ray.mirror.sync import Mirror, MirrorError, attach, forget
from tests import filled
from tests import toy as toy_trainable
from tests.studies_of_tests import toy

WRITES = ("create_run", "update_run", "set_terminated", "log_batch", "set_experiment_tag", "set_tag", "log_artifact")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with MLflow and the mirrored study `letters`; tests that change one have a study of their own here."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ledger = Writer.at(home)
        filled.fill(ledger)
        Mirror(ledger, "letters", home).sync()
    return home


ODD = "what? 100%20 #1"


def test_a_home_of_any_name_has_its_own_ledger_and_its_own_mirror(tmp_path: Path) -> None:
    """In an address `?` begins a query, `%20` is a space, and `#` a fragment."""
    for home, name in ((tmp_path / ODD, "odd"), (tmp_path / "what", "plain")):
        home.mkdir()
        writer = Writer.at(home)
        filled.fill(writer, name)
        Mirror(writer, name, home).sync()
        assert {"ledger.db", "mlflow.db"} <= {path.name for path in home.iterdir()}
    assert Ledger.at(tmp_path / ODD).names() == ["odd"]
    assert Ledger.at(tmp_path / "what").names() == ["plain"]
    client = mlflow.MlflowClient(tracking_uri(tmp_path / ODD))
    assert "odd" in {experiment.name for experiment in client.search_experiments()}


@pytest.fixture(autouse=True)
def _mlflow_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)


def client_of(home: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")


def runs_of(home: Path, name: str = "letters") -> dict[tuple[str, str, str], Run]:
    """A study's runs in MLflow by kind, cell and trial."""
    client = client_of(home)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    return {tuple(run.data.tags[f"cs330ray.{part}"] for part in ("kind", "cell", "trial")): run for run in found}


def tags_of(home: Path, name: str) -> dict[str, str]:
    """The tags of a study's experiment."""
    return dict(client_of(home).get_experiment_by_name(name).tags)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of MLflow's writing calls was made."""
    counted: Counter[str] = Counter()

    def counting(name: str, call):
        def counted_call(*given, **named):
            counted[name] += 1
            return call(*given, **named)

        return counted_call

    for name in WRITES:
        monkeypatch.setattr(mlflow.MlflowClient, name, counting(name, getattr(mlflow.MlflowClient, name)))
    return counted


def test_mlflow_names_and_marks_the_best_and_can_be_sorted_by_it(shown: Path) -> None:
    runs = runs_of(shown)
    top, cell = runs["study", "", ""], runs["cell", '{"cost":1.0}', ""]
    assert top.info.run_name.startswith("Answer: trial 2, 0.83 ±0.05 val_accuracy confirmed, 0.82 ±0.05 test_accuracy")
    assert cell.info.run_name == "★ cost=1.0 · 0.83 ±0.05 val_accuracy confirmed by trial 2"
    starred = {key for key, run in runs.items() if run.info.run_name.startswith("★") and key[0] == "trial"}
    assert starred == {("trial", '{"cost":1.0}', "2"), ("trial", '{"cost":2.0}', "1")}
    assert starred == {key for key, run in runs.items() if run.data.tags.get("cs330ray.best") == "confirmed"}
    for run in (top, cell):
        assert run.data.metrics == pytest.approx(
            {"best_val_accuracy": 0.9, "confirmed_val_accuracy": 0.83, "confirmed_test_accuracy": 0.82}
        )


def test_the_experiment_and_the_study_s_run_hold_the_answer_with_links_to_runs_that_are_there(shown: Path) -> None:
    runs, tags = runs_of(shown), tags_of(shown, "letters")
    note = tags["mlflow.note.content"]
    assert note == runs["study", "", ""].data.tags["mlflow.note.content"]
    assert tags["best"] == "trial 2, 0.83 ±0.05 val_accuracy confirmed, 0.82 ±0.05 test_accuracy"
    experiment = runs["study", "", ""].info.experiment_id
    links = re.findall(rf"\[trial (\d)\]\(#/experiments/{experiment}/runs/(\w+)\?workflowType=machine_learning\)", note)
    by_id = {run.info.run_id: key[2] for key, run in runs.items()}
    assert len(links) == 1 + 6
    assert all(by_id[run] == number for number, run in links)
    assert by_id[links[0][1]] == "2"


def test_the_tags_of_a_run_are_named_as_mlflow_takes_names(home: Path) -> None:
    """MLflow refuses `@` in the name of a tag, as an objective may have it."""
    runs = Runs(home, "letters", "uid")
    runs.ensure(STUDY, "letters", None, {"best_val_acc@1": "0.5"})
    assert runs_of(home)[STUDY].data.tags["cs330ray.best_val_acc_1"] == "0.5"
    assert runs.tag_of(STUDY, "best_val_acc@1") == "0.5"
    assert runs.tag(STUDY, {"best_val_acc@1": "0.5"}) == 0


def test_a_second_pass_writes_nothing(shown: Path, writes: Counter[str]) -> None:
    again = Mirror(Writer.at(shown), "letters", shown)
    assert (again.sync(), again.sync(), sum(writes.values())) == (0, 0, 0)


def test_a_name_follows_its_trial_and_a_trial_that_ends_costs_a_few_calls_however_many_there_are(
    shown: Path, writes: Counter[str]
) -> None:
    ledger = Writer.at(shown)
    study = filled.opened(ledger, filled.letters("live", trials=20))
    cell, mirror = study.cells[0], Mirror(ledger, "live", shown)
    for place in range(12):
        filled.search(ledger, study, cell, 0.8 - place / 100)
    number = filled.enter(ledger, study, cell, 0.2)
    mirror.sync()
    key = ("trial", cell.key, str(number))
    assert runs_of(shown, "live")[key].info.run_name == "trial 12 · quality=0.2"
    writes.clear()
    filled.end(ledger, study, cell, number, 0.3)
    mirror.sync()
    runs = runs_of(shown, "live")
    assert runs[key].info.run_name == "trial 12 · 0.3 val_accuracy · quality=0.2"
    assert runs["trial", cell.key, "0"].info.run_name == "★ trial 0 · 0.8 val_accuracy · quality=0.4"
    assert writes["update_run"] == 1
    assert sum(writes.values()) <= 8  # with the two descriptions, which say how many trials have ended
    filled.search(ledger, study, cell, 0.9)
    mirror.sync()
    runs = runs_of(shown, "live")
    assert runs["trial", cell.key, "0"].info.run_name == "trial 0 · 0.8 val_accuracy · quality=0.4"
    assert runs["trial", cell.key, "13"].info.run_name == "★ trial 13 · 0.9 val_accuracy · quality=0.45"
    ranked = {runs["trial", cell.key, str(place)].data.tags.get("cs330ray.rank") for place in (13, 0, 9)}
    assert ranked == {"1", "2", "none"}
    assert mirror.sync() == 0


def test_a_figure_that_holds_no_more_is_not_a_number(shown: Path) -> None:
    ledger = Writer.at(shown)
    filled.fill(ledger, "grown")
    Mirror(ledger, "grown", shown).sync()
    study = filled.opened(ledger, filled.letters("grown", trials=5))
    for cell in study.cells:
        filled.search(ledger, study, cell, 0.95)
    Mirror(ledger, "grown", shown).sync()
    for key in (("study", "", ""), ("cell", '{"cost":1.0}', "")):
        metrics = runs_of(shown, "grown")[key].data.metrics
        assert metrics["best_val_accuracy"] == 0.95
        assert math.isnan(metrics["confirmed_val_accuracy"])
    assert Mirror(ledger, "grown", shown).sync() == 0


def test_a_description_that_a_person_wrote_stays(shown: Path) -> None:
    ledger = Writer.at(shown)
    study = filled.opened(ledger, filled.letters("noted"))
    mirror, client = Mirror(ledger, "noted", shown), client_of(shown)
    mirror.sync()
    client.set_experiment_tag(client.get_experiment_by_name("noted").experiment_id, "mlflow.note.content", "mine")
    client.set_tag(runs_of(shown, "noted")["study", "", ""].info.run_id, "mlflow.note.content", "mine, too")
    filled.search(ledger, study, study.cells[0], 0.5)
    for one in (mirror, Mirror(ledger, "noted", shown)):
        one.sync()
        assert tags_of(shown, "noted")["mlflow.note.content"] == "mine"
        assert runs_of(shown, "noted")["study", "", ""].data.tags["mlflow.note.content"] == "mine, too"
    assert tags_of(shown, "noted")["best"] == "trial 0, 0.5 val_accuracy"
    assert Mirror(ledger, "noted", shown).sync() == 0


def test_a_report_is_attached_to_the_study_s_run_in_place_of_an_earlier_one(shown: Path, tmp_path: Path) -> None:
    ledger = Writer.at(shown)
    filled.opened(ledger, filled.letters("told"))
    filled.search(ledger, ledger.study("told"), ledger.study("told").cells[0], 0.5)
    report, summary = tmp_path / "report.html", tmp_path / "report.md"
    for text in ("<h1>first</h1>", "<h1>second</h1>"):
        report.write_text(text)
        summary.write_text("# summary")
        attach(ledger, "told", shown, [report, summary])
    run, client = runs_of(shown, "told")["study", "", ""], client_of(shown)
    assert [found.path for found in client.list_artifacts(run.info.run_id)] == ["report.html", "report.md"]
    kept = Path(client.download_artifacts(run.info.run_id, "report.html"))
    assert kept != report
    assert kept.read_text() == "<h1>second</h1>"
    assert f"runs/{run.info.run_id}/artifacts/report.html?" in tags_of(shown, "told")["mlflow.note.content"]
    assert Mirror(ledger, "told", shown).sync() == 0


def test_a_report_without_mlflow_is_one_line_and_stands(
    shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    with pytest.raises(MirrorError) as raised:
        attach(Writer.at(shown), "letters", shown, [tmp_path / "report.html"])
    assert "MLflow must answer" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "report.html").read_text() == "<h1>report</h1>"


def test_a_deleted_study_leaves_no_description(shown: Path) -> None:
    ledger = Writer.at(shown)
    study = filled.opened(ledger, filled.letters("gone"))
    filled.search(ledger, study, study.cells[0], 0.5)
    Mirror(ledger, "gone", shown).sync()
    assert "best" in tags_of(shown, "gone")
    assert forget("gone", ledger.uid("gone"), shown) == 4
    assert not {"best", "mlflow.note.content"} & set(tags_of(shown, "gone"))


def test_tables_that_somebody_else_is_making_are_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's steps from one version to the next stumble over those of another process in any way."""
    ledger = Writer.at(home)
    ledger.open(toy(), {"tests.toy": toy_trainable.METRICS})

    def stumbles(*_: object) -> None:
        raise AttributeError("dimension_attributes")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._initialize_tables", stumbles)
        with pytest.raises(MirrorError) as raised:
            Mirror(ledger, "toy", home).sync()
    assert "its tables cannot be opened: AttributeError: dimension_attributes; the ledger is whole" in str(raised.value)
    assert Mirror(ledger, "toy", home).sync() > 0


@pytest.mark.slow
def test_mirrors_that_begin_at_once_in_a_new_home_all_find_their_tables(home: Path) -> None:
    names = ["one", "two", "three"]
    for name in names:
        Writer.at(home).open(toy(name=name), {"tests.toy": toy_trainable.METRICS})
    command = [sys.executable, "-m", "cs330ray", "sync"]
    environment = {**os.environ, "CS330RAY_HOME": str(home)}
    mirrors = [subprocess.Popen([*command, name], env=environment) for name in names]
    assert [mirror.wait(120) for mirror in mirrors] == [0, 0, 0]
    assert {each.name for each in client_of(home).search_experiments()} >= set(names)


@pytest.mark.slow
def test_a_mirror_that_is_held_by_a_pipe_outlives_a_sigterm_that_was_for_all(home: Path) -> None:
    Writer.at(home).open(toy(), {"tests.toy": toy_trainable.METRICS})
    with subprocess.Popen(
        [sys.executable, "-m", "cs330ray", "sync", "toy", "--follow", "--until-eof"],
        env={**os.environ, "CS330RAY_HOME": str(home)}, stdin=subprocess.PIPE,
    ) as mirror:  # fmt: skip
        until = time.monotonic() + 90
        while not (home / "toy" / "mirror.uids").exists():  # which it writes when MLflow's tables are made
            assert time.monotonic() < until
            time.sleep(0.2)
        mirror.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            mirror.wait(4)
    assert mirror.returncode == 0  # leaving closes the pipe, and waits; of a mirror that is too late it is 1
