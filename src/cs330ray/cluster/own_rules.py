"""What this service requires of a cluster file: no secrets, no open ports, a token, pinned versions, files in place."""

import ipaddress
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cs330ray.cluster.ray_rules import CLIENTS, GUIDE, defaults, present, private, quoted
from cs330ray.cluster.strict_yaml import leaves

TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105 - where Ray looks for it
PASSWORDS_FILE = "~/.pgpass"  # where libpq looks
MAKE_IT = f"make it: ray get-auth-token --generate > /dev/null && chmod 600 {TOKEN_FILE}"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PREFIX = 8  # a network with fewer bits than this is the world, or the better part of it
NAMES_A_GROUP = ("SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate")
SETUP_PLACES = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
OPERATORS = frozenset(";&|()")

PLACEHOLDER = re.compile(r"<[a-z][a-z -]*>")
NETWORK = re.compile(r"[0-9a-fA-F:.]{1,39}/\d{1,3}")
NOWHERE = re.compile(r"(?!.*[?&]host=)(?:postgresql[^:]*|s3|gs)://(?:[^/@]*@)?(?:/|$)")
VARIABLE = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)=(.*)$", re.MULTILINE)
_NAMED = (
    r"\b(RAY_AUTH_TOKEN|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|HF_TOKEN|\w*password)[\"']?\s*[=:]\s*[\"']?[^\s\"'$<]"
)
_IN_ADDRESS = r"\b([a-z][a-z0-9+.-]{1,30})://[^/\s:@\"'<>$]*:[^/\s@\"'<>$]+@"
SECRETS = {  # what each of them is called, where the message must not quote it
    re.compile(_NAMED, re.IGNORECASE): "{}",
    re.compile(_IN_ADDRESS, re.IGNORECASE): "the password of a {} address",
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"): "an access key of AWS",
    re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY"): "a private key",
}


def secrets(text: str) -> Iterator[str]:
    """Find what must not stand in a file that is read by others: its line and what it is, never the secret."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in SECRETS.items():
            if found := pattern.search(line):
                said = what.format(*found.groups())
                remedy = "put it into a file of mode 600, such as clusters/cs330ray.pgpass, and mount that"
                yield f"line {number}: no secret may stand here, but {said} does; {remedy}"


def placeholders(config: Mapping[str, Any]) -> Iterator[str]:
    """Find what is still to be filled in."""
    for place, value in leaves(config):
        if isinstance(value, str) and PLACEHOLDER.fullmatch(value):
            yield f"{place}: a value of your own is needed, but got {value}; {GUIDE} says where it comes from"


def open_ports(config: Mapping[str, Any]) -> Iterator[str]:
    """Find what lets the world in."""
    for place, value in leaves(config):
        if isinstance(value, str) and "egress" not in place.lower():
            for network in filter(_is_world, NETWORK.findall(value)):
                remedy = "name your own address as ADDRESS/32"
                yield f"{place}: no port may be open to the world, but got {network}; {remedy}"
    if config["provider"]["type"] == "aws":
        for name, node in config["available_node_types"].items():
            if not any(
                node["node_config"].get(key) for key in ("SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate")
            ):
                place = f"available_node_types.{name}.node_config.SecurityGroupIds"
                yield f"{place}: it is needed, for Ray's own group opens ssh to the world; {GUIDE} makes one"


def _is_world(network: str) -> bool:
    try:
        return ipaddress.ip_network(network, strict=False).prefixlen < OPEN_PREFIX
    except ValueError:
        return False


@dataclass(frozen=True)
class RayStart:
    """One `ray start` of a command: where it stands, the variables set before it, and its options."""

    place: str
    environment: Mapping[str, str]
    options: Mapping[str, str]


def starts(config: Mapping[str, Any]) -> Iterator[str]:
    """Whether Ray starts as a study needs it: behind a token, its dashboard on the head alone, its workers joining."""
    for place in ("head_start_ray_commands", "worker_start_ray_commands"):
        found: list[RayStart] = []
        for index, command in enumerate(config.get(place, [])):
            try:
                found += _ray_starts(f"{place}.{index}", command)
            except ValueError as error:
                yield f"{place}.{index}: it must be a shell command, but {str(error).lower()}; mend it"
        if not found:
            yield f"{place}: `ray start` is needed, for Ray's own has no token and an open dashboard; see cluster.yaml"
        for start in found:
            if start.environment.get("RAY_AUTH_MODE") != "token":
                yield f"{start.place}: Ray must ask for a token; write RAY_AUTH_MODE=token before `ray start`"
            if place.startswith("head"):
                yield from _start_of_head(start, local=config["provider"]["type"] == "local")
            elif "--head" in start.options:
                yield f"{start.place}: a worker is no head, but got --head; write --address=$RAY_HEAD_IP:6379 instead"


def _start_of_head(start: RayStart, local: bool) -> Iterator[str]:
    if "--head" not in start.options:
        yield f"{start.place}: the head must start as one; write --head after `ray start`"
    if "--autoscaling-config" not in start.options:
        yield f"{start.place}: no worker would come; write --autoscaling-config=~/ray_bootstrap_config.yaml"
    host = start.options.get("--dashboard-host", LOOPBACK[0])
    if host not in LOOPBACK:
        rule = f"the dashboard must stay on the head's loopback, but got --dashboard-host={host}"
        yield f"{start.place}: {rule}; write 127.0.0.1, and reach it by `ray dashboard`"
    if local and start.environment.get("RAY_enable_autoscaler_v2") != "0":
        yield f"{start.place}: else no worker joins; write RAY_enable_autoscaler_v2=0 before `ray start`"


def _ray_starts(place: str, command: str) -> list[RayStart]:
    """Find every `ray start` of a shell command. Raises ValueError where its quotes do not close."""
    text = command.replace("\\\n", " ").replace("\n", " ; ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(OPERATORS))
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = list(lexer)
    found = []
    for index, (program, action) in enumerate(pairwise(words)):
        if program.rpartition("/")[2] == "ray" and action == "start":
            before = [word.partition("=") for word in words[:index] if re.match(r"[A-Za-z_]\w*=", word)]
            environment = {name: value for name, _, value in before}
            found.append(RayStart(place, environment, _options(words[index + 2 :])))
    return found


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for word, following in pairwise([*words, ""]):
        if set(word) <= OPERATORS or word.startswith("#"):
            break
        if word.startswith("-"):
            name, given, value = word.partition("=")
            options[name] = value if given else following
    return options


def pins(config: Mapping[str, Any]) -> Iterator[str]:
    """Whether every node installs the same versions."""
    if config["provider"]["type"] != "local" and not config.get("setup_commands") and not config.get("docker"):
        yield "setup_commands: what installs this package is needed, for Ray installs another Ray; see cluster.yaml"
    commands = list(_setup_commands(config))
    for place, command in commands:
        if _is_unpinned(command):
            yield f"{place}: every node needs the same versions; install with -c constraints.txt"
        for options in re.findall(r"\buv\s+venv\b([^;&|\n]*)", command):
            if not re.search(r"(?:-p|--python)[\s=]+\d+\.\d+\.\d+", options):
                yield f"{place}: every node needs the same Python; name all of it, such as --python 3.11.18"
    filled_in = defaults(config)
    for place in SETUP_PLACES:
        for command in filled_in.get(place, []) if place not in config else []:
            if _is_unpinned(command):
                yield f"{place}: Ray's own is `{command}`, and every node needs the same versions; write {place}: []"
    kind = config["provider"]["type"]
    if kind in CLIENTS and not config.get("docker"):
        _, package = CLIENTS[kind]
        if not any(re.search(rf"\[[^\]]*\b{kind}\b[^\]]*\]|\b{package}\b", command) for _, command in commands):
            yield f"setup_commands: the head starts workers through {package}, but nothing installs it; add its extra"


def _is_unpinned(command: str) -> bool:
    """Whether a command installs packages in whatever version there is on that day."""
    for install in re.findall(r"\bpip3?\s+install\b([^;&|\n]*)", command):
        words = re.sub(r"[\"']", " ", install).split()
        wanted = {re.split(r"[=<>~!\[]", word)[0] for word in words if not word.startswith("-")}
        constrained = re.search(r"\s(?:-c|--constraints?)[\s=]\s*\S*constraints\S*", install)
        if not constrained and not wanted <= {"pip", "uv", "wheel", "setuptools"}:
            return True
    return False


def _setup_commands(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    types = config.get("available_node_types", {})
    tables = {"": config} | {f"available_node_types.{name}.": node for name, node in types.items()}
    for around, table in tables.items():
        for place in SETUP_PLACES:
            for index, command in enumerate(table.get(place, [])):
                yield f"{around}{place}.{index}", command


def mounts(config: Mapping[str, Any]) -> Iterator[str]:
    """Whether what is brought to the nodes is here, as `ray up` will look for it: from where it is called."""
    brought = config.get("file_mounts", {})
    for remote, local in brought.items():
        place = f"file_mounts.{remote}"
        if not isinstance(local, str) or not local:
            yield f"{place}: the name of a file here is needed, but got {quoted(local)}; mend it"
        elif PASSWORDS_FILE in (remote, local):
            whose = "all of your passwords would go to every node" if local == PASSWORDS_FILE else "a node has its own"
            yield f"{place}: {whose}; mount one of this cluster's, ~/.cs330ray/pgpass: clusters/cs330ray.pgpass"
        elif remote.endswith("auth_token"):
            yield from private(place, local, MAKE_IT)
        elif remote.endswith("pgpass"):
            yield from private(place, local, f"{GUIDE} makes it")
        elif present(local) is None:
            here = "" if local.startswith(("/", "~")) else " in this directory"
            yield f"{place}: it must be there, but {local} is not{here}; make it, or mend its name"
        elif remote.endswith(".env"):
            yield from _environment(local)
    if not any(remote.endswith("auth_token") for remote in brought):
        yield f"file_mounts: the token must come to every node, but does not; add ~/.cs330ray/auth_token: {TOKEN_FILE}"
    yield from _where_they_lie(config)


def _where_they_lie(config: Mapping[str, Any]) -> Iterator[str]:
    """Whether Ray and libpq look for the token and the password where they are mounted."""
    given = variables(config)
    for name, ending, otherwise in (
        ("RAY_AUTH_TOKEN_PATH", "auth_token", TOKEN_FILE),
        ("PGPASSFILE", "pgpass", PASSWORDS_FILE),
    ):
        mounted = [remote for remote in config.get("file_mounts", {}) if remote.endswith(ending)]
        looked_for = re.sub(r"^(?:\$HOME|\$\{HOME\})(?=/)", "~", given.get(name, otherwise))
        if (mounted or name in given) and looked_for not in mounted:
            lies = f"lies at {mounted[0]}" if mounted else "is not mounted"
            remedy = "mend one" if name in given else f"export {name} in the file of variables"
            yield f"file_mounts: the {ending} {lies}, but is looked for at {quoted(looked_for)}; {remedy}"


def _environment(local: str) -> Iterator[str]:
    """What is wrong with a file of variables that is sourced before `ray start`."""
    text = _text(local)
    if text is None:
        yield f"{local}: a text of lines NAME=VALUE is needed, but it is none; mend it"
        return
    yield from (f"{local}: {problem}" for problem in secrets(text))
    for name, value in _variables(text).items():
        if found := PLACEHOLDER.search(value):
            yield f"{local}: {name}: a value of your own is needed, but got {found[0]}; {GUIDE} says which"
        if NOWHERE.match(value):
            yield f"{local}: {name}: a host or a bucket is needed, but got {quoted(value)}; {GUIDE} says which"
        if name == "CS330RAY_HOME" and not value.startswith(("/", "~", "$HOME")):
            yield f"{local}: {name}: an absolute path is needed, but got {quoted(value)}; begin it with / or $HOME"


def variables(config: Mapping[str, Any]) -> dict[str, str]:
    """What the files of variables give to the nodes."""
    files = [local for remote, local in config.get("file_mounts", {}).items() if remote.endswith(".env")]
    return {name: value for local in files for name, value in _variables(_text(local) or "").items()}


def _variables(text: str) -> dict[str, str]:
    return {name: value.split(" #")[0].strip().strip("\"'") for name, value in VARIABLE.findall(text)}


def _text(local: str) -> str | None:
    path = present(local)
    try:
        return path.read_text("utf-8") if path is not None else None
    except (OSError, UnicodeDecodeError):
        return None
