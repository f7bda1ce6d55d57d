"""Heads and lines of HTTP/1, and how far the parser takes them."""

from __future__ import annotations

from typing import Callable

from protocol import http1
from protocol.http1 import Authority, ProtocolError, RequestHead, ResponseHead


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
