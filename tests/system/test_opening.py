"""After a CONNECT: the client's protocol, and the host it wants."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from typing import Callable, Iterator, List, Optional

import pytest
from support.client import Client, wait_until
from support.origin import Asked, Connection, Files, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from proxy.opening import Opening, Spoken

Build = Callable[..., RunningDduct]
BODY = b"0123456789" * 400
TIMEOUT = 20.0

pytestmark = pytest.mark.one_process


class Server:
    """A server with an unknown protocol: it may greet, and sends back what it receives, reversed."""

    def __init__(self, greeting: bytes = b"") -> None:
        self._greeting = greeting
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    sock.settimeout(TIMEOUT)
                    sock.sendall(self._greeting)
                    while data := sock.recv(1000):
                        sock.sendall(data[::-1])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def greeter() -> Iterator[Server]:
    server = Server(b"SSH-2.0-origin\r\n")
    yield server
    server.close()


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the tests are this machine."""
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: object, **keys: object) -> object:
        return real(HOST if host.endswith(".test") else host, *arguments, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def exchange(client: Client, data: bytes, count: int) -> bytes:
    client.send(data)
    got = b""
    while len(got) < count:
        more = client.sock.recv(count - len(got))
        if not more:
            break
        got += more
    return got


@pytest.mark.parametrize("says", [b"SSH-2.0-client\r\n", b"GET /x HTTP/1.1\r\n\r\n", b"\x16\x02no", b"\x00", b"\x80."])
@pytest.mark.parametrize("how", ["by the poller", "by a thread", "too early"])
def test_a_connection_without_tls_is_tunnelled(dduct: RunningDduct, server: Server, says: bytes, how: str) -> None:
    for _ in range(2 if how == "by the poller" else 1):  # once the leaf is at hand
        with dduct.client() as client:
            authority = f"{HOST}:{server.port}"
            if how == "too early":
                client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode() + says)
                assert client.read(method="CONNECT").status == 200
                got = client._buffer + exchange(client, b"", len(says) - len(client._buffer))
            else:
                assert client.connect(authority).status == 200
                got = exchange(client, says, len(says))
            assert got == says[::-1]
            assert exchange(client, b"more", 4) == b"erom"
    assert dduct.counters.value(Counter.NOT_TLS) >= 1


def test_a_connection_without_tls_inside_the_tls_port_is_tunnelled(dduct: RunningDduct, server: Server) -> None:
    with dduct.client(dduct.tls_port) as client:
        client.start_tls(dduct.trust, "origin.test")
        assert client.connect(f"{HOST}:{server.port}").status == 200
        assert exchange(client, b"plain", 5) == b"nialp"
    origin = dduct.origin(Files({"/x.deb": BODY}))
    assert dduct.fetch(origin, "/x.deb").body == BODY


def test_a_server_that_sends_first_is_heard(dduct: RunningDduct, greeter: Server) -> None:
    """And no thread waits for it."""
    with dduct.client() as client:
        assert client.connect(f"{HOST}:{greeter.port}").status == 200
        wait_until(lambda: len(dduct.server._poller._watched) == 3)
        assert exchange(client, b"", 16) == b"SSH-2.0-origin\r\n"
        assert exchange(client, b"hello", 5) == b"olleh"


def test_on_port_443_dduct_waits_for_the_client_to_send_first(start_dduct: Build) -> None:
    dduct = start_dduct(idle_timeout=0.2)
    with dduct.client() as client:
        assert client.connect(f"{HOST}:443").status == 200
        assert client.at_end()
    assert dduct.counters.value(Counter.NOT_TLS) == 0


def test_an_origin_that_cannot_be_dialled_after_the_200_is_logged(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    with caplog.at_level(logging.INFO), dduct.client() as client:
        assert client.connect(f"{HOST}:{port}").status == 200
        client.send(b"SSH-2.0-client\r\n")
        assert client.at_end()
        wait_until(lambda: "cannot be reached" in caplog.text)
    assert f"CONNECT {HOST}:{port}" in caplog.text and "not TLS" in caplog.text


def test_a_client_that_leaves_before_it_sends_frees_everything(dduct: RunningDduct) -> None:
    for _ in range(3):
        with dduct.client() as client:
            assert client.connect(f"{HOST}:1").status == 200
    wait_until(lambda: not dduct.server.connections and not dduct.server.connections.limit.taken)


# --- the name in the handshake ----------------------------------------------------------------------


def test_requests_inside_must_name_the_host_of_the_hello(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    for _ in range(2):
        with dduct.client() as client:
            assert client.connect(f"{HOST}:{origin.port}").status == 200
            client.start_tls(dduct.trust, "origin.test")
            assert client.get("/x.deb", f"{HOST}:{origin.port}").status == 421


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.0.2", "127.0.0.9"])
def test_the_origin_is_dialled_by_name_and_never_at_the_clients_address(
    dduct: RunningDduct, resolving: None, place: str
) -> None:
    """Listed or not, the client chooses the address, and stored objects are for all clients."""
    with Origin(Files({"/x.deb": BODY}), dduct._leaves.context("origin.test")) as origin:
        with contextlib.ExitStack() as stack:
            if place != HOST:
                stack.enter_context(socket.create_server((place, origin.port)))
            client = stack.enter_context(dduct.client())
            assert client.connect(f"{place}:{origin.port}").status == 200
            client.start_tls(dduct.trust, "origin.test")
            assert client.get("/x.deb", f"origin.test:{origin.port}").body == BODY
        dduct.wait_until_durable()
        assert dduct.stored() == [f"https/origin.test:{origin.port}/x.deb"]
        assert origin.count("/x.deb") == 1


def test_an_unlisted_name_at_an_address_is_tunnelled(dduct: RunningDduct) -> None:
    def handler(_: Asked, connection: Connection) -> None:
        connection.respond(200, [], BODY)

    origin = dduct.origin(handler)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_server(("127.0.0.9", 0)) as relay:
        port = relay.getsockname()[1]
        seen = []

        def pass_on() -> None:
            near, _ = relay.accept()
            with near, socket.create_connection((HOST, origin.port)) as far:
                near.settimeout(TIMEOUT)
                seen.append(near.recv(5, socket.MSG_PEEK))

                def back() -> None:
                    with contextlib.suppress(OSError):
                        while data := far.recv(65536):
                            near.sendall(data)

                thread = threading.Thread(target=back)
                thread.start()
                with contextlib.suppress(OSError):
                    while data := near.recv(65536):
                        far.sendall(data)
                with contextlib.suppress(OSError):
                    far.shutdown(socket.SHUT_RDWR)
                thread.join(TIMEOUT)

        thread = threading.Thread(target=pass_on)
        thread.start()
        with dduct.client() as client:
            assert client.connect(f"127.0.0.9:{port}").status == 200
            client.start_tls(context, "elsewhere.example")
            assert client.get("/x.deb", "elsewhere.example").body == BODY
        thread.join(TIMEOUT)
    assert seen[0][:2] == b"\x16\x03"
    assert dduct.counters.value(Counter.INTERCEPTED) == 0 and dduct.counters.value(Counter.TUNNELS) == 1


def test_a_client_hello_in_pieces_is_understood(dduct: RunningDduct, resolving: None) -> None:
    with Origin(Files({"/x.deb": BODY}), dduct._leaves.context("origin.test")) as origin, dduct.client() as client:
        assert client.connect(f"{HOST}:{origin.port}").status == 200
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = dduct.trust.wrap_bio(incoming, outgoing, server_hostname="origin.test")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        (connection,) = dduct.server.connections._all.values()
        for start in range(0, len(hello), 200):
            client.send(hello[start : start + 200])
            sent = min(start + 200, len(hello))
            if sent < len(hello):
                wait_until(lambda sent=sent: connection.stream.buffered == sent)  # type: ignore[misc]
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send(outgoing.read())
                incoming.write(client.sock.recv(65536))
        client.send(outgoing.read())
        tls.write(f"GET /x.deb HTTP/1.1\r\nHost: origin.test:{origin.port}\r\nConnection: close\r\n\r\n".encode())
        client.send(outgoing.read())
        got = b""
        while len(got) < len(BODY):
            try:
                got += tls.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(client.sock.recv(65536))
        assert got.endswith(BODY)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> List[None]:
    """One for each look at what a client has sent after its CONNECT."""
    made: List[None] = []
    real = Opening.look

    def look(opening: Opening) -> Optional[Spoken]:
        made.append(None)
        return real(opening)

    monkeypatch.setattr(Opening, "look", look)
    return made


def test_a_thread_waits_where_the_poller_takes_no_more(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, looks: List[None]
) -> None:
    """One user may have only so many descriptors in epolls (max_user_watches)."""
    monkeypatch.setattr(dduct.server._poller, "watch", lambda *_: False)
    origin = dduct.origin(Files({"/x.deb": BODY}))
    with dduct.client() as client:
        assert client.connect(f"{HOST}:443").status == 200
        wait_until(lambda: bool(looks))
        assert dduct.fetch(origin, "/x.deb").body == BODY
        assert len(looks) < 10
    wait_until(lambda: not dduct.server.connections)


@pytest.mark.parametrize("known", [False, True], ids=["in a thread", "in the poller"])
def test_a_client_that_ends_within_its_hello_does_not_make_the_poller_spin(
    dduct: RunningDduct, looks: List[None], known: bool
) -> None:
    """The end of a connection stays readable for ever: a wait for the rest of the hello would spin."""
    if known:
        dduct.server.runtime.leaf_certificates.context(HOST)
    with dduct.client() as client:
        assert client.connect(f"{HOST}:443").status == 200
        client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        client.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            client.read_until(b"never")
    wait_until(lambda: not dduct.server.connections)
    assert len(looks) < 10
