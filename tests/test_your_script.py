"""The page for people with a script of their own, and what `init` writes: each example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cs330ray.checkpoints import local
from cs330ray.course.pretrained import models, wheels
from cs330ray.spec.command import Command
from cs330ray.spec.reading import read
from cs330ray.spec.study import first_values
from cs330ray.trial import check, named, run
from cs330ray.trial.child import promises
from cs330ray.trial.child.own import OwnProcess
from tests.cli.test_cli import ran
from tests.trial.test_child import rows_of

PAGE = (Path(__file__).parents[1] / "docs" / "guide" / "your-script.md").read_text()


def block(language: str, begins: str) -> str:
    """The code block of the page that begins so."""
    return next(each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if each.startswith(begins))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["command", "function"])
def test_what_init_writes_keeps_every_promise_as_it_is(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = ran(capsys, "init", "mine", "--from", kind)
    assert code == 0
    assert out.splitlines() == ["mine/study.toml", "mine/train.py", "  cs330ray run mine/study.toml"]
    study = read(tmp_path / "mine" / "study.toml", ["budget.steps=40"])
    check.check(study, "mine")
    cell = study.compared[0]
    trainable = named.of(cell)
    assert isinstance(trainable, OwnProcess)
    config = named.configuration(trainable, cell, first_values(cell))
    found = [one for _, one in promises.tested(trainable, config, 40, tmp_path / "kept", 250)]
    assert [one.said for one in found if not one.holds] == []
    assert len(found) == 5


def test_init_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert ran(capsys, "init", "mine")[::2] == (
        2, "mine: a new folder is made for the study, but File exists; choose a name\n"
    )  # fmt: skip
    for words, said in {
        ("init", "a b"): "init: expected a name of letters, digits, '.', '_' and '-', got 'a b'; choose another\n",
        (
            "init",
            "backups",
        ): "init: expected a name of letters, digits, '.', '_' and '-', got 'backups'; choose another\n",
        (
            "init",
            "x",
            "--from",
            "wish",
        ): "--from: expected one of command, function, images, ratings, text, got 'wish'\n",
        ("init", "x", "--data", "."): "--data: command takes none; write what your code reads into x/study.toml\n",
    }.items():
        assert ran(capsys, *words)[::2] == (2, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_the_study_of_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(block("toml", "name "))
    (tmp_path / "train.py").touch()
    study = read(tmp_path / "study.toml")
    check.check(study, "mine")
    assert study.command is not None
    assert study.command.folder == str(tmp_path)


LAUNCHERS = {"torchrun --nproc-per-node 2": 2, "accelerate launch --num_processes 1 --num_machines 1 --cpu": 1}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_of_several_processes_that_of_rank_0_reports(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import os, cs330ray\nrank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))\n"
        "cs330ray.log(step=1, val_accuracy=rank, world=world)"
    )
    command = Command(run=[*launcher.split(), "train.py"], metrics={"val_accuracy": "max"}, folder=str(tmp_path))
    found = rows_of(OwnProcess("command", command, frozenset()))
    assert found == [(1, {"val_accuracy": 0.0, "world": LAUNCHERS[launcher]})]


HOMEWORK = """
import argparse
import random

class ProtoNet:
    \"\"\"In the shape of the homework: `train` with a writer, every so often a validation.\"\"\"

    def __init__(self, learning_rate):
        self._learning_rate = learning_rate

    def _step(self, i_step):
        return 1 - self._learning_rate ** i_step

    def train(self, steps, writer):
        for i_step in range(1, steps + 1):
            accuracy = self._step(i_step)
            if i_step % 2 == 0:
                writer(accuracy, i_step)

def main(args):
    network = ProtoNet(args.learning_rate)
    network.train(args.num_train_iterations, lambda value, step: print(step, value))

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--num_train_iterations", type=int)
    main(parser.parse_args())
"""


def test_the_starter_code_takes_under_ten_changed_lines(tmp_path: Path) -> None:
    changed = HOMEWORK.replace("import random", "import random\nimport cs330ray").replace(
        "                writer(accuracy, i_step)",
        "                writer(accuracy, i_step)\n                cs330ray.log(step=i_step, val_accuracy=accuracy)",
    ).replace(
        "    main(parser.parse_args())",
        '    parser.add_argument("--seed", type=int, default=0)\n    args = parser.parse_args()\n'
        "    random.seed(args.seed)\n    main(args)",
    )  # fmt: skip
    assert len(set(changed.splitlines()) - set(HOMEWORK.splitlines())) < 10
    (tmp_path / "protonet.py").write_text(changed)
    words = re.search(r"run = (\[\"python\", \"protonet.py\".*?\])", PAGE)
    assert words is not None
    run = [word.strip(' "') for word in words[1].strip("[]").split(",")]
    command = Command(run=run, metrics={"val_accuracy": "max"}, folder=str(tmp_path))
    trainable = OwnProcess("command", command, frozenset(["lr"]))
    assert rows_of(trainable, steps=4, lr=0.5) == [(2, {"val_accuracy": 0.75}), (4, {"val_accuracy": 0.9375})]


TRAINER = """
import argparse, os
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers import Trainer, TrainingArguments
from trainer_callback import Report

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--seed", type=int)
parser.add_argument("--steps", type=int)
given = parser.parse_args()

PLACE
arguments = TrainingArguments(
    output_dir=os.environ.get("CS330RAY_CHECKPOINTS_DIR", "out"), max_steps=given.steps,
    seed=given.seed, learning_rate=given.lr, eval_strategy="steps", eval_steps=given.steps // 3,
    save_steps=given.steps // 3, report_to="none", use_cpu=True,
    disable_tqdm=True, lr_scheduler_type="constant",
)
trainer = Trainer(
    model=model, args=arguments, train_dataset=rows[:-50], eval_dataset=rows[-50:], callbacks=[Report],
    compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
)
trainer.train(resume_from_checkpoint=os.environ.get("CS330RAY_RESUME"))
"""

SMALL = """
draws = torch.Generator().manual_seed(0)
ids = torch.randint(5, 50, (100, 12), generator=draws)
rows = [{"input_ids": each, "labels": int(each[0] > 27)} for each in ids]
torch.manual_seed(given.seed)
model = BertForSequenceClassification(
    BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
)
"""
REVIEWS = """
import gzip, itertools, json
tokenizer = AutoTokenizer.from_pretrained(os.environ["BERT"])
with gzip.open(os.path.join(os.environ["CS330RAY_DATA"], "Musical_Instruments_5.json.gz"), "rt") as lines:
    reviews = [json.loads(line) for line in itertools.islice(lines, 250)]
rows = [
    {**tokenizer(each["reviewText"], truncation=True, max_length=64, padding="max_length"),
     "labels": int(each["overall"] == 5)} for each in reviews
]
torch.manual_seed(given.seed)
model = AutoModelForSequenceClassification.from_pretrained(os.environ["BERT"], num_labels=2)
"""


@pytest.mark.lm
def test_a_bert_learns_stars_of_reviews_in_a_study_by_the_callback_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.digest("minilm-l6")  # found, or fetched
    monkeypatch.setenv("BERT", str(wheels.found("minilm-l6")))
    trainable = trainer(tmp_path, REVIEWS)
    rows = list(run.run_alone(trainable, trainable.Config(lr=5e-4), 0, 30, tmp_path / "home", save_every_steps=10))
    assert [row.step for row in rows] == [10, 20, 30]
    assert rows[-1].metrics["val_accuracy"] > 0.5
    newest = local.newest(tmp_path / "home")
    assert newest is not None
    assert newest.step == 30
    longer = run.run_alone(trainable, trainable.Config(lr=5e-4), 0, 60, tmp_path / "home")
    assert [row.step for row in longer] == [40, 50, 60]  # it resumed at 30; a Trainer keeps the spacing that it had


def trainer(folder: Path, data_and_model: str) -> OwnProcess:
    (folder / "trainer_callback.py").write_text(block("python", "# trainer_callback.py"))
    (folder / "train.py").write_text(TRAINER.replace("PLACE", data_and_model))
    words = ["python", "train.py", "--lr", "{lr}", "--seed", "{seed}", "--steps", "{steps}"]
    command = Command(run=words, metrics={"val_accuracy": "max", "val_loss": "min"}, folder=str(folder))
    return OwnProcess("command", command, frozenset(["lr"]))


@pytest.mark.slow
def test_the_callback_of_the_page_reports_what_a_trainer_of_transformers_reaches_and_it_resumes(tmp_path: Path) -> None:
    trainable = trainer(tmp_path, SMALL)
    found = [one for _, one in promises.tested(trainable, trainable.Config(lr=1e-3), 6, tmp_path / "kept", 250)]
    assert {one.name: (one.holds, one.said) for one in found}["starts, and reports rows of its metrics"] == (
        True, "3 rows, the last at step 6"
    )  # fmt: skip
    assert [one.name for one in found if not one.holds] == ["a test scores its checkpoint"]


def test_outside_a_study_a_script_with_log_runs_as_before(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import cs330ray; cs330ray.log(step=1, val_accuracy=1.0); print('done')")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("kind", ["images", "ratings", "text"])
def test_init_writes_a_study_of_one_s_own_data(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    assert ran(capsys, "init", "mine", "--from", kind, "--data", "my data")[0] == 0
    study = read(tmp_path / "mine" / "study.toml")
    assert (study.name, study.fixed["data"]) == ("mine", str(tmp_path / "my data"))
    code, out, _ = ran(capsys, "init", "later", "--from", kind)
    assert code == 0
    assert 'Write the path of your data in place of "DATA" in later/study.toml, then:' in out
    assert ran(capsys, "init", "none", "--from", kind, "--data", "no such")[::2] == (
        2, "--data: expected a path that is here, got no such\n"
    )  # fmt: skip
    assert not (tmp_path / "none").exists()
