"""The parser of heads against tables, and the framing of bodies."""

from __future__ import annotations

from typing import List, Optional, Tuple

import pytest
from support.corpus import Case, load
from support.heads import (
    request,
    response,
    understand_request,
    understand_response,
    verdict,
)

from protocol import http1
from protocol.http1 import BodyFraming, Framing, ProtocolError

# --- heads ----------------------------------------------------------------------------------------

REQUESTS = load("requests.txt")
RESPONSES = load("responses.txt")


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_head_is_accepted_or_refused_as_listed(case: Case) -> None:
    assert verdict(understand_request, case.raw) == case.verdict


@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_head_is_accepted_or_refused_as_listed(case: Case) -> None:
    assert verdict(understand_response, case.raw) == case.verdict


def test_the_tables_have_their_minimum_length() -> None:
    refused = [[param.values[0].verdict != "ok" for param in table] for table in (REQUESTS, RESPONSES)]  # type: ignore[attr-defined]
    assert sum(refused[0]) >= 120
    assert sum(refused[1]) >= 40


def test_a_request_is_parsed_without_loss() -> None:
    head = http1.parse_request(b"PUT /a?b HTTP/1.1\r\nhOsT:  a.example \r\nX: \xff\tb\r\nX:\r\n\r\n")
    assert (head.method, head.target, head.version) == (b"PUT", b"/a?b", 1)
    assert list(head.headers) == [(b"hOsT", b"a.example"), (b"X", b"\xff\tb"), (b"X", b"")]


def test_a_response_is_parsed_without_loss() -> None:
    head = http1.parse_response(b'HTTP/1.0 404 Not \xffFound\r\netag: "x"\r\n\r\n')
    assert (head.status, head.reason, head.version) == (404, b"Not \xffFound", 0)
    assert list(head.headers) == [(b"etag", b'"x"')]


def test_the_bytes_of_a_refused_head_do_not_reach_the_error() -> None:
    with pytest.raises(ProtocolError) as caught:
        http1.parse_request(b"GET /secret\x00 HTTP/1.1\r\n\r\n")
    assert "secret" not in str(caught.value)


PERSISTENCE = [
    # RFC 9112 §9.3; a proxy keeps no HTTP/1.0 connection of a client.
    (b"GET / HTTP/1.1", b"X: y", True),
    (b"GET / HTTP/1.1", b"Connection: close", False),
    (b"GET / HTTP/1.1", b"Connection: CLOSE", False),
    (b"GET / HTTP/1.1", b"connection: x, close ,y", False),
    (b"GET / HTTP/1.1", b"Connection: x\r\nConnection: close", False),
    (b"GET / HTTP/1.1", b"Connection: keep-alive", True),
    (b"GET / HTTP/1.1", b"Connection: keep-alive, close", False),
    (b"GET / HTTP/1.1", b"Connection: closed", True),
    (b"GET / HTTP/1.0", b"X: y", False),
    (b"GET / HTTP/1.0", b"Connection: keep-alive", False),
    (b"HTTP/1.1 200 OK", b"X: y", True),
    (b"HTTP/1.1 200 OK", b"Connection: Close", False),
    (b"HTTP/1.0 200 OK", b"X: y", False),
    (b"HTTP/1.0 200 OK", b"Connection: Keep-Alive", True),
    (b"HTTP/1.0 200 OK", b"Connection: keep-alive, close", False),
]


@pytest.mark.parametrize("first, line, expected", PERSISTENCE)
def test_a_head_decides_whether_its_connection_persists(first: bytes, line: bytes, expected: bool) -> None:
    head = response(line, first=first) if first.startswith(b"HTTP/") else request(line, first=first)
    assert head.persistent is expected


@pytest.mark.parametrize(
    "status, interim", [(100, True), (101, False), (102, True), (103, True), (199, True), (200, False)]
)
def test_every_1xx_but_101_is_interim(status: int, interim: bool) -> None:
    assert response(first=b"HTTP/1.1 %d x" % status).interim is interim


# --- framing --------------------------------------------------------------------------------------

NONE, CHUNKED, CLOSE = http1.NO_BODY, http1.CHUNKED, http1.UNTIL_CLOSE
CL, TE = b"Content-Length: 5", b"Transfer-Encoding: chunked"


def length(raw: int) -> BodyFraming:
    return BodyFraming(Framing.LENGTH, raw)


REQUEST_FRAMINGS: List[Tuple[str, bytes, List[bytes], object]] = [
    ("9112 §6.3 item 7", b"GET / HTTP/1.1", [], NONE),
    ("9112 §6.3 item 7", b"POST / HTTP/1.1", [], NONE),
    ("9112 §6.3 item 7", b"POST / HTTP/1.0", [], NONE),
    ("9112 §6.3 item 6", b"POST / HTTP/1.1", [CL], length(5)),
    ("9112 §6.3 item 6", b"POST / HTTP/1.0", [CL], length(5)),
    ("9112 §6.3 item 6", b"GET / HTTP/1.1", [CL], length(5)),
    ("9112 §6.3 item 6", b"HEAD / HTTP/1.1", [CL], length(5)),
    ("9112 §6.3 item 6", b"POST / HTTP/1.1", [b"Content-Length: 0"], length(0)),
    ("9112 §6.3 item 6", b"POST / HTTP/1.1", [b"Content-Length: 007"], length(7)),
    ("9112 §6.3 item 5", b"POST / HTTP/1.1", [CL, CL], length(5)),
    ("9112 §6.3 item 5", b"POST / HTTP/1.1", [b"Content-Length: x"], 400),
    ("9112 §6.3 item 4", b"POST / HTTP/1.1", [TE], CHUNKED),
    ("9112 §6.3 item 4", b"GET / HTTP/1.1", [TE], CHUNKED),
    ("9112 §6.3 item 4", b"POST / HTTP/1.1", [b"transfer-encoding: CHUNKED"], CHUNKED),
    ("9112 §6.3 item 4", b"POST / HTTP/1.1", [b"Transfer-Encoding: chunked, gzip"], 400),
    ("9112 §6.3 item 4", b"POST / HTTP/1.1", [b"Transfer-Encoding: gzip"], 400),
    ("9112 §6.3 item 3", b"POST / HTTP/1.1", [CL, TE], 400),
    ("9112 §6.3 item 3", b"POST / HTTP/1.1", [TE, CL], 400),
    ("9112 §6.1", b"POST / HTTP/1.0", [TE], 400),
    ("9112 §6.1", b"POST / HTTP/1.1", [b"Transfer-Encoding: gzip, chunked"], 501),
    ("9112 §6.1", b"POST / HTTP/1.1", [b"Transfer-Encoding: gzip", TE], 501),
    ("9112 §7.1", b"POST / HTTP/1.1", [TE, TE], 400),
]


@pytest.mark.parametrize("rule, first, lines, expected", REQUEST_FRAMINGS)
def test_a_request_body_is_framed_by_the_rfc(rule: str, first: bytes, lines: List[bytes], expected: object) -> None:
    head = request(*lines, first=first)
    if isinstance(expected, BodyFraming):
        assert http1.request_framing(head) == expected
        return
    with pytest.raises(ProtocolError) as caught:
        http1.request_framing(head)
    assert caught.value.status == expected


RESPONSE_FRAMINGS: List[Tuple[str, bytes, bytes, List[bytes], Optional[BodyFraming]]] = [
    ("9112 §6.3 item 1", b"HEAD", b"HTTP/1.1 200 x", [], NONE),
    ("9112 §6.3 item 1", b"HEAD", b"HTTP/1.1 200 x", [CL], NONE),
    ("9112 §6.3 item 1", b"HEAD", b"HTTP/1.1 200 x", [TE], NONE),
    ("9112 §6.3 item 1", b"HEAD", b"HTTP/1.1 404 x", [CL], NONE),
    ("9112 §6.3 item 1", b"GET", b"HTTP/1.1 204 x", [], NONE),
    ("9112 §6.3 item 1", b"GET", b"HTTP/1.1 204 x", [CL], NONE),
    ("9112 §6.3 item 1", b"GET", b"HTTP/1.1 304 x", [CL], NONE),
    ("9112 §6.3 item 1", b"GET", b"HTTP/1.1 304 x", [TE], NONE),
    ("9112 §6.3 item 1", b"GET", b"HTTP/1.1 100 x", [], NONE),
    ("9112 §6.3 item 1", b"GET", b"HTTP/1.1 103 x", [CL], NONE),
    ("9112 §6.3 item 3", b"GET", b"HTTP/1.1 200 x", [CL, TE], None),
    ("9112 §6.3 item 3", b"HEAD", b"HTTP/1.1 200 x", [CL, TE], None),
    ("9112 §6.3 item 3", b"GET", b"HTTP/1.1 304 x", [TE, CL], None),
    ("9112 §6.3 item 4", b"GET", b"HTTP/1.1 200 x", [TE], CHUNKED),
    ("9112 §6.3 item 4", b"GET", b"HTTP/1.1 404 x", [TE], CHUNKED),
    ("9112 §6.3 item 4", b"GET", b"HTTP/1.1 206 x", [b"transfer-encoding: Chunked"], CHUNKED),
    ("9112 §6.1", b"GET", b"HTTP/1.0 200 x", [TE], None),
    ("9112 §6.1", b"GET", b"HTTP/1.1 200 x", [b"Transfer-Encoding: gzip, chunked"], None),
    ("9112 §6.1", b"GET", b"HTTP/1.1 200 x", [b"Transfer-Encoding: gzip"], None),
    ("9112 §6.3 item 5", b"GET", b"HTTP/1.1 200 x", [CL, CL], length(5)),
    ("9112 §6.3 item 5", b"GET", b"HTTP/1.1 200 x", [b"Content-Length: 5, 6"], None),
    ("9112 §6.3 item 5", b"HEAD", b"HTTP/1.1 200 x", [b"Content-Length: five"], None),
    ("9112 §6.3 item 6", b"GET", b"HTTP/1.1 200 x", [CL], length(5)),
    ("9112 §6.3 item 6", b"GET", b"HTTP/1.0 200 x", [CL], length(5)),
    ("9112 §6.3 item 6", b"GET", b"HTTP/1.1 200 x", [b"Content-Length: 0"], length(0)),
    ("9112 §6.3 item 6", b"GET", b"HTTP/1.1 205 x", [b"Content-Length: 0"], length(0)),
    ("9112 §6.3 item 6", b"POST", b"HTTP/1.1 500 x", [CL], length(5)),
    ("9112 §6.3 item 6", b"head", b"HTTP/1.1 200 x", [CL], length(5)),
    ("9112 §6.3 item 8", b"GET", b"HTTP/1.1 200 x", [], CLOSE),
    ("9112 §6.3 item 8", b"GET", b"HTTP/1.0 200 x", [], CLOSE),
    ("9112 §6.3 item 8", b"GET", b"HTTP/1.1 301 x", [], CLOSE),
]


@pytest.mark.parametrize("rule, method, first, lines, expected", RESPONSE_FRAMINGS)
def test_a_response_body_is_framed_by_the_rfc(
    rule: str, method: bytes, first: bytes, lines: List[bytes], expected: Optional[BodyFraming]
) -> None:
    head = response(*lines, first=first)
    if expected is not None:
        assert http1.response_framing(method, head) == expected
        return
    with pytest.raises(ProtocolError) as caught:
        http1.response_framing(method, head)
    assert caught.value.status == 502


# --- writing --------------------------------------------------------------------------------------


def test_a_response_head_is_written_in_wire_format() -> None:
    head = http1.serialise_response(200, b"", [(b"content-length", b"5"), (b"X", b""), (b"x", b"\xff")])
    assert head == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: \r\nX: \xff\r\n\r\n"


@pytest.mark.parametrize(
    "status, reason, line",
    [
        (200, b"Connection established", b"HTTP/1.1 200 Connection established"),
        (404, b"", b"HTTP/1.1 404 Not Found"),
        (299, b"", b"HTTP/1.1 299 "),
        (999, b"Odd", b"HTTP/1.1 999 Odd"),
    ],
)
def test_a_status_line_has_the_reason_given_or_the_registered_one(status: int, reason: bytes, line: bytes) -> None:
    assert http1.serialise_response(status, reason, []) == line + b"\r\n\r\n"
