"""A request over a kept connection, for a thread that must not wait: sent at once, its response read as it comes.

One thread at a time owns it. What it does not manage without waiting, `Origins.complete` does.
"""

from __future__ import annotations

import http.client
from typing import Callable, Optional

from net.endpoint import ConnectionLost
from protocol import http1
from upstream.exchange import Exchange
from upstream.origin_connection import OriginConnection, OriginResponse, receive, send_without_waiting
from upstream.request import Request

_STATUS_AT, _FINAL = len(b"HTTP/1.1 "), (b"2", b"3", b"4", b"5")
_READS = 16  # at a time: an origin may send its response in as many TLS records as it has bytes


class NonblockingRequest:
    """A request and the connection that it has.

    `answered` makes the exchange of its response; `give_back` gets the connection of one that came to nothing.
    """

    def __init__(
        self,
        connection: OriginConnection,
        request: Request,
        answered: Callable[[OriginConnection, OriginResponse, Request], Exchange],
        give_back: Callable[[OriginConnection, bool], None],
    ) -> None:
        self.request = request
        self.needs_waiting = False  # something else has come: an interim response, an empty line, too long a head
        self._connection: Optional[OriginConnection] = connection
        self._stream = connection.stream
        self._answered = answered
        self._give_back = give_back
        self._is_sent = False
        self._is_lost = False

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def send(self) -> bool:
        """Send it; False where the connection does not take it, and is closed."""
        assert self._connection is not None
        self._is_sent = True
        try:
            send_without_waiting(self._connection, self.request)
        except (OSError, http.client.HTTPException, UnicodeError):
            self.drop()
            return False
        return True

    def receive(self) -> Optional[Exchange]:
        """The exchange, once the final head of the response has come. After an error, `Origins.complete` decides.

        Raises OSError, ProtocolError or http.client's errors.
        """
        connection = self._connection
        assert connection is not None
        self._is_lost = True  # unless the next lines say otherwise; the descriptor stays open while it is polled
        if not self._has_final_head():
            self._is_lost = False
            return None
        exchange = self._answered(connection, receive(connection, self.request), self.request)
        self._connection, self._is_lost = None, False
        return exchange

    def has_body(self, exchange: Exchange) -> bool:
        """Whether the whole body, of a known length, has come, so that reading it does not wait. Raises OSError."""
        return exchange.body.complete or self._take_in(exchange.body.length or 0)

    def body_ahead(self, exchange: Exchange) -> bytes:
        """The body that `has_body` has found; it can still be read."""
        return self._stream.start_of_buffer(exchange.body.length or 0)

    def take_connection(self) -> Optional[OriginConnection]:
        """Give the connection with the sent request to the caller; None where it was lost."""
        connection, self._connection = self._connection, None
        if connection is not None and self._is_lost:
            self._give_back(connection, False)
            return None
        return connection

    def drop(self) -> None:
        """Give it up before its response has come. Idempotent."""
        connection = self.take_connection()
        if connection is not None:
            idle_since = connection.idle_since
            self._give_back(connection, not self._is_sent)
            connection.idle_since = idle_since  # it was not used

    def _has_final_head(self) -> bool:
        """Whether a final head has come, and nothing before it: reading that does not wait. Raises OSError."""
        stream = self._stream
        self._take_in(1)
        head = stream.head_arrived()
        if not head:
            self._take_in(stream.buffered + 1)
            head = stream.head_arrived()
        is_final = head.startswith(b"HTTP/1.") and head[_STATUS_AT : _STATUS_AT + 1] in _FINAL
        self.needs_waiting = not is_final and (bool(head) or stream.buffered > http1.HEAD_LIMIT)
        return is_final

    def _take_in(self, count: int) -> bool:
        """Receive until there are `count` bytes; whether there are already. Raises OSError."""
        stream = self._stream
        for _ in range(_READS):
            if stream.buffered >= count:
                return True
            before = stream.buffered
            if not stream.take_in():
                raise ConnectionLost("closed inside a response")
            if stream.buffered == before:
                return False
        return stream.buffered >= count
