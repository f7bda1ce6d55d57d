"""The number of the request for which a thread works: `17.3` is the third request of client connection 17.

The log's formatter asks for it, so no line and no caller has to carry it. A thread from `ThreadPool` begins with the
number of the thread that has asked for it: so a fill has the number of the request that began it.
"""

from __future__ import annotations

import threading
from typing import Optional, Tuple

Number = Tuple[int, int]  # connection, request; 0: before its first request


class _Here(threading.local):
    number: Optional[Number] = None


_here = _Here()


def current() -> Optional[Number]:
    """The number of this thread's request; None where it works for no client."""
    return _here.number


def set_current(number: Optional[Number]) -> None:
    """This thread works for another request, or with None for no client any more."""
    _here.number = number


class RequestNumbers:
    """The requests of one connection, counted. The connection's owner works in it, as in a context."""

    __slots__ = ("_before", "_number")

    def __init__(self, connection: int) -> None:
        self._number: Number = (connection, 0)
        self._before: Optional[Number] = None

    def __enter__(self) -> None:
        self._before, _here.number = _here.number, self._number

    def __exit__(self, *_: object) -> None:
        _here.number = self._before

    def begin(self) -> None:
        """The next request begins, in this thread, which works in this context."""
        connection, request = self._number
        self._number = _here.number = (connection, request + 1)
