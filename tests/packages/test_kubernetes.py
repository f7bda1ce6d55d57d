"""The manifests: rendered by kubectl, held against Kubernetes' own schemas, and of one mind with the program."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

from packages.yard import MANIFESTS, run, tool
from server import config as configuration

# The oldest that has all we use, and the newest that the checker knows.
VERSIONS = ["1.27", "1.30", "1.33", "1.37"]


@pytest.fixture
def objects(rendered: Path) -> Dict[str, Any]:
    """The rendered objects by their kinds."""
    script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"
    return {one["kind"]: one for one in json.loads(run(tool("python"), "-c", script, rendered))}


def check(path: Path, version: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(tool("kubernetes-validate")), "--strict", "-k", version, str(path)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_satisfy_the_schemas(version: str, rendered: Path) -> None:
    done = check(rendered, version)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("readinessProbe:", "readynessProbe:"), ("replicas: 1", "replicas: one"), ("nodePort: 30800", "nodePort: http")],
)
def test_the_schemas_reject_wrong_manifests(right: str, wrong: str, rendered: Path) -> None:
    text = rendered.read_text()
    assert right in text
    rendered.write_text(text.replace(right, wrong))
    assert check(rendered, VERSIONS[-1]).returncode != 0


def test_without_an_authority_nothing_is_applied() -> None:
    done = subprocess.run([tool("kubectl"), "kustomize", MANIFESTS], stderr=subprocess.PIPE, timeout=60)
    assert done.returncode != 0 and b"ca.key" in done.stderr


def test_the_manifests_hold_the_expected_objects(objects: Dict[str, Any]) -> None:
    wanted = ["Namespace", "ConfigMap", "Secret", "Service", "PersistentVolumeClaim", "Deployment", "NetworkPolicy"]
    assert sorted(objects) == sorted(wanted)
    assert sorted(objects["Secret"]["data"]) == ["ca.crt", "ca.key"]


def test_dduct_accepts_the_configuration_and_it_fits_the_pod(objects: Dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dduct.toml"
    path.write_text(objects["ConfigMap"]["data"]["dduct.toml"])
    config = configuration.load(path, tmp_path)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    for directory in (config.misc.cert_dir, config.misc.file_dir):
        assert str(directory.parent) in mounts
    assert str(config.misc.cert_dir) in pod["initContainers"][0]["command"][-1]
    binds = [config.proxy.tcp_bind, config.proxy.tls_bind]
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert sorted(ports.values()) == sorted(bind.port for bind in binds if bind)
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == set(ports)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod["containers"][0][probe]["httpGet"] == {"path": "/healthz", "port": "proxy"}


def test_the_pod_has_no_privileges(objects: Dict[str, Any]) -> None:
    """The Pod Security Standard `restricted`, and more."""
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    containers: List[Any] = [*pod["initContainers"], *pod["containers"]]
    for container in containers:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}


def test_references_between_objects_are_right(objects: Dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    volumes = {volume["name"]: volume for volume in objects["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert volumes["ca"]["secret"]["secretName"] == objects["Secret"]["metadata"]["name"]
    assert (
        volumes["cache"]["persistentVolumeClaim"]["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]
    )
