"""The tunnels of a client connection: who is dialled, what passes, and how each end learns of the other's."""

from __future__ import annotations

import logging
import ssl
from types import SimpleNamespace
from typing import Iterator, cast

import pytest
from support.pairs import TIMEOUT, Pairs, in_thread, reset
from support.sessions import ADDRESS, LISTED, Surroundings, is_reset, read_until

from monitoring.details import Side
from monitoring.metrics import Counter
from net.addresses import Reach
from net.endpoint import ConnectionLost
from net.response import Reply
from protocol import http1
from protocol.http1 import Authority
from proxy.access import Access
from proxy.opening import Spoken
from upstream.dialling import UpstreamError

SSH = Authority("a.example", 22)
CONNECT = http1.parse_request(b"CONNECT a.example:22 HTTP/1.1\r\nHost: a.example:22\r\n\r\n")


@pytest.fixture
def around() -> Iterator[Surroundings]:
    with Pairs() as pairs:
        yield Surroundings(pairs)


def reply_of(around: Surroundings) -> Reply:
    return Reply(around.stream, CONNECT, b"1.1 dduct")


def test_a_tunnel_is_answered_and_carries_both_ways_to_both_ends(around: Surroundings) -> None:
    reply = reply_of(around)
    more = in_thread(around.tunnel.connect, SSH, reply)
    assert around.read().startswith(b"HTTP/1.1 200 ")
    far = around.origins.far.get(timeout=TIMEOUT)
    far.sendall(b"SSH-2.0-server\r\n")
    assert around.read(b"\n") == b"SSH-2.0-server\r\n"
    around.far.sendall(b"SSH-2.0-me\r\n")
    assert read_until(far, b"\n") == b"SSH-2.0-me\r\n"
    far.close()
    assert around.far.recv(1) == b""
    around.far.close()
    assert more.result(TIMEOUT) is False
    assert around.origins.dialled == [(SSH, Reach.NOTHING)] and around.origins.hung_up == [False]
    assert (reply.status, reply.carried.received, reply.carried.sent, reply.carried.cut_by) == (200, 16, 12, None)


def test_an_origin_that_cannot_be_dialled_leaves_the_answer_to_the_caller(around: Surroundings) -> None:
    around.origins.error = UpstreamError("cannot connect", 504)
    reply = reply_of(around)
    with pytest.raises(UpstreamError):
        around.tunnel.connect(SSH, reply)
    assert (reply.status, around.origins.hung_up) == (0, [])
    around.stream.close()
    assert around.far.recv(1) == b""


def test_an_origin_that_breaks_off_resets_the_client(around: Surroundings) -> None:
    reply = reply_of(around)
    more = in_thread(around.tunnel.connect, SSH, reply)
    around.read()
    reset(around.origins.far.get(timeout=TIMEOUT))
    with pytest.raises(OSError):
        more.result(TIMEOUT)
    assert is_reset(around.far)
    assert (reply.carried.cut_by, around.origins.hung_up) == (Side.ORIGIN, [True])


def test_another_thread_ends_a_tunnel_in_which_both_sides_are_silent(around: Surroundings) -> None:
    reply = reply_of(around)
    more = in_thread(around.tunnel.connect, SSH, reply)
    around.read()
    far = around.origins.far.get(timeout=TIMEOUT)
    far.sendall(b"!")
    assert around.far.recv(1) == b"!"  # it carries by now
    around.tunnel.cancel()
    with pytest.raises(OSError):
        more.result(TIMEOUT)
    assert reply.carried.cut_by is Side.DDUCT
    assert (around.tunnel.cancelled, around.origins.hung_up) == (True, [True])


def test_a_client_that_a_reload_has_barred_meanwhile_gets_no_tunnel(around: Surroundings) -> None:
    around.clients.remove(ADDRESS)
    reply = reply_of(around)
    with pytest.raises(ConnectionLost, match="is not in proxy"):
        around.tunnel.connect(SSH, reply)
    assert reply.carried.cut_by is Side.DDUCT and around.origins.hung_up == [True]
    assert is_reset(around.far)


def test_a_connect_to_an_address_whose_handshake_names_a_listed_host_is_no_tunnel(around: Surroundings) -> None:
    reply = reply_of(around)
    more = in_thread(around.tunnel.connect, Authority("192.0.2.7", 443), reply)
    around.read()
    hello = ssl.MemoryBIO()
    handshake = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname=LISTED)
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    around.far.sendall(hello.read())
    assert more.result(TIMEOUT) is True
    opening = around.state.opening
    assert opening is not None and opening.host == LISTED
    assert (reply.note, around.counted, around.origins.hung_up) == ("intercept", [Counter.INTERCEPTED], [True])
    around.stream.close_abruptly()


def test_what_is_not_tls_passes_to_a_listed_host_and_is_logged(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dduct.session")
    done = in_thread(around.tunnel.pass_through, Authority(LISTED, 22), Spoken.OTHER)
    far = around.origins.far.get(timeout=TIMEOUT)
    around.far.sendall(b"hello\n")
    assert read_until(far, b"\n") == b"hello\n" and around.state.busy
    far.close()
    around.far.close()
    done.result(TIMEOUT)
    (line,) = caplog.messages
    assert line.startswith(f"{ADDRESS} CONNECT {LISTED}:22 200 0 ")
    assert line.endswith("tunnel; not TLS, but another protocol; sent=6")
    assert (around.counted, around.origins.hung_up) == ([Counter.NOT_TLS], [False])


def test_a_listed_host_that_cannot_be_reached_resets_a_client_that_has_its_200(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dduct.session")
    around.origins.error = UpstreamError("cannot connect to it", 504)
    around.tunnel.pass_through(Authority(LISTED, 22), Spoken.NOTHING)
    assert is_reset(around.far)
    assert "its origin cannot be reached: cannot connect to it" in caplog.text


def test_a_tunnel_that_no_user_has_asked_for_is_barred_where_users_are_required(around: Surroundings) -> None:
    users = cast(Access, SimpleNamespace(clients={ADDRESS}, certificates=False, users=object()))
    assert around.tunnel.barred(users) is None  # the next request needs a password
    more = in_thread(around.tunnel.connect, SSH, reply_of(around))
    around.read()
    far = around.origins.far.get(timeout=TIMEOUT)
    far.sendall(b"!")
    assert around.far.recv(1) == b"!"
    assert around.tunnel.barred(users) == "no user has asked for it (proxy.auth_file)"
    assert around.tunnel.barred(around.runtime.access) is None
    far.close()
    around.far.close()
    assert more.result(TIMEOUT) is False
