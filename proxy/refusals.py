"""Connections that are turned away before they have a place: told why without waiting, and closed without a reset.

A socket that is closed with unread bytes resets its connection, and the reset destroys the answer before the client has
read it (RFC 9112 §9.6). So the poller's thread reads on for a moment, for a bounded number of such connections.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Callable

from net.poller import Idle, Next

_LINGER = 2.0  # seconds
_LINGERING_AT_MOST = 256  # connections; beyond it they are closed at once
_READ_SIZE = 64 * 1024


class Refusals:
    """Turns connections away."""

    def __init__(self, idle: Idle) -> None:
        self._idle = idle
        self._lock = threading.Lock()  # guards _lingering
        self._lingering = 0

    def turn_away(self, sock: socket.socket, answer: bytes) -> None:
        """Send as much of `answer` as goes at once, and close. The socket is no longer the caller's."""
        sock.setblocking(False)
        try:
            if answer:
                sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()  # it is gone already
            return
        with self._lock:
            room = self._lingering < _LINGERING_AT_MOST
            self._lingering += room
        if not room:
            sock.close()
            return
        lingering = _Lingering(sock, self._count_down)
        if not self._idle.watch(lingering, lingering.close):
            lingering.close()

    def _count_down(self) -> None:
        with self._lock:
            self._lingering -= 1


class _Lingering:
    """One connection, for `Idle`: whatever still comes is read and forgotten."""

    def __init__(self, sock: socket.socket, closed: Callable[[], None]) -> None:
        self._sock = sock
        self._closed = closed
        self._deadline = time.monotonic() + _LINGER

    @property
    def patience(self) -> float:
        """Until its deadline, however much comes."""
        return max(0.0, self._deadline - time.monotonic())

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._sock.fileno()

    def has_left(self) -> bool:
        """The client has closed it, and so it has read all."""
        return True

    def answer_at_once(self, turn: float) -> Next:
        """Read what has come."""
        try:
            more = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return Next.WATCH
        except OSError:
            return Next.END
        return Next.WATCH if more and turn < self._deadline else Next.END

    def timed_out(self) -> Next:
        """There is nothing to do but to hang up."""
        return Next.END

    def give_up(self) -> None:
        """Nothing but `close`."""

    def close(self) -> None:
        """Give the descriptor back."""
        self._sock.close()
        self._closed()
