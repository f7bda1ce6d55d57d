"""Protocol detection by a client's first bytes, and the answers to clients on the wrong port."""

from __future__ import annotations

import enum
from typing import NamedTuple, Optional

ENOUGH = 16  # bytes that suffice for detection; it works with fewer, too


class Protocol(enum.Enum):
    """The protocols that the first bytes of a connection can show."""

    TLS = "TLS"
    HTTP = "plain http"
    HTTP2 = "HTTP/2 without TLS"
    SOCKS4 = "SOCKS 4"
    SOCKS5 = "SOCKS 5"
    OTHER = "neither TLS nor http"


class Answer(NamedTuple):
    """The answer in the client's own protocol, and the line for the log."""

    data: bytes
    line: str


_PREFACE = b"PRI * HTTP/2.0"
_ALERT = b"\x15\x03\x01\x00\x02\x02"  # a fatal TLS alert (RFC 8446 §6), without its description byte
ACCESS_DENIED, INTERNAL_ERROR = _ALERT + b"\x31", _ALERT + b"\x50"
_HANDSHAKE_FAILURE = _ALERT + b"\x28"
_SOCKS = {
    Protocol.SOCKS4: b"\x00\x5b" + bytes(6),  # request rejected
    Protocol.SOCKS5: b"\x05\xff",  # no acceptable method (RFC 1928 §3)
}


def looks_like_tls(data: bytes) -> bool:
    """Whether the bytes begin a TLS handshake record of major version 3."""
    return data[:1] == b"\x16" and data[1:2] in (b"", b"\x03")


def recognise(data: bytes) -> Protocol:
    """The protocol that `data` begins; needs at least one byte."""
    if looks_like_tls(data):
        return Protocol.TLS
    if data.startswith(_PREFACE):
        return Protocol.HTTP2
    if data[:1] in (b"\x04", b"\x05"):
        return Protocol.SOCKS4 if data[:1] == b"\x04" else Protocol.SOCKS5
    return Protocol.HTTP if data[:1].isalpha() or data[:1] in (b"\r", b"\n") else Protocol.OTHER


def wrong_on_plain(data: bytes) -> Optional[Answer]:
    """The answer to first bytes that do not belong on tcp_bind; None for possible HTTP/1."""
    protocol = recognise(data)
    line = f"speaks {protocol.value} on proxy.tcp_bind, which is for plain http (http://… as the proxy's URL)"
    if protocol is Protocol.TLS:
        return Answer(_HANDSHAKE_FAILURE, f"{line}; TLS is for proxy.tls_bind (https://…)")
    if protocol is Protocol.HTTP2:
        return _without_http2("speaks HTTP/2 on proxy.tcp_bind")
    return Answer(_SOCKS[protocol], line) if protocol in _SOCKS else None


def wrong_on_tls(data: bytes) -> Optional[Answer]:
    """The answer to first bytes that do not belong on tls_bind; None for TLS."""
    protocol = recognise(data)
    if protocol is Protocol.TLS:
        return None
    line = f"speaks {protocol.value} on proxy.tls_bind, which is for TLS (https://… as the proxy's URL)"
    if protocol in (Protocol.HTTP, Protocol.HTTP2):
        line += "; plain http is for proxy.tcp_bind (http://…)"
        return Answer(response(400, "Bad Request", f"your client {line}"), line)
    return Answer(_SOCKS.get(protocol, b""), line)


def wrong_inside(data: bytes) -> Optional[Answer]:
    """The answer to first bytes that do not belong inside TLS; None for possible HTTP/1."""
    return _without_http2("speaks HTTP/2 although it was not offered") if data.startswith(_PREFACE) else None


def response(status: int, reason: str, line: str, *fields: str) -> bytes:
    """An HTTP response as bytes, for connections without a readable request."""
    body = f"dduct: {line}\n".encode()
    head = [
        f"HTTP/1.1 {status} {reason}",
        *fields,
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _without_http2(line: str) -> Answer:
    return Answer(response(505, "HTTP Version Not Supported", "HTTP/1.1 is spoken here, and no HTTP/2"), line)
