"""The parser against tables: every head whole, byte by byte, and with bytes behind it."""

from __future__ import annotations

import time
from typing import Callable, Iterable, List, Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpus import Case, load
from support.effort import examples

from protocol import http1
from protocol.headers import Headers, canonical
from protocol.http1 import NO_BODY, Authority, BodyFraming, Framing, ProtocolError, RequestHead, ResponseHead, Sender

TRAILING = [b"x", b"\n", b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n", b"\x00\xff"]


def understand_request(block: bytes) -> object:
    """A request head as far as this room can take it: line, fields, framing, target, Host."""
    head = http1.parse_request(block)
    framing = http1.request_framing(head)
    host = head.headers.get(b"host")
    authority = http1.parse_authority(host, 80) if host else None
    target: object = None
    if head.method == b"CONNECT":
        target = http1.parse_authority(head.target, None)
    elif head.target.startswith(b"/"):
        target = http1.parse_origin_form(head.target, "http", authority or Authority("dduct", 80))
    elif head.target != b"*":
        target = http1.parse_absolute(head.target)
    return head, framing, target


def understand_response(block: bytes) -> object:
    head = http1.parse_response(block)
    return head, http1.response_framing(b"GET", head)


def verdict(understand: Callable[[bytes], object], block: bytes) -> str:
    try:
        understand(block)
    except ProtocolError as error:
        assert str(error) and str(error).isprintable()
        return str(error.status)
    return "ok"


def end_byte_by_byte(data: bytes) -> int:
    """What a reader finds that gets one byte at a time and never looks at one twice; all but the last 4 KiB at once."""
    buffer = bytearray(data[:-4096])
    end = http1.head_end(buffer)
    if end >= 0:
        return end
    for byte in data[-4096:]:
        searched = len(buffer)
        buffer.append(byte)
        end = http1.head_end(buffer, searched)
        if end >= 0:
            return end
    return -1


def request(*lines: bytes, first: bytes = b"POST / HTTP/1.1") -> RequestHead:
    return http1.parse_request(b"\r\n".join([first, b"Host: a.example", *lines, b"", b""]))


def response(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    return http1.parse_response(b"\r\n".join([first, *lines, b"", b""]))


# --- heads ----------------------------------------------------------------------------------------

REQUESTS = load("requests.txt")
RESPONSES = load("responses.txt")


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_head_is_accepted_or_refused_as_listed(case: Case) -> None:
    assert verdict(understand_request, case.raw) == case.verdict


@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_head_is_accepted_or_refused_as_listed(case: Case) -> None:
    assert verdict(understand_response, case.raw) == case.verdict


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


def test_the_tables_have_their_minimum_length() -> None:
    refused = [[param.values[0].verdict != "ok" for param in table] for table in (REQUESTS, RESPONSES)]  # type: ignore[attr-defined]
    assert sum(refused[0]) >= 120
    assert sum(refused[1]) >= 40


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


# --- chunks ---------------------------------------------------------------------------------------

CHUNK_LINES = [
    (b"0\r\n", 0),
    (b"5\r\n", 5),
    (b"a\r\n", 10),
    (b"A\r\n", 10),
    (b"fF\r\n", 255),
    (b"00005\r\n", 5),
    (b"fffffffffffffff\r\n", 0xFFFFFFFFFFFFFFF),
    (b"5;a\r\n", 5),
    (b"5;a=b\r\n", 5),
    (b"5 ; a = b\r\n", 5),
    (b"5\t;\ta\r\n", 5),
    (b"5;a;b=c;d\r\n", 5),
    (b'5;a="b c"\r\n', 5),
    (b'5;a=""\r\n', 5),
    (b'5;a="\\"\\\\;\xff"\r\n', 5),
    (b"0;last\r\n", 0),
    # RFC 9112 §7.1: chunk-size is only hexadecimal digits
    (b"", None),
    (b"\r\n", None),
    (b"5", None),
    (b"5\n", None),
    (b"5\r", None),
    (b"5\r\r\n", None),
    (b"5\r\n\r\n", None),
    (b" 5\r\n", None),
    (b"5 \r\n", None),
    (b"\t5\r\n", None),
    (b"+5\r\n", None),
    (b"-5\r\n", None),
    (b"-0\r\n", None),
    (b"0x5\r\n", None),
    (b"0x_3\r\n", None),
    (b"1_0\r\n", None),
    (b"5h\r\n", None),
    (b"g\r\n", None),
    (b"5.0\r\n", None),
    (b"5,5\r\n", None),
    (b"5 5\r\n", None),
    (b"5\x00\r\n", None),
    (b"5\xa0\r\n", None),
    (b"\xb2\r\n", None),
    (b"ffffffffffffffff\r\n", None),
    (b"10000000000000005\r\n", None),
    (b"0" * 4000 + b"\r\n", None),
    # RFC 9112 §7.1.1: extensions
    (b"5;\r\n", None),
    (b"5;;\r\n", None),
    (b"5;a;\r\n", None),
    (b"5;=b\r\n", None),
    (b"5;a=\r\n", None),
    (b"5 a\r\n", None),
    (b"5;a b\r\n", None),
    (b"5;a=b c\r\n", None),
    (b'5;a="\r\n', None),
    (b'5;a="b"c\r\n', None),
    (b'5;a="b\\"\r\n', None),
    (b'5;a="\x00"\r\n', None),
    (b'5;"a"=b\r\n', None),
    (b"5;a\rb\r\n", None),
    (b"5;a\nb\r\n", None),
    (b"5;a\n", None),
    (b"5;\xff\r\n", None),
]


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


# --- fields ---------------------------------------------------------------------------------------


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


def bytes_of(alphabet: Iterable[int], least: int = 0) -> st.SearchStrategy[bytes]:
    letters = sorted(alphabet)
    raw = st.binary(min_size=least, max_size=20)
    return raw.map(lambda choices: bytes(letters[choice % len(letters)] for choice in choices))


names = bytes_of(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 1)
values = bytes_of({*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)}).map(lambda value: value.strip(b" \t"))


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(st.lists(st.tuples(names, values), max_size=5), st.integers(100, 999), values)
def test_a_written_head_is_parsed_back(fields: List[Tuple[bytes, bytes]], status: int, reason: bytes) -> None:
    head = http1.parse_response(http1.serialise_response(status, reason, fields))
    assert head.status == status
    assert list(head.headers) == [(canonical(name), value) for name, value in fields]
    assert head.reason == reason or not reason


# --- mutations ------------------------------------------------------------------------------------


def heads(table: List[object]) -> List[bytes]:
    raw = [param.values[0].raw for param in table]  # type: ignore[attr-defined]
    return [head for head in raw if len(head) < 1000]


PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b'"',
    b"\x00",
    b"\x0b",
    b"\xff",
    b"[",
    b"@",
    b"%",
]
pieces = st.sampled_from(PIECES) | st.binary(max_size=3)


@st.composite
def mutated(draw: st.DrawFn, choice: st.SearchStrategy[bytes]) -> bytes:
    head = draw(choice)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(head)))
        end = draw(st.integers(start, min(len(head), start + 4)))
        head = head[:start] + draw(pieces) + head[end:]
    return head


def check_mutation(data: bytes, understand: Callable[[bytes], object]) -> None:
    end = http1.head_end(bytearray(data))
    assert end_byte_by_byte(data) == end
    assert verdict(understand, data) != "ok" or end == len(data)
    if end < 0:
        return
    block = data[:end]
    if verdict(understand, block) == "ok":
        assert block.endswith(b"\r\n\r\n")
        assert b"\r\n\r\n" not in block[:-4]
        assert block.count(b"\r") == block.count(b"\n") == block.count(b"\r\n")
        assert b"\x00" not in block


@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(mutated(st.sampled_from(heads(REQUESTS))))
def test_a_mutated_request_is_parsed_or_refused(data: bytes) -> None:
    check_mutation(data, understand_request)


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(mutated(st.sampled_from(heads(RESPONSES))))
def test_a_mutated_response_is_parsed_or_refused(data: bytes) -> None:
    check_mutation(data, understand_response)


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.sampled_from([line for line, _ in CHUNK_LINES]))
def test_no_chunk_line_raises_another_error(noise: bytes, line: bytes) -> None:
    for data in (noise, line[: len(line) // 2] + noise + line[len(line) // 2 :]):
        try:
            assert http1.parse_chunk_line(data) >= 0
        except ProtocolError:
            pass
        try:
            http1.parse_trailer_line(data)
        except ProtocolError:
            pass


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.text("http://s[]:.@?#%*-_a0A~ü/\\ ", max_size=30))
def test_no_target_raises_another_error(text: str) -> None:
    data = text.encode()
    for parse in (
        http1.parse_absolute,
        lambda data: http1.parse_authority(data, 80),
        lambda data: http1.parse_origin_form(data, "https", Authority("a.example", 443)),
    ):
        try:
            parsed = parse(data)
        except ProtocolError:
            continue
        assert str(parsed).isascii()


NASTY = {
    "one long value": b"X: " + b"a" * 65000,
    "blanks": b"X: " + b" " * 65000 + b"x",
    "tabs and spaces": b"X: " + b" \t" * 32500,
    "one long name": b"X" * 65000 + b": 1",
    "no colon": b"X" * 65000,
    "colons": b":" * 65000,
    "commas": b"Connection: " + b"," * 65000,
    "list elements": b"Transfer-Encoding: " + b"x," * 32400,
    "quotes": b'X: "' + b'\\"' * 32400,
    "percent signs": b"X: " + b"%" * 65000,
    "carriage returns": b"X: " + b"\r" * 65000,
    "line feeds": b"\n".join([b"X: 1"] * 13000),
    "fields": b"\r\n".join([b"X: 1"] * 10000),
    "as many fields as may be": b"\r\n".join([b"X: " + b"a" * 300] * 199),
    "digits": b"Content-Length: " + b"9" * 65000,
}


@pytest.mark.parametrize("lines", NASTY.values(), ids=NASTY.keys())
def test_a_hostile_head_takes_no_longer_than_a_long_one(lines: bytes) -> None:
    block = b"GET / HTTP/1.1\r\nHost: a.example\r\n" + lines + b"\r\n\r\n"
    started = time.perf_counter()
    verdict(understand_request, block)
    end_byte_by_byte(block)
    assert time.perf_counter() - started < 1.0  # measured: 0.03 s


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


@pytest.mark.parametrize(
    "url",
    [
        b"http://" + b"a." * 16000,
        b"http://" + b"a" * 30000,
        b"http://a.example/" + b"?" * 30000,
        b"http://[" + b":" * 30000 + b"]/",
        b"h" * 30000,
    ],
)
def test_a_hostile_target_takes_no_time(url: bytes) -> None:
    started = time.perf_counter()
    try:
        http1.parse_absolute(url)
    except ProtocolError:
        pass
    assert time.perf_counter() - started < 0.5  # measured: under a millisecond
