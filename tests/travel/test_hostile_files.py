"""Files that no `pack` made, or that were damaged since: one line, exit code 2, and nothing is written."""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray.errors import Cs330rayError
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.writer import Writer
from cs330ray.spec import places
from cs330ray.travel import archive
from cs330ray.travel.unpack import unpack
from tests.cli.test_cli import ran
from tests.spoilt_bytes import spoilt
from tests.travel.test_travel import done, files_of, recorded, tree  # noqa: F401 - a fixture of both
from tests.travel.test_travel import file as file
from tests.travel.test_travel import small as small

SPOILT = 50

Members = dict[str, bytes]


class Trap:
    """Whoever unpickles it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as found:
        return {name: found.read(name) for name in found.namelist()}


def written(path: Path, members: Members, *, told: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """Write members with a manifest that fits them, but for what `told` does to it."""
    manifest = json.loads(members[archive.MANIFEST])
    manifest["members"] = {
        name: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        for name, text in members.items()
        if name != archive.MANIFEST
    }
    told(manifest)
    with zipfile.ZipFile(path, "w") as made:
        for name, text in members.items():
            if name != archive.MANIFEST:
                made.writestr(zipfile.ZipInfo(name), text)
        made.writestr(zipfile.ZipInfo(archive.MANIFEST), json.dumps(manifest))
    return path


def line(members: Members, name: str, change: Callable[[Any], Any], which: int = 0) -> None:
    """Change one line of a member."""
    values = [json.loads(text) for text in members[name].splitlines()]
    values[which] = change(values[which]) or values[which]
    members[name] = b"".join(json.dumps(value).encode() + b"\n" for value in values)


def first(members: Members, pattern: str) -> str:
    return next(name for name in members if re.search(pattern, name))


def without(pattern: str) -> Callable[[Members], None]:
    return lambda members: members.pop(first(members, pattern)) and None


def adding(name: str, text: bytes = b"x") -> Callable[[Members], None]:
    return lambda members: members.update({name: text})


def a_row(name: str, **values: Any) -> Callable[[Members], None]:
    return lambda members: line(members, f"tables/{name}.jsonl", lambda row: row.update(values))


def a_trial(which: int = 0, **values: Any) -> Callable[[Members], None]:
    return lambda members: line(members, "trials.jsonl", lambda row: row.update(values), which)


def started(**values: Any) -> str:
    on = {"host": "h", "device": "cpu", "threads": 1, "python": "3", "versions": {}, "code": "c", "data": "d"}
    return json.dumps(on | values)


def a_study(**values: Any) -> Callable[[Members], None]:
    return lambda members: line(members, "study.json", lambda row: row.update(values))


def an_altered_checkpoint(members: Members) -> None:
    members[first(members, "state.json")] = b"{}"


CONTENTS: dict[str, tuple[Callable[[Members], object], str]] = {
    "up and out": (adding("files/checkpoints/../../../evil"), "is no name of a member"),
    "up in a trial": (adding("files/checkpoints/0123456789ab/trial-00000/../../x"), "is no name of a member"),
    "absolute": (adding("/etc/evil"), "is no name of a member"),
    "backslashes": (adding("files\\..\\evil"), "is no name of a member"),
    "beside its files": (adding("ledger.db"), "is no name of a member"),
    "a mirror's": (adding("files/mirror.uids"), "is no name of a member"),
    "a control character": (adding("files/report/a\nb"), "is no name of a member"),
    "a name that is too long": (adding("files/report/" + "n" * 300), "is no name of a member"),
    "deep": (adding("files/report/" + "d/" * 30 + "x"), "is no name of a member"),
    "a folder": (adding("files/report/"), "is no name of a member"),
    "a file that is a folder": (
        lambda members: members.update({"files/report/a": b"", "files/report/a/b": b""}),
        "expected room for the study",
    ),
    "of another cell": (adding("files/checkpoints/0123456789ab/trial-00000/x"), "is of no cell of the study"),
    "a table of no ledger": (adding("tables/users.jsonl", b"{}\n"), "its tables are not those of a ledger"),
    "a table of the home": (adding("tables/studies.jsonl", b"{}\n"), "its tables are not those of a ledger"),
    "no study": (without("study.json"), "it has no study.json"),
    "no trials": (without("trials.jsonl"), "its tables are not those of a ledger"),
    "no metrics": (without("tables/metrics"), "the metric 'val_loss' is not described"),
    "no file of a checkpoint": (without("state.json"), "is not there as the checkpoint has it"),
    "no manifest of a checkpoint": (without("MANIFEST.json"), "is not the checkpoint that was recorded"),
    "an altered checkpoint": (an_altered_checkpoint, "is not there as the checkpoint has it"),
    "no JSON": (adding("trials.jsonl", b"{torn"), "holds what is no JSON"),
    "a pickle": (adding("trials.jsonl", pickle.dumps(Trap())), "holds what is no JSON"),
    "JSON without end": (adding("trials.jsonl", b"[" * 100_000), "holds what is no JSON"),
    "a number without end": (adding("trials.jsonl", b"9" * 10_000), "holds what is no JSON"),
    "a study of no kind": (adding("study.json", b"[1]\n"), "it has no study.json"),
    "a study that is none": (a_study(objective=[]), "objective: "),
    "a study's name that leaves": (a_study(name="../x"), "name: "),
    "a study of the home's name": (a_study(name="backups"), "the home keeps files of its own under 'backups'"),
    "a row of no cell": (a_row("rows", cell="{}"), "is no cell of the study"),
    "a row of no trial": (a_row("rows", trial=99), "has no trial 99"),
    "a row before all": (a_row("rows", trial=-1), "trial: expected a whole number from 0 to 2147483647, got -1"),
    "a row of no kind": (a_row("rows", metrics="[1]"), "is not of its kind"),
    "a row with a text": (a_row("rows", step="1"), "step: expected a whole number from 0 to 2147483647, got '1'"),
    "a row that is true": (a_row("rows", step=True), "step: expected a whole number from 0 to 2147483647, got True"),
    "a row with a later column": (a_row("rows", later=1), "a newer cs330ray may have packed it"),
    "a row that is no table": (lambda members: line(members, "tables/rows.jsonl", lambda _: [1]), "expected a table"),
    "an end of no state": (a_row("ends", state="DONE"), "is no end of a trial"),
    "an end with a zero": (a_row("ends", reason="\0"), "is no text"),
    "a torn letter": (a_row("ends", reason="\ud83d"), "is no text"),
    "a metric that is a text": (a_row("rows", metrics='{"val_loss": "0.5"}'), "metrics: "),
    "a metric that is true": (a_row("rows", metrics='{"val_loss": true}'), "metrics: "),
    "a metric that no float holds": (a_row("rows", metrics=f'{{"val_loss": {10**400}}}'), "metrics: "),
    "a bound that is a text": (a_row("metrics", description='{"goal": "min", "low": "0"}'), "description: "),
    "a time without end": (a_row("rows", wall_s=float("inf")), "wall_s: expected seconds from 0 to 1e+11, got inf"),
    "a time that is none": (a_row("ends", wall_s=float("nan")), "wall_s: expected seconds from 0 to 1e+11, got nan"),
    "a time of thirty digits": (a_row("scores", wall_s=10**30), "wall_s: expected seconds from 0 to 1e+11"),
    "a session before all": (a_row("sessions", started_s=-1.0), "started_s: expected seconds from 0 to 1e+11"),
    "a start on nothing": (a_row("attempts", circumstances="{}"), "circumstances: "),
    "a start on texts": (a_row("attempts", circumstances=started(threads="1")), "circumstances: "),
    "a configuration that is none": (a_row("attempts", circumstances=started(config=[1])), "circumstances: "),
    "scores of other units": (a_row("scores", scored='{"a": {"units": ["u"], "scores": []}}'), "scored: "),
    "a score that is a text": (a_row("scores", metrics='{"test_loss": "1"}'), "metrics: "),
    "a worth that is a text": (a_row("ends", worth='["1"]'), "worth: "),
    "a worth of more objectives": (a_row("ends", worth="[1, 2]"), "worth: expected a value of each objective"),
    "an end of no cause": (a_row("ends", cause="magic"), "'magic' is no cause of an end"),
    "an end that was pruned and was not": (a_row("ends", cause="pruned"), "an ending must have a cause unless"),
    "a trial of texts": (a_trial(values=["0.5"]), "trial 0 of"),
    "a trial whose rows are texts": (a_trial(intermediate={"1": "0.5"}), "trial 0 of"),
    "a trial beyond all steps": (a_trial(intermediate={str(10**30): 0.5}), "a step is at most"),
    "a trial that ended at no time": (a_trial(complete=None), "expected the time of its end"),
    "a trial that ended in thirty digits": (a_trial(complete=10**30), "expected seconds from 0 to 1e+11"),
    "a seed of thirty digits": (a_trial(user_attrs={"seed": 10**30}), "seed: expected a whole number"),
    "a confirmed trial that is no trial of ours": (a_trial(user_attrs={}), "but is none of the search's"),
    "a metric of no goal": (a_row("metrics", description='{"goal": "best"}'), "is not of its kind"),
    "scores of no kind": (a_row("scores", scored='{"a": {"units": 1}}'), "is not of its kind"),
    "a trial out of turn": (a_trial(number=5), "expected trial 0 of"),
    "a trial of no cell": (a_trial(cell="x"), "expected trial 0 of 'x'"),
    "a trial of no state": (a_trial(state="DONE"), "trial 0 of"),
    "a trial of no distribution": (a_trial(distributions={"lr": '{"name": "os.system"}'}), "trial 0 of"),
    "a trial beyond its choices": (a_trial(params={"lr": 7.0}), "trial 0 of"),
    "a trial of other choices": (
        a_trial(1, distributions={"lr": '{"name": "CategoricalDistribution", "attributes": {"choices": [0.2]}}'}),
        "does not support dynamic value space",
    ),
    "a trial at no time": (a_trial(start=None), "has begun at no time"),
    "a trial at the end of time": (a_trial(start=1e300), "trial 0 of"),
    "a start of no place": (a_trial(user_attrs={"seed": 1, "steps": 2, "start": "first"}), "start: expected a whole"),
    "a trial that continues itself": (a_trial(user_attrs={"seed": 1, "steps": 2, "continues": 0}), "cannot continue"),
    "a seed that is none": (a_trial(user_attrs={"seed": "1"}), "seed: expected a whole number"),
    "directions of no kind": (
        lambda members: line(members, "optuna.jsonl", lambda row: row.update(directions=["UP"])), "are no directions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_contents_that_no_ledger_has_are_one_line_and_nothing_is_written(
    file: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    change, said = CONTENTS[what]
    members = members_of(file)
    change(members)
    assert said in refused(home, capsys, written(tmp_path / "bad.zip", members))
    assert not (tmp_path / "trapped").exists()


def refused(home: Path, capsys: pytest.CaptureFixture[str], path: Path) -> str:
    before = tree(home.parent)
    code, out, err = ran(capsys, "unpack", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    left = {name for name in set(tree(home.parent)) - set(before) if "ledger.db" not in name}
    assert left <= {"runs"}
    if home.exists():
        assert Ledger.at(home).names() == []
    return err


def raw(path: Path, name: str, change: Callable[[zipfile.ZipInfo], None], text: bytes = b"x" * 100) -> Path:
    """A zip of one member with an odd header."""
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo(name)
        change(info)
        made.writestr(info, text, compress_type=info.compress_type)
    return path


def compressed(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


def link(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def device(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o020666 << 16


def bomb(path: Path) -> Path:
    """Ten GB of zeros in ten MB."""
    return raw(path, "files/report/x", compressed, bytes(10_000_000))


def overlapping(path: Path) -> Path:
    """Many members that share the bytes of one."""
    raw(path, "files/report/a", lambda _: None, b"x" * 10_000)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    start = content.index(b"PK\1\2")
    entry = content[start:end]
    entries = b"".join(entry.replace(b"files/report/a", b"files/report/%c" % (65 + i)) for i in range(20))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20, 20, len(entries), start, 0)
    path.write_bytes(content[:start] + entries + tail)
    return path


def doubled(path: Path) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as made:
        warnings.simplefilter("ignore")
        made.writestr("study.json", "{}")
        made.writestr("study.json", "{}")
    return path


def text(path: Path) -> Path:
    path.write_text("not a zip")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


SHAPES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda path: path, "there is no such file"),
    "a folder": (folder, "that is no file"),
    "a device": (lambda _: Path("/dev/zero"), "that is no file"),
    "a text": (text, "File is not a zip file"),
    "a bomb": (bomb, "its members are larger than the file itself"),
    "members that share bytes": (overlapping, "its members are larger than the file itself"),
    "one compressed": (
        lambda path: raw(path, "study.json", compressed, b"xyz"),
        "is compressed, encrypted or no plain",
    ),
    "a link": (lambda path: raw(path, "files/report/x", link), "is compressed, encrypted or no plain file"),
    "a device inside": (lambda path: raw(path, "files/report/x", device), "is compressed, encrypted or no plain file"),
    "one name twice": (doubled, "two members have one name"),
    "another zip": (lambda path: raw(path, "word/document.xml", lambda _: None), "is no name of a member"),
    "without a manifest": (lambda path: raw(path, "study.json", lambda _: None), "it has no manifest.json"),
}


@pytest.mark.parametrize("what", SHAPES)
def test_a_file_of_another_kind_is_one_line_and_nothing_is_written(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    make, said = SHAPES[what]
    path = make(tmp_path / "bad.zip")
    assert said in refused(home, capsys, path)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (lambda manifest: manifest.update(form=99, cs330ray="9.0"), "got 99: cs330ray '9.0' made it; install that one"),
        (lambda manifest: manifest.update(kind="a cake"), "manifest.json: 'kind': "),
        (lambda manifest: manifest.update(asking="loudly"), "manifest.json: 'asking': "),
        (lambda manifest: manifest["members"].pop("study.json"), "the manifest and the file differ in 'study.json'"),
        (lambda manifest: manifest["members"]["study.json"].update(bytes=1), "does not match its digest"),
        (lambda manifest: manifest["members"]["study.json"].update(sha256="0" * 64), "does not match its digest"),
    ],
    ids=["newer", "of another kind", "of another asking", "a member more", "another size", "another digest"],
)
def test_a_manifest_that_does_not_fit_is_one_line(
    file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: Any, said: str
) -> None:
    assert said in refused(home, capsys, written(tmp_path / "bad.zip", members_of(file), told=told))


def test_a_file_that_was_spoilt_is_refused_or_holds_what_it_held(small: Path, home: Path, tmp_path: Path) -> None:
    whole, taken, unpacked = small.read_bytes(), tmp_path / "spoilt.zip", 0
    for seed in range(SPOILT):
        what, content = spoilt(whole, seed)
        taken.write_bytes(content)
        try:
            unpack(taken, home, None)
        except Cs330rayError:
            assert not (home / "done").exists(), what
            assert not list(home.glob(".partial-*")), what
            continue
        unpacked += 1
        if unpacked == 1:
            unpack(small, home, "whole")
        assert recorded(home, "done") == recorded(home, "whole"), what
        assert files_of(home, "done") == files_of(home, "whole"), what
        Writer.at(home).delete("done")
        shutil.rmtree(home / "done")
    assert unpacked < SPOILT / 2
    assert not (home / places.UNPACKING).exists()
