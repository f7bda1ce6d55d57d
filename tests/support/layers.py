"""Two streams, plain, under TLS, or under TLS in TLS, for the tests of whatever carries bytes."""

from __future__ import annotations

import select
import time
from typing import Callable, List, Tuple

from net.stream import Stream
from support.pairs import HOST, TIMEOUT, Inner, Pairs, client_context, in_thread, server_context

HEAD = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
MEGABYTES = bytes(range(256)) * (4 * 1024 * 4)  # 4 MiB
RECORD = 300  # bytes in the record that drips
LAYERS = ["plain", "tls server", "tls client", "nested server", "nested client"]


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
    view, taken = memoryview(bytearray(count)), 0
    while taken < count:
        more = stream.readinto(view[taken:])
        if not more:
            break
        taken += more
    return bytes(view[:taken])


def read_to_end(stream: Stream) -> bytes:
    pieces: List[bytes] = []
    view = memoryview(bytearray(1 << 18))
    while True:
        count = stream.readinto(view)
        if not count:
            return b"".join(pieces)
        pieces.append(bytes(view[:count]))


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


def select_readable(stream: Stream) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(TIMEOUT * 1000))


def eventually(poll: Callable[[], object]) -> object:
    """The first answer that is not None. For what is on its way already."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = poll()
        if answer is not None:
            return answer
    raise AssertionError("nothing came")
