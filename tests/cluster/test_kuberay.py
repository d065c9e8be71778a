"""What is for Kubernetes: kinds and fields as KubeRay v1.6.2 and Kubernetes document them, its image, and no secret."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cs330ray.cluster import own_rules
from cs330ray.package import shipped
from cs330ray.spec import reading
from cs330ray.trial.check import check

ROOT = Path(__file__).parents[2]
FILE, IMAGE = ROOT / "clusters" / "kuberay.yaml", ROOT / "clusters" / "Dockerfile"
TEXT = "a text, a number or a switch"
ANY = "whatever names are given"
# From the API references of KubeRay (ray.io/v1) and Kubernetes: what a field holds, of the fields that a study needs.
META = {"name": TEXT, "labels": ANY, "namespace": TEXT, "annotations": ANY}
SECURITY = {"runAsNonRoot": TEXT, "runAsUser": TEXT, "runAsGroup": TEXT, "fsGroup": TEXT}
CONTAINER = {
    "name": TEXT, "image": TEXT, "imagePullPolicy": TEXT, "command": TEXT, "args": TEXT,
    "envFrom": {"configMapRef": {"name": TEXT, "optional": TEXT}, "secretRef": {"name": TEXT, "optional": TEXT}},
    "resources": {"requests": ANY, "limits": ANY},
    "volumeMounts": {"name": TEXT, "mountPath": TEXT, "subPath": TEXT, "readOnly": TEXT},
}  # fmt: skip
POD = {
    "metadata": META,
    "spec": {
        "securityContext": SECURITY, "containers": CONTAINER, "initContainers": CONTAINER, "nodeSelector": ANY,
        "volumes": {"name": TEXT, "emptyDir": {"medium": TEXT, "sizeLimit": TEXT}, "persistentVolumeClaim": ANY},
        "tolerations": {"key": TEXT, "operator": TEXT, "effect": TEXT, "value": TEXT}, "imagePullSecrets": ANY,
    },
}  # fmt: skip
CLUSTER = {
    "rayVersion": TEXT, "enableInTreeAutoscaling": TEXT, "suspend": TEXT, "managedBy": TEXT,
    "headServiceAnnotations": ANY, "gcsFaultToleranceOptions": ANY,
    "authOptions": {"mode": TEXT, "secretName": TEXT, "enableK8sTokenAuth": TEXT},
    "autoscalerOptions": {"idleTimeoutSeconds": TEXT, "upscalingMode": TEXT, "version": TEXT, "resources": ANY},
    "headGroupSpec": {"serviceType": TEXT, "enableIngress": TEXT, "rayStartParams": ANY, "template": POD},
    "workerGroupSpecs": {
        "groupName": TEXT, "replicas": TEXT, "minReplicas": TEXT, "maxReplicas": TEXT, "numOfHosts": TEXT,
        "idleTimeoutSeconds": TEXT, "suspend": TEXT, "rayStartParams": ANY, "template": POD,
    },
}  # fmt: skip
JOB = {
    "entrypoint": TEXT, "clusterSelector": ANY, "rayClusterSpec": CLUSTER, "runtimeEnvYAML": TEXT, "jobId": TEXT,
    "submissionMode": TEXT, "shutdownAfterJobFinishes": TEXT, "ttlSecondsAfterFinished": TEXT, "backoffLimit": TEXT,
    "activeDeadlineSeconds": TEXT, "suspend": TEXT, "entrypointNumCpus": TEXT, "entrypointNumGpus": TEXT,
    "submitterPodTemplate": POD, "metadata": ANY,
}  # fmt: skip
KINDS = {
    ("v1", "ConfigMap"): {"data": ANY},
    ("ray.io/v1", "RayCluster"): {"spec": CLUSTER},
    ("ray.io/v1", "RayJob"): {"spec": JOB},
}


def documents() -> dict[str, Any]:
    """What the file describes, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text())}


def strange(found: Any, known: Any, place: str) -> Iterator[str]:
    """The places that the references do not know, or that hold something else there."""
    if isinstance(found, list):
        for index, each in enumerate(found):
            yield from strange(each, known, f"{place}[{index}]")
    elif known == ANY:
        yield from () if isinstance(found, dict) else (place,)
    elif known == TEXT or not isinstance(found, dict):
        yield from () if known == TEXT and not isinstance(found, dict) else (place,)
    else:
        for name, value in found.items():
            yield from strange(value, known[name], f"{place}.{name}") if name in known else (f"{place}.{name}",)


def test_kinds_and_fields_are_those_of_the_references() -> None:
    found = documents()
    assert [(each["apiVersion"], kind) for kind, each in found.items()] == list(KINDS)
    for each in found.values():
        known = {"apiVersion": TEXT, "kind": TEXT, "metadata": META, **KINDS[each["apiVersion"], each["kind"]]}
        assert list(strange(each, known, each["kind"])) == []


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("minReplicas", "minWorkers", "RayCluster.spec.workerGroupSpecs[0].minWorkers"),
        ("secretName", "secret", "RayCluster.spec.authOptions.secret"),
        ("entrypoint: ", "command: ", "RayJob.spec.command"),
    ],
)
def test_a_field_that_there_is_not_is_found(old: str, new: str, place: str) -> None:
    for each in yaml.safe_load_all(FILE.read_text().replace(old, new)):
        known = {"apiVersion": TEXT, "kind": TEXT, "metadata": META, **KINDS[each["apiVersion"], each["kind"]]}
        if place.startswith(each["kind"]):
            assert list(strange(each, known, each["kind"])) == [place]


def pods() -> list[dict[str, Any]]:
    """The specs of the cluster's pods: the head's, and the worker's."""
    spec = documents()["RayCluster"]["spec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_ray_asks_for_a_token_that_lies_in_a_secret_and_no_secret_stands_in_the_file() -> None:
    assert documents()["RayCluster"]["spec"]["authOptions"] == {"mode": "token", "secretName": "cs330ray-token"}
    assert list(own_rules.secrets(FILE.read_text())) == []
    assert list(own_rules.secrets(FILE.read_text() + "  PGPASSWORD: hunter2\n")) != []


def test_every_container_is_of_the_image_and_has_addresses_and_secrets_and_no_pod_is_roots() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["image"] == "<image>"
            assert [*container["envFrom"]] == [
                {"configMapRef": {"name": "cs330ray"}}, {"secretRef": {"name": "cs330ray"}},
            ]  # fmt: skip
            assert {each["name"] for each in container.get("volumeMounts", ())} <= {
                each["name"] for each in pod["volumes"]
            }
    command = pods()[0]["containers"][1]["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_workers_with_a_gpu_come_from_zero_and_the_head_runs_no_trial() -> None:
    spec = documents()["RayCluster"]["spec"]
    (workers,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"] is True
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    assert workers["maxReplicas"] > 0
    assert pods()[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_ray_is_the_version_that_the_image_installs() -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert documents()["RayCluster"]["spec"]["rayVersion"] == pinned


def test_the_job_runs_a_study_that_is_in_the_image_as_it_may_be_run_there() -> None:
    job = documents()["RayJob"]["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": documents()["RayCluster"]["metadata"]["name"]}
    program, run, name, *options = shlex.split(job["entrypoint"])
    assert (program, run, options[::2]) == ("cs330ray", "run", ["--set"] * (len(options) // 2))
    file = shipped() / f"{name}.toml"
    study = reading.read(file, options[1::2])
    check(study, str(file))
    assert study.resources.gpus == 1


def test_what_the_config_map_sets_is_read_by_the_code_or_stands_in_the_examples_of_the_clusters() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    elsewhere = "".join(path.read_text() for path in ROOT.glob("clusters/*") if path != FILE)
    for name in documents()["ConfigMap"]["data"]:
        assert name in code or name in elsewhere, name


def lines_of_the_image() -> list[list[str]]:
    """The instructions of the Dockerfile, each as its words."""
    return [line.split() for line in IMAGE.read_text().splitlines() if line and not line.startswith("#")]


def test_the_image_is_pinned_and_its_last_user_is_not_root() -> None:
    lines = lines_of_the_image()
    (base,) = [words[1] for words in lines if words[0] == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert [words[1] for words in lines if words[0] == "USER"] == ["1000"]
    assert "pip install --no-cache-dir -c constraints.txt" in IMAGE.read_text()


def test_the_image_has_what_its_install_reads_and_extras_that_there_are() -> None:
    lines = lines_of_the_image()
    copied = {name for words in lines if words[0] == "COPY" for name in words[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "constraints.txt", "src", "studies", project["readme"]} <= copied
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', IMAGE.read_text())
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
