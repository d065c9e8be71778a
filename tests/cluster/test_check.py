"""A cluster file is checked before anything starts: what is wrong is one line with a next step, never a traceback."""

import copy
import os
import random
import re
import string
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from cs330ray.cluster import check, ray_rules, strict_yaml
from cs330ray.errors import SpecError

ROOT = Path(__file__).parents[2]
MOUNTED = ("src", "studies", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
SHIPPED = ("cluster.yaml", "clusters/local.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout and a home in which everything is as docs/guide/cluster.md makes it; the current directory."""
    home, checkout = tmp_path / "home", tmp_path / "checkout"
    for file in (".ssh/cs330ray.pem", ".ssh/id_ed25519", ".ray/auth_token"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text("private")
        (home / file).chmod(0o600)
    (checkout / "clusters").mkdir(parents=True)
    for name in ("cs330ray.pgpass", "local.pgpass"):
        (checkout / "clusters" / name).touch(0o600)
    (checkout / "clusters" / "head.sh").symlink_to(ROOT / "clusters" / "head.sh")
    (home / ".cache" / "cs330ray").mkdir(parents=True)
    for name in MOUNTED:
        (checkout / name).symlink_to(ROOT / name)
    for name in SHIPPED:
        (checkout / name).write_text(filled((ROOT / name).read_text()))
    for name in ("cs330ray.env", "local.env"):
        (checkout / "clusters" / name).write_text(filled((ROOT / "clusters" / f"{name}.example").read_text()))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(ray_rules, "find_spec", lambda module: find_spec("ray"))  # each client is installed
    monkeypatch.chdir(checkout)
    return checkout


def filled(text: str) -> str:
    """A file with each <placeholder> replaced by what docs/guide/cluster.md puts there."""
    values = {
        "image": "ami-0123", "security-group": "sg-0123", "database": "db.example.com", "bucket": "a-bucket",
        "head": "192.168.1.10", "worker": "192.168.1.11, 192.168.1.12", "user": "you",
        "project": "a-project", "account": "workers@a-project.iam.gserviceaccount.com",
    }  # fmt: skip
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    return text


def problem(file: str | Path) -> str:
    with pytest.raises(SpecError) as caught:
        check.check(Path(file))
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{file}: ")


# The files that come with the package


def test_cluster_yaml_filled_in_says_what_would_start_and_what_costs(here: Path) -> None:
    assert check.check(Path("cluster.yaml")) == [
        "cs330ray: aws, us-west-2, at most 4 workers",
        "  head: m5.large, on demand: costs as long as the cluster is up",
        "  gpu_worker: g5.xlarge, spot: 0 to 4; above 0 only while trials wait, and gone after 10 idle minutes",
        "  ledger: postgresql://cs330ray@db.example.com/ledger",
        "  checkpoints: s3://a-bucket/checkpoints",
        "  MLflow: postgresql+psycopg://cs330ray@db.example.com/mlflow",
        "ray up cluster.yaml starts it; ray down cluster.yaml ends it",
        "what was made before it, a database or a bucket, costs until it is deleted: the end of docs/guide/cluster.md",
    ]


def test_local_yaml_filled_in_says_what_would_start(here: Path) -> None:
    assert check.check(Path("clusters/local.yaml")) == [
        "cs330ray-local: head 192.168.1.10, and 192.168.1.11, 192.168.1.12",
        "  ledger: postgresql://cs330ray@127.0.0.1/ledger",
        "  checkpoints: on the nodes' disks alone, for no CS330RAY_CHECKPOINTS is given",
        "  MLflow: postgresql+psycopg://cs330ray@127.0.0.1/mlflow",
        "ray up clusters/local.yaml starts it; ray down clusters/local.yaml ends it",
    ]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("cluster.yaml", "available_node_types.head.node_config.ImageId: "),
        ("clusters/local.yaml", "provider.head_ip: "),
    ],
)
def test_a_shipped_file_is_refused_until_it_is_filled_in(here: Path, name: str, first: str) -> None:
    (here / name).write_text((ROOT / name).read_text())
    assert problem(name).startswith(f"{first}a value of your own is needed, but got <")


def test_the_variant_for_google_cloud_passes_in_the_place_of_what_aws_has(here: Path) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    variant = "\n".join(re.findall(r"^#   (.*)$", text.partition("# Google Cloud:")[2], re.MULTILINE))
    assert "the extra is gcp and not aws" in text
    config = yaml.safe_load(filled(text).replace("cluster,aws]", "cluster,gcp]")) | yaml.safe_load(filled(variant))
    write(here / "gcp.yaml", config)
    assert check.check(Path("gcp.yaml"))[:3] == [
        "cs330ray: gcp, us-west1, at most 4 workers",
        "  head: n2-standard-2, on demand: costs as long as the cluster is up",
        "  gpu_worker: g2-standard-4, spot: 0 to 4; above 0 only while trials wait, and gone after 10 idle minutes",
    ]
    assert_ray_takes(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_ray_itself_takes_a_shipped_file(here: Path, name: str) -> None:
    assert_ray_takes(yaml.safe_load((here / name).read_text()))


def assert_ray_takes(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_every_provider_that_is_known_is_one_of_rays() -> None:
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    assert {*ray_rules.PROVIDERS} <= {*_NODE_PROVIDERS}


def test_head_sh_is_a_script_that_bash_can_read() -> None:
    subprocess.run(["bash", "-n", ROOT / "clusters" / "head.sh"], check=True)


class CloudFormation(yaml.SafeLoader):
    """YAML with `!Ref NAME` and its like, each read as its text."""


def name_of(loader: CloudFormation, _: str, node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ".".join(loader.construct_sequence(node))


CloudFormation.add_multi_constructor("!", name_of)


def test_what_is_made_on_aws_lets_in_ssh_from_one_address_and_gives_the_rights_that_cluster_yaml_names() -> None:
    template = yaml.load((ROOT / "clusters" / "aws.yaml").read_text(), Loader=CloudFormation)
    resources = template["Resources"]
    let_in = {
        (rule["FromPort"], rule.get("CidrIp") or rule.get("SourceSecurityGroupId"))
        for resource in resources.values()
        for rule in resource["Properties"].get("SecurityGroupIngress", [])
    }
    assert let_in == {(22, "MyAddress"), (5432, "Nodes.GroupId")}
    assert resources["NodesAmongThemselves"]["Properties"]["SourceSecurityGroupId"] == "Nodes.GroupId"
    made = {one["Properties"]["InstanceProfileName"] for one in resources.values() if "Profile" in one["Type"]}
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    assert made == {node["node_config"]["IamInstanceProfile"]["Name"] for node in types.values()}


def test_the_head_may_end_stop_and_tag_machines_of_its_own_cluster_alone() -> None:
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    template = yaml.load((ROOT / "clusters" / "aws.yaml").read_text(), Loader=CloudFormation)
    (policy,) = template["Resources"]["HeadRole"]["Properties"]["Policies"]
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())["cluster_name"]
    own = {"StringEquals": {f"ec2:ResourceTag/{TAG_RAY_CLUSTER_NAME}": cluster}}
    made = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    conditions: dict[str, list[Any]] = {}
    for statement in policy["PolicyDocument"]["Statement"]:
        actions = statement["Action"]
        for action in actions if isinstance(actions, list) else [actions]:
            conditions.setdefault(action, []).append(statement.get("Condition"))
    assert conditions == {
        "ec2:Describe*": [None], "ec2:RunInstances": [None], "iam:PassRole": [None],
        "ec2:StartInstances": [own], "ec2:StopInstances": [own], "ec2:TerminateInstances": [own],
        "ec2:CreateTags": [made, own],
    }  # fmt: skip


def test_the_database_goes_with_what_was_made_and_leaves_no_copy_that_costs() -> None:
    template = yaml.load((ROOT / "clusters" / "aws.yaml").read_text(), Loader=CloudFormation)
    database = template["Resources"]["Database"]
    assert database["DeletionPolicy"] == "Delete"
    assert database["Properties"]["DeleteAutomatedBackups"] is True


# What is read is what Ray reads


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True), ("on", True), ("no", False), ("Off", False), ("y", "y"), ("n", "n"), ("010", 8),
        ("0o10", "0o10"), ("1:30", 90), ("1_000", 1000), ("0x1F", 31), ("1e3", "1e3"), ("1.5e3", "1.5e3"),
        ("1.5e+3", 1500.0), ("~", None),
    ],
)  # fmt: skip
def test_a_value_is_read_as_ray_reads_it(tmp_path: Path, text: str, value: Any) -> None:
    """YAML 1.1 as PyYAML has it: `y` and `1e3` are text there, `010` and `1:30` are numbers."""
    file = tmp_path / "file.yaml"
    file.write_text(f"place: {text}\n")
    assert repr(strict_yaml.read(file)[0]["place"]) == repr(value)
    assert repr(yaml.safe_load(file.read_text())["place"]) == repr(value)


def test_a_table_may_take_over_another_and_change_a_value_of_it(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("head: &head {a: 1, b: 2}\nworker: {<<: *head, b: 3}\n")
    assert strict_yaml.read(tmp_path / "file.yaml")[0]["worker"] == {"a": 1, "b": 3}


def test_a_name_that_stands_twice_is_refused_without_its_values(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("password: hunter1\npassword: hunter2\n")
    with pytest.raises(SpecError, match="`password` stands twice") as caught:
        strict_yaml.read(tmp_path / "file.yaml")
    assert "hunter" not in str(caught.value)


# What is refused, in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_workers: 4\n", "max_workers: 4\nmax_workers: 5\n", "line 13: `max_workers` stands twice in one table"),
        ("  region:", "\tregion:", "line 17: found character '\\t' that cannot start any token; mend that place"),
        ("cluster_name: cs330ray", "cluster_name: [cs330ray", "it must be YAML, but line"),
        ("max_workers: 4\n", "max_workers: &a [*a]\n", "line 12: an alias holds itself"),
        ("max_workers: 4\n", "max_workers: &a 4\nmin_workers: &a 1\n", "line 13: second occurrence"),
        ("idle_timeout_minutes: 10", "idle_timeout_minutes: !!int ''", "a value is not what it says"),
        ("cluster_name: cs330ray", "cluster_name: 2026-11-23", "got date; put it into quotes"),
        ("cluster_name: cs330ray", "cluster_name: !!python/object:os.system x", "could not determine a constructor"),
        ("file_mounts:", "1: 2\nfile_mounts:", "a name must be text, but got 1"),
        ("max_workers: 4\n", f"max_workers: {'9' * 20}\n", "a number up to 1e+12 is needed"),
        ("max_workers: 4\n", "max_workers: 4\nmax_worker: 4\n", "Ray knows no such name; did you mean max_workers?"),
        ("max_workers: 4\n", "max_workers: four\n", "max_workers: a whole number is needed, but got 'four'"),
        ("max_workers: 4\n", "max_workers: -1\n", "max_workers: minimum 0 must hold, but got -1"),
        ("max_workers: 4\n", "", "max_workers: a bound of what may be started is needed"),
        ("cluster_name: cs330ray\n", "", "cluster_name: it is needed, but missing"),
        ("type: aws", "type: awz", "but got 'awz'; did you mean aws?"),
        ("head_node_type: head", "head_node_type: hed", "one of head, gpu_worker is needed, but got 'hed'"),
        ("min_workers: 0", "min_workers: 5", "gpu_worker: 0 <= min_workers <= max_workers must hold, but got 5 and 4"),
        ("region: us-west-2", "availability_zone: us-west-2a", "provider.region: it is needed on AWS"),
        ("InstanceType: m5.large", "CpuOptions: {}", "head.node_config.InstanceType: it is needed, but missing"),
        ("      ImageId: ami-0123 # Ubuntu with NVIDIA's driver\n", "", "ImageId: it is needed, for torch"),
        ("      KeyName: cs330ray\n", "", "KeyName: it is needed beside auth.ssh_private_key"),
        ("SecurityGroupIds: [sg-0123]", "SecurityGroupIds: []", "SecurityGroupIds: it is needed, for Ray's own group"),
        ("      SecurityGroupIds: [sg-0123]\n", "", "SecurityGroupIds: it is needed, for Ray's own group opens ssh"),
        ("  ssh_user: ubuntu\n", "", "auth.ssh_user: who logs in by ssh is needed"),
        ("~/.ssh/cs330ray.pem", "~/.ssh/other.pem", "it must be there, but ~/.ssh/other.pem is not"),
        ("RAY_AUTH_MODE=token ", "", "head_start_ray_commands.2: Ray must ask for a token; write RAY_AUTH_MODE=token"),
        ("127.0.0.1", "0.0.0.0", "the dashboard must stay on the head's loopback, but got --dashboard-host=0.0.0.0"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host '::'", "but got --dashboard-host=::; write 127.0.0.1"),
        ("--head\n", "\n", "the head must start as one; write --head"),
        ("--address=$RAY_HEAD_IP:6379", "--head", "worker_start_ray_commands.1: a worker is no head"),
        (" --autoscaling-config=~/ray_bootstrap_config.yaml", "", "no worker would come; write --autoscaling-config"),
        ("bash ~/.cs330ray/head.sh", "echo it's", "commands.1: it must be a shell command, but no clos"),
        ("    -c ~/.cs330ray/checkout/constraints.txt ", "    ", "commands.2: every node needs the same versions; in"),
        ("\nsetup_commands: #", "\nworker_setup_commands: #", "setup_commands: what installs this package is needed"),
        ("head_setup_commands: []", "", "head_setup_commands: Ray's own is `pip install 'boto3>=1.4.8'`, and every"),
        ("cluster,aws]", "cluster]", "setup_commands: the head starts workers through boto3, but nothing installs it"),
        ("--python 3.11.18", "--python 3.11", "setup_commands.1: every node needs the same Python; name all of it"),
        ('"~/.cs330ray/auth_token": ~/.ray/auth_token', '"~/a": src', "file_mounts: the token must come to every node"),
        ('"~/.cs330ray/auth_token"', '"~/.ray/auth_token"', "the auth_token lies at ~/.ray/auth_token, but is looked"),
        ('"~/.cs330ray/pgpass": clusters/', '"~/.pgpass": clusters/', "file_mounts.~/.pgpass: a node has its own; mo"),
        ("clusters/cs330ray.pgpass", "~/.pgpass", "file_mounts.~/.cs330ray/pgpass: all of your passwords would go to"),
        ('"~/.cs330ray/pgpass": clusters/cs330ray.pgpass', '"~/a": src', "the pgpass is not mounted, but is looked"),
        ("  - __pycache__\n", "  - __pycache__\n  - 0.0.0.0/0\n", "rsync_exclude.1: no port may be open to the world"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_cluster_yaml_is_one_line(here: Path, old: str, new: str, said: str) -> None:
    text = (here / "cluster.yaml").read_text()
    assert old in text
    Path("cluster.yaml").write_text(text.replace(old, new, 1))
    assert said in problem("cluster.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("RAY_enable_autoscaler_v2=0 RAY", "RAY", "else no worker joins; write RAY_enable_autoscaler_v2=0 before"),
        ("RAY_enable_autoscaler_v2=0 RAY", "RAY_enable_autoscaler_v2=1 RAY", "else no worker joins"),
        ("head_ip: 192.168.1.10", "head_ip: 3232235786", "provider.head_ip: text is needed, but got 3232235786"),
        ("  head_ip: 192.168.1.10\n", "", "provider.head_ip: the head's address is needed, but got nothing"),
        ("192.168.1.12]", "192.168.1.11]", "worker_ips.1: each machine stands once, but 192.168.1.11 is there"),
        ("192.168.1.12]", "192.168.1.10]", "worker_ips.1: each machine stands once, but 192.168.1.10 is there"),
        ("192.168.1.12]", "12]", "provider.worker_ips.1: an address is needed, but got 12; put it into quotes"),
        ("provider:\n", "min_workers: 3\nmax_workers: 2\nprovider:\n", "but got 3 and 2"),
        ("provider:\n", "available_node_types: {}\nprovider:\n", "available_node_types: a local provider has none"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_local_yaml_is_one_line(here: Path, old: str, new: str, said: str) -> None:
    text = (here / "clusters" / "local.yaml").read_text()
    assert old in text
    Path("local.yaml").write_text(text.replace(old, new))
    assert said in problem("local.yaml")


def test_min_workers_that_no_bound_holds_are_refused(here: Path) -> None:
    def more(config: dict[str, Any]) -> None:
        types = config["available_node_types"]
        types["gpu_worker"] |= {"min_workers": 3}
        types["other"] = {**types["gpu_worker"], "min_workers": 2}

    assert "max_workers: it must hold the sum of all min_workers, 5, but got 4" in problem(changed(here, more))


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "0.0.0.0/1"])
def test_a_group_that_lets_in_the_world_is_refused(here: Path, network: str) -> None:
    key = "Ipv6Ranges" if ":" in network else "IpRanges"
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", key: [{"CidrIp": network}]}

    def opened(config: dict[str, Any]) -> None:
        config["provider"]["security_group"] = {"GroupName": "mine", "IpPermissions": [rule]}

    assert f"no port may be open to the world, but got {network}" in problem(changed(here, opened))


def test_what_goes_out_may_go_anywhere(here: Path) -> None:
    def out(config: dict[str, Any]) -> None:
        config["provider"]["egress"] = ["0.0.0.0/0"]

    assert check.check(changed(here, out))


def test_a_private_network_may_be_let_in(here: Path) -> None:
    def inside(config: dict[str, Any]) -> None:
        config["provider"]["let_in"] = ["10.0.0.0/8", "203.0.113.7/32", "fd00::/8"]

    assert check.check(changed(here, inside))


def changed(here: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    config = yaml.safe_load((here / "cluster.yaml").read_text())
    change(config)
    write(here / "changed.yaml", config)
    return Path("changed.yaml")


def write(file: Path, config: Any) -> None:
    file.write_text(yaml.safe_dump(config, sort_keys=False))


# Secrets, and files that are mounted

SECRET = "hunter2hunter2"
WRITTEN = [
    f"RAY_AUTH_TOKEN={SECRET} ray status",
    f"export PGPASSWORD='{SECRET}'",
    f"AWS_SECRET_ACCESS_KEY: {SECRET}",
    f"psql postgresql://cs330ray:{SECRET}@db.example.com/ledger",
    f"git clone https://:{SECRET}@github.com/x/y",
    f"# the password={SECRET}",
    "aws configure set aws_access_key_id AKIAIOSFODNN7EXAMPLE",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
]


@pytest.mark.parametrize("line", WRITTEN)
def test_a_secret_in_the_file_is_refused_and_not_repeated(here: Path, line: str) -> None:
    text = (here / "cluster.yaml").read_text()
    Path("cluster.yaml").write_text(f"{text}metadata:\n  note: |\n    {line}\n")
    said = problem("cluster.yaml")
    assert said.startswith(f"line {len(text.splitlines()) + 3}: no secret may stand here, but ")
    assert SECRET not in said
    assert "AKIA" not in said


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN_PATH=~/.cs330ray/auth_token ray status",
        "PGPASSWORD=$(cat ~/.secret) psql",
        "psql postgresql://cs330ray@db.example.com/ledger",
        "curl http://127.0.0.1:5000/health",
    ],
)
def test_what_only_names_a_secret_passes(here: Path, line: str) -> None:
    text = (here / "cluster.yaml").read_text()
    Path("cluster.yaml").write_text(f"{text}metadata:\n  note: |\n    {line}\n")
    assert check.check(Path("cluster.yaml"))


@pytest.mark.parametrize("file", ["~/.ray/auth_token", "clusters/cs330ray.pgpass", "~/.ssh/cs330ray.pem"])
def test_what_others_may_read_is_refused(here: Path, file: str) -> None:
    Path(file).expanduser().chmod(0o644)
    assert f"its owner alone may read it, but others may, too; chmod 600 {file}" in problem("cluster.yaml")


@pytest.mark.parametrize(("name", "file"), [("cluster.yaml", "cs330ray.env"), ("clusters/local.yaml", "local.env")])
@pytest.mark.parametrize(("variable", "ending"), [("RAY_AUTH_TOKEN_PATH", "auth_token"), ("PGPASSFILE", "pgpass")])
def test_what_is_mounted_where_nobody_looks_for_it_is_refused(
    here: Path, name: str, file: str, variable: str, ending: str
) -> None:
    path = here / "clusters" / file
    path.write_text(path.read_text().replace(f"export {variable}=", f"export NO_{variable}="))
    said = f"file_mounts: the {ending} lies at ~/.cs330ray/{ending}, but is looked for at "
    assert problem(name).startswith(said)
    assert problem(name).endswith(f"; export {variable} in the file of variables")


@pytest.mark.parametrize(("kind", "module"), [("aws", "boto3"), ("gcp", "googleapiclient")])
def test_a_provider_whose_library_is_not_here_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    monkeypatch.setattr(ray_rules, "find_spec", lambda name: None if name == module else find_spec("ray"))
    text = (here / "cluster.yaml").read_text()
    Path("cluster.yaml").write_text(text.replace("type: aws", f"type: {kind}").replace("{}", "{CPU: 4}"))
    assert problem("cluster.yaml").endswith(
        f"which is not installed here; pip install -c constraints.txt -e '.[{kind}]'"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_on_a_node_all_of_it_lies_in_one_directory_of_ours(name: str) -> None:
    config = yaml.safe_load((ROOT / name).read_text())
    assert {remote for remote in config["file_mounts"] if not remote.startswith("~/.cs330ray/")} == {
        "~/.cache/cs330ray"
    }
    said = "\n".join(
        [*config["setup_commands"], *config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    )
    places = set(re.findall(r"(?:~|\$HOME)/(?!\.cs330ray/)[\w./]+", said))
    assert places == {"~/.bashrc", "~/ray_bootstrap_config.yaml"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shell_of_ray_has_the_environment_of_the_cluster_and_a_persons_own_has_not(tmp_path: Path, name: str) -> None:
    ours = tmp_path / ".cs330ray"
    (ours / "venv" / "bin").mkdir(parents=True)
    (ours / "venv" / "bin" / "activate").write_text("export OURS=1\n")
    (ours / "cluster.env").write_text("export PGPASSFILE=$HOME/.cs330ray/pgpass\n")
    (tmp_path / ".bashrc").write_text("# venv/bin/activate stands here, too\n")
    command = yaml.safe_load((ROOT / name).read_text())["setup_commands"][-1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def in_bash(*words: str, typed: str = "") -> str:
        done = subprocess.run(
            ["bash", *words], env=environment, input=typed, capture_output=True, text=True, check=True
        )
        return done.stdout

    for _ in range(2):
        in_bash("--login", "-c", "-i", f"source ~/.bashrc; true && ({command})")
    assert (tmp_path / ".bashrc").read_text().count("# cs330ray\n") == 1
    shown = 'echo "[$OURS $PGPASSFILE]"'
    assert in_bash("--login", "-c", "-i", f"source ~/.bashrc; {shown}") == f"[1 {ours}/pgpass]\n"
    assert in_bash("-i", typed=f"{shown}\n") == "[ ]\n"


@pytest.mark.parametrize("name", ["cs330ray.env.example", "local.env.example"])
def test_a_trial_without_gpus_sees_none_on_a_cluster(name: str) -> None:
    """Ray 2.60 hides GPUs from a worker that has none only where this is set, which its workers have of `ray start`."""
    assert "export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1\n" in (ROOT / "clusters" / name).read_text()


def test_without_a_token_the_command_that_makes_one_is_said(here: Path) -> None:
    (Path.home() / ".ray" / "auth_token").unlink()
    made = "make it: ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token"
    assert problem("cluster.yaml").endswith(f"~/.ray/auth_token is not; {made}")


def test_the_command_that_makes_a_token_does(here: Path) -> None:
    from click.testing import CliRunner
    from ray.scripts.scripts import cli

    token = Path.home() / ".ray" / "auth_token"
    token.unlink()
    environment = {**os.environ, "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
    code = "import sys; from ray.scripts.scripts import cli; sys.argv = ['ray', 'get-auth-token', '--generate']; cli()"
    assert "get-auth-token" in cli.commands
    assert CliRunner().invoke(cli, ["get-auth-token", "--help"]).exit_code == 0
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        del environment[name]
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert len(token.read_text()) > 20


def test_a_mount_is_looked_for_where_ray_up_is_called(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here / "clusters")
    said = "file_mounts.~/.cs330ray/checkout/src: it must be there, but src is not in this directory; make it, or mend"
    assert problem(here / "cluster.yaml") == f"{said} its name"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("db.example.com", "<database>", "CS330RAY_LEDGER: a value of your own is needed, but got <database>"),
        ("cs330ray@", "cs330ray:hunter2@", "env: line 4: no secret may stand here, but the password of a post"),
        ("db.example.com", "", "CS330RAY_LEDGER: a host or a bucket is needed, but got 'postgresql://cs330ray@/ledger'"),
        ("a-bucket", "", "CS330RAY_CHECKPOINTS: a host or a bucket is needed, but got 's3:///checkpoints'"),
        ("$HOME/.cs330ray/runs", "runs", "CS330RAY_HOME: an absolute path is needed, but got 'runs'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_variables_is_one_line(here: Path, old: str, new: str, said: str) -> None:
    file = here / "clusters" / "cs330ray.env"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert said in problem("cluster.yaml")


# Nonsense


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a table of names and values is needed, but got nothing"),
        (b"- a", "a table of names and values is needed, but got list"),
        (b"\xff\xfe", "it must be text in UTF-8, but byte 0 is not"),
        (b"[" * 100_000, "its brackets are too deep"),
        (b"a" * ((1 << 20) + 1), "at most 1048576 bytes are read"),
        (b"---\na: 1\n---\nb: 2", "it must be YAML, but line 3"),
    ],
)
def test_what_is_no_cluster_file_is_one_line(here: Path, content: bytes, said: str) -> None:
    Path("file.yaml").write_bytes(content)
    assert said in problem("file.yaml")


def test_a_file_that_is_not_there_is_one_line(here: Path) -> None:
    assert problem("nowhere.yaml") == "a file must be there, but there is none; mend its name"
    assert problem("clusters") == "a file must be there, but there is none; mend its name"


def test_aliases_that_multiply_are_refused_before_they_are_followed(here: Path) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 30)]
    Path("bomb.yaml").write_text("\n".join(["l0: &l0 [a, b, c]", *levels]))
    assert "more than 20000 values with its aliases" in problem("bomb.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_hundreds_of_mutated_files_give_one_line_or_a_plan_and_no_traceback(here: Path, name: str) -> None:
    draw = random.Random(f"{name} 0")
    text = (here / name).read_text()
    lines, refused = [line for line in text.splitlines() if not line.lstrip().startswith("#")], 0
    for round_ in range(150):
        mutated = spoilt_text(lines, draw) if round_ % 3 == 0 else spoilt_values(text, draw)
        Path("mutated.yaml").write_text(mutated)
        try:
            assert check.check(Path("mutated.yaml"))
        except SpecError as error:
            refused += 1
            message = str(error)
            assert message.startswith("mutated.yaml: "), message
            assert len(message.splitlines()) == 1
            assert ";" in message, message
    assert 75 < refused < 150  # neither is all refused, nor does all pass


NONSENSE: list[Any] = [
    None, True, False, 0, -1, 1.5, float("inf"), float("nan"), 10**30, "", "x", "~nobody/x", "\0", "/" + "x" * 5000,
    "\ud800", "0.0.0.0/0", "<image>", "'", "ray start", "pip install x", [], {}, [[]], [None], {"": None},
    {"a": [1, {"b": "c"}]},
]  # fmt: skip


def spoilt_text(lines: list[str], draw: random.Random) -> str:
    """A file with one to three lines lost, doubled, cut, joined, indented or with characters of any kind."""
    spoilt = list(lines)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(spoilt))
        line = spoilt[at]
        cut = draw.randint(0, len(line))
        some = "".join(draw.choices(string.punctuation + "\t\u2028é0", k=draw.randint(1, 4)))
        spoilt[at] = draw.choice(["", f"{line}\n{line}", line[:cut], f"{line[:cut]}{some}{line[cut:]}", f"  {line}"])
    return "\n".join(spoilt)


def spoilt_values(text: str, draw: random.Random) -> str:
    """A file with one to three values, of any depth, replaced, lost, doubled or renamed."""
    config = yaml.safe_load(text)
    for _ in range(draw.randint(1, 3)):
        holder, key = draw.choice(list(places(config)))
        what = draw.choice(["replace", "replace", "lose", "rename"])
        if what == "replace":
            holder[key] = copy.deepcopy(draw.choice(NONSENSE))
        elif what == "lose":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw.choice(["x", "type", 1, None, "resources"])] = holder.pop(key)
    return yaml.safe_dump(config, allow_unicode=False)


def places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


# The command


def test_the_command_prints_the_plan_or_one_line_with_exit_code_two(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.cli.test_cli import ran

    code, out, err = ran(capsys, "cluster", "check", "cluster.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("cs330ray: aws, us-west-2, at most 4 workers\n")
    code, out, err = ran(capsys, "cluster", "check", "nowhere.yaml")
    assert (code, out) == (2, "")
    assert err == "nowhere.yaml: a file must be there, but there is none; mend its name\n"
