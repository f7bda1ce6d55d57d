"""Heads and lines in received bytes."""

from __future__ import annotations

from typing import List

import pytest

from net.read_buffer import ReadBuffer
from protocol.http1 import ProtocolError

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LIMIT = 1024


@pytest.mark.parametrize("empty", [b"", b"\r\n", b"\r\n\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_head_is_found_however_it_arrives(empty: bytes, size: int) -> None:
    """Empty lines before it are skipped, and what follows it stays."""
    data = empty + HEAD + b"body"
    buffer, searched = ReadBuffer(), 0
    found: List[bytes] = []
    for start in range(0, len(data), size):
        buffer += data[start : start + size]
        if not found:
            head = buffer.take_head(searched, LIMIT)
            searched = len(buffer)
            found += [] if head is None else [head]
    assert found == [HEAD] and bytes(buffer) == b"body"


def test_a_head_up_to_the_limit_is_taken_and_a_longer_one_is_refused() -> None:
    buffer = ReadBuffer(HEAD)
    assert buffer.take_head(0, len(HEAD)) == HEAD and not buffer
    for longer in (HEAD, HEAD[:-1]):
        with pytest.raises(ProtocolError) as caught:
            ReadBuffer(longer).take_head(0, len(longer) - 1)
        assert caught.value.status == 431


def test_an_incomplete_head_stays_in_the_buffer() -> None:
    buffer = ReadBuffer(HEAD[:-1])
    assert buffer.take_head(0, LIMIT) is None and bytes(buffer) == HEAD[:-1]


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_lines_are_found_however_they_arrive(size: int) -> None:
    data = b"5;a\r\nx\n\n"
    buffer = ReadBuffer()
    found: List[bytes] = []
    for start in range(0, len(data), size):
        buffer += data[start : start + size]
        line = buffer.take_line(LIMIT)
        while line is not None:
            found.append(line)
            line = buffer.take_line(LIMIT)
    assert found == [b"5;a\r\n", b"x\n", b"\n"] and not buffer


@pytest.mark.parametrize("data", [b"abc\n", b"abc", b"abcd"])
def test_an_over_long_line_is_refused_before_its_end_arrives(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReadBuffer(data).take_line(3)


def test_consumed_bytes_are_removed_from_the_start() -> None:
    buffer, target = ReadBuffer(b"abcde"), bytearray(3)
    assert [buffer.move_into(memoryview(target)), bytes(target)] == [3, b"abc"]
    assert [buffer.move_into(memoryview(target)), bytes(target[:2])] == [2, b"de"]
    assert not buffer


def test_heads_are_found_and_stay() -> None:
    one, two = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n"
    buffer = ReadBuffer(one + two + b"GET /3 HT")
    assert buffer.heads(10, 1000) == [one, two]
    assert buffer.heads(1, 1000) == [one]
    assert buffer.heads(10, len(one) + 1) == [one]
    assert buffer.heads(0, 1000) == []
    assert bytes(buffer) == one + two + b"GET /3 HT"
    assert ReadBuffer(b"").heads(10, 1000) == []
