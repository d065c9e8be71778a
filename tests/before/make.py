"""Make the fixture again: `python -m tests.before.make` in a checkout at /home/ada/cs330ray. See README.md.

Each study runs for real, on Ray. The places that end in the record are neutral ones: the checkout, and `HOME`.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PLACE = Path("/home/ada/studies")
HOME = PLACE / "runs"
MODELS = PLACE / "models"  # the home of the six studies whose models are exported
HERE = Path(__file__).parent
SYSTEMS = ("maml", "protonet", "mann", "multitask", "finetune", "icl")
STUDIES = ("endings", "slope", "front", "grown", "interrupted")
GAP = {"maml": 0.2, "protonet": 0.2, "mann": 0.002}  # labels whose chances are nearer are not asked for: no rounding
# of another processor is near these; the tiny MANN has learned little, and all its chances are near a third

os.environ.update(TZ="UTC", CS330RAY_DEVICE="cpu", CS330RAY_HOME=str(HOME))
os.environ.pop("CS330RAY_LEDGER", None)
time.tzset()


# Runs ------------------------------------------------------------------------------------------------------------


def study_file(name: str) -> Path:
    return HERE / "studies" / f"{name}.toml"


def run(name: str, home: Path, *overrides: str) -> None:
    from cs330ray import spec
    from cs330ray.service.run import run as run_study

    run_study(spec.read(study_file(name), overrides), home, mirror=False)


def interrupt(address: str) -> None:
    """Run the study `interrupted`, and kill its driver where a trial has rows beyond its newest checkpoint."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "cs330ray", "run", str(study_file("interrupted"))],
        env=os.environ | {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    )
    beyond = """
        select count(*) from cs330ray_rows r where study = 'interrupted' and trial = 1 and step > 5 + (
            select max(step) from cs330ray_checkpoints c where c.study = r.study and c.trial = 1)"""
    while driver.poll() is None and not counted(beyond):
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def counted(query: str) -> int:
    with contextlib.closing(sqlite3.connect(HOME / "ledger.db", timeout=30)) as ledger:
        return int(ledger.execute(query).fetchone()[0])


@contextlib.contextmanager
def one_ray(*, pause_s: float) -> Iterator[str]:
    """A Ray whose workers find this checkout; its address. Each step of the trainable pauses."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE.parents[1] / "src")])
    os.environ["SLOPE_PAUSE_S"] = str(pause_s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield context.address_info["gcs_address"]
        ray.shutdown()


def run_studies() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    with one_ray(pause_s=0.0):
        run("endings", HOME)
        run("slope", HOME)
        run("front", HOME)
        run("grown", HOME, "budget.trials=2", "budget.steps=6")
        run("grown", HOME)
    run_one_alone()


def run_interrupted() -> None:
    with one_ray(pause_s=0.05) as address:
        interrupt(address)


def run_systems() -> None:
    shutil.rmtree(MODELS, ignore_errors=True)
    with one_ray(pause_s=0.0):
        for system in SYSTEMS:
            run(system, MODELS)


def run_one_alone() -> None:
    """Run one trial without a study and score it on test: the ledger keeps where its checkpoint was."""
    from cs330ray.cli import study_main

    study_main("tests.before.slope", ["--study", str(study_file("slope")), "--trial", "--test", "--scale", "8"])


# Names of this machine ---------------------------------------------------------------------------------------------


def scrub(database: Path) -> None:
    """Replace what names this machine, and leave one file: a lease, starts, losses and ends have such names."""
    with contextlib.closing(sqlite3.connect(database)) as ledger, ledger:
        rewrite(ledger, "attempts", "circumstances", lambda text: as_json(text, host="laptop"))
        rewrite(ledger, "leases", "holder", lambda text: as_json(text, host="laptop", place="laptop"))
        for table, column in [("losses", "reason"), ("ends", "reason"), ("ends", "traceback")]:
            rewrite(ledger, table, column, without_addresses)
    with contextlib.closing(sqlite3.connect(database)) as ledger:
        ledger.execute("pragma wal_checkpoint(truncate)")
        ledger.execute("vacuum")


def rewrite(ledger: sqlite3.Connection, table: str, column: str, change: Callable[[str], str]) -> None:
    for row, text in ledger.execute(f"select rowid, {column} from cs330ray_{table}").fetchall():
        ledger.execute(f"update cs330ray_{table} set {column} = ? where rowid = ?", (change(text), row))


def as_json(text: str, **values: str) -> str:
    return json.dumps(json.loads(text) | values)


def without_addresses(text: str) -> str:
    text = re.sub(r"\b\d{1,3}(\.\d{1,3}){3}\b", "127.0.0.1", text)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "laptop", text)


def keep(home: Path, into: Path) -> None:
    """Copy a home without its backups, its lock and its reports."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(
        home, into, ignore=shutil.ignore_patterns("backups", "*.lock", "report", "artifacts", "mlflow*", "mirror.*")
    )


# What it prints ------------------------------------------------------------------------------------------------------


def said(*words: str) -> str:
    """What a command prints, in this process."""
    from cs330ray import cli

    before, sys.argv = sys.argv, ["cs330ray", *words]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main()
    finally:
        sys.argv = before
    return out.getvalue()


def commands(name: str) -> Iterator[list[str]]:
    """What is asked of a study: its trials, each one of them, and its best."""
    from cs330ray.service.ledger import Ledger

    ledger = Ledger.at(HOME)
    study = ledger.study(name)
    yield ["show", name]
    for cell in study.cells:
        for trial in ledger.trials(study, cell):
            log = ["--log"] if trial.reason.startswith("raised") else []
            yield ["show", name, str(trial.number), *(["--cell", cell.title] if cell.values else []), *log]
    yield ["best", name]


def write_expected() -> None:
    """Write what today's commands print of the home where it was made, a transcript a study, and its report."""
    into = HERE / "expected"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    (into / "list.txt").write_text(said("list"))
    for name in STUDIES:
        transcript = "".join(f"$ {shlex.join(words)}\n{said(*words)}" for words in commands(name))
        (into / f"{name}.txt").write_text(transcript)
        with tempfile.TemporaryDirectory() as folder:
            said("report", name, "--to", folder)
            shutil.copy(Path(folder) / "report.md", into / f"{name}.md")


# Models --------------------------------------------------------------------------------------------------------------


def export_all() -> None:
    shutil.rmtree(HERE / "exports", ignore_errors=True)
    os.environ["CS330RAY_HOME"] = str(MODELS)
    for system in SYSTEMS:
        said("best", system, "--export", str(HERE / "exports" / system))
        asked = ASKED[system](HERE / "exports" / system)
        (HERE / "exports" / f"{system}.json").write_text(json.dumps(asked, indent=1) + "\n")
    os.environ["CS330RAY_HOME"] = str(HOME)


def drawings(directory: Path) -> dict[str, Any]:
    """Letters that no model has seen: shown, asked, the chances of each, and the label where it is clear."""
    import torch

    import cs330ray
    from cs330ray.data import image_classes

    model = cs330ray.load(directory)
    letters = image_classes("glyphs", "course", 0, "test")[:3]  # (N, drawings, H, W)
    shown = [(f"letter {at}", letter[drawing]) for at, letter in enumerate(letters) for drawing in (0, 1)]
    asked = [letter[drawing] for letter in letters for drawing in (2, 3, 4, 5)]
    support_NKCHW = letters[:, :2, None].float() / 255
    chances_BN = model.score(support_NKCHW, torch.stack(asked)[:, None].float() / 255).softmax(dim=-1)
    labels = model.classify([image.numpy() for _, image in shown], [name for name, _ in shown],
                            [image.numpy() for image in asked])  # fmt: skip
    clear = [bool(top[0] - top[1] > GAP[directory.name]) for top in chances_BN.sort(descending=True).values]
    assert sum(clear) >= 4, (directory, chances_BN)
    return {
        "shown": [[name, as_text(image)] for name, image in shown],
        "asked": [
            {"image": as_text(image), "chances": chances.tolist(), "label": label if sure else None}
            for image, chances, label, sure in zip(asked, chances_BN, labels, clear, strict=True)
        ],
    }


def as_text(image: Any) -> str:
    return base64.b64encode(image.numpy().tobytes()).decode()


def films(directory: Path) -> dict[str, Any]:
    """Users whose first items lie well apart, and the stars of some pairs."""
    import cs330ray

    model = cs330ray.load(directory)
    users = []
    for user in range(1, 40):
        found = model.recommend(user, 4, known_removed=False)
        gaps = [before.score - after.score for before, after in itertools.pairwise(found)]
        if min(gaps) > 1e-3:
            first = found[:3]
            items, scores, stars = ([getattr(one, name) for one in first] for name in ("title", "score", "stars"))
            users.append({"user": user, "items": items, "scores": scores, "stars": stars})
    assert len(users) >= 3
    pairs = [{"user": user, "item": item, "stars": model.predict(user, item)} for user, item in [(1, 1), (7, 30)]]
    return {"users": users[:6], "pairs": pairs}


STORIES = [
    ("Anna walked to the attic. Boris ran to the cellar.", "Where is Anna?"),
    ("Anna walked to the attic. Boris ran to the cellar.", "Where is Boris?"),
    ("Clara went to the garden. Anna ran to the kitchen.", "Where is Clara?"),
    ("Boris walked to the garden. Clara went to the hall. Boris ran to the attic.", "Where is Boris?"),
    ("Dora ran to the hall. Emil walked to the cellar.", "Where is Emil?"),
    ("Emil went to the kitchen.", "Where is Emil?"),
]


def stories(directory: Path) -> dict[str, Any]:
    """Questions on stories, each with its answer, where no token of it was nearly another."""
    from cs330ray.learners.decoding import Decoder

    import cs330ray
    from cs330ray.learners import lora

    gaps: list[float] = []

    def watched(read: Callable[..., Any]) -> Callable[..., Any]:
        def reads(*given: Any) -> Any:
            logits_BV = read(*given)
            first, second = logits_BV.flatten().topk(2).values.tolist()
            gaps.append(first - second)
            return logits_BV

        return reads

    before = lora.logits, Decoder._forward
    lora.logits, Decoder._forward = watched(before[0]), watched(before[1])  # type: ignore[method-assign]
    try:
        model, asked = cs330ray.load(directory), []
        for story, question in STORIES:
            gaps.clear()
            answer = model.answer(story, question)
            if min(gaps) > 0.02:
                asked.append({"story": story, "question": question, "answer": answer})
    finally:
        lora.logits, Decoder._forward = before  # type: ignore[method-assign]
    assert len(asked) >= 3, gaps
    return {"asked": asked}


ASKED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "maml": drawings, "protonet": drawings, "mann": drawings, "multitask": films, "finetune": stories, "icl": stories,
}  # fmt: skip


def write_home() -> None:
    scrub(HOME / "ledger.db")
    write_expected()
    keep(HOME, HERE / "home")


PARTS: dict[str, Callable[[], None]] = {
    "studies": run_studies, "interrupted": run_interrupted, "home": write_home, "systems": run_systems,
    "exports": export_all,
}  # fmt: skip


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
