"""Looking ahead: which requests of a connection have been received behind the one that waits for its origin."""

from __future__ import annotations

import threading
from typing import Callable, Dict, Optional

from fetching.cacheable_request import CacheableRequest
from proxy.session_state import SessionState

_MOST = 6  # requests of a connection that are under way before their turn
_REMEMBERED = 2 * _MOST  # of those that were begun
_MAX_RECEIVED = 16 * 1024  # bytes of later requests; more stay in the socket


class LookAhead:
    """The later requests of one connection. Only its session's thread uses it, while it serves a GET without a body
    that another request may follow: what stands in the buffer is requests then, and nothing else.

    It stops at the first request that is not plain: what follows may be a body, and nothing may be sent before its
    turn that could change anything.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._begun: Dict[str, _Waiting] = {}  # by the object's name; the last ones
        self._useless = False  # written by other threads, and never unset

    @property
    def active(self) -> bool:
        """Whether this client pipelines misses."""
        return bool(self._begun) and not self._useless

    def begin(self) -> None:
        """Begin to fetch what was asked for, without waiting."""
        state = self._state
        runtime = state.runtime
        if self._useless or (runtime.access.users is not None and state.arrival.connect_target is None):
            return  # each request needs a password of its own
        try:
            blocks = state.stream.heads_ahead(_MOST, _MAX_RECEIVED)
        except OSError:
            return  # the client is gone: the next send to it reports that
        for block in blocks:
            request = runtime.plain_requests.read(block, state.arrival)
            if request is None:
                return
            name = request.name.path
            if name in self._begun:
                continue
            whole = CacheableRequest(runtime.services, request.head, request.target, request.name, request.reach)
            waiting = _Waiting(self._stop)
            if not runtime.ahead.begin(runtime.services, whole, waiting):
                return
            self._begun[name] = waiting
            if len(self._begun) > _REMEMBERED:
                self._begun.pop(next(iter(self._begun))).over()

    def turn_over(self, name: str) -> None:
        """The request for the object of this name has been served."""
        waiting = self._begun.get(name)
        if waiting is not None:
            waiting.over()

    def end(self) -> None:
        """No request waits any more."""
        for waiting in self._begun.values():
            waiting.over()
        self._begun.clear()

    def _stop(self) -> None:
        self._useless = True


class _Waiting:
    """A request before its turn, as `Ahead` sees it. `on_useless`: its response is not stored."""

    def __init__(self, on_useless: Callable[[], None]) -> None:
        self._on_useless = on_useless
        self._lock = threading.Lock()  # guards the rest
        self._release: Optional[Callable[[], None]] = None
        self._over = False

    def started(self, release: Callable[[], None]) -> None:
        """Its fill has begun, and goes on without other readers until `release` is called."""
        with self._lock:
            if not self._over:
                self._release = release
                return
        release()

    def useless(self) -> None:
        """Its origin's response is not stored, or there is none."""
        self._on_useless()

    def over(self) -> None:
        """Its turn has come and gone, or will not come."""
        with self._lock:
            self._over, release, self._release = True, self._release, None
        if release is not None:
            release()
