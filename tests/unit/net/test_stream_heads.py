"""Heads and lines that a stream reads: whole, in pieces, too long, too late."""

from __future__ import annotations

import array
import fcntl
import socket
import termios
import threading

import pytest
from support.layers import (
    HEAD,
    connect,
    early_tls,
    eventually,
    read,
    select_readable,
)
from support.pairs import SOON, TIMEOUT, Pairs, in_thread, reset

from net.endpoint import ConnectionLost
from net.stream import Stream
from protocol.http1 import HEAD_LIMIT, ProtocolError


def test_a_head_is_read_and_what_follows_is_kept(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(HEAD + b"body")
    assert stream.read_head(TIMEOUT) == HEAD
    assert stream.buffered == 4
    assert stream.holds_bytes()
    assert read(stream, 4) == b"body"
    assert stream.buffered == 0
    assert not stream.holds_bytes()


def test_pipelined_heads_come_one_by_one(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(HEAD * 3)
    assert [stream.read_head(TIMEOUT) for _ in range(3)] == [HEAD] * 3


@pytest.mark.parametrize("cut", range(1, len(HEAD)))
def test_a_head_may_come_in_two_pieces(pairs: Pairs, cut: int) -> None:
    stream, far = pairs.plain()
    far.sendall(HEAD[:cut])
    head = in_thread(stream.read_head, TIMEOUT)
    far.sendall(HEAD[cut:] + b"x")
    assert head.result(TIMEOUT) == HEAD


def test_a_head_may_come_byte_by_byte(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = in_thread(stream.read_head, TIMEOUT)
    for byte in HEAD:
        far.sendall(bytes([byte]))
    assert head.result(TIMEOUT) == HEAD


def test_empty_lines_before_a_head_are_skipped(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"\r\n\r\n\r\n" + HEAD)
    assert stream.read_head(TIMEOUT) == HEAD


def test_an_empty_line_before_a_head_is_skipped_when_it_is_torn(pairs: Pairs) -> None:
    """The verdict on a message must not depend on how it was cut into packets (RFC 9112 §2.2)."""
    stream, far = pairs.plain()
    far.sendall(b"\r")
    assert select_readable(stream)
    head = in_thread(stream.read_head, TIMEOUT)
    assert eventually(lambda: not unread(stream) or None)  # now the reader has only the CR
    far.sendall(b"\n" + HEAD)
    assert head.result(TIMEOUT) == HEAD


def test_a_peer_that_closes_after_empty_lines_sent_no_head(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.sendall(b"\r\n\r\n")
    far.close()
    assert stream.read_head(TIMEOUT) == b""


def test_a_close_between_heads_is_no_error(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.close()
    assert stream.read_head(TIMEOUT) == b""


@pytest.mark.parametrize("sent", [b"G", HEAD[:-1], HEAD[:-2], b"\r\nG"])
def test_a_torn_head_is_an_error(pairs: Pairs, sent: bytes) -> None:
    stream, far = pairs.plain()
    far.sendall(sent)
    far.close()
    with pytest.raises(ConnectionLost):
        stream.read_head(TIMEOUT)


def test_a_reset_between_heads_is_an_error(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    reset(far)
    with pytest.raises(ConnectionResetError):
        stream.read_head(TIMEOUT)


@pytest.mark.parametrize("size", [HEAD_LIMIT - 1, HEAD_LIMIT])
def test_a_head_up_to_the_limit_is_read(pairs: Pairs, size: int) -> None:
    stream, far = pairs.plain()
    head = b"x" * (size - 4) + b"\r\n\r\n"
    sent = in_thread(far.sendall, head + b"rest")
    assert stream.read_head(TIMEOUT) == head
    assert read(stream, 4) == b"rest"
    sent.result(TIMEOUT)


@pytest.mark.parametrize("size", [HEAD_LIMIT + 1, HEAD_LIMIT * 2])
@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
def test_a_head_beyond_the_limit_is_refused(pairs: Pairs, size: int, end: bytes) -> None:
    stream, far = pairs.plain()
    sent = in_thread(far.sendall, b"x" * (size - len(end)) + end)
    with pytest.raises(ProtocolError) as caught:
        stream.read_head(TIMEOUT)
    assert caught.value.status == 431
    sent.result(TIMEOUT)


def test_a_smaller_limit_can_be_asked_for(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.sendall(HEAD)
    with pytest.raises(ProtocolError):
        stream.read_head(TIMEOUT, limit=len(HEAD) - 1)


def test_a_head_is_not_waited_for_longer_than_the_idle_time(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    with pytest.raises(socket.timeout):
        stream.read_head(SOON)


def drip(far: Stream, data: bytes, stop: threading.Event) -> None:
    """Byte by byte, until the peer closes."""
    try:
        for byte in data:
            far.send(bytes([byte]))
            if stop.wait(SOON / 4):
                return
    except OSError:
        pass


@pytest.mark.parametrize("layer", ["plain", "tls server"])
def test_a_dripping_head_has_one_deadline(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.timeout = 4 * SOON
    stop = threading.Event()
    dripping = in_thread(drip, far, b"x" * 2000, stop)
    with pytest.raises(socket.timeout):
        stream.read_head(TIMEOUT)
    stop.set()
    dripping.result(TIMEOUT)


def test_a_head_in_a_dripping_record_has_one_deadline_under_nested_tls(pairs: Pairs) -> None:
    """A byte of a TLS record must not restart the timeout, or one record keeps a thread for days."""
    stream, far, record = early_tls(pairs)
    stream.timeout = 4 * SOON
    stop = threading.Event()
    dripping = in_thread(drip, far, record, stop)
    with pytest.raises(socket.timeout):
        stream.read_head(4 * SOON)
    assert not dripping.done()  # however slow this machine is: the whole record takes longer
    stop.set()
    dripping.result(TIMEOUT)


def unread(stream: Stream) -> int:
    """How many bytes the kernel holds for it."""
    count = array.array("i", [0])
    fcntl.ioctl(stream.fileno(), termios.FIONREAD, count)
    return count[0]


def test_a_line_is_read_and_what_follows_is_kept(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"5;x\r\n\nrest")
    assert stream.read_line(100) == b"5;x\r\n"
    assert stream.read_line(100) == b"\n"
    assert read(stream, 4) == b"rest"


@pytest.mark.parametrize("line, limit", [(b"\n", 1), (b"\r\n", 2), (b"x" * 98 + b"\r\n", 100)])
def test_a_line_may_be_as_long_as_the_limit(pairs: Pairs, line: bytes, limit: int) -> None:
    stream, far = pairs.plain()
    far.sendall(line + b"x")
    assert stream.read_line(limit) == line


@pytest.mark.parametrize("line", [b"xx", b"x\r\n", b"xxx\r\n"])
def test_a_line_beyond_the_limit_is_refused(pairs: Pairs, line: bytes) -> None:
    stream, far = pairs.plain()
    far.sendall(line)
    with pytest.raises(ProtocolError):
        stream.read_line(2)


@pytest.mark.parametrize("sent", [b"", b"5", b"5\r"])
def test_a_torn_line_is_an_error(pairs: Pairs, sent: bytes) -> None:
    stream, far = pairs.plain()
    far.sendall(sent)
    far.close()
    with pytest.raises(ConnectionLost):
        stream.read_line(100)


def test_a_line_is_not_waited_for_longer_than_the_timeout(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.timeout = SOON
    far.send(b"5\r")
    with pytest.raises(socket.timeout):
        stream.read_line(100)
