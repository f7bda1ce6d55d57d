"""Refused connections, which have no slot yet: answered without waiting, and closed without a reset.

Closing a socket with unread bytes resets its connection, and the reset destroys the answer before the client has read
it (RFC 9112 §9.6). So the poller's thread reads on for `_LINGER` seconds, for a limited number of such connections.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Callable

from net.poller import Next, Poller

_LINGER = 2.0  # seconds
_MAX_LINGERING = 256  # connections; further ones are closed at once
_READ_SIZE = 64 * 1024


class Refusals:
    """Answers and closes refused connections."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._lock = threading.Lock()  # guards _lingering
        self._lingering = 0

    def turn_away(self, sock: socket.socket, answer: bytes) -> None:
        """Send as much of `answer` as fits without waiting, and close. Takes ownership of `sock`."""
        sock.setblocking(False)
        try:
            if answer:
                sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()  # the client is gone
            return
        with self._lock:
            free = self._lingering < _MAX_LINGERING
            self._lingering += free
        if not free:
            sock.close()
            return
        lingering = _Lingering(sock, self._count_down)
        if not self._poller.watch(lingering, lingering.close):
            lingering.close()

    def _count_down(self) -> None:
        with self._lock:
            self._lingering -= 1


class _Lingering:
    """A refused connection in the `Poller`, which reads and discards the rest."""

    def __init__(self, sock: socket.socket, closed: Callable[[], None]) -> None:
        self._sock = sock
        self._closed = closed
        self._deadline = time.monotonic() + _LINGER

    @property
    def timeout(self) -> float:
        """Seconds to the deadline, which received bytes do not extend."""
        return max(0.0, self._deadline - time.monotonic())

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._sock.fileno()

    def peer_closed(self) -> bool:
        """Always true: a client that has closed its side has read the answer."""
        return True

    def answer_at_once(self, iteration: float) -> Next:
        """Read and discard received bytes. CLOSE at the end of the stream or the deadline."""
        try:
            more = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return Next.WAIT
        except OSError:
            return Next.CLOSE
        return Next.WAIT if more and iteration < self._deadline else Next.CLOSE

    def timed_out(self) -> Next:
        """Close the connection."""
        return Next.CLOSE

    def give_up(self) -> None:
        """Do nothing: `close` follows."""

    def close(self) -> None:
        """Close the socket and count down."""
        self._sock.close()
        self._closed()
