"""Bodies on real connections: every framing against every end."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Callable, List, Optional, Tuple, Union

import pytest
from support.pairs import SOON, TIMEOUT, Pairs, in_thread, read_all, reset

from net.body import BodyReader, BodyWriter, IncompleteBody, borrowed_buffer
from net.stream import Stream
from protocol import http1
from protocol.http1 import BodyFraming, Framing

NONE, CHUNKED, CLOSE = http1.NO_BODY, http1.CHUNKED, http1.UNTIL_CLOSE
BODY = b"0123456789"
CHUNKS = b"4;x=y\r\n0123\r\n006\r\n456789\r\n0\r\nDigest: x\r\n\r\n"
MEGABYTE = bytes(range(256)) * 4096


def length(raw: int) -> BodyFraming:
    return BodyFraming(Framing.LENGTH, raw)


Far = Union[socket.socket, ssl.SSLSocket]


def fin(far: Far) -> None:
    """The end of a plain connection; of a TLS one, its FIN without close_notify."""
    far.close()


def goodbye(far: Far) -> None:
    if isinstance(far, ssl.SSLSocket):
        far.settimeout(0)
        with pytest.raises(ssl.SSLWantReadError):
            far.unwrap()
    far.close()


def stall(far: Far) -> None:
    """Nothing more, and no end."""


def connect(pairs: Pairs, kind: str) -> Tuple[Stream, Far]:
    """A stream as dduct has it towards an origin, and the origin."""
    return pairs.tls(server=False) if kind == "tls" else pairs.plain()


def collect(reader: BodyReader, size: int = 1 << 18) -> bytes:
    return b"".join(bytes(piece) for piece in reader.chunks(memoryview(bytearray(size))))


def take(reader: BodyReader) -> Tuple[bytes, bool]:
    """What came, and whether the body said that it was complete."""
    buffer = memoryview(bytearray(3))  # smaller than any piece
    taken = b""
    try:
        while True:
            count = reader.readinto(buffer)
            if not count:
                assert reader.complete
                assert reader.readinto(buffer) == 0
                return taken, True
            taken += bytes(buffer[:count])
    except IncompleteBody as error:
        assert str(error)
        assert not reader.complete
        return taken, False


ENDS: List[Tuple[str, Callable[[Far], None]]] = [
    ("plain", fin),
    ("plain", reset),
    ("plain", stall),
    ("tls", goodbye),
    ("tls", fin),
    ("tls", reset),
    ("tls", stall),
]
ends = pytest.mark.parametrize("kind, end", ENDS, ids=lambda value: getattr(value, "__name__", value))


@ends
@pytest.mark.parametrize("framing, sent", [(NONE, b""), (length(0), b""), (length(10), BODY), (CHUNKED, CHUNKS)])
def test_a_whole_delimited_body_is_complete_whatever_follows(
    pairs: Pairs, framing: BodyFraming, sent: bytes, kind: str, end: Callable[[Far], None]
) -> None:
    stream, far = connect(pairs, kind)
    far.sendall(sent)
    if end is not reset:  # which may overtake what was sent
        end(far)
    reader = BodyReader(stream, framing)
    assert reader.delimited
    assert take(reader) == ((BODY if sent else b""), True)
    if end is reset:
        end(far)


@ends
@pytest.mark.parametrize(
    "framing, sent", [(length(11), BODY), (length(1), b""), (CHUNKED, CHUNKS[:-1]), (CHUNKED, b"")]
)
def test_a_short_delimited_body_is_incomplete_whatever_follows(
    pairs: Pairs, framing: BodyFraming, sent: bytes, kind: str, end: Callable[[Far], None]
) -> None:
    stream, far = connect(pairs, kind)
    stream.timeout = 5 * SOON if end is stall else TIMEOUT
    far.sendall(sent)
    end(far)
    taken, complete = take(BodyReader(stream, framing))
    assert not complete
    assert BODY.startswith(taken)
    assert taken == BODY or end is reset or not sent


@pytest.mark.parametrize(
    "kind, end, complete",
    [(kind, end, (kind, end) in (("plain", fin), ("tls", goodbye))) for kind, end in ENDS],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_body_until_close_is_complete_only_after_a_clean_end(
    pairs: Pairs, kind: str, end: Callable[[Far], None], complete: bool
) -> None:
    stream, far = connect(pairs, kind)
    stream.timeout = 5 * SOON if end is stall else TIMEOUT
    far.sendall(BODY)
    reader = BodyReader(stream, CLOSE)
    assert not reader.delimited
    assert reader.readinto(memoryview(bytearray(10))) == 10
    end(far)
    assert take(reader) == (b"", complete)


def test_a_body_consumes_no_bytes_after_its_end(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.sendall(BODY + CHUNKS + BODY)
    for framing in (length(10), CHUNKED, length(10)):
        assert take(BodyReader(stream, framing)) == (BODY, True)
    assert stream.buffered == 0


@pytest.mark.parametrize("cut", range(len(CHUNKS) + 1))
def test_chunks_may_be_torn_anywhere(pairs: Pairs, cut: int) -> None:
    stream, far = pairs.plain()
    far.sendall(CHUNKS[:cut])
    body = in_thread(take, BodyReader(stream, CHUNKED))
    far.sendall(CHUNKS[cut:])
    assert body.result(TIMEOUT) == (BODY, True)


@pytest.mark.parametrize("cut", range(len(CHUNKS)))
def test_chunks_that_end_anywhere_but_at_their_end_are_incomplete(pairs: Pairs, cut: int) -> None:
    stream, far = pairs.plain()
    far.sendall(CHUNKS[:cut])
    far.close()
    taken, complete = take(BodyReader(stream, CHUNKED))
    assert not complete
    assert BODY.startswith(taken)


def test_chunks_may_come_byte_by_byte(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = in_thread(take, BodyReader(stream, CHUNKED))
    for byte in CHUNKS:
        far.sendall(bytes([byte]))
    assert body.result(TIMEOUT) == (BODY, True)


def test_chunks_may_be_larger_than_the_buffer_and_smaller(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    sent = in_thread(far.sendall, b"100000\r\n" + MEGABYTE + b"\r\n" + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")
    assert collect(BodyReader(stream, CHUNKED), 1 << 16) == MEGABYTE + b"x" * 1000
    sent.result(TIMEOUT)


BAD_CHUNKS = [
    b"0\r\n" + b"A: x\r\n" * 201 + b"\r\n",
    b"\r\n0\r\n\r\n",
    b"x\r\n0\r\n\r\n",
    b"0x0\r\n\r\n",
    b"-1\r\n\r\n",
    b"+0\r\n\r\n",
    b" 0\r\n\r\n",
    b"0 \r\n\r\n",
    b"0x_3\r\nabc\r\n0\r\n\r\n",
    b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    b"0\n\n",
    b"0\n\r\n",
    b"0\r\n\n",
    b"0;\x00\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"0" * 5000 + b"\r\n\r\n",
    b"0;" + b"x" * 5000 + b"\r\n\r\n",
    # the end of a chunk
    b"1\r\nx0\r\n\r\n",
    b"1\r\nx\n0\r\n\r\n",
    b"1\r\nx\r0\r\n\r\n",
    b"1\r\nxy\r\n0\r\n\r\n",
    b"1\r\nx \r\n0\r\n\r\n",
    b"1\r\nx\r\n\r\n0\r\n\r\n",
    b"2\r\nx\r\n0\r\n\r\n",
    # trailers
    b"0\r\nDigest\r\n\r\n",
    b"0\r\nDigest : x\r\n\r\n",
    b"0\r\n: x\r\n\r\n",
    b"0\r\n x\r\n\r\n",
    b"0\r\nA: x\r\n y\r\n\r\n",
    b"0\r\nA: \x00\r\n\r\n",
    b"0\r\nA: x\n\r\n",
    b"0\r\nA: x\rB: y\r\n\r\n",
    b"0\r\n0\r\n\r\n",
    b"0\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"0\r\nA: " + b"x" * 70000 + b"\r\n\r\n",
    b"0\r\n" + b"A: x\r\n" * 12000 + b"\r\n",
]


@pytest.mark.parametrize("sent", BAD_CHUNKS, ids=lambda sent: repr(sent[:30]))
def test_a_malformed_chunked_body_is_never_complete(pairs: Pairs, sent: bytes) -> None:
    stream, far = pairs.plain()
    sending = in_thread(far.sendall, sent)
    assert take(BodyReader(stream, CHUNKED))[1] is False
    stream.reset()
    assert sending.exception(TIMEOUT) is None or isinstance(sending.exception(), OSError)


@pytest.mark.parametrize(
    "trailers", [b"", b"A: x\r\n", b"A:\r\nb: \xff\r\n", b"Content-Length: 5\r\n", b"A: x\r\n" * 200]
)
def test_trailers_are_read(pairs: Pairs, trailers: bytes) -> None:
    stream, far = pairs.plain()
    far.sendall(b"0\r\n" + trailers + b"\r\n" + b"next")
    reader = BodyReader(stream, CHUNKED)
    assert take(reader) == (b"", True)
    assert len(reader.trailers) == trailers.count(b":")
    assert stream.buffered == 4


@pytest.mark.parametrize(
    "sent",
    [b"5\r\nhello\r\nZZ\r\n\r\n0\r\n\r\n", b"x\r\n\r\n0\r\n\r\n", b"0\r\nbad\r\n\r\n0\r\n\r\n" + b"0\r\n\r\n" * 3],
)
def test_a_body_that_broke_stays_broken(pairs: Pairs, sent: bytes) -> None:
    """A later read, as by drain(), must not make it complete: its connection would be kept."""
    stream, far = pairs.plain()
    far.sendall(sent)
    reader = BodyReader(stream, CHUNKED)
    take(reader)
    for _ in range(3):
        with pytest.raises(IncompleteBody):
            reader.readinto(memoryview(bytearray(100)))
    assert not reader.drain(1 << 16)
    assert not reader.complete


# --- before the first bytes ----------------------------------------------------------------------


def test_the_sender_gets_100_continue_once(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.sendall(BODY)
    calls: List[int] = []
    reader = BodyReader(stream, length(10), lambda: calls.append(1))
    assert not reader.started
    assert not calls
    assert take(reader) == (BODY, True)
    assert reader.started
    assert calls == [1]


@pytest.mark.parametrize("framing", [NONE, length(0)])
def test_a_sender_without_body_gets_no_100_continue(pairs: Pairs, framing: BodyFraming) -> None:
    stream, _ = pairs.plain()
    calls: List[int] = []
    assert take(BodyReader(stream, framing, lambda: calls.append(1))) == (b"", True)
    assert not calls


def test_a_failed_100_continue_fails_the_body(pairs: Pairs) -> None:
    stream, _ = pairs.plain()

    def fail() -> None:
        raise BrokenPipeError

    assert take(BodyReader(stream, length(10), fail)) == (b"", False)


# --- draining -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framing, sent, read_before, limit, drained",
    [
        (NONE, b"", 0, 0, True),
        (length(0), b"", 0, 0, True),
        (length(10), BODY, 0, 10, True),
        (length(10), BODY, 0, 11, True),
        (length(10), BODY, 0, 9, False),
        (length(10), BODY, 0, 0, False),
        (length(10), BODY, 10, 0, True),
        (length(10), BODY, 8, 2, True),
        (length(10), BODY, 8, 1, False),
        (length(10), BODY[:9], 0, 20, False),
        (CHUNKED, CHUNKS, 0, 11, True),
        (CHUNKED, CHUNKS, 0, 10, True),
        (CHUNKED, CHUNKS, 4, 6, True),
        (CHUNKED, CHUNKS, 0, 5, False),
        (CHUNKED, CHUNKS[:-2], 0, 100, False),
        (CHUNKED, b"x", 0, 100, False),
        (CLOSE, BODY, 0, 20, True),
        (CLOSE, BODY, 0, 9, False),
    ],
)
def test_the_rest_of_a_body_is_drained_up_to_a_limit(
    pairs: Pairs, framing: BodyFraming, sent: bytes, read_before: int, limit: int, drained: bool
) -> None:
    stream, far = pairs.plain()
    far.sendall(sent)
    far.close()
    reader = BodyReader(stream, framing)
    if read_before:
        taken = memoryview(bytearray(read_before))
        assert reader.readinto(taken) == read_before
    assert reader.drain(limit) is drained
    assert reader.complete is drained


def test_an_endless_body_is_not_drained_for_ever(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    chunks = b"100\r\n" + b"x" * 256 + b"\r\n"
    sending = in_thread(far.sendall, chunks * 4000)
    assert BodyReader(stream, CHUNKED).drain(10_000) is False
    stream.reset()
    assert isinstance(sending.exception(TIMEOUT), OSError) or sending.done()


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framing, pieces, expected",
    [
        (length(10), [BODY[:3], BODY[3:]], BODY),
        (CLOSE, [BODY], BODY),
        (CHUNKED, [], b"0\r\n\r\n"),
        (CHUNKED, [b"x"], b"1\r\nx\r\n0\r\n\r\n"),
        (CHUNKED, [b"x" * 255, b"yz"], b"ff\r\n" + b"x" * 255 + b"\r\n2\r\nyz\r\n0\r\n\r\n"),
        (CHUNKED, [memoryview(BODY)[2:5]], b"3\r\n234\r\n0\r\n\r\n"),
    ],
)
def test_a_body_is_written_in_its_framing(
    pairs: Pairs, framing: BodyFraming, pieces: List[Union[bytes, memoryview]], expected: bytes
) -> None:
    stream, far = pairs.plain()
    writer = BodyWriter(stream, framing)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    stream.close()
    assert read_all(far) == expected


@pytest.mark.parametrize("framing", [length(len(MEGABYTE)), CHUNKED])
def test_a_written_body_is_read_back(pairs: Pairs, framing: BodyFraming) -> None:
    near, far = pairs.streams()

    def write() -> None:
        writer = BodyWriter(near, framing)
        for start in range(0, len(MEGABYTE), 100_000):
            writer.write(memoryview(MEGABYTE)[start : start + 100_000])
        writer.finish()

    writing = in_thread(write)
    assert collect(BodyReader(far, framing)) == MEGABYTE
    writing.result(TIMEOUT)


@pytest.mark.parametrize("framing", [length(10), CHUNKED])
def test_an_unfinished_body_is_recognizable(pairs: Pairs, framing: BodyFraming) -> None:
    near, far = pairs.streams()
    BodyWriter(near, framing).write(BODY[:5])
    near.close_abruptly()
    assert take(BodyReader(far, framing)) == (BODY[:5], False)


@pytest.mark.parametrize(
    "framing, known", [(NONE, None), (length(0), 0), (length(5), 5), (CHUNKED, None), (CLOSE, None)]
)
def test_a_body_knows_its_length_where_the_head_says_it(
    pairs: Pairs, framing: BodyFraming, known: Optional[int]
) -> None:
    stream, _ = pairs.plain()
    assert BodyReader(stream, framing).length == known


def test_a_forked_process_has_buffers_of_its_own() -> None:
    """A process that is forked while buffers lie in the pool finds them there, too."""
    with borrowed_buffer() as buffer:
        buffer[:4] = b"mine"
    child = os.fork()
    if not child:
        with borrowed_buffer() as same:
            same[:4] = b"hers"
        os._exit(0)
    os.waitpid(child, 0)
    with borrowed_buffer() as buffer:
        assert bytes(buffer[:4]) == b"mine"


def test_a_buffer_is_never_lent_twice() -> None:
    with borrowed_buffer() as one, borrowed_buffer() as other:
        one[:1], other[:1] = b"1", b"2"
        assert bytes(one[:1]) == b"1"


# --- before it is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize(
    ("framing", "data", "body"),
    [
        (length(10), BODY, BODY),
        (length(10), BODY + b"more", BODY),
        (length(0), b"", b""),
        (NONE, b"", b""),
        (CHUNKED, CHUNKS, BODY),
        (CHUNKED, b"0\r\n\r\n", b""),
    ],
)
def test_a_body_that_has_come_is_seen_before_it_is_read(
    pairs: Pairs, kind: str, framing: BodyFraming, data: bytes, body: bytes
) -> None:
    stream, far = connect(pairs, kind)
    far.sendall(data)
    reader = BodyReader(stream, framing)
    assert [reader.ahead(10, TIMEOUT) for _ in range(2)] == [body] * 2
    assert collect(reader) == body and reader.complete


def test_it_is_waited_for(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    reader = BodyReader(stream, CHUNKED)
    far.sendall(CHUNKS[:8])
    seen = in_thread(reader.ahead, 10, TIMEOUT)
    for place in range(8, len(CHUNKS), 4):
        far.sendall(CHUNKS[place : place + 4])
    assert seen.result(TIMEOUT) == BODY and collect(reader) == BODY


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        (length(11), BODY + b"x"),  # too long
        (length(10), BODY[:9]),  # not all of it comes in time
        (CHUNKED, CHUNKS[:-2]),
        (CHUNKED, b"b\r\n0123456789x\r\n0\r\n\r\n"),
        (CHUNKED, b"1\r\nx\r\n" * 11 + b"0\r\n\r\n"),
        (CHUNKED, b"1;" + b"x" * 5000 + b"\r\nx\r\n0\r\n\r\n"),  # its framing is too long
        (CHUNKED, b"no size\r\n"),
    ],
)
def test_one_that_is_not_seen_can_be_read_all_the_same(pairs: Pairs, framing: BodyFraming, data: bytes) -> None:
    stream, far = pairs.plain()
    far.sendall(data)
    reader = BodyReader(stream, framing)
    assert reader.ahead(10, 0.01) is None
    far.close()
    first, other = pairs.plain()
    other.sendall(data)
    other.close()
    assert take(reader) == take(BodyReader(first, framing))


def test_a_body_without_an_end_or_begun_already_is_not_seen(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    far.sendall(b"0\r\n\r\n" + BODY)
    assert BodyReader(stream, CLOSE).ahead(10, SOON) is None
    reader = BodyReader(stream, length(10))
    reader.readinto(memoryview(bytearray(5)))
    assert stream.fill(TIMEOUT) or stream.buffered
    assert reader.ahead(10, SOON) is None


def test_no_more_is_received_than_a_body_may_have(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    sent = in_thread(far.sendall, b"80000\r\n" + bytes(0x80000) + b"\r\n0\r\n\r\n")
    reader = BodyReader(stream, CHUNKED)
    assert reader.ahead(1000, TIMEOUT) is None and stream.buffered < 40_000
    assert len(collect(reader)) == 0x80000
    sent.result(TIMEOUT)


@pytest.mark.parametrize("end", [fin, reset])
def test_a_connection_that_ends_shows_no_body(pairs: Pairs, end: Callable[[Far], None]) -> None:
    stream, far = pairs.plain()
    far.sendall(BODY[:5])
    reader = BodyReader(stream, length(10))
    end(far)
    assert reader.ahead(10, TIMEOUT) is None
    with pytest.raises(IncompleteBody):
        collect(reader)
