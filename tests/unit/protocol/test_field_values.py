"""Ranges and dates against tables, and against noise."""

from __future__ import annotations

from typing import List, Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.effort import examples

from protocol import field_values
from protocol.field_values import ByteRange

Wanted = List[Tuple[Optional[int], Optional[int]]]

RANGES: List[Tuple[bytes, Wanted]] = [
    (b"bytes=0-0", [(0, 0)]),
    (b"bytes=0-499", [(0, 499)]),
    (b"bytes=500-", [(500, None)]),
    (b"bytes=-500", [(None, 500)]),
    (b"bytes=-0", [(None, 0)]),
    (b"Bytes=1-2", [(1, 2)]),
    (b"BYTES=1-2", [(1, 2)]),
    (b" bytes=1-2\t", [(1, 2)]),
    (b"bytes=007-08", [(7, 8)]),
    (b"bytes=5-5", [(5, 5)]),
    (b"bytes=0-999999999999999999", [(0, 10**18 - 1)]),
    (b"bytes=0-5,7-8", [(0, 5), (7, 8)]),
    (b"bytes= 0-5 , -3,9-", [(0, 5), (None, 3), (9, None)]),
    (b"bytes=9-,0-5,0-5", [(9, None), (0, 5), (0, 5)]),
    (b"bytes=0-5,", [(0, 5)]),  # RFC 9110 §5.6.1.2: empty elements count for nothing
    (b"bytes=,0-5", [(0, 5)]),
    (b"bytes=" + b",".join([b"1-1"] * 256), [(1, 1)] * 256),
    (b"bytes=" + b",".join([b"1-1"] * 1001), []),
    (b"bytes=0-5,5-4", []),
    (b"bytes=0-5,x", []),
    # RFC 9110 §14.1.1, §14.2: invalid ones, and other units are ignored
    (b"", []),
    (b"bytes", []),
    (b"bytes=", []),
    (b"bytes=-", []),
    (b"bytes=5-4", []),
    (b"bytes=a-b", []),
    (b"bytes=0x0-0x5", []),
    (b"bytes=+0-5", []),
    (b"bytes=0--5", []),
    (b"bytes=--5", []),
    (b"bytes=0-5-6", []),
    (b"bytes 0-5", []),
    (b"bytes:0-5", []),
    (b"bits=0-5", []),
    (b"items=0-5", []),
    (b"=0-5", []),
    (b"0-5", []),
    (b"bytes=0-5\n", []),
    (b"bytes=\xb2-\xb3", []),
    (b"bytes=1_0-2_0", []),
    (b"bytes=0-5;q=1", []),
    (b"bytes=" + b"9" * 5000 + b"-", []),
    (b"bytes=9999999999999999999-", []),
]


@pytest.mark.parametrize("value, expected", RANGES)
def test_ranges_are_understood_or_ignored(value: bytes, expected: Wanted) -> None:
    assert field_values.parse_ranges(value) == [ByteRange(*one) for one in expected]


@pytest.mark.parametrize(
    "first, last, length, window",
    [
        (0, 0, 10, (0, 1)),
        (0, 9, 10, (0, 10)),
        (0, 10, 10, (0, 10)),
        (0, 10**17, 10, (0, 10)),
        (9, 9, 10, (9, 10)),
        (9, None, 10, (9, 10)),
        (0, None, 10, (0, 10)),
        (10, 10, 10, None),
        (10, None, 10, None),
        (0, 0, 0, None),
        (0, None, 0, None),
        (None, 1, 10, (9, 10)),
        (None, 10, 10, (0, 10)),
        (None, 11, 10, (0, 10)),
        (None, 0, 10, None),
        (None, 5, 0, None),
    ],
)
def test_a_range_selects_bytes_or_is_unsatisfiable(
    first: Optional[int], last: Optional[int], length: int, window: Optional[Tuple[int, int]]
) -> None:
    """RFC 9110 §14.1.2."""
    assert ByteRange(first, last).window(length) == window


EXAMPLE = 784111777.0  # RFC 9110 §5.6.7


@pytest.mark.parametrize(
    "value, seconds",
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", EXAMPLE),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", EXAMPLE),
        (b"Sun Nov  6 08:49:37 1994", EXAMPLE),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (b"Thu, 29 Feb 2024 23:59:59 GMT", 1709251199.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 253402300799.0),
        (b"Sun, 06 Nov 1994 08:49:60 GMT", EXAMPLE + 23),
        (b"", None),
        (b" ", None),
        (b"0", None),
        (b"-1", None),
        (b"never", None),
        (b"784111777", None),
        (b"1994-11-06T08:49:37Z", None),
        (b"Sun, 06 Nov", None),
        (b"Sun, 06 Foo 1994 08:49:37 GMT", None),
        (b"Sun, 31 Feb 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 25:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:61:37 GMT", None),
        (b"Sun, 06 Nov 99999999999999999999 08:49:37 GMT", None),
        (b"Sun, " + b"9" * 5000 + b" Nov 1994 08:49:37 GMT", None),
        (b"S\xfcn, 06 Nov 1994 08:49:37 GMT", None),
        (b"\x00", None),
        (b"," * 1000, None),
    ],
)
def test_a_date_is_parsed_or_ignored(value: bytes, seconds: Optional[float]) -> None:
    assert field_values.parse_date(value) == seconds


def test_a_date_is_written_in_the_preferred_format() -> None:
    assert field_values.format_date(EXAMPLE) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert field_values.format_date(EXAMPLE + 0.999) == b"Sun, 06 Nov 1994 08:49:37 GMT"


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.integers(0, 253402300799))
def test_a_formatted_date_is_parsed_back(seconds: int) -> None:
    assert field_values.parse_date(field_values.format_date(seconds)) == seconds


dates = st.text("SunNovGMT 0123456789:,-+.\t()", max_size=40).map(str.encode)


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.binary(max_size=60) | dates)
def test_no_date_and_no_range_raises(value: bytes) -> None:
    assert field_values.parse_date(value) is None or isinstance(field_values.parse_date(value), float)
    windows = [wanted.window(10) for wanted in field_values.parse_ranges(value)]
    assert all(window is None or window[0] < window[1] <= 10 for window in windows)
