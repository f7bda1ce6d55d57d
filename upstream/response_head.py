"""The heads of an origin's answer: interim ones as they come, then the final one.

Interim answers (RFC 9110 §15.2) are bounded: in number, which grows by one a second, in size, and in time. None extends
the wait for the final head, or an origin could keep a thread for ever without an answer.
"""

from __future__ import annotations

import socket
import time
from typing import Callable

from net.stream import ConnectionLost, Stream
from protocol import http1
from protocol.http1 import ResponseHead

MAX_INTERIM = 16  # at once; uploads that report their progress go on, at one a second
MAX_INTERIM_HEAD = 16 * 1024  # bytes


class InterimFlood(http1.ProtocolError):
    """The origin sends interim answers beyond all measure."""

    def __init__(self) -> None:
        super().__init__("the origin sends interim answers (1xx) without an end", 502)


class AnswerHeads:
    """The heads of one answer on a connection. `on_interim` is told every interim one but 100."""

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
        """The next head, interim or final, of which the first byte comes within `seconds`.

        Raises ProtocolError(502), ConnectionLost, socket.timeout, or another OSError.
        """
        try:
            block = self._stream.read_head(seconds)
        except http1.ProtocolError as error:
            raise http1.ProtocolError(f"origin sent a bad response head: {error}", 502) from None
        if not block:
            raise ConnectionLost("connection closed without an answer")
        head = http1.parse_response(block)
        if head.interim:
            self._interim += 1
            allowed = MAX_INTERIM + self._clock() - self._began
            if self._interim > allowed or len(block) > MAX_INTERIM_HEAD:
                raise InterimFlood
            if head.status != 100:  # dduct has asked for that one, or nobody
                self._on_interim(head)
        return head

    def final(self, seconds: float) -> ResponseHead:
        """The final head, if it comes within `seconds`, whatever comes before it. Raises the same."""
        deadline = self._clock() + seconds
        while True:
            remaining = deadline - self._clock()
            if remaining <= 0:
                raise socket.timeout("no final answer in time")
            head = self.next(remaining)
            if not head.interim:
                return head
