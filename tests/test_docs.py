"""What the pages tell a reader to type exists: commands parse, options are known, files and links are there."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from cs330ray import cli, spec
from cs330ray.home import shipped
from cs330ray.service import trainables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return [found for page in PAGES for found in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return sorted({line for line in lines if line})


def test_the_pages_have_commands() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_pages_parses(command: str) -> None:
    words = shlex.split(command.split(">")[0])
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ["python", "-m"]:
        parse_module(words[2], words[3:])
    elif words[0] == "cs330ray":
        parse_cs330ray(words[1:])
    else:
        raise AssertionError(f"{command}: nobody checks this kind of command")


def parse_cs330ray(words: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    name = words[0]
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(words[1:]))


def parse_module(module: str, words: list[str]) -> None:
    from cs330ray.lone import _parser

    name = module.removeprefix("cs330ray.studies.")
    assert name in trainables.names()
    if "--help" not in words:
        _parser(name, trainables.load(name)).parse_args(words)


def test_every_study_in_the_pages_is_a_valid_one(tmp_path: Path) -> None:
    found = [block for block in blocks("toml") if "trainable" in block]
    assert found
    for block in found:
        study = spec.parse(tomllib.loads(block), "README.md")
        trainables.check(study, "README.md")


def test_every_override_of_the_pages_is_one_that_its_study_takes(tmp_path: Path) -> None:
    for block in blocks("toml"):
        (tmp_path / f"{tomllib.loads(block)['name']}.toml").write_text(block)
    runs = [shlex.split(command) for command in commands() if command.startswith("cs330ray run") and "--set" in command]
    assert runs
    for _, _, file, *options in runs:
        overrides = [text for option, text in pairwise(options) if option == "--set"]
        study = spec.read(tmp_path / file, overrides)
        trainables.check(study, file)


def test_every_command_named_in_a_sentence_is_there() -> None:
    group = typer.main.get_command(cli.app)
    for page in PAGES:
        for name in re.findall(r"`cs330ray ([a-z-]+)", page.read_text()):
            assert name in group.commands, f"{page.name}: cs330ray {name}"  # type: ignore[attr-defined]


def test_every_file_that_a_page_links_to_is_there() -> None:
    for page in [*PAGES, *sorted((ROOT / "design").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_heading_that_a_page_links_to_is_there() -> None:
    for page in [*PAGES, *sorted((ROOT / "design").glob("*.md"))]:
        for target, anchor in re.findall(r"\]\((?!https:)([^)#]*)#([^)]+)\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.is_file(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_every_study_file_that_a_page_names_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"\bstudies/[a-z0-9-]+\.toml", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_every_promise_of_the_readme_names_a_test_that_is_there() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
    assert len(named) > 20
    for name in named:
        assert f"def {name}(" in tests, name


def test_every_environment_variable_of_the_readme_is_read_by_the_code() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for name in set(re.findall(r"`([A-Z0-9_]{6,})(?:=1)?`", (ROOT / "README.md").read_text())):
        assert name in code or name == "RAY_ADDRESS", name


def test_every_shipped_study_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for file in shipped().glob("*.toml"):
        assert f"studies/{file.name}" in text


def test_the_cluster_file_opens_no_port_but_ssh() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])
    assert "SecurityGroup" not in cluster["provider"]


def test_the_change_log_names_the_version() -> None:
    assert "[Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
