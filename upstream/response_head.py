"""The heads of an origin's response: interim ones as they arrive, then the final one.

Interim responses (RFC 9110 §15.2) are bounded: in number, which grows by one a second, in size, and in time. None
extends the wait for the final head. Otherwise an origin could occupy a thread for ever.
"""

from __future__ import annotations

import socket
import time
from typing import Callable

from net.endpoint import ConnectionLost
from net.stream import Stream
from protocol import http1
from protocol.http1 import ResponseHead

MAX_INTERIM = 16  # at once; an upload that reports its progress goes on, at one a second
MAX_INTERIM_HEAD = 16 * 1024  # bytes


class InterimFlood(http1.ProtocolError):
    """The origin sends too many interim responses, or too large ones."""

    def __init__(self) -> None:
        super().__init__("the origin sends interim answers (1xx) without an end", 502)


class AnswerHeads:
    """The heads of one response on a connection. `on_interim` gets every interim head but 100."""

    def __init__(
        self,
        stream: Stream,
        on_interim: Callable[[ResponseHead], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._on_interim = on_interim
        self._clock = clock
        self._began = clock()
        self._interim = 0

    def next(self, seconds: float) -> ResponseHead:
        """The next head, interim or final, whose first byte arrives within `seconds`.

        Raises ProtocolError(502), ConnectionLost, socket.timeout, or another OSError.
        """
        try:
            block = self._stream.read_head(seconds)
        except http1.ProtocolError as error:
            raise http1.bad_response_head(error) from None
        if not block:
            raise ConnectionLost("connection closed without an answer")
        head = http1.parse_response(block)
        if head.interim:
            self._interim += 1
            allowed = MAX_INTERIM + self._clock() - self._began
            if self._interim > allowed or len(block) > MAX_INTERIM_HEAD:
                raise InterimFlood
            if head.status != 100:  # 100 answers dduct's own Expect, or nothing
                self._on_interim(head)
        return head

    def final(self, seconds: float) -> ResponseHead:
        """The final head, if it arrives within `seconds`, after any interim ones. Raises like `next`."""
        deadline = self._clock() + seconds
        while True:
            remaining = deadline - self._clock()
            if remaining <= 0:
                raise socket.timeout("no final answer in time")
            head = self.next(remaining)
            if not head.interim:
                return head
