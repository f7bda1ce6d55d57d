"""curl and wget, used as the README says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List

import pytest

from clients.workshop import ORIGIN, Dduct, Nginx, Workshop, require, run

BODY = os.urandom(3_000_001)


def publish(nginx: Nginx, name: str, body: bytes = BODY) -> str:
    (nginx.files / name).write_bytes(body)
    return f"{nginx.url}/{name}"


def ways(dduct: Dduct) -> Dict[str, List[object]]:
    """curl's options for both documented ways of use, and over IPv6."""
    return {
        "plain": ["-x", dduct.tcp, "--cacert", dduct.ca],
        "tls": ["--proxy-cacert", dduct.ca, "-x", dduct.tls, "--cacert", dduct.ca],
        "ipv6": ["-x", f"http://[::1]:{dduct.tcp_port}", "--cacert", dduct.ca],
    }


@pytest.mark.parametrize("way", ["plain", "tls", "ipv6"])
def test_curl_downloads_twice_and_the_origin_sends_once(workshop: Workshop, tmp_path: Path, way: str) -> None:
    require("curl", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    url = publish(nginx, "here.txz")
    for attempt in ("first", "second"):
        directory = tmp_path / attempt
        directory.mkdir()
        run("curl", "-fv", *ways(dduct)[way], "-LO", url, cwd=directory)
        assert (directory / "here.txz").read_bytes() == BODY
        assert nginx.sent() == {"/here.txz": len(BODY)}
    assert (dduct.files / f"https/{ORIGIN}:{nginx.tls_port}/here.txz").read_bytes() == BODY


def test_curl_downloads_over_http_in_absolute_form(workshop: Workshop, tmp_path: Path) -> None:
    require("curl", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    publish(nginx, "here.deb")
    for attempt in ("first", "second"):
        run("curl", "-fv", "-x", dduct.tcp, "-o", tmp_path / attempt, f"http://{ORIGIN}:{nginx.port}/here.deb")
        assert (tmp_path / attempt).read_bytes() == BODY
        assert nginx.sent() == {"/here.deb": len(BODY)}


def test_curl_learns_the_authority_from_dduct_itself(workshop: Workshop, tmp_path: Path) -> None:
    require("curl", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    url = publish(nginx, "here.rpm")
    learned = tmp_path / "learned.crt"
    run("curl", "-f", "-o", learned, f"{dduct.tcp}/ca.crt")
    assert learned.read_bytes() == dduct.ca.read_bytes()
    run("curl", "-f", "-x", dduct.tcp, "--cacert", learned, "-o", tmp_path / "here.rpm", url)
    assert (tmp_path / "here.rpm").read_bytes() == BODY


@pytest.mark.parametrize("warm", [False, True])
def test_curl_resumes_a_partial_download(workshop: Workshop, tmp_path: Path, warm: bool) -> None:
    require("curl", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    url = publish(nginx, "here.zip")
    if warm:
        run("curl", "-f", *ways(dduct)["plain"], "-o", tmp_path / "other", url)
    partial = tmp_path / "here.zip"
    partial.write_bytes(BODY[:1_000_000])
    run("curl", "-f", *ways(dduct)["plain"], "-C", "-", "-o", partial, url)
    assert partial.read_bytes() == BODY
    assert nginx.sent() == {"/here.zip": len(BODY)}


def test_wget_downloads_and_resumes(workshop: Workshop, tmp_path: Path) -> None:
    require("wget", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    url = publish(nginx, "here.tgz")
    partial = tmp_path / "here.tgz"
    command = ["wget", "-nv", f"--ca-certificate={dduct.ca}", "-P", tmp_path]
    run(*command, url, env=dduct.environment)
    assert partial.read_bytes() == BODY
    partial.write_bytes(BODY[:2_000_000])
    run(*command, "-c", url, env=dduct.environment)
    assert partial.read_bytes() == BODY
    assert nginx.sent() == {"/here.tgz": len(BODY)}


def test_a_host_that_is_not_listed_is_tunnelled_to_its_own_certificate(workshop: Workshop, tmp_path: Path) -> None:
    require("curl", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    publish(nginx, "here.deb")
    # By this name dduct knows the origin, but is not told to intercept it.
    url = f"https://localhost:{nginx.tls_port}/here.deb"
    insecure = ["--connect-to", f"{ORIGIN}:443:localhost:{nginx.tls_port}", "--cacert", workshop.ca]
    for attempt in ("first", "second"):
        run("curl", "-f", "-p", "-x", dduct.tcp, *insecure, "-o", tmp_path / attempt, f"https://{ORIGIN}/here.deb")
        assert (tmp_path / attempt).read_bytes() == BODY
    assert nginx.sent() == {"/here.deb": 2 * len(BODY)}
    assert not any(dduct.files.rglob("*.deb")), url


def test_aria2_downloads_a_cold_object_in_parts_and_the_origin_sends_it_once(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Its parts need not wait for each other, although all that comes is kept."""
    require("aria2c", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    body = os.urandom(24 * 1024 * 1024)
    (nginx.files / "slow").mkdir()
    url = publish(nginx, "slow/parts.tar", body)
    command = ["aria2c", "-q", "-x16", "-s16", "-k1M", f"--all-proxy={dduct.tcp}", f"--ca-certificate={dduct.ca}"]
    for attempt in ("cold", "warm"):
        run(*command, "-d", tmp_path / attempt, "-o", "parts.tar", url)
        assert (tmp_path / attempt / "parts.tar").read_bytes() == body
        assert nginx.sent()["/slow/parts.tar"] <= len(body) + 1024 * 1024
