"""Which connections are accepted, what they cost, and what refused clients are told."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, List

import pytest
from support.client import Client, wait_until
from support.origin import Files
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from proxy.access import hash_password

Build = Callable[..., RunningDduct]
BODY = b"0123456789" * 400
TIMEOUT = 20.0
FRIENDS = ("127.0.0.1/32",)
STRANGER = "127.0.0.2"

pytestmark = pytest.mark.one_process


def from_address(stack: ExitStack, address: str, port: int) -> Client:
    """A client that comes from another address of this machine."""
    return stack.enter_context(Client(port, source=address))


@pytest.fixture
def stack() -> ExitStack:  # type: ignore[misc]
    with ExitStack() as stack:
        yield stack


def test_refused_clients_take_no_place(start_dduct: Build, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    dduct = start_dduct(allow_clients=FRIENDS, max_connections=2)
    with caplog.at_level(logging.INFO):
        strangers = [from_address(stack, STRANGER, dduct.tcp_port) for _ in range(20)]
        for stranger in strangers:
            answer = stranger.read()  # before it has asked for anything
            assert answer.status == 403 and b"proxy.allow_clients" in answer.body and STRANGER.encode() in answer.body
    assert dduct.server.connections.limit.taken == 0
    assert dduct.counters.value(Counter.STRANGERS) == 20
    told = [line for line in caplog.messages if "proxy.allow_clients" in line]
    assert told and len(told) < 20 and all(STRANGER in line for line in told)
    with dduct.client() as friend:
        assert friend.get("/healthz", "localhost").status == 200


def test_a_refused_client_that_has_sent_bytes_reads_the_answer_and_no_reset(
    start_dduct: Build, stack: ExitStack
) -> None:
    dduct = start_dduct(allow_clients=FRIENDS)
    for _ in range(5):
        stranger = from_address(stack, STRANGER, dduct.tcp_port)
        stranger.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        stranger.send(bytes(100_000))
        assert stranger.read().status == 403
        assert stranger.sock.recv(1) == b""


def test_no_leaf_is_minted_for_a_refused_client(start_dduct: Build, stack: ExitStack) -> None:
    dduct = start_dduct(allow_clients=FRIENDS)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stranger = from_address(stack, STRANGER, dduct.tls_port)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.access.denied"):
        stranger.start_tls(context, "www.listed.test")
    assert not dduct.server.runtime.leaf_certificates.hosts
    friend = dduct.client(dduct.tls_port)
    friend.start_tls(dduct.trust, "www.listed.test")
    assert dduct.server.runtime.leaf_certificates.hosts == ["www.listed.test"]


def test_refused_clients_that_stay_are_closed_and_their_number_is_limited(
    start_dduct: Build, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.refusals._MAX_LINGERING", 2)
    monkeypatch.setattr("proxy.refusals._LINGER", 0.05)
    dduct = start_dduct(allow_clients=FRIENDS)
    for _ in range(6):
        assert from_address(stack, STRANGER, dduct.tcp_port).read().status == 403
    wait_until(lambda: not dduct.server.connections._refusals._lingering)


def test_all_clients_that_find_no_place_get_an_error_at_once(start_dduct: Build, stack: ExitStack) -> None:
    dduct = start_dduct(max_connections=2)
    for _ in range(2):
        assert stack.enter_context(dduct.client()).get("/healthz", "localhost").status == 200
    late = [stack.enter_context(dduct.client()) for _ in range(30)]
    for client in late:  # of which none has to be closed before the next one is answered
        answer = client.read()
        assert (answer.status, answer.get("retry-after")) == (503, "5") and b"proxy.max_connections" in answer.body
    with dduct.client(dduct.tls_port) as client, pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.start_tls(dduct.trust, "localhost")
    assert dduct.counters.value(Counter.TURNED_AWAY) == 31


@pytest.mark.parametrize("port", ["tcp_port", "tls_port"])
def test_silent_connections_give_way_to_another_address(start_dduct: Build, stack: ExitStack, port: str) -> None:
    dduct = start_dduct(max_connections=20)
    silent = [from_address(stack, STRANGER, getattr(dduct, port)) for _ in range(20)]
    wait_until(lambda: dduct.server.connections.limit.taken == 20)
    for count in range(1, 4):
        client = stack.enter_context(dduct.client())
        assert client.get("/healthz", "localhost").status == 200
        assert dduct.counters.value(Counter.DISPLACED) == count
    assert silent[0].at_end() and silent[2].at_end()


def test_a_connection_with_half_a_head_counts_as_silent(start_dduct: Build, stack: ExitStack) -> None:
    dduct = start_dduct(max_connections=5)
    for _ in range(5):
        from_address(stack, STRANGER, dduct.tcp_port).send(b"GET /x HTTP/1.1\r\nHo")
    wait_until(lambda: dduct.server.snapshot().threads == 5 + 5)
    assert dduct.client().get("/healthz", "localhost").status == 200


def test_silent_connections_of_one_address_get_a_share_of_the_places(start_dduct: Build, stack: ExitStack) -> None:
    dduct = start_dduct(max_silent_per_client=3)
    busy = [stack.enter_context(dduct.client()) for _ in range(3)]
    for client in busy:
        assert client.get("/healthz", "localhost").status == 200
    for _ in range(3):
        stack.enter_context(dduct.client())  # for those that have asked do not count
    wait_until(lambda: dduct.server.connections.limit.taken == 6)
    answer = stack.enter_context(dduct.client()).read()
    assert answer.status == 503 and b"proxy.max_silent_per_client" in answer.body
    assert from_address(stack, STRANGER, dduct.tcp_port).get("/healthz", "localhost").status == 200


def test_where_passwords_are_required_only_a_user_has_proved_anything(
    start_dduct: Build, stack: ExitStack, tmp_path: Path
) -> None:
    """A page that anybody gets does not free a connection from the limit on silent ones."""
    users = tmp_path / "users"
    users.write_text(hash_password("ann", "secret") + "\n")
    dduct = start_dduct(max_silent_per_client=2, auth_file=users)
    for _ in range(2):
        client = stack.enter_context(dduct.client())
        assert client.get("/healthz", "localhost").status == 200
    assert stack.enter_context(dduct.client()).read().status == 503


# --- the wrong port ---------------------------------------------------------------------------------


def lines_about(caplog: pytest.LogCaptureFixture, what: str) -> List[str]:
    return [line for line in caplog.messages if what in line]


def test_tls_on_the_plain_port_ends_at_once(dduct: RunningDduct, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), dduct.client() as client, pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.start_tls(dduct.trust, "localhost")
    (line,) = lines_about(caplog, "proxy.tcp_bind")
    assert HOST in line and "TLS" in line and "proxy.tls_bind" in line
    assert dduct.counted(Counter.WRONG_PROTOCOL) == 1


@pytest.mark.parametrize("target", ["/healthz", "http://origin.test/x"])
def test_plain_http_on_the_tls_port_gets_a_plain_error(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    with caplog.at_level(logging.INFO), dduct.client(dduct.tls_port) as client:
        answer = client.get(target, "origin.test")
        assert client.sock.recv(1) == b""
    assert answer.status == 400 and b"proxy.tls_bind" in answer.body and b"https://" in answer.body
    (line,) = lines_about(caplog, "proxy.tls_bind")
    assert HOST in line and "plain http" in line and "proxy.tcp_bind" in line


@pytest.mark.parametrize("port", ["tcp_port", "tls_port"])
@pytest.mark.parametrize(
    ("hello", "told", "named"),
    [
        (b"\x05\x01\x00", b"\x05\xff", "SOCKS 5"),
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x00\x5b", "SOCKS 4"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 ", "HTTP/2"),
    ],
)
def test_other_protocols_get_an_error_in_their_own_format(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture, port: str, hello: bytes, told: bytes, named: str
) -> None:
    with caplog.at_level(logging.INFO), dduct.client(getattr(dduct, port)) as client:
        client.send(hello)
        assert client.sock.recv(1000).startswith(told)
    (line,) = lines_about(caplog, f"proxy.{port.replace('port', 'bind')}")
    assert named in line


def test_http2_inside_an_intercepted_connection_is_505(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({}))
    with dduct.intercepted(origin) as client:
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.read().status == 505


def test_repeated_connections_to_the_wrong_port_do_not_fill_the_log(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with dduct.client() as client:
                client.send(b"\x05\x01\x00")
                client.sock.recv(10)
    assert 0 < len(lines_about(caplog, "SOCKS 5")) < 10
    assert dduct.counted(Counter.WRONG_PROTOCOL, 20) == 20


def test_a_client_of_the_tls_port_takes_no_thread_before_it_sends(dduct: RunningDduct, stack: ExitStack) -> None:
    clients = [stack.enter_context(dduct.client(dduct.tls_port)) for _ in range(10)]
    wait_until(lambda: dduct.server.connections.limit.taken == 10)
    assert dduct.server.snapshot().threads == 5
    for client in clients:
        client.start_tls(dduct.trust, "origin.test")
        assert client.get("/healthz", "localhost").status == 200


def test_a_client_that_leaves_the_tls_port_without_sending_frees_its_place(dduct: RunningDduct) -> None:
    for _ in range(5):
        dduct.client(dduct.tls_port).sock.close()
    wait_until(lambda: not dduct.server.connections.limit.taken)


def test_a_connection_for_which_there_is_no_thread_is_closed(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(dduct.server.connections, "_spawn", spawn)
        patch.setattr(dduct.server._poller, "watch", lambda *_: False)
        dduct.server.connections.accept(False, socket.create_server((HOST, 0)), HOST)
    assert not dduct.server.connections and not dduct.server.connections.limit.taken


def test_a_connection_that_is_gone_when_it_is_accepted_leaves_nothing(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr("proxy.connections.Stream", broken)
        one, other = socket.socketpair()
        with other:
            dduct.server.connections.accept(False, one, HOST)
            assert other.recv(1) == b""
    assert not dduct.server.connections.limit.taken
