"""Bytes from clients and origins cost at most time linear in their length."""

from __future__ import annotations

import time
from typing import Callable, List

import pytest
from support.costly import COSTLY_VALUES

from protocol import field_values, freshness, http1
from protocol.headers import Headers, canonical, split_list
from protocol.http1 import RequestHead, ResponseHead

# --- lists ------------------------------------------------------------------------------------------

LISTS = [
    (b"", []),
    (b",", []),
    (b" , ,\t", []),
    (b"a", [b"a"]),
    (b"a,b", [b"a", b"b"]),
    (b" a ,\tb ", [b"a", b"b"]),
    (b'a="b,c",d', [b'a="b,c"', b"d"]),
    (b'"a,b","c"', [b'"a,b"', b'"c"']),
    (b'"a\\",b",c', [b'"a\\",b"', b"c"]),
    (b'"a\\\\",b', [b'"a\\\\"', b"b"]),
    (b'a\\"b,c",d', [b'a\\"b,c"', b"d"]),
    # an unclosed quote reaches to the end
    (b'a,"b,c', [b"a", b'"b,c']),
    (b'a,"b\\', [b"a", b'"b\\']),
    (b'a,"b\\",c', [b"a", b'"b\\",c']),
    (b'"', [b'"']),
    (b'"\\', [b'"\\']),
]


@pytest.mark.parametrize("value, elements", LISTS)
def test_a_list_is_split_like_the_reference(value: bytes, elements: List[bytes]) -> None:
    assert split_list(value) == elements
    assert Headers([(b"X", value)]).elements(b"x") == elements


# --- whole values and whole heads ---------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


@pytest.mark.parametrize("value", COSTLY_VALUES, ids=lambda value: repr(value[:12]))
def test_reading_a_value_takes_linear_time(value: bytes) -> None:
    headers = Headers([(b"a", value)])
    base = http1.parse_absolute(b"http://origin.test/a/b")

    def read_all() -> None:
        for read in (field_values.parse_ranges, field_values.parse_date, canonical, split_list):
            read(value)
        freshness.directives_of(Headers([(b"cache-control", value)])).seconds(b"max-age")
        http1.resolve(base, value)
        headers.tokens(b"a")
        for parse in (http1.parse_absolute, lambda text: http1.parse_authority(text, 80)):
            try:
                parse(value)
            except http1.ProtocolError:
                pass

    assert min(seconds(read_all) for _ in range(3)) < 0.4


def test_a_vary_that_repeats_a_field_costs_no_more_than_once() -> None:
    request = RequestHead(b"GET", b"/", 1, Headers([(b"accept", b"x, " * 20000)]))
    response = ResponseHead(200, b"", 1, Headers([(b"Vary", b"accept," * 8000)]))
    assert min(seconds(lambda: freshness.vary_fields(request, response)) for _ in range(3)) < 0.4
    assert [name for name, _ in freshness.vary_fields(request, response)] == ["accept"]


def test_many_lines_of_one_field_are_one_list() -> None:
    lines = [(b"A", b"%d" % number + b"x" * 250) for number in range(200)]
    assert Headers(lines).get(b"a") == b", ".join(value for _, value in lines)
