"""Lines between chunks and behind the last one: a size, a trailer field, or refused."""

from __future__ import annotations

import time
from typing import List, Optional

import pytest
from support.heads import (
    CHUNK_LINES,
    request,
    response,
)

from protocol import http1
from protocol.http1 import NO_BODY, BodyFraming, Framing, ProtocolError, Sender


@pytest.mark.parametrize("line, size", CHUNK_LINES)
def test_a_chunk_line_says_a_size_or_is_refused(line: bytes, size: Optional[int]) -> None:
    if size is not None:
        assert http1.parse_chunk_line(line) == size
        return
    with pytest.raises(ProtocolError) as caught:
        http1.parse_chunk_line(line)
    assert caught.value.status == 400


@pytest.mark.parametrize("line", [b"A: b\r\n", b"a:\r\n", b"Digest: sha-256=\xff\tx\r\n", b"Content-Length: 5\r\n"])
def test_a_trailer_line_is_one_field(line: bytes) -> None:
    name, value = http1.parse_trailer_line(line)
    assert name + b":" + value == line.strip().replace(b": ", b":")


def test_trailers_are_written_without_forbidden_fields() -> None:
    """RFC 9110 §6.5.1."""
    fields = [(b"digest", b"x"), (b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked"), (b"X", b"1")]
    assert http1.serialise_trailers(fields) == b"Digest: x\r\nX: 1\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"A: b",
        b"A: b\n",
        b"A: b\r",
        b"A: b\r\r\n",
        b"A: b\r\nC: d\r\n",
        b"A\r\n",
        b"A : b\r\n",
        b" A: b\r\n",
        b": b\r\n",
        b"A: \x00\r\n",
        b"A: b\rC: d\r\n",
        b"A: b\nC: d\r\n",
        b"0\r\n",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_a_malformed_trailer_line_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        http1.parse_trailer_line(line)


@pytest.mark.parametrize("line", [b"5 \r\n", b"5 \t \r\n", b"5\t;a=b \r\n", b'5;a="b " \r\n', b"0005 \r\n"])
def test_blanks_after_a_chunk_size_are_accepted_from_origins_only(line: bytes) -> None:
    assert http1.parse_chunk_line(line, Sender.ORIGIN) == 5
    with pytest.raises(ProtocolError):
        http1.parse_chunk_line(line)


@pytest.mark.parametrize(
    "line", [b" 5\r\n", b"5 5\r\n", b"5 \n", b"5 ", b"5 \r\r\n", b" \r\n", b"5;\r\n", b'5;a=" \r\n']
)
def test_no_other_odd_chunk_size_is_accepted(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        http1.parse_chunk_line(line, Sender.ORIGIN)


def test_blanks_before_a_colon_are_removed_from_responses_only() -> None:
    """RFC 9112 §5.1."""
    assert list(response(b"X-Foo \t : bar", b"Content-Length : 5").headers) == [
        (b"X-Foo", b"bar"),
        (b"Content-Length", b"5"),
    ]
    assert http1.parse_trailer_line(b"X : 1\r\n", Sender.ORIGIN) == (b"X", b"1")
    for line in (b" X: 1", b"X Y: 1", b" : 1", b"\t: 1"):
        with pytest.raises(ProtocolError):
            response(line)
    with pytest.raises(ProtocolError):
        request(b"X-Foo : bar")


@pytest.mark.parametrize(
    "lines",
    [[b"Content-Length: 5, 5"], [b"Content-Length: 5", b"X: y", b"content-length: 5"], [b"Content-Length: 5 ,5,\t5"]],
)
def test_equal_content_lengths_are_merged(lines: List[bytes]) -> None:
    """RFC 9110 §8.6."""
    for head in (request(*lines), response(*lines)):
        assert head.headers.get_all(b"content-length") == [b"5"]
    assert http1.request_framing(request(*lines)) == BodyFraming(Framing.LENGTH, 5)
    assert http1.response_framing(b"GET", response(*lines)) == BodyFraming(Framing.LENGTH, 5)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1", b"HEAD / HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"TRACE / HTTP/1.1"])
def test_content_length_0_is_no_body_where_none_is_allowed(first: bytes) -> None:
    assert http1.request_framing(request(b"Content-Length: 0", first=first)) == NO_BODY
    assert http1.request_framing(request(b"Content-Length: 1", first=first)) == BodyFraming(Framing.LENGTH, 1)


def test_content_length_0_is_an_empty_body_where_one_is_allowed() -> None:
    assert http1.request_framing(request(b"Content-Length: 0")) == BodyFraming(Framing.LENGTH, 0)


@pytest.mark.parametrize(
    "nasty",
    [
        b";a" * 2000,
        b" " * 4000,
        b";" * 4000,
        b";a=" + b'"' * 4000,
        b";a" + b" " * 4000,
        b";a=b " * 800,
        b";" + b"a" * 4000 + b"\x00",
    ],
)
def test_a_hostile_chunk_line_takes_no_time(nasty: bytes) -> None:
    started = time.perf_counter()
    try:
        http1.parse_chunk_line(b"5" + nasty + b"\r\n")
    except ProtocolError:
        pass
    assert time.perf_counter() - started < 0.5  # measured: under a millisecond
