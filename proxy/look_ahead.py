"""Looking ahead: which requests of a connection have been received behind the one that waits for its origin."""

from __future__ import annotations

from collections import deque
from typing import Deque

from fetching.cacheable_request import CacheableRequest
from proxy.session_state import SessionState

_MOST = 6  # requests of a connection that are under way before their turn
_MAX_RECEIVED = 16 * 1024  # bytes of later requests; more stay in the socket


class LookAhead:
    """The later requests of one connection. Its session's thread calls it while it waits for an origin.

    It stops at the first request that is not plain: what follows may be a body, and nothing may be sent before its
    turn that could change anything.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._begun: Deque[str] = deque(maxlen=2 * _MOST)  # names of objects; the last ones
        self._useless = False  # written by other threads, and never unset

    @property
    def active(self) -> bool:
        """Whether this client pipelines misses."""
        return bool(self._begun) and not self._useless

    def __call__(self) -> None:
        """Begin to fetch what was asked for, without waiting."""
        state = self._state
        runtime = state.runtime
        if self._useless or (runtime.access.users is not None and state.arrival.connect_target is None):
            return  # each request needs a password of its own
        try:
            blocks = state.stream.heads_ahead(_MOST, _MAX_RECEIVED)
        except OSError:
            return  # the client is gone, which whoever sends to it finds out
        for block in blocks:
            request = runtime.plain_requests.read(block, state.arrival)
            if request is None:
                return
            if request.name.path in self._begun:
                continue
            whole = CacheableRequest(runtime.services, request.head, request.target, request.name, request.reach)
            if not runtime.services.ahead.begin(runtime.services, whole, self._stop):
                return
            self._begun.append(request.name.path)

    def _stop(self) -> None:
        self._useless = True
