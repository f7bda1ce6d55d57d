"""Fields: kept in order, split, removed, and spelt as usual."""

from __future__ import annotations

from typing import List

import pytest
from support.heads import (
    request,
)

from protocol.headers import Headers, canonical


def test_fields_keep_order_case_and_repeats() -> None:
    fields = [(b"B", b"1"), (b"a", b"2"), (b"b", b"3"), (b"A", b"")]
    headers = Headers(fields)
    assert list(headers) == fields
    assert len(headers) == 4
    assert headers.get(b"a") == b"2, "
    assert headers.get(b"b") == b"1, 3"
    assert headers.get_all(b"b") == [b"1", b"3"]
    assert headers.get(b"c") is None
    assert headers.get_all(b"c") == []
    assert b"a" in headers
    assert b"c" not in headers
    assert headers == Headers(iter(fields))
    assert headers != Headers(fields[::-1])
    assert headers != fields
    assert "b'3'" in repr(headers)


@pytest.mark.parametrize(
    "values, tokens",
    [
        ([], []),
        ([b""], []),
        ([b" , ,\t,"], []),
        ([b"a"], [b"a"]),
        ([b"A,b"], [b"a", b"b"]),
        ([b" a \t,\tB "], [b"a", b"b"]),
        ([b"a", b"b, c"], [b"a", b"b", b"c"]),
        ([b"a", b"", b"a"], [b"a", b"a"]),
        ([b"a=1;b, c"], [b"a=1;b", b"c"]),
        ([b"\xc4"], [b"\xc4"]),
    ],
)
def test_a_field_list_is_split_into_its_elements(values: List[bytes], tokens: List[bytes]) -> None:
    assert Headers((b"X", value) for value in values).tokens(b"x") == tokens


def test_fields_can_be_removed() -> None:
    headers = Headers([(b"A", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert list(headers.without([b"a"])) == [(b"b", b"2")]
    assert headers.without([]) == headers
    assert len(headers) == 3


HOP_BY_HOP = [
    b"Connection: x-nominated",
    b"Keep-Alive: 5",
    b"Proxy-Authenticate: Basic",
    b"Proxy-Authentication-Info: x",
    b"Proxy-Authorization: Basic eA==",
    b"Proxy-Connection: keep-alive",
    b"TE: trailers",
    b"Transfer-Encoding: chunked",
    b"Upgrade: h2c",
    b"X-Nominated: 1",
]


def test_hop_by_hop_fields_are_removed() -> None:
    """RFC 9110 §7.6.1."""
    head = request(b"A: 1", *HOP_BY_HOP, *(line.lower() for line in HOP_BY_HOP), b"a: 2", first=b"POST / HTTP/1.1")
    assert list(head.headers.end_to_end()) == [(b"Host", b"a.example"), (b"A", b"1"), (b"a", b"2")]


@pytest.mark.parametrize(
    "connection, kept",
    [
        ([b"a"], [b"B", b"C"]),
        ([b"A, b"], [b"C"]),
        ([b"a", b"b"], [b"C"]),
        ([b" ,a ,\tC,"], [b"B"]),
        ([b"close"], [b"A", b"B", b"C"]),
        ([b""], [b"A", b"B", b"C"]),
        ([b"connection"], [b"A", b"B", b"C"]),
    ],
)
def test_fields_named_by_connection_are_removed(connection: List[bytes], kept: List[bytes]) -> None:
    lines = [(b"Connection", value) for value in connection]
    headers = Headers([(b"A", b"1"), *lines, (b"B", b"2"), (b"C", b"3")])
    assert [name for name, _ in headers.end_to_end()] == kept


@pytest.mark.parametrize(
    "name, expected",
    [
        (b"content-length", b"Content-Length"),
        (b"etag", b"ETag"),
        (b"te", b"TE"),
        (b"dnt", b"DNT"),
        (b"content-md5", b"Content-MD5"),
        (b"www-authenticate", b"WWW-Authenticate"),
        (b"x-amz-id-2", b"X-Amz-Id-2"),
        (b"docker-content-digest", b"Docker-Content-Digest"),
        (b"x--y", b"X--Y"),
        (b"-x-", b"-X-"),
        (b"x_y", b"X_y"),
        (b"Content-Length", b"Content-Length"),
        (b"CONTENT-LENGTH", b"CONTENT-LENGTH"),
        (b"cOnTeNt-length", b"cOnTeNt-length"),
        (b"123", b"123"),
        (b"", b""),
    ],
)
def test_a_lower_case_name_is_written_in_its_usual_spelling(name: bytes, expected: bytes) -> None:
    assert canonical(name) == expected
    assert canonical(expected) == expected
