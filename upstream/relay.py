"""What dduct passes on: the fields of requests to an origin, and responses that are not stored."""

from __future__ import annotations

import time
from typing import Callable, List

from monitoring.details import Side
from net.body import BUFFER_SIZE, IncompleteBody
from net.response import Reply
from protocol import field_values
from protocol.headers import Field, Headers
from protocol.http1 import BodyFraming, Framing, RequestHead, ResponseHead, forwards_left
from upstream.exchange import Exchange


def outgoing(request: RequestHead, via: bytes, upgrade: bool = False) -> Headers:
    """The fields of a request to its origin: the end-to-end ones, dduct's name in Via, and those options of the
    connection that dduct passes on."""
    kept = request.headers.end_to_end().without([b"host", b"content-length", b"expect"])
    left = forwards_left(request)
    if left is not None:
        kept = Headers([*kept.without([b"max-forwards"]), (b"Max-Forwards", b"%d" % (left - 1))])
    options: List[Field] = []
    if b"trailers" in request.headers.tokens(b"te"):  # RFC 9110 §10.1.4; dduct supports no other coding
        options.append((b"TE", b"trailers"))
    if upgrade:
        options.append((b"Upgrade", request.headers.get(b"upgrade") or b""))
    if options:
        options.append((b"Connection", b", ".join(name for name, _ in options)))
    return Headers([*kept, (b"Via", via), *options])


def wants_upgrade(request: RequestHead) -> bool:
    """Whether a request asks for another protocol that dduct lets through (RFC 9110 §7.8).

    h2c is not let through: dduct would not see the requests inside (RFC 9113 has deprecated it).
    """
    if request.version < 1 or b"upgrade" not in request.headers.tokens(b"connection"):
        return False
    protocols = request.headers.tokens(b"upgrade")
    return bool(protocols) and b"h2c" not in protocols


def forward(reply: Reply, exchange: Exchange, seen: Callable[[memoryview], object] = lambda _: None) -> bool:
    """Stream an origin's response to the client. Returns whether its body came to its end.

    Where the origin breaks off, so does the response. `seen` gets every piece of the body.
    """
    head = exchange.head
    exchange.relayed()
    reply.send_head(head.status, passed_on(head), exchange.body.length, head.reason)
    if not reply.has_body:
        return False  # to HEAD, for example: the client takes what follows for the next response
    try:
        for piece in exchange.body.chunks(memoryview(bytearray(BUFFER_SIZE))):
            seen(piece)
            reply.write(piece)
    except IncompleteBody:
        reply.close_abruptly(Side.ORIGIN)
        return False
    reply.finish(exchange.body.trailers)
    return True


def passed_on(response: ResponseHead) -> List[Field]:
    """The fields of an origin's response to its client: the end-to-end ones, and a Date."""
    fields = response.headers.end_to_end_fields()
    if b"date" not in response.headers:
        fields.append((b"Date", field_values.format_date(time.time())))  # RFC 9110 §6.6.1
    return fields


def expects_continue(head: RequestHead, framing: BodyFraming) -> bool:
    """Whether a client waits for 100 Continue before it sends its body (RFC 9110 §10.1.1)."""
    return framing.kind is not Framing.NONE and head.version >= 1 and b"100-continue" in head.headers.tokens(b"expect")
