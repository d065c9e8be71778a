"""The package on its way to a cluster: sent once while it stays the same, and run there in place of an older copy."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package, get_uri_for_directory

from cs330ray.cluster.jobs import running_package
from cs330ray.package import shipped
from cs330ray.trial import named as trainables

ROOT = Path(__file__).parents[2]
AGAIN = """
import json, sys
from pathlib import Path
import cs330ray
from cs330ray.package import shipped
from cs330ray.spec.places import study_file
from cs330ray.trial import named as trainables
from cs330ray.cluster.jobs import running_package
print(json.dumps({
    "from": cs330ray.__file__,
    "code": trainables.code_digest("maml"),
    "sent": str(running_package(shipped(), Path(sys.argv[1]))),
    "quickstart": study_file("quickstart").read_text(),
}))
"""


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running_package(shipped(), tmp_path_factory.mktemp("sent"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a node has an older copy of the package."""
    place = tmp_path_factory.mktemp("node")
    (place / "cs330ray").mkdir()
    (place / "cs330ray" / "__init__.py").write_text("raise ImportError('an older copy')")
    return place


def ran(sent: Path, installed: Path, *arguments: str) -> str:
    """What Python says on a node, where Ray puts what was sent before all else."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [sent.parent, installed]))}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=installed.parent, capture_output=True, text=True, check=True
    )
    return done.stdout


def name_of(folder: Path) -> str:
    """What Ray calls a folder: a cluster that has this name is not sent it again."""
    return get_uri_for_directory(str(folder), include_gitignore=True, excludes=["__pycache__"])


def test_the_same_content_has_the_same_name_wherever_it_was_copied(sent: Path, tmp_path: Path) -> None:
    assert name_of(running_package(shipped(), tmp_path)) == name_of(sent)


def test_other_content_has_another_name(sent: Path, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('name = "one"')
    first = name_of(running_package(tmp_path, tmp_path / "first"))
    (tmp_path / "one.toml").write_text('name = "two"')
    second = name_of(running_package(tmp_path, tmp_path / "second"))
    assert len({name_of(sent), first, second}) == 3


def test_what_was_sent_goes_before_an_older_copy_and_is_the_code_that_sent_it(
    sent: Path, installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "again.py").write_text(AGAIN)
    seen: dict[str, Any] = json.loads(ran(sent, installed, str(tmp_path / "again.py"), str(tmp_path)))
    assert seen["from"] == str(sent / "__init__.py")
    assert seen["code"] == trainables.code_digest("maml")
    assert seen["quickstart"] == (ROOT / "studies" / "quickstart.toml").read_text()
    assert name_of(Path(seen["sent"])) == name_of(sent)


def test_the_command_line_runs_from_it(sent: Path, installed: Path) -> None:
    assert "submit" in ran(sent, installed, "-m", "cs330ray", "--help")


def test_ray_packs_all_of_it_but_bytecode_and_hidden_files_whatever_git_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, studies = tmp_path / "src" / "cs330ray", tmp_path / "studies"
    for name in ("__init__.py", "report/page.css", "__pycache__/a.pyc", ".hidden/b.py", "shipped/of_before.toml"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / "gone" / "__pycache__").mkdir(parents=True)  # what git leaves of a package that has moved
    (package / ".gitignore").write_text("*.css\n")
    studies.mkdir()
    (studies / "one.toml").touch()
    monkeypatch.setattr("cs330ray.package.source", lambda: package)
    archive = tmp_path / "sent.zip"
    create_package(
        str(running_package(studies, tmp_path / "scratch")), archive, include_gitignore=True, include_parent_dir=True
    )
    assert sorted(zipfile.ZipFile(archive).namelist()) == [
        "cs330ray/__init__.py", "cs330ray/report/page.css", "cs330ray/shipped/one.toml"
    ]  # fmt: skip
