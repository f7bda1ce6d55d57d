"""A head ends at the same byte whole, byte by byte, and with bytes behind it."""

from __future__ import annotations

from typing import Callable

import pytest
from support.corpus import Case, load
from support.heads import (
    end_byte_by_byte,
    understand_request,
    understand_response,
    verdict,
)

from protocol import http1

TRAILING = [b"x", b"\n", b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n", b"\x00\xff"]


REQUESTS = load("requests.txt")
RESPONSES = load("responses.txt")


def check_end(case: Case, understand: Callable[[bytes], object]) -> None:
    end = http1.head_end(bytearray(case.raw))
    assert end_byte_by_byte(case.raw) == end
    if end < 0:
        assert case.verdict != "ok"
        return
    assert verdict(understand, case.raw[:end]) == case.verdict
    for trailing in TRAILING:
        assert http1.head_end(bytearray(case.raw + trailing)) == end


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_ends_at_the_same_byte_however_it_arrives(case: Case) -> None:
    check_end(case, understand_request)


@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_ends_at_the_same_byte_however_it_arrives(case: Case) -> None:
    check_end(case, understand_response)


@pytest.mark.parametrize(
    "data, end",
    [
        (b"", -1),
        (b"A: b\r\n", -1),
        (b"A: b\r\n\r", -1),
        (b"A: b\r\n\r\n", 8),
        (b"A: b\r\n\r\nC: d\r\n\r\n", 8),
        (b"A: b\n\n", 6),
        (b"A: b\r\n\n", 7),
        (b"A: b\n\r\n", 7),
        (b"A: b\n\nC: d\r\n\r\n", 6),
        (b"A: b\r\n\r\nC: d\n\n", 8),
        (b"A: b\r\r\r\r", -1),
    ],
)
def test_a_head_ends_at_its_first_empty_line(data: bytes, end: int) -> None:
    assert http1.head_end(bytearray(data)) == end
    assert end_byte_by_byte(data) == end
    for start in range(max(0, end - 2)):
        assert http1.head_end(bytearray(data), start) == end
