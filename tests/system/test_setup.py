"""`/setup` and `/setup/sh`, served by a running dduct."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from support.origin import Files
from support.running import RunningDduct


@pytest.mark.parametrize("host", ["x'y", 'x"y', "x;y", "$(id)", "x y", "<b>", "x:99999", "x@y", "[::1", "a..b"])
@pytest.mark.parametrize("path", ["/setup", "/setup/sh"])
def test_an_invalid_host_gets_neither_page_nor_script(dduct: RunningDduct, host: str, path: str) -> None:
    answer = dduct.client().get(path, host)
    assert (answer.status, answer.get("content-type")) == (400, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ["/setup", "/setup/sh"])
def test_the_page_is_served_on_both_ports_with_no_store(dduct: RunningDduct, path: str) -> None:
    for port, scheme in ((dduct.tcp_port, "http"), (dduct.tls_port, "https")):
        client = dduct.client(port)
        if scheme == "https":
            client.start_tls(dduct.trust, "127.0.0.1")
        answer = client.get(path, f"proxy.lab:{port}")
        assert answer.status == 200 and f"{scheme}://proxy.lab:{port}" in answer.body.decode()
        assert answer.get("cache-control") == "no-store" and answer.get("x-content-type-options") == "nosniff"
        assert (answer.get("content-security-policy") or "").startswith("default-src 'none'; style-src 'unsafe-inline'")
        head = client.get(path, f"proxy.lab:{port}", method="HEAD")
        assert (head.status, head.get("content-length")) == (200, str(len(answer.body)))
        refused = client.get(path, f"proxy.lab:{port}", method="POST")
        assert (refused.status, refused.get("allow")) == (405, "GET, HEAD")


def test_a_setup_page_of_an_intercepted_host_is_the_origins(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/setup": b"theirs", "/setup/sh": b"echo theirs"}))
    assert dduct.fetch(origin, "/setup").body == b"theirs"
    assert dduct.fetch(origin, "/setup/sh").body == b"echo theirs"


def test_refused_clients_get_no_setup_page(start_dduct: Callable[..., RunningDduct]) -> None:
    dduct = start_dduct(allow_clients=("192.0.2.0/24",))
    assert dduct.client().get("/setup", f"localhost:{dduct.tcp_port}").status == 403
    assert dduct.client().get("/setup/sh", f"localhost:{dduct.tcp_port}").status == 403


def test_the_page_shows_the_fingerprint_of_the_authority(dduct: RunningDduct) -> None:
    pem = (dduct.config.misc.cert_dir / "ca.crt").read_bytes()
    digest = x509.load_pem_x509_certificate(pem).fingerprint(SHA256()).hex().upper()
    fingerprint = ":".join(digest[i : i + 2] for i in range(0, 64, 2))
    client = dduct.client()
    for path in ("/setup", "/setup/sh"):
        assert fingerprint in client.get(path, f"localhost:{dduct.tcp_port}").body.decode()
    assert pem.decode().strip() in client.get("/setup/sh", f"localhost:{dduct.tcp_port}").body.decode()


def test_the_page_mentions_a_password_where_one_is_required(
    start_dduct: Callable[..., RunningDduct], tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text("")
    dduct = start_dduct(auth_file=users)
    own = f"proxy.lab:{dduct.tcp_port}"
    assert f"http://USER:PASSWORD@{own}" in dduct.client().get("/setup", own).body.decode()
    assert "\nasks_password='yes'\n" in dduct.client().get("/setup/sh", own).body.decode()
