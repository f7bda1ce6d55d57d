"""Detects that a thread's client has hung up, while the thread waits for something else.

A thread serves one client, or one fill. Code that waits for an origin, or for bytes of a fill, finds the client by
`current`, so the callers in between need not pass it on.

After a reset the client is gone at once. So it is after a half-close under TLS. In plain HTTP some clients (`nc -N`)
half-close after their last request and still want the answer: they get it if it does not pause for `HALF_CLOSED`.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Callable, List, Optional, Protocol, Tuple

HALF_CLOSED = 2.0  # seconds
POLL_INTERVAL = 1.0  # seconds, in waits for something other than a descriptor
_BROKEN = select.POLLHUP | select.POLLERR | select.POLLNVAL  # poll reports these unrequested

Ready = List[Tuple[int, int]]  # descriptors and their events, as `poll` returns them

_here = threading.local()


class ClientGone(Exception):
    """The client has hung up: work for it is not wanted any more."""


class Waiting(Protocol):
    """The party that a thread works for: a client, or a fill."""

    def wait(self, poll: select.poll, seconds: float) -> Ready: ...

    def check(self) -> None: ...


def current() -> Optional[Waiting]:
    """The party that this thread works for, if one is set."""
    return getattr(_here, "waiting", None)


def wait_ready(poll: select.poll, seconds: float) -> Ready:
    """Poll for up to `seconds`; returns the ready events. Raises ClientGone if this thread's client hangs up."""
    waiting = current()
    return poll.poll(1000 * seconds) if waiting is None else waiting.wait(poll, seconds)


def check() -> None:
    """Check this thread's client, at its own interval. Raises what its `check` raises."""
    waiting = current()
    if waiting is not None:
        waiting.check()


def wait_for(condition: threading.Condition, predicate: Callable[[], bool], seconds: float) -> None:
    """Wait up to `seconds` for `predicate`. Raises ClientGone if this thread's client hangs up."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if condition.wait_for(predicate, max(0.0, min(POLL_INTERVAL, left))) or left <= POLL_INTERVAL:
            return
        check()


def wait(condition: threading.Condition, seconds: float) -> None:
    """Wait for a notification, at most `POLL_INTERVAL` or `seconds`. Raises ClientGone."""
    condition.wait(min(POLL_INTERVAL, seconds))
    check()


class working_for:  # noqa: N801 - used like a function; a generator took twice the time
    """A context in which this thread works for `waiting`."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        self._before = current()
        _here.waiting = self._waiting

    def __exit__(self, *_: object) -> None:
        _here.waiting = self._before


def when_gone(act: Callable[[], None]) -> Callable[[object, object, object], None]:
    """An exit callback for an ExitStack; it calls `act` on ClientGone."""

    def leave(_: object, error: object, __: object) -> None:
        if isinstance(error, ClientGone):
            act()

    return leave


class ClientWatch:
    """Watches a client by its descriptor. `encrypted` returns whether its stream uses TLS."""

    def __init__(self, fileno: Callable[[], int], encrypted: Callable[[], bool]) -> None:
        self._fileno = fileno
        self._encrypted = encrypted
        self._looked_at = float("-inf")
        self._since: Optional[float] = None  # when this wait first saw a half-close
        self._until = 0.0  # deadline of this wait

    @property
    def half_closed(self) -> bool:
        """Whether the client has half-closed during a wait that still lasts."""
        return self._since is not None and time.monotonic() < self._until

    def wait(self, poll: select.poll, seconds: float) -> Ready:
        """Poll for up to `seconds`; returns the ready events. Raises ClientGone."""
        client = self._fileno()
        if client < 0:
            raise ClientGone("the connection has been ended")
        now = time.monotonic()
        deadline, self._since = now + seconds, None
        self._until = deadline
        try:
            while True:
                poll.register(client, select.POLLRDHUP if self._since is None else 0)
                limit = deadline if self._since is None else min(deadline, self._since + HALF_CLOSED)
                events = dict(poll.poll(1000 * max(0.0, limit - now)))
                seen = events.pop(client, 0)
                now = time.monotonic()
                if events:
                    return list(events.items())
                if seen or (self._since is not None and now >= self._since + HALF_CLOSED):
                    self._judge(seen, now)
                elif now >= deadline:
                    return []
        finally:
            poll.unregister(client)
            self._since = None

    def check(self) -> None:
        """Check the client, at most once per `POLL_INTERVAL`. Raises ClientGone."""
        now = time.monotonic()
        if now - self._looked_at < POLL_INTERVAL:
            return
        if now - self._looked_at > 2 * POLL_INTERVAL:
            self._since = None  # checks paused, so the client got bytes meanwhile
        self._looked_at, self._until = now, now + 2 * POLL_INTERVAL
        client = self._fileno()
        if client < 0:
            raise ClientGone("the connection has been ended")
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        ready = dict(poll.poll(0))
        if client in ready:
            self._judge(ready[client], now)

    def _judge(self, events: int, now: float) -> None:
        if self._since is None:
            self._since = now
        if events & _BROKEN or self._encrypted() or now - self._since >= HALF_CLOSED:
            raise ClientGone("the client has hung up")


class Regularly:
    """Calls `look` every `POLL_INTERVAL` of a wait, for a thread without a client."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def wait(self, poll: select.poll, seconds: float) -> Ready:
        """Poll for up to `seconds`; returns the ready events. Raises what `look` raises."""
        deadline = time.monotonic() + seconds
        while True:
            remaining = deadline - time.monotonic()
            ready = poll.poll(1000 * max(0.0, min(POLL_INTERVAL, remaining)))
            if ready or remaining <= 0:
                return ready
            self._look()

    def check(self) -> None:
        """Do nothing: this thread waits only for descriptors, in `wait`."""
