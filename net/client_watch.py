"""Whether the client for whom a thread works is still there, looked at while the thread waits for somebody else.

A thread serves one client, or one fill. Who waits for an origin, or for bytes of a fill, asks `current` for it: nothing
in between has to know for whom something is done.

A reset is the end at once. So is the end of what a client sends under TLS. In plain http some clients (`nc -N`) say so
when they have asked for everything, and still want their answer: they get it if it does not pause for `HALF_CLOSED`.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Callable, List, Optional, Protocol, Tuple

HALF_CLOSED = 2.0  # seconds
LOOKS_APART = 1.0  # seconds, where something else is waited for than a descriptor
_BROKEN = select.POLLHUP | select.POLLERR | select.POLLNVAL  # poll tells these unasked

Ready = List[Tuple[int, int]]  # descriptors and their events, as `poll` gives them

_here = threading.local()


class ClientGone(Exception):
    """The client has hung up: whatever was to be done for it is not wanted any more."""


class Waiting(Protocol):
    """For whom a thread waits."""

    def wait(self, poll: select.poll, seconds: float) -> Ready: ...

    def check(self) -> None: ...


def current() -> Optional[Waiting]:
    """For whom this thread works, if that matters."""
    return getattr(_here, "waiting", None)


def wait_ready(poll: select.poll, seconds: float) -> Ready:
    """What of `poll` is ready, nothing after `seconds`; as long as this thread's client is there. Raises ClientGone."""
    waiting = current()
    return poll.poll(1000 * seconds) if waiting is None else waiting.wait(poll, seconds)


def check() -> None:
    """Look, now and then, whether this thread's client is still there. Raises what its `check` raises."""
    waiting = current()
    if waiting is not None:
        waiting.check()


def wait_for(condition: threading.Condition, predicate: Callable[[], bool], seconds: float) -> None:
    """Until something holds, or for so many seconds; as long as this thread's client is there. Raises ClientGone."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if condition.wait_for(predicate, max(0.0, min(LOOKS_APART, left))) or left <= LOOKS_APART:
            return
        check()


def wait(condition: threading.Condition, seconds: float) -> None:
    """For a notice, or for so many seconds, but not for long. Raises ClientGone."""
    condition.wait(min(LOOKS_APART, seconds))
    check()


class working_for:  # noqa: N801 - it is used like a function; as a generator it took twice the time
    """What this thread does inside of this, it does for `waiting`."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        self._before = current()
        _here.waiting = self._waiting

    def __exit__(self, *_: object) -> None:
        _here.waiting = self._before


def when_gone(act: Callable[[], None]) -> Callable[[object, object, object], None]:
    """For an ExitStack: to `act` where it is left because the client has gone."""

    def leave(_: object, error: object, __: object) -> None:
        if isinstance(error, ClientGone):
            act()

    return leave


class ClientWatch:
    """A client, by its descriptor. `encrypted` says whether TLS runs on it."""

    def __init__(self, fileno: Callable[[], int], encrypted: Callable[[], bool]) -> None:
        self._fileno = fileno
        self._encrypted = encrypted
        self._looked_at = float("-inf")
        self._since: Optional[float] = None  # when it was first seen to be half-closed, in this wait
        self._until = 0.0  # this wait lasts no longer

    @property
    def half_closed(self) -> bool:
        """Whether it has said that it sends no more, and something is waited for on its behalf."""
        return self._since is not None and time.monotonic() < self._until

    def wait(self, poll: select.poll, seconds: float) -> Ready:
        """What of `poll` is ready, nothing after `seconds`. Raises ClientGone."""
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
        """See `check` of the module: looks at most once a second. Raises ClientGone."""
        now = time.monotonic()
        if now - self._looked_at < LOOKS_APART:
            return
        if now - self._looked_at > 2 * LOOKS_APART:
            self._since = None  # it has had something meanwhile
        self._looked_at, self._until = now, now + 2 * LOOKS_APART
        client = self._fileno()
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        ready = dict(poll.poll(0)) if client >= 0 else {client: _BROKEN}
        if client in ready:
            self._judge(ready[client], now)

    def _judge(self, events: int, now: float) -> None:
        if self._since is None:
            self._since = now
        if events & _BROKEN or self._encrypted() or now - self._since >= HALF_CLOSED:
            raise ClientGone("the client has hung up")


class Regularly:
    """No client, but something to be looked after every second of waiting."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def wait(self, poll: select.poll, seconds: float) -> Ready:
        """What of `poll` is ready, nothing after `seconds`. Raises what `look` raises."""
        deadline = time.monotonic() + seconds
        while True:
            remaining = deadline - time.monotonic()
            ready = poll.poll(1000 * max(0.0, min(LOOKS_APART, remaining)))
            if ready or remaining <= 0:
                return ready
            self._look()

    def check(self) -> None:
        """Where nothing but a descriptor is waited for, there is nothing to do."""
