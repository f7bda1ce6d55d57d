"""Connections between two requests, watched by one thread, which answers what needs no thought.

Every connection has a thread while there is anything to do or to wait for. Where many of them only repeat themselves,
those threads would stand in each other's way: each system call lets go of the interpreter, and to get hold of it again
among others costs more than the call (four busy connections in one process: a third of the throughput of one). So they
come here, and leave again as soon as something is to be done that may take time. Listeners come for the same reason.

One thing is asked here that may take time after all: the cache's disk, whether a file is as it was. Where that hangs,
the thread is lost until the disk answers, and a successor goes on in its place with all connections but the one that
it hangs with. epoll is level-triggered: what the lost thread was told and has not looked at, its successor is told
again.
"""

from __future__ import annotations

import enum
import logging
import os
import select
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, Optional, Protocol, TypeVar

_log = logging.getLogger("dduct")

_TICK = 0.5  # seconds: patience is measured this exactly
_LOOK_EVERY = 0.25  # seconds between two looks at what the thread asks the disk
_LOOKS = 2  # that see the same question again, before the thread is lost
_LOST_AT_MOST = 4  # threads

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


class Disk(Protocol):
    """What guests may ask in this thread: `polling` is the question, another object for each, as long as it lasts.

    `lost` is told of one that lasts too long, and since when at most; `found` when it is over. Between these,
    nobody asks another one in this thread.
    """

    polling: Optional[float]

    def lost(self, operation: object, since: float) -> None: ...

    def found(self, operation: object) -> None: ...


class _NoDisk:
    polling: Optional[float] = None

    def lost(self, operation: object, since: float) -> None: ...

    def found(self, operation: object) -> None: ...


@dataclass
class _Watched:
    guest: Guest
    resume: Callable[[], None]
    until: float
    fd: int


class _Shift:
    """One thread's time as the one that watches; the first two are its own to write, the others the supervisor's."""

    def __init__(self) -> None:
        self.turn = 0.0
        self.answering: Optional[_Watched] = None  # or was, until the next one
        self.operation: Optional[float] = None  # of the disk, in which it was lost
        self.over = False  # another thread watches; what counts is what it is under Idle's lock


class Idle:
    """Those who are watched. `spawn` starts a thread with their `resume` when something is to be done for one.

    `upkeep` is called once a second, and takes no time. `disk` is what may hang.
    """

    def __init__(
        self,
        spawn: Callable[[str, Callable[[], None]], None],
        upkeep: Callable[[], None] = lambda: None,
        disk: Optional[Disk] = None,
    ) -> None:
        self._spawn = spawn
        self._upkeep = upkeep
        self._disk: Disk = _NoDisk() if disk is None else disk
        self._ended = threading.Event()
        self._lock = threading.Lock()  # guards the six below
        self._epoll: Optional[select.epoll] = None  # from `open` to the end of `run`
        self._watched: Dict[int, _Watched] = {}  # by descriptor
        self._wake = self._bell = -1
        self._shift = _Shift()
        self._lost = 0  # threads

    def watch(self, guest: Guest, resume: Callable[[], None]) -> bool:
        """Take a connection; whether that was possible. If so, it is no longer the caller's."""
        fd = guest.fileno()
        with self._lock:
            if self._epoll is None:
                return False
            self._watched[fd] = _Watched(guest, resume, time.monotonic() + guest.patience, fd)
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
        """Watch and answer, in this thread, until `stop`, or until it is lost."""
        self.open()
        self._serve(self._shift)

    def supervise(self) -> None:
        """Have another thread go on where that of `run` hangs, until the end of it."""
        seen: Optional[float] = None
        looks = 0
        while not self._ended.wait(_LOOK_EVERY):
            operation = self._disk.polling
            looks = looks + 1 if operation is not None and operation is seen else 0
            seen = operation
            if looks >= _LOOKS and operation is not None:
                successor = self._replace(operation)
                if successor is not None:
                    self._begin(successor)

    def stop(self) -> None:
        """Watch no more: threads go on with whoever is here. Harmless twice."""
        with self._lock:
            if self._bell >= 0:
                os.write(self._bell, b"!")  # a pipe has room for it

    def _begin(self, shift: _Shift) -> None:
        try:
            self._spawn("idle", partial(self._serve, shift))
        except RuntimeError:
            self._serve(shift)  # no room for a thread: this one does what matters more

    def _serve(self, shift: _Shift) -> None:
        epoll = self._epoll
        assert epoll is not None  # only who is on shift ends it
        try:
            self._watch_all(shift, epoll, self._wake)
        finally:
            with self._lock:
                on_shift = not shift.over
            if on_shift:
                self._end(epoll)

    def _end(self, epoll: select.epoll) -> None:
        with epoll:
            with self._lock:
                ends = self._wake, self._bell
                self._epoll, self._wake, self._bell = None, -1, -1
            self._ended.set()
            for fd, watched in list(self._watched.items()):
                self._let_go(epoll, fd, watched, Next.WORK)
            for end in ends:
                os.close(end)

    def _replace(self, operation: float) -> Optional[_Shift]:
        """Declare the thread lost that is in this operation; the shift of another one, unless it has come back."""
        with self._lock:
            shift = self._shift
            # In this order: it looks whether it is over after its operation, so either it finds out or we do.
            shift.over = True
            watched = shift.answering
            if (
                self._disk.polling is not operation
                or watched is None
                or self._epoll is None
                or self._lost >= _LOST_AT_MOST
            ):
                shift.over = False
                return None
            if self._watched.get(watched.fd) is watched:  # from now on it is the lost thread's, like a session's
                del self._watched[watched.fd]
                try:
                    self._epoll.unregister(watched.fd)
                except OSError:
                    pass  # it was closed
            shift.operation = operation
            self._lost += 1
            self._disk.lost(operation, shift.turn)
            self._disk.polling = None
            self._shift = _Shift()
            return self._shift

    def _watch_all(self, shift: _Shift, epoll: select.epoll, wake: int) -> None:
        expired_at = time.monotonic()
        while True:
            spoken = epoll.poll(_TICK)
            shift.turn = now = time.monotonic()
            for fd, events in spoken:
                if fd == wake or not self._answer(shift, epoll, fd, events, now):
                    return
            if now - expired_at >= _TICK:
                self._expire(epoll, now)
                _guarded(self._upkeep)
                expired_at = now

    def _answer(self, shift: _Shift, epoll: select.epoll, fd: int, events: int, now: float) -> bool:
        """See what somebody wants who has spoken; whether this thread is to go on with others."""
        watched = self._watched.get(fd)
        if watched is None:
            return True  # forgotten since
        shift.answering = watched
        if events & select.EPOLLRDHUP and _guarded(watched.guest.has_left):
            what = Next.END
        else:
            what = _guarded(watched.guest.answer_at_once, now) or Next.END
        if shift.over and self._was_lost(shift):
            # It is not watched any more, and the epoll may be closed.
            if what is not Next.WATCH or not self.watch(watched.guest, watched.resume):
                self._go_on(watched, Next.WORK if what is Next.WATCH else what)
            return False
        if what is Next.WATCH:
            watched.until = now + watched.guest.patience
        else:
            self._let_go(epoll, fd, watched, what)
        return True

    def _was_lost(self, shift: _Shift) -> bool:
        """Whether a thread that has come back from an operation has been lost meanwhile."""
        with self._lock:
            if not shift.over:
                return False  # it came back just in time
            self._lost -= 1
            self._disk.found(shift.operation)
            return True

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
        self._go_on(watched, what)

    def _go_on(self, watched: _Watched, what: Next) -> None:
        """Have a thread do what there is to do for one that is not watched any more, or hang up."""
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
