"""The heads of an origin's answers, as they come."""

from __future__ import annotations

import http1
from http1 import ResponseHead
from stream import ConnectionLost, Stream


def next_head(stream: Stream, patience: float) -> ResponseHead:
    """The next head, interim or final, of which the first byte comes within `patience` seconds.

    Raises ProtocolError(502), ConnectionLost, socket.timeout, or another OSError.
    """
    try:
        block = stream.read_head(patience)
    except http1.ProtocolError as error:
        raise http1.ProtocolError(f"origin sent a bad response head: {error}", 502) from None
    if not block:
        raise ConnectionLost("connection closed without an answer")
    return http1.parse_response(block)
