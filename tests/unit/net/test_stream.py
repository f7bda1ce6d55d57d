"""Streams on real sockets: plain, under TLS, under TLS in TLS. `far` is always the end that the test plays."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import ssl
import termios
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from support.client import wait_until
from support.pairs import HOST, SOON, TIMEOUT, Inner, Pairs, client_context, in_thread, read_all, reset, server_context

from net.endpoint import ConnectionLost, NamedSocket
from net.stream import Stream
from protocol.http1 import HEAD_LIMIT, ProtocolError
from tls.openssl import let_kernel_encrypt

HEAD = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
MEGABYTES = bytes(range(256)) * (4 * 1024 * 4)  # 4 MiB


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with Pairs() as pairs:
        yield pairs


ULPS = Path("/proc/sys/net/ipv4/tcp_available_ulp")
RECORD = 300  # bytes in the record that drips

LAYERS = ["plain", "tls server", "tls client", "nested server", "nested client"]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def connect(pairs: Pairs, layer: str, timeout: float = TIMEOUT) -> Tuple[Stream, Stream]:
    """Two streams, whose TLS handshakes are done and whose session tickets have been read."""
    kind, _, role = layer.partition(" ")
    if kind == "nested":
        near, far = pairs.nested(timeout, server=role == "server")
    else:
        near, far = pairs.streams(timeout)
        if kind == "tls":
            server, client = (near, far) if role == "server" else (far, near)
            started = in_thread(server.start_tls, server_context())
            client.start_tls(client_context(), HOST)
            started.result(TIMEOUT)
    for one, other in ((near, far), (far, near)):
        one.send(b"!")
        assert read(other, 1) == b"!"
    return near, far


def read(stream: Stream, count: int) -> bytes:
    """Exactly `count` bytes, or fewer at the end of the stream."""
    taken = b""
    while len(taken) < count:
        view = memoryview(bytearray(count - len(taken)))
        raw = stream.readinto(view)
        if not raw:
            break
        taken += view[:raw]
    return taken


def read_to_end(stream: Stream) -> bytes:
    pieces: List[bytes] = []
    view = memoryview(bytearray(1 << 18))
    while True:
        count = stream.readinto(view)
        if not count:
            return b"".join(pieces)
        pieces.append(bytes(view[:count]))


# --- heads and lines ------------------------------------------------------------------------------


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


def early_tls(pairs: Pairs) -> Tuple[Stream, Stream, bytes]:
    """A stream whose TLS began with bytes read ahead, its peer's plain stream, and a record that it may send."""
    stream, far = pairs.streams()
    inner = Inner(far, server=False)
    far.send(HEAD + inner.first_flight())
    assert stream.read_head(TIMEOUT) == HEAD
    assert stream.buffered
    started = in_thread(stream.start_tls, server_context())
    inner.handshake()
    started.result(TIMEOUT)
    return stream, far, inner.record(b"x" * RECORD)


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


def unread(stream: Stream) -> int:
    """How many bytes the kernel holds for it."""
    count = array.array("i", [0])
    fcntl.ioctl(stream.fileno(), termios.FIONREAD, count)
    return count[0]


def select_readable(stream: Stream) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(TIMEOUT * 1000))


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


# --- bytes ---------------------------------------------------------------------------------------


def test_megabytes_arrive_in_both_directions(pairs: Pairs, layer: str) -> None:
    near, far = connect(pairs, layer)
    for source, sink in ((near, far), (far, near)):
        sent = in_thread(source.send, MEGABYTES)
        assert read(sink, len(MEGABYTES)) == MEGABYTES
        sent.result(TIMEOUT)


@pytest.mark.parametrize("data", [b"", b"x", bytearray(b"xyz"), memoryview(b"xyz")[1:]])
def test_every_kind_of_buffer_can_be_sent(pairs: Pairs, layer: str, data: bytes) -> None:
    stream, far = connect(pairs, layer)
    stream.send(data)
    stream.sendall(data)
    stream.shutdown_write()
    assert read_to_end(far) == bytes(data) * 2


def test_a_slow_reader_does_not_time_out(pairs: Pairs, layer: str) -> None:
    """It takes far longer than the time-out in all, and never so long for a piece."""
    stream, far = connect(pairs, layer)
    stream.timeout = 0.5
    sending = in_thread(stream.send, MEGABYTES)
    got = 0
    pace = threading.Event()
    view = memoryview(bytearray(200_000))
    while got < len(MEGABYTES):
        got += far.readinto(view)
        if not sending.done():
            pace.wait(0.002)  # slow
    sending.result(TIMEOUT)


@pytest.fixture(scope="module")
def slow_readings(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Future[None]]:
    """What became of slow readers of each layer, and of one of a file, by name: all at once, as each takes a second."""
    path = tmp_path_factory.mktemp("slow") / "file"
    path.write_bytes(MEGABYTES)
    with Pairs() as pairs, path.open("rb") as file, ThreadPoolExecutor(len(LAYERS) + 1) as pool:
        readings = {}
        for name in LAYERS:
            stream, far = connect(pairs, name)
            readings[name] = pool.submit(read_slowly, stream, far, partial(send_a_piece, stream))
        stream, far = connect(pairs, "plain")
        send_file = partial(stream.send_file, file.fileno(), 0, 1 << 16)
        readings["file"] = pool.submit(read_slowly, stream, far, send_file)
        wait(readings.values())
    return readings


def send_a_piece(stream: Stream) -> int:
    stream.send(memoryview(MEGABYTES)[: 1 << 16])
    return 1 << 16


def test_a_reader_that_frees_less_than_a_third_of_its_buffer_does_not_time_out(
    slow_readings: Dict[str, Future[None]], layer: str
) -> None:
    """The kernel tells of room when a third of its buffer is free: with megabytes in it, that may take long."""
    slow_readings[layer].result(0)


def test_a_slow_reader_of_a_file_does_not_time_out(slow_readings: Dict[str, Future[None]]) -> None:
    slow_readings["file"].result(0)


def read_slowly(stream: Stream, far: Stream, go_on: Callable[[], int]) -> None:
    """Fill all buffers, and read a quarter of a megabyte in each timeout, while `go_on` sends what it says."""
    sent = 0
    while count := stream.send_nowait(memoryview(MEGABYTES)[: 1 << 16]):
        sent += count
    stream.timeout = 0.5
    sending = in_thread(go_on)
    view, got = memoryview(bytearray(25_000)), 0
    pace, began = threading.Event(), time.monotonic()
    while (
        elapsed := time.monotonic() - began
    ) < 2.2 * stream.timeout:  # the sender looks at its progress after 1, 1.5 and 2
        if got < 500_000 * elapsed:
            got += far.readinto(view)  # also what it was late for
        else:
            pace.wait(0.02)
    drained = in_thread(read_much, far, view, got, sent)
    sent += sending.result(TIMEOUT)
    stream.close_abruptly()
    assert drained.result(TIMEOUT) + len(read_rest(far)) == sent


def read_much(far: Stream, view: memoryview, got: int, wanted: int) -> int:
    while got < wanted:
        got += far.readinto(view[: wanted - got])
    return got


def read_rest(far: Stream) -> bytes:
    """Up to an end of whatever kind."""
    rest = b""
    view = memoryview(bytearray(1 << 16))
    try:
        while count := far.readinto(view):
            rest += view[:count]
    except OSError:
        pass  # without close_notify
    return rest


def test_a_reader_that_reads_nothing_times_out(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    stream.timeout = SOON
    with pytest.raises(socket.timeout):
        stream.send(MEGABYTES * 4)


def test_a_stalled_sender_times_out(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    stream.timeout = SOON
    with pytest.raises(socket.timeout):
        read(stream, 1)


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


def eventually(poll: Callable[[], object]) -> object:
    """The first answer that is not None. For what is on its way already."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = poll()
        if answer is not None:
            return answer
    raise AssertionError("nothing came")


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
    far.timeout = 10 * SOON  # so that a loss shows as one
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


# --- TLS ------------------------------------------------------------------------------------------


def test_tls_starts_on_a_plain_stream(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    assert not stream.encrypted
    secured = pairs.keep(pairs.secure(stream, far, server=True))
    assert stream.encrypted
    secured.sendall(HEAD)
    assert stream.read_head(TIMEOUT) == HEAD


def test_tls_starts_with_bytes_that_came_too_early(pairs: Pairs) -> None:
    """A client need not wait for the 200 to its CONNECT before its TLS begins, and some do not."""
    stream, far, record = early_tls(pairs)
    assert stream.encrypted
    assert stream.buffered == 0
    far.send(record)
    assert read(stream, RECORD) == b"x" * RECORD


def test_the_name_in_the_handshake_is_known(pairs: Pairs) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = NamedSocket
    server = server_context()

    def choose(sock: NamedSocket, name: str, _: ssl.SSLContext) -> None:
        sock.server_name = name
        sock.context = server

    context.sni_callback = choose  # type: ignore[assignment]
    near, far = pairs.streams()
    assert near.server_name is None
    started = in_thread(near.start_tls, context)
    far.start_tls(client_context(), HOST)
    started.result(TIMEOUT)
    assert near.server_name == HOST
    assert far.server_name is None


@pytest.mark.parametrize("layers", [0, 1])
def test_a_server_with_another_name_is_refused(pairs: Pairs, layers: int) -> None:
    near, far = pairs.streams()
    for _ in range(layers):
        started = in_thread(far.start_tls, server_context())
        near.start_tls(client_context(), HOST)
        started.result(TIMEOUT)
    refused = in_thread(far.start_tls, server_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        near.start_tls(client_context(), "b.example")
    near.close_abruptly()
    with pytest.raises(OSError):
        far.timeout = SOON
        refused.result(TIMEOUT)
        read(far, 1)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_refused_server_gets_an_alert(pairs: Pairs, layers: int) -> None:
    """The alert leaves before the connection does; without it every misconfigured client is a riddle."""
    near, far = pairs.streams()
    for _ in range(layers):
        started = in_thread(far.start_tls, server_context())
        near.start_tls(client_context(), HOST)
        started.result(TIMEOUT)

    def serve() -> None:
        far.start_tls(server_context())
        read(far, 1)

    serving = in_thread(serve)
    with pytest.raises(ssl.SSLCertVerificationError):
        near.start_tls(client_context(), "b.example")
    near.close_abruptly()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        serving.result(TIMEOUT)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("said", [b"", b"\x16\x03", b"GET / HTTP/1.1\r\n\r\n" * 5])
def test_a_close_during_the_handshake_is_an_error(pairs: Pairs, layers: int, said: bytes) -> None:
    near, far = pairs.streams()
    if layers:
        started = in_thread(near.start_tls, server_context())
        far.start_tls(client_context(), HOST)
        started.result(TIMEOUT)
    far.send(said)
    far.close()
    with pytest.raises(OSError):
        near.start_tls(server_context())
    near.close()


@pytest.mark.parametrize("layers", [0, 1])
def test_a_peer_that_stalls_in_the_handshake_times_out(pairs: Pairs, layers: int) -> None:
    near, far = pairs.streams()
    if layers:
        started = in_thread(near.start_tls, server_context())
        far.start_tls(client_context(), HOST)
        started.result(TIMEOUT)
    near.timeout = SOON
    with pytest.raises(socket.timeout):
        near.start_tls(server_context())
    near.close()


def test_tls_runs_in_tls_in_tls(pairs: Pairs) -> None:
    near, far = pairs.nested()
    started = in_thread(near.start_tls, server_context())
    far.start_tls(client_context(), HOST)
    started.result(TIMEOUT)
    sent = in_thread(far.send, MEGABYTES[:1_000_000])
    assert read(near, 1_000_000) == MEGABYTES[:1_000_000]
    sent.result(TIMEOUT)


# --- ends -----------------------------------------------------------------------------------------


def test_half_close_by_the_far_end_leaves_the_way_back_open(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"question")
    far.shutdown_write()
    assert read_to_end(stream) == b"question"
    stream.send(b"answer")
    stream.close()
    assert read_to_end(far) == b"answer"


def test_half_close_by_our_end_leaves_the_way_back_open(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.send(b"question")
    stream.shutdown_write()
    assert read_to_end(far) == b"question"
    far.send(b"answer")
    far.close()
    assert read_to_end(stream) == b"answer"


def test_bytes_in_flight_survive_a_half_close(pairs: Pairs, layer: str) -> None:
    """The far end is in the middle of sending when we close our direction."""
    stream, far = connect(pairs, layer)
    far.send(b"first")
    assert select_readable(stream)
    stream.shutdown_write()
    far.send(b"second")
    far.close()
    assert read_to_end(stream) == b"firstsecond"


@pytest.mark.parametrize("layer", ["tls server", "tls client", "nested server", "nested client"])
def test_records_read_ahead_survive_a_half_close(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"first")
    far.send(b"second")
    assert read(stream, 1) == b"f"
    stream.shutdown_write()
    far.close()
    assert read_to_end(stream) == b"irstsecond"


def raw_end(layer: str, pairs: Pairs) -> Tuple[Stream, ssl.SSLSocket]:
    return pairs.tls(server=layer == "server")


@pytest.mark.parametrize("role", ["server", "client"])
def test_close_sends_close_notify(pairs: Pairs, role: str) -> None:
    stream, far = raw_end(role, pairs)
    stream.send(b"all of it")
    stream.close()
    assert read_all(far) == b"all of it"  # a missing close_notify would raise
    stream.close()


@pytest.mark.parametrize("role", ["server", "client"])
def test_cut_sends_no_close_notify(pairs: Pairs, role: str) -> None:
    stream, far = raw_end(role, pairs)
    stream.send(b"part of it")
    stream.close_abruptly()
    assert far.recv(100) == b"part of it"
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        far.recv(100)
    stream.close()


def test_close_after_cut_sends_nothing(pairs: Pairs) -> None:
    stream, far = pairs.tls()
    stream.close_abruptly()
    stream.close()
    stream.linger(TIMEOUT)
    stream.reset()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        far.recv(100)


def test_cut_is_an_end_for_a_plain_peer(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    stream.send(b"part of it")
    stream.close_abruptly()
    assert read_all(far) == b"part of it"


def test_abort_resets(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.reset()
    assert select_readable(far)
    with socket.socket(fileno=os.dup(far.fileno())) as bare:
        assert bare.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_every_close_is_idempotent(pairs: Pairs, layer: str) -> None:
    for first in (Stream.close, Stream.close_abruptly, Stream.reset, lambda stream: stream.linger(SOON)):
        stream, _ = connect(pairs, layer)
        first(stream)
        for again in (
            Stream.close,
            Stream.close_abruptly,
            Stream.reset,
            Stream.cancel,
            lambda stream: stream.linger(SOON),
        ):
            again(stream)


@pytest.mark.parametrize("leave", [Stream.close, Stream.close_abruptly, Stream.reset])
def test_close_is_harmless_when_the_peer_is_gone(pairs: Pairs, layer: str, leave: Callable[[Stream], None]) -> None:
    stream, far = connect(pairs, layer)
    leave(far)
    assert select_readable(stream)
    stream.close()


def test_close_does_not_wait_for_a_peer_that_does_not_read(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    piece = memoryview(MEGABYTES)[: 1 << 16]
    while stream.send_nowait(piece):
        pass
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < TIMEOUT / 2


@pytest.mark.parametrize("layer", ["tls client", "nested client"])
def test_an_origin_that_closes_without_close_notify_is_an_error(pairs: Pairs, layer: str) -> None:
    """Otherwise an attacker who cuts a connection shortens a close-delimited body unnoticed."""
    stream, far = connect(pairs, layer)
    far.send(b"half of it")
    far.close_abruptly()
    assert read(stream, 10) == b"half of it"
    with pytest.raises(OSError):
        read(stream, 1)


def test_a_close_notify_of_a_parent_proxy_is_not_the_origins(pairs: Pairs) -> None:
    """The outer TLS ends in good order, the inner one does not: what came through is not complete."""
    stream, far = pairs.streams()
    started = in_thread(far.start_tls, server_context())
    stream.start_tls(client_context(), HOST)
    started.result(TIMEOUT)
    inner = Inner(far, server=True)
    handshake = in_thread(inner.handshake)
    stream.start_tls(client_context(), HOST)
    handshake.result(TIMEOUT)
    far.send(inner.record(b"half of it"))
    far.close()
    assert read(stream, 10) == b"half of it"
    with pytest.raises(OSError):
        read(stream, 1)


@pytest.mark.parametrize("layer", ["tls client", "nested client"])
def test_a_close_notify_of_the_origin_is_the_end(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"all of it")
    far.close()
    assert read_to_end(stream) == b"all of it"
    assert read_to_end(stream) == b""


@pytest.mark.parametrize("layer", ["plain", "tls server", "nested server"])
def test_a_client_may_close_without_close_notify(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.close_abruptly()
    assert stream.read_head(TIMEOUT) == b""


def test_linger_lets_the_last_answer_be_read(pairs: Pairs, layer: str) -> None:
    """RFC 9112 §9.6: unread bytes of a request would turn the close into a reset, which destroys the answer."""
    stream, far = connect(pairs, layer)
    far.send(MEGABYTES[:100_000])
    stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    lingering = in_thread(stream.linger, TIMEOUT)
    far.send(MEGABYTES[:100_000])
    assert read_to_end(far) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    far.close()
    lingering.result(TIMEOUT)


def test_linger_ends_by_itself(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.linger(SOON)
    assert stream.fileno() == -1
    assert read_to_end(far) == b""


def test_linger_survives_a_reset(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.reset()
    assert select_readable(stream)
    stream.linger(TIMEOUT)
    assert stream.fileno() == -1


def test_cancel_wakes_a_reader(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    reading: List[object] = []
    started = threading.Event()

    def read_until_woken() -> None:
        started.set()
        try:
            reading.append(read(stream, 1))
        except OSError as error:
            reading.append(error)

    waiting = in_thread(read_until_woken)
    assert started.wait(TIMEOUT)
    stream.cancel()
    waiting.result(TIMEOUT)
    assert reading[0] == b"" or not isinstance(reading[0], socket.timeout)


@pytest.mark.parametrize("name", [None, HOST], ids=["server", "client"])
def test_cancel_wakes_a_handshake(pairs: Pairs, name: Optional[str]) -> None:
    """A peer that says nothing must not hold up the end of dduct."""
    stream, _ = pairs.plain()
    context = server_context() if name is None else client_context()
    shaking = in_thread(stream.start_tls, context, name)
    wait_until(lambda: stream.encrypted)
    stream.cancel()
    with pytest.raises(OSError) as caught:
        shaking.result(TIMEOUT / 2)
    assert not isinstance(caught.value, socket.timeout)


def test_cancel_wakes_a_writer(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    while stream.send_nowait(memoryview(MEGABYTES)[: 1 << 16]):
        pass
    writing = in_thread(stream.send, memoryview(MEGABYTES)[: 1 << 16])
    stream.cancel()
    with pytest.raises(OSError) as caught:
        writing.result(TIMEOUT)
    assert not isinstance(caught.value, socket.timeout)


def test_makefile_for_http_client_does_not_close_the_stream(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    stream.makefile("rb").close()
    far.sendall(b"x")
    assert read(stream, 1) == b"x"


def test_read_much_takes_all_records_that_have_arrived(pairs: Pairs, layer: str) -> None:
    """All records that have arrived, where `readinto` gives one."""
    near, far = connect(pairs, layer)
    raw = os.urandom(100_000)
    sending = in_thread(far.send, raw)
    view = memoryview(bytearray(200_000))
    count = 0
    while count < len(raw):
        count += near.read_much(view[count:])
    sending.result(TIMEOUT)
    assert bytes(view[:count]) == raw


def test_an_error_after_bytes_is_raised_after_them(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = connect(pairs, "plain")
    far.send(b"x")  # so that something is there to be read
    counts = iter([3, 2])

    class Transport:
        def recv_into(self, _: object) -> int:
            for count in counts:
                return count
            raise ConnectionResetError("gone")

        def settimeout(self, _: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(near, "_transport", Transport())
        assert near.read_much(memoryview(bytearray(100))) == 5
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                near.readinto(memoryview(bytearray(100)))


def test_bytes_before_the_close_are_kept_after_our_own_close_notify(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises SSLZeroReturnError for the peer's close_notify then."""
    near, far = connect(pairs, "tls")
    far.send(b"abc")
    wait_until(near.arrived)

    class Ended:
        def read(self, *_: object) -> int:
            raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed")

    with monkeypatch.context() as patch:
        patch.setattr(near, "_tls", Ended())
        view = memoryview(bytearray(100))
        assert near.read_much(view) == 3 and bytes(view[:3]) == b"abc"
        assert near.read_much(view) == 0


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


def test_tls_cannot_start_with_a_closed_peer(pairs: Pairs) -> None:
    """SSLSocket raises nothing there, and has nothing to shake hands with."""
    near, far = pairs.streams()
    far.reset()
    select.select([near], [], [], TIMEOUT)
    with pytest.raises(OSError):
        near.arrived()  # the kernel tells of the reset but once
    with pytest.raises(ConnectionLost):
        near.begin_tls(server_context())


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


# --- without waiting ----------------------------------------------------------------------------


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


# --- what the kernel sends ----------------------------------------------------------------------


def test_sendfile_is_used_under_tls_only_if_the_kernel_encrypts(pairs: Pairs, layer: str, tmp_path: Path) -> None:
    """Whether it can for TLS depends on the machine; that nothing arrives in plaintext does not."""
    for make in (server_context, client_context):
        let_kernel_encrypt(make())
    near, far = connect(pairs, layer)
    if layer == "plain":
        assert near.takes_files
    elif not layer.startswith("tls") or "tls" not in ULPS.read_text().split():
        assert not near.takes_files
    (tmp_path / "file").write_bytes(MEGABYTES)
    received = in_thread(read, far, len(MEGABYTES))
    with (tmp_path / "file").open("rb") as file:
        offset = 0
        while near.takes_files and offset < len(MEGABYTES):
            offset += near.send_file(file.fileno(), offset, len(MEGABYTES) - offset)
    near.send(MEGABYTES[offset:])
    assert received.result(TIMEOUT) == MEGABYTES
