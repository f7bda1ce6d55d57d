"""What never waits. `far` is always the end that the test plays."""

from __future__ import annotations

import select
import socket
import time

import pytest
from support.client import wait_until
from support.layers import (
    HEAD,
    MEGABYTES,
    RECORD,
    connect,
    early_tls,
    eventually,
    read,
    select_readable,
)
from support.pairs import HOST, SOON, TIMEOUT, Inner, Pairs, client_context, in_thread, server_context

from net.endpoint import ConnectionLost
from net.stream import Stream


def test_a_partial_tls_record_is_not_readable(pairs: Pairs) -> None:
    """Otherwise a poll spins until the rest arrives."""
    stream, far, record = early_tls(pairs)
    view = memoryview(bytearray(10))
    far.send(record[: len(record) // 2])
    polled = select_readable(stream)
    assert polled
    assert stream.readinto_nowait(view) is None
    assert not stream.holds_bytes()
    far.send(record[len(record) // 2 :])
    assert read(stream, 10) == b"x" * 10
    assert stream.holds_bytes()


def test_a_nonblocking_read_does_not_wait(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    view = memoryview(bytearray(10))
    assert stream.readinto_nowait(view) is None
    far.send(b"abc")
    assert select_readable(stream)
    assert eventually(lambda: stream.readinto_nowait(view)) == 3
    assert bytes(view[:3]) == b"abc"
    assert stream.readinto_nowait(view) is None
    far.shutdown_write()
    assert eventually(lambda: stream.readinto_nowait(view)) == 0


def test_a_second_record_in_the_buffer_is_readable(pairs: Pairs) -> None:
    """Polling the socket would wait for bytes that are here already."""
    stream, far = pairs.streams()
    inner = Inner(far, server=False)
    far.send(HEAD + inner.first_flight())
    stream.read_head(TIMEOUT)
    started = in_thread(stream.start_tls, server_context())
    inner.handshake()
    started.result(TIMEOUT)
    far.send(inner.record(b"a" * RECORD) + inner.record(b"b" * RECORD))
    assert read(stream, RECORD) == b"a" * RECORD
    assert stream.holds_bytes()
    assert read(stream, RECORD) == b"b" * RECORD
    assert not stream.holds_bytes()


def test_buffered_bytes_are_read_without_waiting(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(HEAD + b"abc")
    stream.read_head(TIMEOUT)
    view = memoryview(bytearray(2))
    assert stream.readinto_nowait(view) == 2
    assert stream.readinto_nowait(view) == 1
    assert stream.readinto_nowait(view) is None


def test_a_blocking_read_after_a_nonblocking_one_waits(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    assert stream.readinto_nowait(memoryview(bytearray(1))) is None
    got = in_thread(read, stream, 1)
    far.send(b"x")
    assert got.result(TIMEOUT) == b"x"


def test_a_nonblocking_send_to_a_full_peer_loses_nothing(pairs: Pairs, layer: str) -> None:
    """What `send_nowait` says it took arrives, in order, once the peer reads; nothing else has to be sent for that."""
    stream, far = connect(pairs, layer)
    piece = memoryview(MEGABYTES)[: 1 << 16]
    accepted = 0
    while True:
        sent = stream.send_nowait(piece[accepted % len(piece) :])
        if not sent:
            break
        accepted += sent
    assert accepted > len(piece)
    taken = read(far, accepted) if "nested" not in layer else take_until_dry(far, accepted)
    assert len(taken) == accepted
    assert taken == (bytes(piece) * (accepted // len(piece) + 1))[:accepted]


def take_until_dry(far: Stream, count: int) -> bytes:
    far.timeout = 50 * SOON  # so that a loss shows as one
    taken = b""
    try:
        while len(taken) < count:
            taken += read(far, min(1 << 14, count - len(taken)))
    except socket.timeout:
        pass
    return taken


def test_a_view_of_pending_bytes_keeps_its_rest(pairs: Pairs, layer: str) -> None:
    """A poll finds a record that was read in part."""
    stream, far = connect(pairs, layer)
    far.send(b"0123456789")
    assert read(stream, 4) == b"0123"
    if layer != "plain":
        assert stream.holds_bytes()
    assert read(stream, 6) == b"456789"
    assert not stream.holds_bytes()


# --- dead or alive --------------------------------------------------------------------------------


def test_an_idle_connection_is_alive(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    assert not stream.unusable()


def test_a_closed_connection_is_dead(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.close()
    assert select_readable(stream)
    assert stream.unusable()


def test_a_reset_connection_is_dead(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.reset()
    assert select_readable(stream)
    assert stream.unusable()


def test_an_idle_connection_with_unexpected_bytes_is_dead(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert select_readable(stream)
    assert stream.unusable()


def test_bytes_after_the_head_make_a_connection_dead(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(HEAD + b"HTTP/1.1 200 OK\r\n\r\n")
    stream.read_head(TIMEOUT)
    assert stream.unusable()


def test_bytes_after_the_body_make_a_connection_dead(pairs: Pairs, layer: str) -> None:
    """An origin that sends a second response behind the body, in the same record, must not answer the next request."""
    stream, far = connect(pairs, layer)
    far.send(HEAD)
    stream.read_head(TIMEOUT)
    far.send(b"body" + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    assert read(stream, 4) == b"body"
    assert stream.unusable()


@pytest.mark.parametrize("layer", ["plain", "tls server"])
def test_a_tcp_close_without_close_notify_is_recognized(pairs: Pairs, layer: str) -> None:
    """It has ended TCP without a close_notify, as many clients do."""
    near, far = connect(pairs, layer)
    far.send(b"x")
    wait_until(near.arrived)
    far.close_abruptly()
    select.select([near], [], [], TIMEOUT)
    assert not near.peer_closed_silently()  # for there is a byte yet
    near.consume(1)
    assert near.peer_closed_silently() and near.eof
    before = time.monotonic()
    near.close()
    assert time.monotonic() - before < TIMEOUT / 2


def test_a_close_notify_is_answered(pairs: Pairs) -> None:
    near, far = connect(pairs, "tls server")
    far.shutdown_write()
    select.select([near], [], [], TIMEOUT)
    assert not near.peer_closed_silently() and not near.arrived() and near.eof
    near.close()
    assert far.readinto(memoryview(bytearray(1))) == 0  # a close_notify: without, this side raises


def test_a_reset_peer_is_recognized_as_closed(pairs: Pairs) -> None:
    near, far = connect(pairs, "tls server")
    assert not near.peer_closed_silently()
    far.reset()
    select.select([near], [], [], TIMEOUT)
    assert near.peer_closed_silently()


# --- handshakes in steps --------------------------------------------------------------------------


def test_tls_cannot_start_with_a_closed_peer(pairs: Pairs) -> None:
    """SSLSocket raises nothing there, and has nothing to shake hands with."""
    near, far = pairs.streams()
    far.reset()
    select.select([near], [], [], TIMEOUT)
    with pytest.raises(OSError):
        near.arrived()  # the kernel tells of the reset but once
    with pytest.raises(ConnectionLost):
        near.begin_tls(server_context())


def test_a_handshake_can_continue_step_by_step(pairs: Pairs) -> None:
    near, far = pairs.streams()
    near.begin_tls(server_context())
    assert near.handshaking and near.encrypted and not near.continue_tls()
    started = in_thread(far.start_tls, client_context(), HOST)
    while not near.continue_tls():
        select.select([near], [], [], TIMEOUT)
    started.result(TIMEOUT)
    assert not near.handshaking
    far.send(HEAD)
    assert near.read_head(TIMEOUT) == HEAD


def test_a_handshake_is_finished_by_waiting(pairs: Pairs) -> None:
    near, far = pairs.streams()
    near.begin_tls(server_context())
    assert not near.continue_tls()
    started = in_thread(far.start_tls, client_context(), HOST)
    near.finish_tls()
    started.result(TIMEOUT)
    assert not near.handshaking


def test_an_abandoned_handshake_times_out(pairs: Pairs) -> None:
    near, _ = pairs.streams(timeout=SOON)
    near.begin_tls(server_context())
    with pytest.raises(socket.timeout):
        near.finish_tls()


# --- heads, and the end ---------------------------------------------------------------------------


def test_a_complete_head_stays_in_the_buffer_until_it_is_taken(pairs: Pairs, layer: str) -> None:
    near, far = connect(pairs, layer)
    assert near.head_arrived() == b"" and not near.eof
    far.send(HEAD[:10])
    select.select([near], [], [], TIMEOUT)
    assert near.head_arrived() == b""
    far.send(HEAD[10:] + b"more")
    assert near.read_head(TIMEOUT) == HEAD  # waits for it, which the other does not
    assert near.buffered == 4
    near.consume(4)
    far.send(HEAD + HEAD)
    select.select([near], [], [], TIMEOUT)
    assert near.head_arrived() == HEAD == near.head_arrived()
    near.consume(len(HEAD))
    assert near.read_head(TIMEOUT) == HEAD


def test_the_end_is_noticed_without_waiting(pairs: Pairs, layer: str) -> None:
    near, far = connect(pairs, layer)
    assert near.head_arrived() == b"" and not near.eof
    far.close()
    select.select([near], [], [], TIMEOUT)
    assert near.head_arrived() == b"" and near.eof
