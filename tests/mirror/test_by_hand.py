"""What a person does to the mirror's runs in MLflow's pages, and what MLflow refuses: the picture comes right again.

Every deed happens to one study, one after the other, and each time the picture is the one of before.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from cs330ray.ledger.records import Row
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.names import identified, key_of, spoken
from cs330ray.mirror.runs import Runs
from cs330ray.mirror.sync import Mirror, forget
from cs330ray.trial.contract import Metric as Described
from tests import filled, noisy

Client = mlflow.MlflowClient
BUSY = "hand"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with MLflow and the mirrored study `hand`: the study's run, two cells, two trials."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ledger = Writer.at(home)
        study = filled.opened(ledger, filled.letters(BUSY))
        filled.search(ledger, study, study.cells[0], 0.6)
        filled.search(ledger, study, study.cells[0], 0.9)
        assert synced(home) > 0
    return home


@pytest.fixture(autouse=True)
def _mlflow_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)


def client_of(home: Path) -> Client:
    return Client(f"sqlite:///{home}/mlflow.db")


def synced(home: Path, name: str = BUSY) -> int:
    """What a fresh mirror has to change."""
    return Mirror(Writer.at(home), name, home).sync()


def experiment(client: Client, name: str = BUSY) -> str:
    return str(client.get_experiment_by_name(name).experiment_id)


def runs_of(client: Client, name: str = BUSY) -> list[Run]:
    return list(client.search_runs([experiment(client, name)], max_results=1000))


def the(client: Client, trial: int) -> str:
    """The run of a trial."""
    (found,) = (r for r in runs_of(client) if r.data.tags.get("cs330ray.trial") == str(trial))
    return str(found.info.run_id)


def picture(client: Client) -> tuple[Any, ...]:
    """All that MLflow shows of the study in all experiments, without what it numbers."""
    everywhere = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(everywhere, max_results=1000)
    ours = [run for run in runs if any(tag.startswith("cs330ray.") for tag in run.data.tags)]
    by_id = {run.info.run_id: run.info.run_name for run in ours}
    rows = [
        (run.info.run_name, run.info.status, sorted(run.data.params.items()), sorted(run.data.metrics.items()),
         sorted((tag, text) for tag, text in run.data.tags.items() if tag.startswith("cs330ray.")),
         by_id.get(run.data.tags.get("mlflow.parentRunId", "")))
        for run in ours
    ]  # fmt: skip
    tags = client.get_experiment_by_name(BUSY).tags
    return sorted(rows, key=lambda row: row[0]), tags["best"], "trial 1" in tags["mlflow.note.content"]


def _both_deleted(client: Client) -> None:
    client.delete_run(the(client, 0))
    client.delete_experiment(experiment(client))


def _twin(client: Client) -> None:
    """A second run of one trial, as a restored experiment once brought back."""
    run = client.get_run(the(client, 1))
    client.create_run(experiment(client), tags=dict(run.data.tags))
    client.delete_experiment(experiment(client))


def _without_tag(tag: str) -> Callable[[Client], None]:
    return lambda client: client.delete_tag(the(client, 1), tag)


def _with_tag(tag: str, text: str) -> Callable[[Client], None]:
    return lambda client: client.set_tag(the(client, 1), tag, text)


def _study_run(client: Client) -> str:
    (found,) = (run for run in runs_of(client) if run.data.tags.get("cs330ray.kind") == "study")
    return str(found.info.run_id)


def _run_removed_for_good(client: Client) -> None:
    run = the(client, 0)
    client.delete_run(run)
    client._tracking_client.store._hard_delete_run(run)


def _all_removed_for_good(client: Client) -> None:
    key = experiment(client)
    client.delete_experiment(key)
    client._tracking_client.store._hard_delete_experiment(key)


DEEDS: dict[str, Callable[[Client], Any]] = {
    "a run deleted": lambda client: client.delete_run(the(client, 0)),
    "the study's run deleted": lambda client: client.delete_run(_study_run(client)),
    "the experiment deleted": lambda client: client.delete_experiment(experiment(client)),
    "both deleted": _both_deleted,
    "a run deleted for good": _run_removed_for_good,
    "the study's run and the experiment deleted": lambda client: (
        client.delete_run(_study_run(client)), client.delete_experiment(experiment(client))
    ),
    "a second run of one trial": _twin,
    "the experiment renamed": lambda client: client.rename_experiment(experiment(client), "my name"),
    "the experiment renamed and deleted": lambda client: (
        key := experiment(client), client.rename_experiment(key, "my name"), client.delete_experiment(key)
    ),
    **{f"{tag} taken away": _without_tag(f"cs330ray.{tag}")
       for tag in ("key", "uid", "kind", "cell", "trial", "mirrored_step", "state", "rank")},
    "the parent taken away": _without_tag("mlflow.parentRunId"),
    "a trial's number edited": _with_tag("cs330ray.trial", "0"),
    "a key edited": _with_tag("cs330ray.key", "mine"),
    "a step that cannot be": _with_tag("cs330ray.mirrored_step", "999"),
    "a step that is a word": _with_tag("cs330ray.mirrored_step", "soon"),
    "a run renamed": lambda client: client.update_run(the(client, 1), name="my favourite"),
    "a state edited": lambda client: client.update_run(the(client, 1), status="FAILED"),
    "a figure logged over": lambda client: client.log_metric(_study_run(client), "best_val_accuracy", 5.0, step=7),
    "the best taken from the experiment": lambda client: client.delete_experiment_tag(experiment(client), "best"),
    "all deleted for good": _all_removed_for_good,
}  # fmt: skip


@pytest.mark.parametrize("deed", DEEDS)
def test_what_a_person_does_to_the_mirror_s_runs_is_put_right_and_the_next_pass_changes_nothing(
    shown: Path, deed: str
) -> None:
    client = client_of(shown)
    before = picture(client)
    assert len(before[0]) == 5
    DEEDS[deed](client)
    assert synced(shown) > 0
    assert picture(client) == before
    assert synced(shown) == 0


def test_what_a_person_adds_stays_as_it_is(shown: Path) -> None:
    client = client_of(shown)
    client.log_metric(_study_run(client), "mine", 3.0)
    client.log_metric(the(client, 0), "mine", 4.0)
    client.log_param(the(client, 0), "mine", "yes")
    client.set_tag(the(client, 0), "mlflow.note.content", "mine")
    theirs = client.create_run(experiment(client), tags={"owner": "me"}).info.run_id
    client.log_metric(theirs, "mine", 5.0)
    assert synced(shown) == 0
    client.delete_run(the(client, 1))
    synced(shown)
    assert client.get_run(_study_run(client)).data.metrics["mine"] == 3.0
    run = client.get_run(the(client, 0))
    said = run.data.tags["mlflow.note.content"]
    assert (run.data.metrics["mine"], run.data.params["mine"], said) == (4.0, "yes", "mine")
    assert client.get_run(theirs).info.lifecycle_stage == "active"


def test_a_study_that_was_deleted_stays_away_when_its_experiment_is_restored(shown: Path) -> None:
    ledger, client = Writer.at(shown), client_of(shown)
    filled.opened(ledger, filled.letters("gone"))
    synced(shown, "gone")
    key = experiment(client, "gone")
    client.rename_experiment(key, "elsewhere")
    assert forget("gone", ledger.uid("gone"), shown) == 3
    ledger.delete("gone")
    client.rename_experiment(key, "gone")
    client.delete_experiment(key)
    study = filled.opened(ledger, filled.letters("gone"))
    filled.search(ledger, study, study.cells[0], 0.5)
    synced(shown, "gone")
    assert experiment(client, "gone") == key
    assert len(runs_of(client, "gone")) == 4
    assert synced(shown, "gone") == 0


# What MLflow refuses


@given(st.text(max_size=300))
@example("")
@example("acc@1\n")
@example("../../x")
@example("..")
@example("..x")
@example("/a//b/./c/")
@example("m" * 600)
@example("\udcff\0")
@example(("a" * 240) + "/" + "b" * 20)
def test_every_name_is_spoken_as_one_that_mlflow_takes(name: str) -> None:
    said = spoken(name)
    _validate_metric_name(said)
    assert 0 < len(said) <= MAX_ENTITY_KEY_LENGTH
    assert "\n" not in said


def test_a_name_that_mlflow_takes_stays_and_two_that_it_refuses_stay_two() -> None:
    assert [spoken(name) for name in ("val_loss", "val/acc (5)", "日本", "acc@1")][::2] == ["val_loss", "日本"]
    assert spoken("acc@1") == "acc_1"
    assert len({spoken(name) for name in ("val/acc#5", "val/acc%5", "val/acc_5", "m" * 300, "m" * 301, "", "_")}) == 7


def test_two_names_that_differ_in_an_at_alone_stay_two_curves(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows that hold one, then the other, since a row need not hold all that is declared."""
    assert spoken("acc@1", ["acc@1", "acc@5"]) == "acc_1"
    assert spoken("acc_1", ["acc@1", "acc_1"]) == "acc_1"
    assert spoken("acc@1", ["acc@1", "acc_1"]) == "acc_1.71dfc155"
    assert len({spoken(name, ["a@b_c", "a_b@c"]) for name in ("a@b_c", "a_b@c", "a_b_c")}) == 3
    monkeypatch.setattr("tests.noisy.METRICS", noisy.METRICS | {name: Described("max") for name in ("k@1", "k_1")})
    ledger, client = Writer.at(shown), client_of(shown)
    study = filled.opened(ledger, filled.letters("at"))
    number = filled.enter(ledger, study, study.cells[0], 0.5)
    rows = [Row(10, {"k@1": 0.25}, filled.AT_S), Row(20, {"val_accuracy": 0.5, "k_1": 0.75}, filled.AT_S)]
    ledger.write_rows(study, study.cells[0], number, rows)
    ledger.end(study, study.cells[0], number, filled.ENDINGS["COMPLETE"])
    mirror = Mirror(ledger, "at", shown)
    mirror.sync()
    (run,) = (run for run in runs_of(client, "at") if run.data.tags["cs330ray.kind"] == "trial")
    other = spoken("k@1", ["k_1"])
    assert {name: run.data.metrics[name] for name in ("k_1", other)} == {"k_1": 0.75, other: 0.25}
    assert mirror.remarks() == [f"at: MLflow takes no metric named 'k@1': it shows {other!r}"]
    assert synced(shown, "at") == 0


def test_an_identity_survives_the_loss_of_either_half() -> None:
    from cs330ray.mirror.names import identity

    key = key_of("trial", '{"a": 1}', 3)
    tags = identity("u1", key)
    assert identified(tags) == ("u1", key)
    for tag in tags:
        assert identified({name: text for name, text in tags.items() if name != tag}) == ("u1", key)
    assert identified({"owner": "me"}) is None
    assert len(key_of("cell", "x" * 9000)[1]) < 100


def test_odd_names_and_values_and_a_wide_row_hold_nothing_up(shown: Path) -> None:
    """A row of 3,000 metrics is more than MLflow takes at once; an infinity is its largest number."""
    ledger, client = Writer.at(shown), client_of(shown)
    study = filled.opened(ledger, filled.letters("odd"))
    number = filled.enter(ledger, study, study.cells[0], 0.5)
    metrics = {"val_accuracy": 0.5, "": 1.0, "../x": 2.0, "m" * 600: 3.0, "up": math.inf, "not": math.nan}
    ledger.write_rows(
        study, study.cells[0], number, [Row(20, metrics | {f"m{i}": float(i) for i in range(3000)}, filled.AT_S)]
    )
    ledger.end(study, study.cells[0], number, filled.ENDINGS["COMPLETE"])
    mirror = Mirror(ledger, "odd", shown)
    mirror.sync()
    (run,) = (run for run in runs_of(client, "odd") if run.data.tags["cs330ray.kind"] == "trial")
    assert len(run.data.metrics) == 3006
    assert run.data.metrics[spoken("")] == 1.0
    assert run.info.status == "FINISHED"
    said = mirror.remarks()
    assert [line.startswith("odd: MLflow takes no metric named ") for line in said] == [True] * 3
    assert mirror.remarks() == []
    assert synced(shown, "odd") == 0


def test_one_entry_that_a_server_refuses_is_left_out_and_said_and_the_rest_is_shown(
    shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of another version may have narrower rules than this one."""
    ledger, client = Writer.at(shown), client_of(shown)
    study = filled.opened(ledger, filled.letters("narrow"))
    filled.search(ledger, study, study.cells[0], 0.5)
    whole = Client.log_batch

    def narrow(self: Client, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        if any(each.key == "quality" for each in params) or any(each.key == "cs330ray.checkpoint" for each in tags):
            raise MlflowException("too long for me", 1000)
        whole(self, run, metrics=metrics, params=params, tags=tags)

    monkeypatch.setattr(Client, "log_batch", narrow)
    mirror = Mirror(ledger, "narrow", shown)
    mirror.sync()
    (run,) = (run for run in runs_of(client, "narrow") if run.data.tags["cs330ray.kind"] == "trial")
    assert run.data.params == {"cost": "1.0"}
    assert run.data.metrics == {"val_accuracy": 0.5}
    assert [line.partition(" of ")[0] for line in mirror.remarks()] == [
        "narrow: MLflow does not take 'quality'", "narrow: MLflow does not take 'cs330ray.checkpoint'"
    ]  # fmt: skip
    assert mirror.sync() == 0
    assert synced(shown, "narrow") == 0


def test_a_run_that_is_deleted_meanwhile_is_no_entry_that_was_refused(shown: Path) -> None:
    runs = Runs(shown, BUSY, Writer.at(shown).uid(BUSY))
    key = next(key for key in runs._runs if key[2] == "0")
    client_of(shown).delete_run(runs._runs[key].info.run_id)
    with pytest.raises(MlflowException, match="active"):
        runs.tag(key, {"state": "FAIL"})
    assert synced(shown) > 0
    deleted = client_of(shown).search_runs([experiment(client_of(shown))], run_view_type=ViewType.DELETED_ONLY)
    assert "0" not in {
        run.data.tags.get("cs330ray.trial") for run in deleted if "cs330ray.forgotten" not in run.data.tags
    }
