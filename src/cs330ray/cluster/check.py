"""A cluster file, checked before `ray up`, which would start machines first and then fail in a traceback.

Nothing is asked of a network. The rules are in two rooms: `ray_rules` has what Ray requires, `clusterfile_rules`
what this service requires beyond it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cs330ray.cluster import own_rules, ray_rules, strict_yaml
from cs330ray.errors import SpecError


def check(file: Path) -> list[str]:
    """Check a cluster file; in words, what `ray up` would start and what costs. Raises SpecError at the first fault."""
    config, text = strict_yaml.read(file)
    for problem in _problems(config, text):
        raise SpecError(f"{file}: {problem}")
    return [*_machines(config), *_lasting(config), *_commands(config, file)]


def _problems(config: Mapping[str, Any], text: str) -> Iterator[str]:
    yield from own_rules.secrets(text)
    yield from ray_rules.against_schema(config)
    yield from own_rules.placeholders(config)
    yield from ray_rules.machines(config)
    yield from own_rules.open_ports(config)
    yield from own_rules.starts(config)
    yield from own_rules.pins(config)
    yield from own_rules.mounts(config)


def _machines(config: Mapping[str, Any]) -> Iterator[str]:
    name, provider = config["cluster_name"], config["provider"]
    if provider["type"] == "local":
        workers = ", ".join(provider.get("worker_ips", []))
        yield f"{name}: head {provider.get('head_ip', 'by the coordinator')}, and {workers or 'no other machine'}"
        return
    where = provider.get("region") or provider.get("location") or "an unnamed region"
    yield f"{name}: {provider['type']}, {where}, at most {config['max_workers']} workers"
    idle = config.get("idle_timeout_minutes", 5)
    for kind, node in config["available_node_types"].items():
        settings = node["node_config"]
        machine = settings.get("InstanceType") or settings.get("machineType") or "a machine"
        said = f"  {kind}: {machine}, {'spot' if _is_spot(settings) else 'on demand'}"
        if kind == config["head_node_type"]:
            yield f"{said}: costs as long as the cluster is up"
        if most := ray_rules.most_workers(config, kind):
            least = node.get("min_workers", 0)
            yield f"{said}: {least} to {most}; above {least} only while trials wait, and gone after {idle} idle minutes"


def _is_spot(settings: Mapping[str, Any]) -> bool:
    """Whether the provider may take the machine back: AWS's and Google's ways of asking for it."""
    market, scheduling = settings.get("InstanceMarketOptions"), settings.get("scheduling")
    asked = [market, *(scheduling if isinstance(scheduling, list) else [scheduling])]
    tables = [table for table in asked if isinstance(table, dict)]
    return any(
        table.get("MarketType") == "spot"
        or table.get("preemptible") is True
        or table.get("provisioningModel") == "SPOT"
        for table in tables
    )


def _lasting(config: Mapping[str, Any]) -> Iterator[str]:
    """Where what has been learned is kept, as the variables say that the nodes are given."""
    variables = own_rules.variables(config)
    for name, what, otherwise in (
        ("CS330RAY_LEDGER", "ledger", "on the head's disk"),
        ("CS330RAY_CHECKPOINTS", "checkpoints", "on the nodes' disks"),
        ("MLFLOW_BACKEND_STORE_URI", "MLflow", "on the head's disk"),
    ):
        yield f"  {what}: {variables.get(name) or f'{otherwise} alone, for no {name} is given'}"


def _commands(config: Mapping[str, Any], file: Path) -> Iterator[str]:
    provider = config["provider"]
    yield f"ray up {file} starts it; ray down {file} ends it"
    if provider["type"] == "aws" and provider.get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes is on: `ray down` stops the head, and its disk goes on to cost"
    if provider["type"] != "local":
        page = ray_rules.GUIDE
        yield f"what was made before it, a database or a bucket, costs until it is deleted: the end of {page}"
