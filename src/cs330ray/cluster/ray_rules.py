"""What Ray requires of a cluster file: its schema in words, and what it finds out too late, with machines running."""

import difflib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from cs330ray.words import short

PROVIDERS = ("aws", "gcp", "azure", "vsphere", "aliyun", "local", "external", "spark")  # what `ray up` can start
CLIENTS = {"aws": ("boto3", "boto3"), "gcp": ("googleapiclient", "google-api-python-client")}  # module, package
GUIDE = "docs/guide/cluster.md"
REFERENCE = "https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html"
KINDS = {"object": "a table", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number"}


def against_schema(config: Mapping[str, Any]) -> Iterator[str]:
    """What Ray's own schema says against a file."""
    schema = json.loads((_autoscaler() / "ray-schema.json").read_text("utf-8"))
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(_as_ray_sees(config)):
        yield f"{_in_words(error)}; see {REFERENCE}"
    if (kind := config["provider"]["type"]) not in PROVIDERS:
        yield f"provider.type: one of {', '.join(PROVIDERS)} is needed, but got {kind!r}; {_like(kind, PROVIDERS)}"


def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray puts in the place of what a file leaves out."""
    file = _autoscaler() / config["provider"]["type"] / "defaults.yaml"
    return dict(yaml.safe_load(file.read_text("utf-8"))) if file.is_file() else {}


def _autoscaler() -> Path:
    """Where the Ray that is installed here keeps its schema and its defaults; Ray itself is not imported."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "autoscaler"


def _as_ray_sees(config: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray moves or fills in before it asks its schema."""
    provider, seen = config.get("provider"), dict(config)
    kind = provider.get("type") if isinstance(provider, dict) else None
    types = config.get("available_node_types")
    if kind == "local":
        seen.pop("min_workers", None)
    if kind == "aws" and isinstance(types, dict):  # Ray asks AWS what its machines have
        filled = {name: {"resources": {}, **node} if isinstance(node, dict) else node for name, node in types.items()}
        seen["available_node_types"] = filled
    return seen


def _in_words(error: Any) -> str:
    place, rule = ".".join(map(str, error.absolute_path)), error.validator
    if rule == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in known)
        return f"{_at(place, unknown)}: Ray knows no such name; {_like(unknown, known)}"
    if rule == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{_at(place, missing)}: it is needed, but missing; add it"
    if rule == "type":
        needed = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        said = " or ".join(KINDS.get(kind, str(kind)) for kind in needed)
        return f"{place or 'the file'}: {said} is needed, but got {quoted(error.instance)}; mend it"
    said = f"{rule} {quoted(error.validator_value)}"
    return f"{place or 'the file'}: {said} must hold, but got {quoted(error.instance)}; mend it"


def machines(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the machines that a file asks for, and with the way to reach them."""
    kind = config["provider"]["type"]
    module, package = CLIENTS.get(kind, ("", ""))
    if module and find_spec(module) is None:
        how = f"pip install -c constraints.txt -e '.[{kind}]'"
        yield f"provider.type: `ray up` speaks to {kind} through {package}, which is not installed here; {how}"
    if kind == "local":
        yield from _hosts(config)
    else:
        yield from _node_types(config)
    auth = config.get("auth", {})
    if not auth.get("ssh_user"):
        yield "auth.ssh_user: who logs in by ssh is needed, but missing; add it, for example ubuntu"
    if key := auth.get("ssh_private_key"):
        yield from private("auth.ssh_private_key", key, "make it, or mend its name")


def _hosts(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    for name in ("available_node_types", "head_node_type"):
        if name in config:
            yield f"{name}: a local provider has none; remove it, and name machines in provider.worker_ips"
    if "coordinator_address" in provider:
        yield from _bound(config)
        return
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not head:
        yield f"provider.head_ip: the head's address is needed, but got {quoted(head)}; add it"
    if workers is None:
        yield "provider.worker_ips: a list of addresses is needed, but got nothing; [] is one machine alone"
    for index, worker in enumerate(workers):
        if not isinstance(worker, str) or not worker:
            yield f"provider.worker_ips.{index}: an address is needed, but got {quoted(worker)}; put it into quotes"
        if worker in (head, *workers[:index]):
            yield f"provider.worker_ips.{index}: each machine stands once, but {worker} is there before; remove it"
    least, most = config.get("min_workers", 0), config.get("max_workers", len(workers))
    if not isinstance(least, int) or not 0 <= least <= most:
        yield f"min_workers: 0 <= min_workers <= max_workers must hold, but got {quoted(least)} and {most}; mend one"


def _node_types(config: Mapping[str, Any]) -> Iterator[str]:
    types = config.get("available_node_types", {})
    if not types:
        yield "available_node_types: a head and a kind of worker are needed, but got nothing; see cluster.yaml"
    elif (head := config.get("head_node_type")) not in types:
        yield f"head_node_type: one of {', '.join(types)} is needed, but got {quoted(head)}; name one"
    yield from _bound(config)
    for name, node in types.items():
        low, high = node.get("min_workers", 0), most_workers(config, name)
        if not 0 <= low <= high:
            rule = f"0 <= min_workers <= max_workers must hold, but got {low} and {high}"
            yield f"available_node_types.{name}: {rule}; mend one"
    least, most = sum(node.get("min_workers", 0) for node in types.values()), config["max_workers"]
    if least > most:
        yield f"max_workers: it must hold the sum of all min_workers, {least}, but got {most}; raise it"
    if config["provider"]["type"] == "aws":
        yield from _on_aws(config)


def _bound(config: Mapping[str, Any]) -> Iterator[str]:
    if "max_workers" not in config:
        yield "max_workers: a bound of what may be started is needed, but missing; add it"


def most_workers(config: Mapping[str, Any], name: str) -> int:
    """How many workers of a type there may be; of the head's type none by default, as Ray has it."""
    default = 0 if name == config.get("head_node_type") else config["max_workers"]
    return int(config["available_node_types"][name].get("max_workers", default))


def _on_aws(config: Mapping[str, Any]) -> Iterator[str]:
    if not config["provider"].get("region"):
        yield "provider.region: it is needed on AWS, but missing; add it, for example us-west-2"
    for name, node in config["available_node_types"].items():
        settings, place = node["node_config"], f"available_node_types.{name}.node_config"
        if "LaunchTemplate" in settings:  # which may hold all of it
            continue
        if not settings.get("InstanceType"):
            yield f"{place}.InstanceType: it is needed, but missing; add it, for example g5.xlarge"
        if not settings.get("ImageId"):  # Ray's own is Ubuntu 18.04
            yield f"{place}.ImageId: it is needed, for torch needs a newer one than Ray's own; see {GUIDE}"
        if "ssh_private_key" in config.get("auth", {}) and not {"KeyName", "UserData"} & {*settings}:
            yield f"{place}.KeyName: it is needed beside auth.ssh_private_key, but missing; name the key pair"


def private(place: str, local: str, remedy: str) -> Iterator[str]:
    """What is wrong with a file here that its owner alone may read."""
    path = present(local)
    if path is None or not path.is_file():
        yield f"{place}: it must be there, but {local} is not; {remedy}"
    elif os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield f"{place}: its owner alone may read it, but others may, too; chmod 600 {local}"


def present(local: str) -> Path | None:
    """Where a file lies as `ray up` looks for it, seen from where it is called; None where there is none."""
    try:
        path = Path(local).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, of nobody, or of no file system
        return None


def quoted(value: Any) -> str:
    """Quote a value for a message; `nothing` where there is none."""
    return "nothing" if value is None else short(value, 80)


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _like(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "mend or remove it"
