"""The container: built from a Debian of our own (no registry is needed), and run as the Containerfile says."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from clients.workshop import require
from support.client import wait_until

from packages.yard import PROXY, ROOT, Yard, run, tool

# crun takes no mixture of both versions of cgroups, and podman raises limits that root may be denied to raise.
_ENTER = 'if [ -d /sys/fs/cgroup/unified ]; then umount -l /sys/fs/cgroup/unified; fi; exec "$@"'
LIMITS = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]
ALONE = ["run", "--rm", *LIMITS, "--network=none", "--no-healthcheck"]


class Engine:
    """podman with a store of its own."""

    def __init__(self, directory: Path) -> None:
        options = ["--root", directory / "s", "--runroot", directory / "r", "--tmpdir", directory / "t"]
        options += ["--storage-driver", "overlay", "--events-backend", "file", "--cgroup-manager", "cgroupfs"]
        self.command: List[object] = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", "podman", *options]

        # What cannot be given on the command line, for pods.
        self._settings = directory / "containers.conf"
        self._settings.write_text('[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n')

    def run(self, *words: object, status: int = 0) -> str:
        return run(*self.command, *words, status=status, cwd=ROOT)

    def play(self, yard: Yard, manifest: Path) -> None:
        """Run what a manifest has, in the network of a yard."""
        enter = ["nsenter", f"--net=/run/netns/{yard.name}", *self.command]
        run(*enter, "play", "kube", "--network=host", manifest, env={"CONTAINERS_CONF": str(self._settings)})

    def inspect(self, kind: str, name: str) -> Any:
        return json.loads(self.run(kind, "inspect", name))[0]


@pytest.fixture(scope="session")
def engine(shelf: Path, base_root: Path) -> Iterator[Engine]:
    """With the image in it."""
    require("podman", "unshare")
    directory = Path(tempfile.mkdtemp(prefix="pod"))  # podman takes no path of more than 50 characters
    engine = Engine(directory)
    archive = directory / "base.tar"
    run("tar", "-C", base_root, "-cf", archive, ".")
    engine.run("import", "-q", archive, "base:test")
    archive.unlink()
    # Isolation by chroot: to build takes no right to raise limits then.
    options = ["--isolation=chroot", "--network=host", "--format=docker", "--build-arg=BASE=localhost/base:test"]
    engine.run("build", *options, "-f", "packaging/Containerfile", "-t", "dduct", ".")
    yield engine
    engine.run("system", "reset", "--force")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def container(engine: Engine, yard: Yard) -> Iterator[str]:
    """A running one, with nothing that it does not need."""
    name = f"dduct-{os.getpid()}"
    options = [
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        *LIMITS,
        "--health-interval=disable",
    ]
    options += [f"--network=ns:/run/netns/{yard.name}", f"--volume={yard.ca}:/run/origins.crt:ro"]
    engine.run("run", "-d", "--name", name, *options, "--env=SSL_CERT_FILE=/run/origins.crt", "dduct")
    yield name
    engine.run("rm", "-f", "-v", name)


def test_the_container_caches_without_any_privilege(engine: Engine, container: str, yard: Yard) -> None:
    yard.wait_until_healthy()
    yard.check_that_it_caches()
    pid = engine.inspect("container", container)["State"]["Pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert fields["Uid"] == ["10001"] * 4 and fields["Gid"] == ["10001"] * 4
    assert int(fields["CapEff"][0], 16) == int(fields["CapBnd"][0], 16) == 0
    assert "Read-only file system" in engine.run("exec", "--user=0", container, "touch", "/usr/x", status=1)


def test_podman_sees_the_health_of_the_container(engine: Engine, container: str, yard: Yard) -> None:
    yard.wait_until_healthy()
    engine.run("healthcheck", "run", container)
    entrypoint = f"--entrypoint={json.dumps(healthcheck(engine))}"
    engine.run(*ALONE, entrypoint, "dduct", status=1)  # where nothing listens


def healthcheck(engine: Engine) -> List[str]:
    """The words of the image's healthcheck."""
    words = engine.inspect("image", "dduct")["Healthcheck"]["Test"]
    assert words[0] == "CMD"
    return [str(word) for word in words[1:]]


def test_the_container_stops_cleanly(engine: Engine, container: str, yard: Yard) -> None:
    yard.wait_until_healthy()
    engine.run("stop", "-t", "30", container)
    assert engine.inspect("container", container)["State"]["ExitCode"] == 0
    engine.run("start", container)  # with the authority that it has
    yard.wait_until_healthy()
    wait_until(lambda: engine.run("logs", container).count("Listening on 0.0.0.0:8000") == 2)
    assert engine.run("logs", container).count('Write "/var/lib/dduct/certs/ca.key"') == 1


def test_the_image_holds_the_program_and_no_tools(engine: Engine) -> None:
    listing = engine.run(*ALONE, "--entrypoint=find", "dduct", "/usr/share/dduct", "/usr/bin")
    names = {line.rpartition("/")[2] for line in listing.splitlines()}
    assert "dduct.py" in names and not names & {"gcc", "make", "pip", "pip3", "git", "test_cli.py", "Makefile"}
    config = engine.inspect("image", "dduct")["Config"]
    assert config["User"] == "10001:10001" and sorted(config["ExposedPorts"]) == ["4430/tcp", "8000/tcp"]
    assert sorted(config["Volumes"]) == ["/var/cache/dduct", "/var/lib/dduct"]


# podman 4.3 is no Kubernetes: it publishes ports on the host, has no Secrets with binary data as volumes, asks probes
# by number, and may not remove an init container in time. All the rest of the pod is as it is shipped.
PLAYABLE = """
import sys, yaml
objects = [one for one in yaml.safe_load_all(open(sys.argv[1])) if one["kind"] in sys.argv[3].split(",")]
(deployment,) = [one for one in objects if one["kind"] == "Deployment"]
template = deployment["spec"]["template"]
for metadata in (deployment["metadata"], template["metadata"]):
    metadata["annotations"] = {"io.podman.annotations.init.container.type": "always"}
container = template["spec"]["containers"][0]
for name in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):
    del container[name]
for one in [container, *template["spec"]["initContainers"]]:
    one["image"], one["imagePullPolicy"] = "localhost/dduct:latest", "Never"
for volume in template["spec"]["volumes"]:
    if volume.pop("secret", None):
        volume["hostPath"] = {"path": sys.argv[2], "type": "Directory"}
print(yaml.safe_dump_all(objects))
"""


def test_the_pod_of_the_manifests_runs(engine: Engine, yard: Yard, rendered: Path, tmp_path: Path) -> None:
    require("catatonit", "nsenter")
    authority = Path(tempfile.mkdtemp(prefix="ca"))
    try:
        for name in ("ca.key", "ca.crt"):
            shutil.copy(rendered.parent / "kubernetes" / name, authority)
            (authority / name).chmod(0o644)  # what fsGroup is for
        authority.chmod(0o755)
        manifest = tmp_path / "play.yaml"
        kinds = "Deployment,ConfigMap,PersistentVolumeClaim"
        manifest.write_text(run(tool("python"), "-c", PLAYABLE, rendered, authority, kinds))
        engine.play(yard, manifest)
        yard.wait_until_healthy()
        served = run(*yard.inside("curl", "-s", "--noproxy", "*", f"{PROXY}/ca.crt"))
        assert served == (authority / "ca.crt").read_text()
    finally:
        engine.run("pod", "rm", "--all", "--force")
        shutil.rmtree(authority)
