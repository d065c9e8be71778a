"""The package as a wheel: the same content is the same file, and what is installed from it is the code that sent it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from cs330ray.cluster import wheel
from cs330ray.package import shipped
from cs330ray.trial import named

ROOT = Path(__file__).parents[2]
AGAIN = """
import json, sys
from pathlib import Path
import cs330ray
from cs330ray.package import shipped, study_file
from cs330ray.service import trainables, wheel
print(json.dumps({
    "from": cs330ray.__file__,
    "code": trainables.code_digest("maml"),
    "wheel": str(wheel.build(shipped(), Path(sys.argv[1]))),
    "quickstart": study_file("quickstart").read_text(),
}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(shipped(), tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Ray would have installed it: by its own words, on a node with no package index in reach."""
    target = tmp_path_factory.mktemp("node") / "modules"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--quiet", str(built), f"--target={target}"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    return target


def ran(installed: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=installed, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_same_content_is_the_same_bytes_under_the_same_name(built: Path, tmp_path: Path) -> None:
    again = wheel.build(shipped(), tmp_path)
    assert again.name == built.name
    assert again.read_bytes() == built.read_bytes()


def test_other_content_has_another_name_since_ray_takes_a_name_for_the_content(built: Path, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('name = "one"')
    first = wheel.build(tmp_path, tmp_path)
    (tmp_path / "one.toml").write_text('name = "two"')
    second = wheel.build(tmp_path, tmp_path)
    assert len({built.name, first.name, second.name}) == 3


def test_what_is_installed_is_the_code_that_sent_it(built: Path, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text(AGAIN)
    found: dict[str, Any] = json.loads(ran(installed, str(tmp_path / "again.py"), str(tmp_path)))
    assert found["from"] == str(installed / "cs330ray" / "__init__.py")
    assert found["code"] == named.code_digest("maml")
    assert found["quickstart"] == (ROOT / "studies" / "quickstart.toml").read_text()
    assert Path(found["wheel"]).read_bytes() == built.read_bytes()


def test_the_command_line_runs_from_it(installed: Path) -> None:
    assert "submit" in ran(installed, "-m", "cs330ray", "--help")


def test_it_requires_nothing_and_has_the_name_version_and_script_of_the_project(installed: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (info,) = installed.glob("*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text())
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])
    assert metadata.get_all("Requires-Dist") is None
    scripts = [f"{name} = {target}" for name, target in project["scripts"].items()]
    assert (info / "entry_points.txt").read_text().splitlines() == ["[console_scripts]", *scripts]


def test_its_record_is_true_of_every_file(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        (record,) = [name for name in names if name.endswith("RECORD")]
        lines = [line.rsplit(",", 2) for line in archive.read(record).decode().splitlines()]
        assert [name for name, *_ in lines] == names
        for name, digest, size in lines[:-1]:
            data = archive.read(name)
            wanted = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={wanted}", len(data))
    assert lines[-1] == [record, "", ""]
