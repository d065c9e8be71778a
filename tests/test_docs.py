"""What the pages tell a reader to type exists: commands parse, options are known, files and links are there."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Any

import botocore.session
import click
import mlflow
import psycopg.pq
import pytest
import typer
from botocore import xform_name

from cs330ray.cli import app as cli
from cs330ray.package import shipped
from cs330ray.spec import reading
from cs330ray.trial import named
from cs330ray.trial.check import check as must_fit

ROOT = Path(__file__).parents[1]
LIBPQ = {option.envvar for option in psycopg.pq.Conninfo.get_defaults()}
README, DOCS = ROOT / "README.md", ROOT / "docs"
REPORTS = DOCS / "answers"  # generated: links are checked, words are not
CLUSTER, KUBERNETES = DOCS / "guide" / "cluster.md", DOCS / "guide" / "kubernetes.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WRITTEN = [page for page in PAGES if REPORTS not in page.parents]
LINKING = [*PAGES, *sorted((ROOT / "design").glob("*.md")), ROOT / "LOG.md", ROOT / "CHANGELOG.md"]


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    texts = [page.read_text() for page in pages]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def name_of(page: Path) -> str:
    """A page's path in the repository, for the names of tests."""
    return str(page.relative_to(ROOT))


def commands() -> list[str]:
    joined = [block.replace("\\\n", " ") for block in blocks("sh")]
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for block in joined for line in block.splitlines()]
    return sorted({line for line in lines if line})


def test_the_pages_have_commands() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_pages_exists_with_its_options(command: str) -> None:
    check(command)


def check(command: str) -> None:
    for words in simple_commands(command):
        parse(words)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell: those in $( ) first, then those between pipes and &&, without redirections."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from simple_commands(inner)
    lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "VALUE", line), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            words = list(dropwhile(lambda word: re.fullmatch(r"[A-Za-z_]\w*=.*", word), words))
            if words:
                yield words
            words = []
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        else:
            words.append(word)


SHELL = {"chmod", "cp", "curl", "cut", "mkdir", "openssl", "printf", "read", "rm", "sed", "test", "umask", "unset"}
SUDO = {"apt-get install postgresql", "-u postgres createuser --createdb --pwprompt cs330ray"}


def parse(words: list[str]) -> None:
    """Check that a command exists, and takes these options."""
    program, rest = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif words[:2] == ["python", "-m"]:
        parse_module(words[2], words[3:])
    elif program == "cs330ray":
        parse_click(typer.main.get_command(cli.app), rest)
    elif program == "ray":
        from ray.scripts.scripts import cli as ray

        parse_click(ray, rest)
        if rest[0] == "exec":
            check(rest[-1])
    elif program == "aws":
        parse_aws(rest)
    elif program in CONTAINERS:
        parse_options(CONTAINERS[program], rest)
    elif words[:2] == ["pip", "install"]:
        parse_pip(rest[1:])
    elif program == ".":
        assert rest == [".venv/bin/activate"] or (ROOT / rest[0]).is_file()
    elif words[:3] == ["python3", "-m", "venv"]:
        assert rest[2:] == [".venv"]
    elif program == "pytest":
        parse_pytest(rest)
    elif program == "sudo":
        assert " ".join(rest) in SUDO
    else:
        assert program in SHELL, f"{program}: nobody checks this kind of command"


def parse_click(command: Any, words: list[str]) -> None:
    """Let click parse words as it would, down to the command that they name; it is not run."""
    name = ""
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{name}: there is no such command"
        command = command.commands[name]
    command.make_context(name, list(words))


def parse_pip(words: list[str]) -> None:
    *options, target = words
    assert options in (["-c", "constraints.txt"], ["-c", "constraints.txt", "-e"])
    (named,) = re.findall(r"^\.(?:\[([a-z,]+)\])?$", target)
    assert set(filter(None, named.split(","))) <= extras()


def extras() -> set[str]:
    """The extras of pyproject.toml."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def parse_pytest(words: list[str]) -> None:
    """That a page tells to run one file that it has told to write, and some tests of it."""
    file, option, _ = words
    assert (option, any(block.startswith(f"# {file}\n") for block in blocks("python"))) == ("-k", True)


# What the pages take of these programs, by their references: each command with the options that it has here.
CONTAINERS = {
    "docker": {"build": {"-f", "-t"}, "push": set()},
    "kubectl": {
        "apply": {"-f", "-l"}, "create secret generic": {"--from-file", "--from-env-file"}, "delete": {"-f"},
        "get": {"-l", "-o"}, "port-forward": set(),
    },
}  # fmt: skip


def parse_options(known: dict[str, set[str]], words: list[str]) -> None:
    """Check that a command is known, and has these options."""
    line = " ".join(words)
    name = next((name for name in known if line.startswith(f"{name} ")), None)
    assert name is not None, f"{line}: there is no such command"
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert given <= known[name], f"{name} is known with {known[name]}"


# What AWS's command line has of its own, beside what it makes of the services' models.
AWS_OPTIONS = {"query", "output", "region", "profile"}
AWS_S3 = {"ls": set(), "rm": {"recursive"}, "sync": {"delete"}}


def parse_aws(words: list[str]) -> None:
    """Check a command of AWS's command line against botocore's models: operation, its members, their values."""
    service, operation, *rest = words
    given = [word.removeprefix("--") for word in rest if word.startswith("--")]
    if service == "s3":
        assert set(given) <= AWS_S3[operation] | AWS_OPTIONS
        return
    session = botocore.session.get_session()
    model = session.get_service_model(service)
    if operation == "wait":
        waiters = session.get_waiter_model(service)
        names = {xform_name(name, "-"): name for name in waiters.waiter_names}
        assert rest[0] in names, f"{service} waits for no {rest[0]}"
        operation = xform_name(waiters.get_waiter(names[rest[0]]).operation, "-")
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    assert operation in operations, f"{service} has no {operation}"
    shape = model.operation_model(operations[operation]).input_shape
    members = {} if shape is None else {xform_name(name, "-"): inner for name, inner in shape.members.items()}
    required = set() if shape is None else {xform_name(name, "-") for name in shape.required_members}
    switched_off = {f"no-{name}" for name, inner in members.items() if inner.type_name == "boolean"}
    assert set(given) <= {*members, *switched_off} | AWS_OPTIONS
    assert required <= set(given)
    for option, value in pairwise(rest):
        allowed = getattr(members.get(option.removeprefix("--")), "enum", None)
        assert not allowed or value in allowed, f"{option} {value}"


@pytest.mark.parametrize(
    "command",
    [
        "aws rds make-db-instance",
        "aws rds delete-db-instance --db-instance-name x",
        "aws rds delete-db-instance",
        "aws ec2 create-key-pair --key-name x --key-type ed448",
        "aws cloudformation wait stack-done --stack-name x",
        "aws s3 rm s3://x --force",
        "ray upp cluster.yaml",
        "ray up cluster.yaml --yess",
        "ray exec cluster.yaml 'cs330ray bests x'",
        "cs330ray cluster chek cluster.yaml",
        "echo $(ray upp) > x",
        'pip install -c constraints.txt -e ".[awz]"',
        'pip install -c constraints.txt ".[lmm]"',
        "pip install cs330ray",
        "frobnicate",
        "kubectl create secret generic x --from-literal=auth_token=x",  # others see it
        "kubectl aply -f clusters/kuberay.yaml",
        "docker build --squash .",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check(command)


def parse_module(module: str, words: list[str]) -> None:
    from cs330ray.cli.trial import _parser

    name = module.removeprefix("cs330ray.studies.")
    assert name in named.names()
    if "--help" not in words:
        _parser(name, named.load(name)).parse_args(words)


@pytest.mark.usefixtures("your_own")
@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_study_in_the_pages_is_a_valid_one(page: Path) -> None:
    for block in blocks("toml", [page]):
        must_fit(reading.parse(tomllib.loads(block), page.name), page.name)


@pytest.mark.usefixtures("your_own")
def test_every_override_of_the_pages_is_one_that_its_study_takes(tmp_path: Path) -> None:
    for block in blocks("toml"):
        (tmp_path / f"{tomllib.loads(block)['name']}.toml").write_text(block)
    runs = [shlex.split(command) for command in commands() if command.startswith("cs330ray run") and "--set" in command]
    assert runs
    for _, _, file, *options in runs:
        overrides = [text for option, text in pairwise(options) if option == "--set"]
        study = reading.read(tmp_path / file, overrides)
        must_fit(study, file)


def test_every_study_that_a_command_names_is_one_of_the_pages_or_comes_with_the_package() -> None:
    written = {f"{tomllib.loads(block)['name']}.toml" for block in blocks("toml")}
    for command in commands():
        words = list(dropwhile(lambda word: "=" in word, shlex.split(command)))
        if words[:2] in (["cs330ray", "run"], ["cs330ray", "submit"]):
            assert words[2] in written or (shipped() / f"{Path(words[2]).stem}.toml").is_file(), command


def test_every_command_named_in_a_sentence_is_there() -> None:
    from ray.scripts.scripts import cli as ray

    groups = {"cs330ray": typer.main.get_command(cli.app), "ray": ray}
    for page in PAGES:
        for program, name in re.findall(r"`(cs330ray|ray) ([a-z-]+)", page.read_text()):
            assert name in groups[program].commands, f"{page.name}: {program} {name}"


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_every_heading_that_a_page_links_to_is_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https:)([^)#]*)#([^)]+)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.is_file(), target
        assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_study_file_that_a_page_names_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"\bstudies/[a-z0-9-]+\.toml", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_every_file_of_the_cluster_that_a_page_names_is_there_or_is_one_that_it_makes() -> None:
    for page in PAGES:
        for name in re.findall(r"\b(?:clusters/[\w.]+\w|cluster\.yaml)", page.read_text()):
            made = f" > {name}\n" in page.read_text() or (ROOT / f"{name}.example").is_file()
            assert made or (ROOT / name).is_file(), f"{page.name}: {name}"


def test_what_the_page_fills_in_is_what_the_cluster_files_leave_open() -> None:
    set_ = {found for page in (CLUSTER, KUBERNETES) for found in re.findall(r"s[/|](<[a-z-]+>)[/|]", page.read_text())}
    names = [
        "cluster.yaml", "clusters/local.yaml", "clusters/cs330ray.env.example", "clusters/local.env.example",
        "clusters/kuberay.yaml",
    ]  # fmt: skip
    texts = [(ROOT / name).read_text() for name in names]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    assert set_ == {found for line in lines for found in re.findall(r"<[a-z-]+>", line)}


def test_every_variable_of_the_examples_is_read_by_the_code_or_by_mlflow() -> None:
    files = [path for path in (ROOT / "src").rglob("*.py") if not path.name.startswith("clusterfile")]
    options = Path(mlflow.__file__).parent / "utils" / "cli_args.py"
    code = "".join(path.read_text() for path in [*files, options])
    for name in ("cs330ray.env.example", "local.env.example"):
        for variable in re.findall(r"export (\w+)=", (ROOT / "clusters" / name).read_text()):
            assert variable in code or variable.encode() in LIBPQ, variable


def sh_of_the_cluster() -> list[list[str]]:
    """The blocks of shell of docs/guide/cluster.md, each as its lines."""
    text = CLUSTER.read_text()
    return [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


def test_no_command_of_the_cluster_uses_what_only_another_terminal_has_set() -> None:
    made = {"BUCKET", "DATABASE", "GROUP", "INSTANCE"}
    blocks = [block for block in sh_of_the_cluster() if re.search(r"\$\{?[A-Z]", "".join(block))]
    assert len(blocks) > 4
    for block in blocks:
        text = "\n".join(block)
        assert not re.search(r"\$(?!HOME)[A-Z]", text), text  # ${NAME:?} ends a command where the name is empty
        used = set(re.findall(r"\$\{([A-Z]+):\?\}", text))
        set_here = set(re.findall(r"^([A-Z]+)=", text, re.MULTILINE))
        assert used <= set_here | (made if ". clusters/aws.sh" in text else set()) | {"PASSWORD"}, text


def test_each_block_that_speaks_to_aws_names_the_region_where_it_may_be_the_first_of_a_terminal() -> None:
    text = CLUSTER.read_text()
    for step in re.split(r"^## ", text, flags=re.MULTILINE):
        found = [block for block in re.findall(r"```sh\n(.*?)```", step, re.DOTALL) if "aws " in block]
        assert not found or ". clusters/aws.sh" in found[0] or step.startswith("1."), step


def test_a_block_that_deletes_stops_at_the_first_failure() -> None:
    (block,) = [block for block in sh_of_the_cluster() if any("delete-stack" in line for line in block)]
    assert all(line.endswith("&&") for line in block[:-1])
    assert block[0] == ". clusters/aws.sh &&"


def test_a_block_that_writes_a_secret_writes_it_for_its_owner_alone() -> None:
    written = [
        block for block in sh_of_the_cluster() if re.search(r"> \S+(\.pgpass|\.json|\.pem)|--generate", "".join(block))
    ]
    assert len(written) == 3
    for block in written:
        assert block[0] == "umask 077"


def test_nothing_follows_a_line_that_reads_a_password() -> None:
    blocks = [block for block in sh_of_the_cluster() if any(" read " in line for line in block)]
    assert blocks
    for block in blocks:
        assert [" read " in line for line in block] == [False] * (len(block) - 1) + [True]


AWS = """#!/bin/sh
echo "$AWS_REGION $AWS_DEFAULT_REGION $*" >> asked
case "$*" in
*"'Database'"*) echo db.example.com ;;
*"'Bucket'"*) echo "$A_BUCKET" ;;
*"'SecurityGroup'"*) echo sg-0123 ;;
*"'Instance'"*) echo an-instance ;;
esac
"""


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_aws_sh_sets_the_region_of_cluster_yaml_and_what_the_stack_made_and_keeps_nothing_of_before(
    tmp_path: Path, shell: str
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    (tmp_path / "cluster.yaml").write_text("provider:\n  type: aws\n  region: eu-west-1 # here\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "aws").write_text(AWS)
    (tmp_path / "bin" / "aws").chmod(0o755)
    said = 'BUCKET=before; . "$0"; echo "$? [$BUCKET] $DATABASE $GROUP $INSTANCE"'
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for bucket, wanted in (("a-bucket", "0 [a-bucket] db.example.com sg-0123 an-instance"), ("", "1 []   ")):
        done = subprocess.run(
            [shell, "-c", said, str(ROOT / "clusters" / "aws.sh")], cwd=tmp_path, check=True, capture_output=True,
            text=True, env={"PATH": path, "A_BUCKET": bucket, "AWS_REGION": "us-east-1"},
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == wanted
    for line in (tmp_path / "asked").read_text().splitlines():
        assert line.startswith("eu-west-1 eu-west-1 cloudformation describe-stacks --stack-name cs330ray ")


def test_what_aws_sh_asks_for_is_what_the_stack_puts_out() -> None:
    asked = set(re.findall(r"_made ([A-Z]\w+)\)", (ROOT / "clusters" / "aws.sh").read_text()))
    outputs = (ROOT / "clusters" / "aws.yaml").read_text().partition("\nOutputs:\n")[2]
    assert asked == set(re.findall(r"^  (\w+):", outputs, re.MULTILINE))


def test_every_promise_of_the_pages_names_a_test_that_is_there() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in {name for page in WRITTEN for name in re.findall(r"`(test_\w+)`", page.read_text())}:
        assert f"def {name}(" in tests, name


def test_every_failure_names_what_checks_it() -> None:
    rows = re.findall(r"^\| .* \| .* \| (.*) \|$", (DOCS / "failures.md").read_text(), re.MULTILINE)[1:]
    assert len(rows) > 20
    for checks in rows:
        assert re.search(r"`test_\w+`", checks), checks


def test_every_environment_variable_of_the_pages_is_read_by_the_code() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for name in {name for page in WRITTEN for name in re.findall(r"`([A-Z0-9_]{6,})(?:=1)?`", page.read_text())}:
        assert name in code or name == "RAY_ADDRESS", name


def test_every_environment_variable_of_ours_that_a_person_sets_is_in_its_page() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    nobodys = {"CS330RAY_CLOCK", "CS330RAY_SUBMITTED", "CS330RAY_TRIAL", "CS330RAY_CALL"}  # of tests, submit, trials
    nobodys |= {"CS330RAY_ROWS", "CS330RAY_RESUME"}  # which a script is given
    assert all(
        name in (DOCS / "guide" / "your-script.md").read_text() for name in ("_ROWS", "_RESUME", "_CHECKPOINTS_DIR")
    )
    ours = set(re.findall(r"CS330RAY_[A-Z]+", code)) - nobodys
    assert ours == set(re.findall(r"CS330RAY_[A-Z]+", (DOCS / "configuration.md").read_text()))


def test_every_shipped_study_is_in_the_page_of_the_study_file() -> None:
    rows = re.findall(r"^\| \[`(.*)`\]", (DOCS / "guide" / "study-file.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(file.stem for file in shipped().glob("*.toml"))


def test_which_studies_have_the_batch_norm_of_the_course_is_said_as_it_is() -> None:
    studies = [tomllib.loads(file.read_text()) for file in (ROOT / "studies").glob("*.toml")]
    of_maml = {
        study["name"]: {**study["fixed"], **study["fixed"].get("maml", {})}
        for study in studies
        if "maml" in study.get("trainable", study.get("compare", {}).get("trainable", []))
    }
    normalising = {name for name, fixed in of_maml.items() if fixed.get("affine") is False}
    others = {name for name, fixed in of_maml.items() if fixed["dataset"] == "omniglot"} - normalising
    assert normalising
    assert others == {"meta-against-baseline"}
    said = (
        "`affine = false`, as its Omniglot studies have it but for `meta-against-baseline`, where all share one body."
    )
    assert said in (DOCS / "differences.md").read_text()


def test_the_readme_is_a_front_page() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 180
    assert len(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split()) < 1000


def test_the_readme_links_to_each_page_of_the_docs() -> None:
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#]+)[)#]", README.read_text())}
    assert {page for page in WRITTEN if DOCS in page.parents} <= linked


def test_the_study_of_the_readme_is_a_part_of_the_one_that_it_runs() -> None:
    (block,) = blocks("toml", [README])
    part, whole = tomllib.loads(block), tomllib.loads((shipped() / "quickstart.toml").read_text())
    for key, value in part.items():
        assert value.items() <= whole[key].items() if isinstance(value, dict) else value == whole[key]


def test_what_the_readme_shows_of_a_run_is_a_part_of_what_getting_started_shows() -> None:
    short, whole = (run_shown_by(page) for page in (README, DOCS / "getting-started.md"))
    assert len(short) > 5
    assert set(short) <= set(whole)


def run_shown_by(page: Path) -> list[str]:
    """The lines of the block in which a page shows what a run prints."""
    fenced = re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)
    (block,) = [block for language, block in fenced if not language and "16/16" in block]
    return block.splitlines()


def test_the_readme_names_each_extra() -> None:
    (table,) = re.findall(r"\| extra \| adds \|\n\|---\|---\|\n((?:\|.*\n)+)", README.read_text())
    first = [row.split("|")[1] for row in table.splitlines()]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == extras()


def test_the_readme_names_each_system_with_its_study() -> None:
    row = r"^\| (?:homework \d|beside it) \| `(\w+)`.*?\]\(studies/(\w+)\.toml\)"
    rows = re.findall(row, README.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((name, name) for name in named.names())


def test_the_pictures_of_the_pages_are_small_and_shown() -> None:
    pictures = sorted((DOCS / "images").iterdir())
    shown = {
        (page.parent / target).resolve()
        for page in WRITTEN
        for target in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())
    }
    assert pictures
    assert set(pictures) == shown
    assert all(picture.stat().st_size < 150_000 for picture in pictures)


FOREIGN = r"\b(hangs? on|goes on|go on|anew|mend(?:s|ed)?|alike|whoever|to the bit|lies?)\b"


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_no_sentence_of_a_page_reads_as_translated(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not [line for line in prose.splitlines() if re.search(FOREIGN, line)]


def test_the_change_log_names_the_version() -> None:
    assert "[Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_answer_has_its_report_its_figures_and_a_place_in_the_results_and_is_small() -> None:
    results = (DOCS / "results.md").read_text()
    answers = sorted(path for path in REPORTS.iterdir() if path.is_dir())
    assert len(answers) == 8
    for answer in answers:
        text = (answer / "report.md").read_text()
        assert f"(answers/{answer.name}/report.md)" in results
        assert (ROOT / "studies" / f"{answer.name}.toml").is_file()
        for figure in re.findall(r"\]\((figures/[^)]+)\)", text):
            assert (answer / figure).is_file()
        assert sum(file.stat().st_size for file in answer.rglob("*") if file.is_file()) < 300_000


def test_the_layout_of_the_readme_is_the_one_on_disk() -> None:
    (tree,) = re.findall(r"```\n(src/cs330ray/\n.*?)```", README.read_text(), re.DOTALL)
    named = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    package = ROOT / "src" / "cs330ray"
    assert named == {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
    assert all((ROOT / line.split()[0]).is_dir() for line in tree.splitlines() if not line.startswith("  "))
