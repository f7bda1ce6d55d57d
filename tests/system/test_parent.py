"""dduct behind another proxy, which is another dduct or a scripted one."""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional

import pytest
from support.origin import Asked, Connection, Files, Origin
from support.running import HOST, RunningDduct

from net import addresses
from server.config_values import Address
from upstream.dialling import Parent

Build = Callable[..., RunningDduct]
BODY = os.urandom(300_000)


def parent_of(dduct: RunningDduct, tls: bool, credentials: Optional[str] = None) -> Parent:
    return Parent(HOST, dduct.tls_port if tls else dduct.tcp_port, tls, credentials)


@pytest.fixture(params=[False, True], ids=["http parent", "https parent"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def pair(start_dduct: Build, tls: bool) -> List[RunningDduct]:
    parent = start_dduct()
    bundle = parent.directory / "bundle.pem"
    bundle.write_bytes(
        (parent.directory / "origin-ca.pem").read_bytes() + (parent.config.misc.cert_dir / "ca.crt").read_bytes()
    )
    return [start_dduct(upstream_proxy=parent_of(parent, tls), upstream_ca=bundle), parent]


def test_an_object_crosses_the_parent_once_and_the_uplink_once(start_dduct: Build, tls: bool) -> None:
    child, parent = pair(start_dduct, tls)
    origin = child.origin(Files({"/x.deb": BODY}))
    assert [child.fetch(origin, "/x.deb").body for _ in range(2)] == [BODY] * 2
    assert parent.fetch(origin, "/x.deb").body == BODY
    assert origin.count("/x.deb") == 1
    (asked,) = origin.requests
    vias = [value for name, value in asked.headers if name.lower() == "via"]
    assert len(vias) == 2 and len(set(vias)) == 2


def test_plain_http_goes_to_the_parent_in_absolute_form(start_dduct: Build, tls: bool) -> None:
    child, parent = pair(start_dduct, tls)
    origin = child.origin(Files({"/x.deb": BODY, "/page": b"page"}), tls=False)
    with child.client() as client:
        for path, body in (("/x.deb", BODY), ("/page", b"page"), ("/page", b"page")):
            assert client.get(f"http://{HOST}:{origin.port}{path}", f"{HOST}:{origin.port}").body == body
    assert origin.count("/x.deb") == 1 and origin.count("/page") == 2
    assert any(name.endswith("/x.deb") for name in parent.stored())


def test_a_tunnel_goes_through_the_parent(start_dduct: Build, tls: bool) -> None:
    child, parent = pair(start_dduct, tls)
    origin = child.origin(Files({"/x.deb": BODY}))
    with child.client() as client:
        assert client.connect(f"localhost:{origin.port}").status == 200
        context = ssl.create_default_context(cafile=str(child.directory / "origin-ca.pem"))
        client.start_tls(context, HOST)
        assert client.get("/x.deb", HOST).body == BODY
    assert child.stored() == [] and parent.stored() == []


def test_hosts_may_be_reached_without_the_parent(start_dduct: Build) -> None:
    nowhere = Parent(HOST, 1)
    dduct = start_dduct(upstream_proxy=nowhere, no_upstream_proxy=(HOST,))
    origin = dduct.origin(Files({"/x.deb": BODY}))
    assert dduct.fetch(origin, "/x.deb").body == BODY


def test_a_missing_parent_is_502_with_its_reason(start_dduct: Build) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
        dduct = start_dduct(upstream_proxy=Parent(HOST, port))
        origin = dduct.origin(Files({"/x.deb": BODY}))
        answer = dduct.fetch(origin, "/x.deb")
    assert answer.status == 502 and f"{HOST}:{port}".encode() in answer.body


class ScriptedParent:
    """A parent proxy that answers CONNECT with a given head, and remembers what it was told."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.heads: List[bytes] = []

    def __call__(self, asked: Asked, connection: Connection) -> None:
        lines = [f"{asked.method} {asked.target}", *(f"{name}: {value}" for name, value in asked.headers)]
        self.heads.append("\n".join(lines).encode())
        connection.send(self._answer)
        connection.over = True


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", b"403 Forbidden"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", b"user:password"),
        (b"HTTP/1.1 200 OK\nbad\n\n", b"bad response head"),
        (b"", b"connection closed"),
    ],
)
def test_a_refusing_parent_is_502_with_its_reason(start_dduct: Build, answer: bytes, said: bytes) -> None:
    parent = ScriptedParent(answer)
    with Origin(parent) as listening:
        dduct = start_dduct(upstream_proxy=Parent(HOST, listening.port))
        origin = dduct.origin(Files({}))
        refused = dduct.fetch(origin, "/x.deb")
        assert refused.status == 502 and said in refused.body
        with dduct.client() as client:
            assert client.connect(f"localhost:{origin.port}").status == 502


def test_only_the_parent_gets_its_credentials(start_dduct: Build) -> None:
    basic = base64.b64encode(b"user:p@ss").decode()
    parent = ScriptedParent(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    with Origin(parent) as listening:
        dduct = start_dduct(upstream_proxy=Parent(HOST, listening.port, False, "user:p@ss"))
        origin = dduct.origin(Files({}))
        dduct.fetch(origin, "/x.deb")
        with dduct.client() as client:
            client.get(f"http://{HOST}:{origin.port}/page", HOST, "Proxy-Authorization: Basic bWluZTo=")
    connect, absolute = parent.heads
    assert connect.startswith(f"CONNECT {HOST}:{origin.port}\n".encode())
    assert absolute.startswith(f"GET http://{HOST}:{origin.port}/page\n".encode())
    for head in parent.heads:
        assert re.findall(rb"(?im)^proxy-authorization: (.*)$", head) == [f"Basic {basic}".encode()]
    assert "p@ss" not in str(dduct.config.proxy.upstream_proxy)


def test_a_parent_that_is_dduct_itself_is_508(start_dduct: Build) -> None:
    with socket.socket() as free:
        # dduct may share the port, and no other program can take it.
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
        dduct = start_dduct(tcp_bind=Address(HOST, port), upstream_proxy=Parent(HOST, port))
    origin = dduct.origin(Files({"/x.deb": BODY}))
    assert dduct.fetch(origin, "/x.deb").status == 508


def test_bytes_that_arrive_with_the_parents_answer_are_not_lost(start_dduct: Build) -> None:
    """Some proxies send the origin's first bytes in one packet with their own 200."""

    def parent(asked: Asked, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 Connection established\r\n\r\nhello")
        connection.over = True
        with suppress(OSError):
            connection.sock.recv(1)

    with Origin(parent) as listening:
        dduct = start_dduct(upstream_proxy=Parent(HOST, listening.port))
        with dduct.client() as client:
            assert client.connect("far.away:1").status == 200
            assert client._exactly(5) == b"hello"


def resolve(monkeypatch: pytest.MonkeyPatch, names: Dict[str, str]) -> None:
    """Resolve the names of this test to its addresses."""
    real = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        return real(names.get(host, host), *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("name", ["127.0.0.9", "127.1", "2130706433", "0x7f.1", "inner.test"])
def test_a_parent_on_this_machine_gives_remote_clients_no_access_to_it(
    start_dduct: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    resolve(monkeypatch, {"inner.test": HOST, "outer.test": "192.0.2.1"})
    monkeypatch.setattr("net.addresses.is_loopback", lambda client: False)
    parent = ScriptedParent(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with Origin(parent) as listening:
        dduct = start_dduct(upstream_proxy=Parent(HOST, listening.port))
        with dduct.client() as client:
            assert client.connect(f"{name}:22").status == 403
        with dduct.client() as client:
            assert client.get(f"http://{name}:80/page", "x").status == 403
        assert parent.heads == []
        for other in ("outer.test", "nowhere.invalid"):  # the parent may know more names
            with dduct.client() as client:
                assert client.connect(f"{other}:22").status == 200


def test_objects_of_this_machine_through_a_local_parent_are_for_local_clients_only(
    start_dduct: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"inner.test": HOST})
    afar = [False]
    monkeypatch.setattr("net.addresses.is_loopback", lambda client: not afar[0])

    def parent(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Cache-Control", "max-age=1000")], BODY)

    with Origin(parent) as listening:
        dduct = start_dduct(upstream_proxy=Parent(HOST, listening.port))
        statuses = []
        for afar[0] in (False, True):
            with dduct.client() as client:
                statuses.append(client.get("http://inner.test/x.deb", "x").status)
        assert statuses == [200, 403]


def test_a_parent_elsewhere_resolves_names_itself(start_dduct: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name means here says nothing of there: whether it may be reached is for the parent to judge."""
    resolve(monkeypatch, {"inner.test": HOST})
    real = addresses.is_local_only
    monkeypatch.setattr("net.addresses.is_local_only", lambda host: host != "127.0.0.3" and real(host))
    monkeypatch.setattr("net.addresses.is_loopback", lambda client: False)
    parent = ScriptedParent(b"HTTP/1.1 200 OK\r\n\r\n")
    with Origin(parent, host="127.0.0.3") as listening:
        dduct = start_dduct(upstream_proxy=Parent("127.0.0.3", listening.port))
        with dduct.client() as client:
            assert client.connect("inner.test:22").status == 200
