"""Connections between two requests, watched by one thread, which answers what needs no thought.

Every connection has a thread while there is anything to do or to wait for. Where many of them only repeat themselves,
those threads would stand in each other's way: each system call lets go of the interpreter, and to get hold of it again
among others costs more than the call (four busy connections in one process: a third of the throughput of one). So they
come here, and leave again as soon as something is to be done that may take time. Listeners come for the same reason.
"""

from __future__ import annotations

import enum
import logging
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Protocol, TypeVar

_log = logging.getLogger("dduct")

_TICK = 0.5  # seconds: patience is measured this exactly


_Result = TypeVar("_Result")


class Next(enum.Enum):
    """What is to be done about a connection that has spoken."""

    WATCH = "all was done, and it is watched on"
    WORK = "something that takes a thread"
    END = "nothing any more: to give it up takes no thread"


class Guest(Protocol):
    """A connection that waits for its client. `patience` is how long the next octets may take to come, in seconds.

    `timed_out` is asked when `patience` is over, and is not WATCH.
    After `give_up`, `resume` only hangs up, which takes no time; or, for a listener, wakes its own thread. Until then
    the descriptor is to stay open: the next connection would get its number. `has_left` is asked when the other end
    sends no more, and whether it has left nothing to be read. All that is answered in a `turn` had begun to arrive
    when it began; it is named by that time (`time.monotonic()`).
    """

    @property
    def patience(self) -> float: ...

    def fileno(self) -> int: ...

    def has_left(self) -> bool: ...

    def answer_at_once(self, turn: float) -> Next: ...

    def timed_out(self) -> Next: ...

    def give_up(self) -> None: ...


@dataclass
class _Watched:
    guest: Guest
    resume: Callable[[], None]
    until: float


class Idle:
    """Those who are watched. `spawn` starts a thread with their `resume` when something is to be done for one.

    `upkeep` is called once a second, and takes no time.
    """

    def __init__(
        self, spawn: Callable[[str, Callable[[], None]], None], upkeep: Callable[[], None] = lambda: None
    ) -> None:
        self._spawn = spawn
        self._upkeep = upkeep
        self._lock = threading.Lock()  # guards the four below
        self._epoll: Optional[select.epoll] = None  # from `open` to the end of `run`
        self._watched: Dict[int, _Watched] = {}  # by descriptor
        self._wake = self._bell = -1

    def watch(self, guest: Guest, resume: Callable[[], None]) -> bool:
        """Take a connection; whether that was possible. If so, it is no longer the caller's."""
        fd = guest.fileno()
        with self._lock:
            if self._epoll is None:
                return False
            self._watched[fd] = _Watched(guest, resume, time.monotonic() + guest.patience)
            try:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
            except (OSError, ValueError):
                del self._watched[fd]
                return False  # it is closed, or the system watches only so many for one user
        return True

    def forget(self, guest: Guest) -> None:
        """Watch somebody no more, if he is watched.

        One that is being answered just now is not waited for, and is resumed if his answer says so.
        """
        with self._lock:
            watched = self._watched.get(guest.fileno())
            if watched is not None and watched.guest is guest and self._epoll is not None:
                del self._watched[guest.fileno()]
                self._epoll.unregister(guest.fileno())

    def open(self) -> None:
        """Take connections, and heed `stop`, from now on, however late the thread of `run` begins. Harmless twice."""
        with self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._wake, self._bell = os.pipe()
                self._epoll.register(self._wake, select.EPOLLIN)

    def run(self) -> None:
        """Watch and answer, in this thread, until `stop`."""
        self.open()
        epoll = self._epoll
        assert epoll is not None
        with epoll:
            try:
                self._watch_all(epoll, self._wake)
            finally:
                with self._lock:
                    ends = self._wake, self._bell
                    self._epoll, self._wake, self._bell = None, -1, -1
                for fd, watched in list(self._watched.items()):
                    self._let_go(epoll, fd, watched, Next.WORK)
                for end in ends:
                    os.close(end)

    def stop(self) -> None:
        """Watch no more: threads go on with whoever is here. Harmless twice."""
        with self._lock:
            if self._bell >= 0:
                os.write(self._bell, b"!")  # a pipe has room for it

    def _watch_all(self, epoll: select.epoll, wake: int) -> None:
        expired_at = time.monotonic()
        while True:
            spoken = epoll.poll(_TICK)
            now = time.monotonic()
            for fd, events in spoken:
                if fd == wake:
                    return
                self._answer(epoll, fd, events, now)
            if now - expired_at >= _TICK:
                self._expire(epoll, now)
                _guarded(self._upkeep)
                expired_at = now

    def _answer(self, epoll: select.epoll, fd: int, events: int, now: float) -> None:
        watched = self._watched.get(fd)
        if watched is None:
            return  # forgotten since
        if events & select.EPOLLRDHUP and _guarded(watched.guest.has_left):
            what = Next.END
        else:
            what = _guarded(watched.guest.answer_at_once, now) or Next.END
        if what is Next.WATCH:
            watched.until = now + watched.guest.patience
        else:
            self._let_go(epoll, fd, watched, what)

    def _expire(self, epoll: select.epoll, now: float) -> None:
        with self._lock:
            silent = [(fd, watched) for fd, watched in self._watched.items() if watched.until <= now]
        for fd, watched in silent:
            self._let_go(epoll, fd, watched, _guarded(watched.guest.timed_out) or Next.END)

    def _let_go(self, epoll: select.epoll, fd: int, watched: _Watched, what: Next) -> None:
        with self._lock:
            if self._watched.get(fd) is watched:  # OpenSSL may have closed it, and a newcomer has its number
                del self._watched[fd]
                try:
                    epoll.unregister(fd)
                except OSError:
                    pass  # it was closed
        if what is Next.WORK:
            try:
                self._spawn("session", watched.resume)
                return
            except RuntimeError:
                pass  # no room for a thread: all that can be done is to hang up
        _guarded(watched.guest.give_up)
        _guarded(watched.resume)


def _guarded(step: Callable[..., _Result], *arguments: float) -> Optional[_Result]:
    """Have a guest do something. A bug is logged, and the end of that guest alone: this thread is everybody's."""
    try:
        return step(*arguments)
    except Exception:  # noqa: BLE001 - a boundary, like a thread's edge
        _log.exception("A bug in dduct ended a connection")
        return None
