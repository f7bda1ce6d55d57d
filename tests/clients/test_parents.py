"""dduct behind Squid, over http and over https, with and without a password."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.client import wait_until

from clients.workshop import ORIGIN, Workshop, free_port, require, run

BODY = os.urandom(2_000_000)


class Squid:
    """A Squid that caches nothing, listens with and without TLS, and may ask for a password."""

    def __init__(self, workshop: Workshop, password: bool) -> None:
        self.port, self.tls_port = free_port(), free_port()
        directory = workshop.directory / "squid"
        directory.mkdir()
        certificate, key = workshop.certificate("127.0.0.1")
        hosts = directory / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {ORIGIN}\n")
        self.log = directory / "access.log"
        access = "http_access allow all"
        if password:
            (directory / "users").write_text("lab:" + run("openssl", "passwd", "-apr1", "p@ss").strip() + "\n")
            access = (
                f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {directory}/users\n"
                "acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all"
            )
        configuration = directory / "squid.conf"
        configuration.write_text(
            f"http_port 127.0.0.1:{self.port}\n"
            f"https_port 127.0.0.1:{self.tls_port} tls-cert={certificate} tls-key={key}\n"
            f"{access}\ncache deny all\nhosts_file {hosts}\npid_filename none\nvisible_hostname squid.test\n"
            f"access_log stdio:{self.log}\ncache_log {directory}/cache.log\ncoredump_dir {directory}\n"
            "shutdown_lifetime 1 seconds\nnetdb_filename none\n"
        )
        for path in [directory, *directory.iterdir(), certificate, key]:
            shutil.chown(path, "proxy")
        # Squid gives up root, and pytest's directories are root's alone.
        for parent in directory.parents:
            if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        squid = shutil.which("squid", path=os.environ["PATH"] + ":/usr/sbin")
        workshop.start("squid", [squid, "-N", "-f", configuration]).wait_for_port(self.port)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("password", [False, True], ids=["open", "password"])
def test_everything_goes_through_squid(workshop: Workshop, tmp_path: Path, tls: bool, password: bool) -> None:
    require("squid", "curl", "nginx", "openssl")
    nginx, squid = workshop.nginx(), Squid(workshop, password)
    (nginx.files / "here.deb").write_bytes(BODY)
    user = "lab:p%40ss@" if password else ""
    parent = f"{'https' if tls else 'http'}://{user}127.0.0.1:{squid.tls_port if tls else squid.port}"
    dduct = workshop.dduct(f"upstream_proxy = '{parent}'")
    for attempt in ("cold", "warm"):
        out = tmp_path / attempt
        run("curl", "-fsS", "-x", dduct.tcp, "--cacert", dduct.ca, "-o", out, f"{nginx.url}/here.deb")
        assert out.read_bytes() == BODY
    assert nginx.sent() == {"/here.deb": len(BODY)}
    run("curl", "-fsS", "-x", dduct.tcp, "-o", tmp_path / "http", f"http://{ORIGIN}:{nginx.port}/here.deb")
    assert (tmp_path / "http").read_bytes() == BODY
    tunnelled = ["--connect-to", f"{ORIGIN}:443:localhost:{nginx.tls_port}", "--cacert", workshop.ca]
    run("curl", "-fsS", "-p", "-x", dduct.tcp, *tunnelled, "-o", tmp_path / "tunnel", f"https://{ORIGIN}/here.deb")
    assert (tmp_path / "tunnel").read_bytes() == BODY
    wait_until(lambda: "CONNECT" in squid.log.read_text())  # at the end of one: it may be the last thing to be told
    assert squid.log.read_text().count(f"GET http://{ORIGIN}:{nginx.port}/here.deb") == 1
    assert "p@ss" not in dduct.program.log.read_text() and "p%40ss" not in dduct.program.log.read_text()
