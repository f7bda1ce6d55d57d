"""podman and skopeo with dduct as a mirror in registries.conf: no proxy, and no authority of dduct."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Dict, List, Sequence

import pytest
from support.images import write_image

from clients.test_private import tokens
from clients.test_registries import content
from clients.tokens import TokenServer
from clients.workshop import REGISTRY, Dduct, Registry, Workshop, require, run

__all__ = ["tokens"]  # a fixture


def environment(workshop: Workshop, dduct: Dduct) -> Dict[str, str]:
    """That of a machine which trusts the registry, and nothing of dduct."""
    settings = workshop.directory / "registries.conf"
    settings.write_text(f"""
[[registry]]
prefix = "{REGISTRY}"
location = "{REGISTRY}"
[[registry.mirror]]
location = "127.0.0.1:{dduct.tcp_port}/{REGISTRY}"
insecure = true
""")
    return {"CONTAINERS_REGISTRIES_CONF": str(settings), "SSL_CERT_FILE": str(workshop.ca)}


def pushed(workshop: Workshop, *options: str) -> List[str]:
    """Push an image, not through dduct; its blobs."""
    image = workshop.directory / "image"
    digests = write_image(image)
    command = ["skopeo", "--insecure-policy", "copy", "-q", *options, f"oci:{image}", f"docker://{REGISTRY}/team/app:1"]
    run(*workshop.with_names(command), env={"SSL_CERT_FILE": str(workshop.ca)})
    return digests


def blobs(registry: Registry, at_least: int) -> List[str]:
    return sorted(registry.blobs_sent(at_least))


def test_podman_pulls_through_the_mirror_and_without_it(
    workshop: Workshop, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    require("skopeo", "docker-registry", "podman")
    registry = workshop.registry(usual_port=True)
    digests = pushed(workshop)
    dduct = workshop.dduct()
    short = tempfile.mkdtemp(prefix="pod")  # podman takes no path of more than 50 characters
    request.addfinalizer(partial(shutil.rmtree, short))

    def pull(attempt: str) -> None:
        engine: Sequence[object] = ["podman", "--root", tmp_path / attempt, "--runroot", f"{short}/run-{attempt}"]
        more = ["--storage-driver", "vfs", "--tmpdir", f"{short}/tmp-{attempt}", "--events-backend", "file"]
        engine = [*engine, *more, "--cgroup-manager", "cgroupfs"]
        known = environment(workshop, dduct)
        run(*workshop.with_names([*engine, "pull", "-q", f"docker://{REGISTRY}/team/app:1"]), env=known)
        assert "team/app" in run(*engine, "images")

    pull("cold")
    pull("warm")
    assert blobs(registry, len(digests)) == digests
    assert "127.0.0.1 GET https://registry.test/v2/team/app/blobs/" in dduct.program.log.read_text()
    dduct.program.stop()
    pull("away")
    assert blobs(registry, 2 * len(digests)) == sorted(2 * digests)


def test_a_password_for_the_mirror_gets_the_tokens_of_the_registry(
    workshop: Workshop, tokens: TokenServer, tmp_path: Path
) -> None:
    require("skopeo", "docker-registry")
    workshop.registry(tokens.settings, usual_port=True)
    digests = pushed(workshop, "--dest-creds", "alice:wonder")
    dduct = workshop.dduct()
    known = environment(workshop, dduct)
    conf = known["CONTAINERS_REGISTRIES_CONF"]  # which skopeo 1.9 does not read there

    def pull(name: str, password: str) -> None:
        accounts = tmp_path / "auth.json"
        encoded = base64.b64encode(f"alice:{password}".encode()).decode()
        accounts.write_text(json.dumps({"auths": {f"127.0.0.1:{dduct.tcp_port}": {"auth": encoded}}}))
        command = ["skopeo", "--insecure-policy", "--registries-conf", conf, "copy", "-q", "--src-authfile", accounts]
        run(*workshop.with_names([*command, f"docker://{REGISTRY}/team/app:1", f"dir:{tmp_path}/{name}"]), env=known)

    pull("cold", "wonder")
    pull("warm", "wonder")
    assert content(tmp_path / "cold") == content(tmp_path / "warm")
    assert {f"sha256:{name}" for name in content(tmp_path / "warm")} >= set(digests)
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|authentication required"):
        pull("refused", "wrong")
