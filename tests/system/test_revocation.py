"""After a reload, clients that lost their permission cannot continue their connections."""

from __future__ import annotations

import base64
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Tuple

import pytest
from support.client import Client, wait_until
from support.origin import Asked, Connection, Files, Gate, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from proxy.access import hash_password

Build = Callable[..., RunningDduct]
BODY = os.urandom(4000)
TIMEOUT = 20.0

pytestmark = pytest.mark.one_process

BOB, EVE = hash_password("bob", "pw"), hash_password("eve", "pw")


def reload(dduct: RunningDduct, **keys: Any) -> None:
    dduct.server.reload(replace(dduct.config, proxy=replace(dduct.config.proxy, **keys)))


def users(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def field(name: str = "bob") -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(f'{name}:pw'.encode()).decode()}"


def connect(dduct: RunningDduct, authority: str, *fields: str) -> Client:
    client = dduct.client()
    client.send("\r\n".join([f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", *fields, "", ""]).encode())
    assert client.read(method="CONNECT").status == 200
    return client


def inside(dduct: RunningDduct, origin: Origin, *fields: str) -> Client:
    client = connect(dduct, f"{HOST}:{origin.port}", *fields)
    client.start_tls(dduct.trust, HOST)
    return client


@pytest.fixture
def dduct_of_bob(start_dduct: Build, tmp_path: Path) -> Tuple[RunningDduct, Path]:
    path = users(tmp_path / "users", BOB, EVE)
    return start_dduct(auth_file=path), path


def test_a_removed_user_loses_their_intercepted_connection(dduct_of_bob: Tuple[RunningDduct, Path]) -> None:
    dduct, path = dduct_of_bob
    origin = dduct.origin(Files({"/x.deb": BODY}))
    authority = f"{HOST}:{origin.port}"
    bob, eve = inside(dduct, origin, field()), inside(dduct, origin, field("eve"))
    for client in (bob, eve):
        assert client.get("/x.deb", authority).body == BODY
    users(path, EVE)
    reload(dduct, auth_file=path)
    assert bob.at_end()
    assert eve.get("/x.deb", authority).body == BODY
    assert dduct.counters.value(Counter.BARRED) == 1


def test_a_request_before_the_connection_is_closed_is_refused(
    dduct_of_bob: Tuple[RunningDduct, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dduct, path = dduct_of_bob
    origin = dduct.origin(Files({"/x.deb": BODY}, [("Cache-Control", "max-age=600")]))
    clients = [inside(dduct, origin, field()) for _ in range(2)]
    for _ in range(4):  # until the poller's thread answers it
        assert clients[0].get("/x.deb", f"{HOST}:{origin.port}").body == BODY
    monkeypatch.setattr(dduct.server.connections, "end_barred", lambda: None)
    users(path, EVE)
    reload(dduct, auth_file=path)
    for client, target in zip(clients, ("/x.deb", "/y.deb")):
        answer = client.get(target, f"{HOST}:{origin.port}")
        assert answer.status == 403 and b"bob" in answer.body and answer.get("connection") == "close"
        assert client.at_end()
    assert origin.count("/y.deb") == 0


def test_a_changed_password_ends_connections_of_the_old_one(dduct_of_bob: Tuple[RunningDduct, Path]) -> None:
    dduct, path = dduct_of_bob
    client = inside(dduct, dduct.origin(Files({})), field())
    users(path, hash_password("bob", "new"), EVE)
    reload(dduct, auth_file=path)
    assert client.at_end()


@pytest.mark.parametrize("how", ["user", "password for all", "address"])
def test_a_tunnel_ends_when_its_client_loses_permission(start_dduct: Build, tmp_path: Path, how: str) -> None:
    """Even if it is silent."""
    path = users(tmp_path / "users", BOB)
    dduct = start_dduct(auth_file=path if how == "user" else None)
    over = threading.Event()

    def silent(_: Asked, connection: Connection) -> None:
        connection.send(b"hello")
        assert connection.sock.recv(1) == b""
        over.set()
        connection.over = True

    origin = dduct.origin(silent, tls=False)
    client = connect(dduct, f"localhost:{origin.port}", field())
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.sock.recv(5) == b"hello"
    if how == "address":
        reload(dduct, allow_clients=("10.0.0.0/8",))
    else:
        reload(dduct, auth_file=users(path, EVE))
    assert client.at_end()
    assert over.wait(TIMEOUT)
    wait_until(lambda: not dduct.server.connections)


def test_an_upgraded_connection_ends_when_its_client_loses_permission(start_dduct: Build) -> None:
    dduct = start_dduct()

    def upgrade(_: Asked, connection: Connection) -> None:
        connection.head(101, [("Upgrade", "chat"), ("Connection", "Upgrade")])
        connection.sock.recv(1)
        connection.over = True

    origin = dduct.origin(upgrade, tls=False)
    client = dduct.client()
    url = f"http://{HOST}:{origin.port}/chat"
    assert client.get(url, f"{HOST}:{origin.port}", "Upgrade: chat", "Connection: Upgrade").status == 101
    reload(dduct, allow_clients=("10.0.0.0/8",))
    assert client.at_end()
    wait_until(lambda: not dduct.server.connections)


def test_silent_connections_of_a_removed_user_end_and_downloads_of_others_go_on(start_dduct: Build) -> None:
    dduct = start_dduct(allow_clients=("127.0.0.0/8",))
    gate = Gate()

    def slow(_: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:1000])
        gate.wait()
        connection.send_body(BODY[1000:])

    origin = dduct.origin(slow, tls=False)
    with Client(dduct.tcp_port, source="127.0.0.2") as removed, Client(dduct.tls_port, source="127.0.0.2") as unspoken:
        assert removed.get("/healthz", "localhost").status == 200
        friend = dduct.client()
        friend.send(f"GET http://{HOST}:{origin.port}/x HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        gate.reached()
        wait_until(lambda: len(dduct.server.connections) == 3)
        reload(dduct, allow_clients=("127.0.0.1/32",))
        assert removed.at_end() and unspoken.at_end()
    gate.open()
    answer = friend.read()
    assert answer.body == BODY and answer.complete


def test_a_client_without_certificate_loses_its_connection_when_one_is_required(start_dduct: Build) -> None:
    dduct = start_dduct()
    client = dduct.client(dduct.tls_port)
    client.start_tls(dduct.trust, "origin.test")
    assert client.get("/healthz", "localhost").status == 200
    plain = dduct.client()
    assert plain.get("/healthz", "localhost").status == 200
    reload(dduct, require_client_cert=True)
    assert client.at_end()
    assert plain.get("/healthz", "localhost").status == 200


def test_a_tunnel_that_begins_during_a_reload_is_ended_too(start_dduct: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    dduct = start_dduct()
    origin = dduct.origin(Files({}), tls=False)
    origins = type(dduct.server.runtime.services.origins)
    dial = origins.dial

    def dial_late(*arguments: Any, **keys: Any) -> Any:
        stream = dial(*arguments, **keys)
        monkeypatch.setattr(dduct.server.connections, "end_barred", lambda: None)
        reload(dduct, allow_clients=("10.0.0.0/8",))
        return stream

    monkeypatch.setattr(origins, "dial", dial_late)
    client = dduct.client()
    client.send(f"CONNECT localhost:{origin.port} HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n".encode())
    wait_until(lambda: not dduct.server.connections)
    client.sock.close()
    assert origin.requests == []
