"""A private registry behind a token server: the cache gives no access."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import List

import pytest
from support.client import wait_until
from support.images import write_image

from clients.test_registries import content
from clients.tokens import TokenServer
from clients.workshop import REGISTRY, TOKENS, Dduct, Registry, Workshop, clean_environment, require, run


@pytest.fixture
def tokens(workshop: Workshop) -> TokenServer:
    return TokenServer(workshop)


def fetch(dduct: Dduct, url: str, *options: str) -> tuple[int, bytes]:
    """Status and body of a curl through dduct."""
    command = ["curl", "-s", "-x", dduct.tcp, "--cacert", str(dduct.ca), "-w", "%{http_code}", *options, url]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=clean_environment())
    return int(done.stdout[-3:]), done.stdout[:-3]


def test_a_private_registry_stays_private(workshop: Workshop, tokens: TokenServer, tmp_path: Path) -> None:
    require("skopeo", "docker-registry", "curl")
    registry = workshop.registry(tokens.settings)
    dduct = workshop.dduct("upstream_insecure = []\n[cache]\nauth_grace = 0")
    # The token server is not listed, and shows its own certificate.
    both = tmp_path / "both.pem"
    both.write_bytes(dduct.ca.read_bytes() + workshop.ca.read_bytes())
    environment = {**dduct.environment, "SSL_CERT_FILE": str(both)}
    digests = write_image(workshop.directory / "image")
    image = f"docker://{registry.host}/team/app:1"
    skopeo = ["skopeo", "--insecure-policy", "copy", "-q"]
    run(*skopeo, "--dest-creds", "alice:wonder", f"oci:{workshop.directory}/image", image, env=environment)

    def pull(name: str, *options: str) -> str:
        return run(*skopeo, *options, image, f"dir:{tmp_path}/{name}", env=environment)

    pull("cold", "--src-creds", "alice:wonder")
    bodies = sum(size for _, size in sizes(workshop, digests))
    wait_until(lambda: blobs_of(registry) == bodies)
    pull("warm", "--src-creds", "alice:wonder")
    assert content(tmp_path / "cold") == content(tmp_path / "warm")
    assert blobs_of(registry) == bodies
    for options in ([], ["--src-creds", "alice:wrong"], ["--src-creds", "mallory:wonder"]):
        with pytest.raises(AssertionError, match=r"(?i)unauthorized|authentication required"):
            pull("refused", *options)
    check_by_hand(registry, dduct, tokens, digests[0])
    tokens.users.clear()
    with pytest.raises(AssertionError, match=r"(?i)unauthorized"):
        pull("revoked", "--src-creds", "alice:wonder")
    registry.program.stop()
    url = f"https://{registry.host}/v2/team/app/blobs/{digests[0]}"
    token = tokens.token("alice", "registry", [{"type": "repository", "name": "team/app", "actions": ["pull"]}])
    for options in ([], ["-H", f"Authorization: Bearer {token}"]):
        status, body = fetch(dduct, url, *options)
        assert status == 502 and body.startswith(b"dduct: ")


def check_by_hand(registry: Registry, dduct: Dduct, tokens: TokenServer, digest: str) -> None:
    """What the registry says to a token, dduct says; here on a hit."""
    url = f"https://{registry.host}/v2/team/app/blobs/{digest}"
    good = tokens.token("alice", "registry", [{"type": "repository", "name": "team/app", "actions": ["pull"]}])
    elsewhere = tokens.token("alice", "registry", [{"type": "repository", "name": "other/app", "actions": ["pull"]}])
    assert fetch(dduct, url, "-H", f"Authorization: Bearer {good}")[0] == 200
    for options in ([], ["-H", "Authorization: Bearer x"], ["-H", f"Authorization: Bearer {elsewhere}"]):
        status, body = fetch(dduct, url, *options)
        direct = subprocess.run(
            ["curl", "-sk", "--noproxy", "*", "--resolve", f"{REGISTRY}:{registry.port}:127.0.0.1", *options, url],
            capture_output=True,
            timeout=60,
            check=True,
            env=clean_environment(),
        ).stdout
        assert status == 401 and b"UNAUTHORIZED" in body
        assert json.loads(body)["errors"][0]["code"] == json.loads(direct)["errors"][0]["code"]


def sizes(workshop: Workshop, digests: List[str]) -> list[tuple[str, int]]:
    blobs = workshop.directory / "image/blobs/sha256"
    return [(digest, (blobs / digest.partition(":")[2]).stat().st_size) for digest in digests]


def blobs_of(registry: Registry) -> int:
    """Bytes of blobs that the registry has sent, by its own log."""
    total = 0
    for line in registry.program.log.read_text().splitlines():
        if '"GET /v2/' in line and "/blobs/sha256:" in line and '" 200 ' in line:
            total += int(line.split('" 200 ')[1].split()[0])
    return total


def test_dducts_own_credentials_are_for_the_clients_of_their_rule(
    workshop: Workshop, tokens: TokenServer, tmp_path: Path
) -> None:
    """A client at 127.0.0.1 needs no password; one at ::1 does, for what is stored, too."""
    require("skopeo", "docker-registry")
    registry = workshop.registry(tokens.settings)
    password = tmp_path / "password"
    password.write_text("wonder")
    rule = f"hosts = ['{registry.host}']\nrealms = ['{TOKENS}:{tokens.origin.port}']\nclients = ['127.0.0.1']"
    rule += f"\nusername = 'alice'\npassword_file = '{password}'"
    dduct = workshop.dduct(f"[[credentials]]\n{rule}")
    both = tmp_path / "both.pem"
    both.write_bytes(dduct.ca.read_bytes() + workshop.ca.read_bytes())
    here = {**dduct.environment, "SSL_CERT_FILE": str(both)}
    elsewhere = {
        **here,
        "HTTPS_PROXY": f"http://[::1]:{dduct.tcp_port}",
        "https_proxy": f"http://[::1]:{dduct.tcp_port}",
    }
    write_image(workshop.directory / "image")
    image = f"docker://{registry.host}/team/app:1"
    skopeo = ["skopeo", "--insecure-policy", "copy", "-q"]
    run(*skopeo, "--dest-creds", "alice:wonder", f"oci:{workshop.directory}/image", image, env=elsewhere)
    run(*skopeo, image, f"dir:{tmp_path}/cold", env=here)
    run(*skopeo, image, f"dir:{tmp_path}/warm", env=here)
    assert content(tmp_path / "cold") == content(tmp_path / "warm")
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|authentication required"):
        run(*skopeo, image, f"dir:{tmp_path}/refused", env=elsewhere)
    run(*skopeo, "--src-creds", "alice:wonder", image, f"dir:{tmp_path}/other", env=elsewhere)
    assert content(tmp_path / "cold") == content(tmp_path / "other")
    assert "wonder" not in dduct.program.log.read_text()
