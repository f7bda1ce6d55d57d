"""Connections between two requests, watched by one thread, which serves repeated requests itself.

A connection has a thread while it is being served. Many threads with repeated requests would compete for the
interpreter: each system call releases it, and getting it back among other threads costs more than the call (four busy
connections in one process: a third of the throughput of one). So such connections come to the poller, and leave it
when an operation may take time. Listeners come for the same reason.

One operation in the poller may take time after all: asking the cache's disk whether a file is unchanged. If it hangs,
the thread is lost until the disk answers. A successor takes over all connections but the one that hangs. epoll is
level-triggered, so it reports the events that the lost thread has not handled to the successor, too.
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

_TICK = 0.5  # seconds: the precision of timeouts
_LOOK_EVERY = 0.25  # seconds between two checks of the thread's disk operation
_LOOKS = 2  # checks that find the same operation again, before the thread is lost
_MAX_LOST = 4  # threads

_Result = TypeVar("_Result")


class Next(enum.Enum):
    """The next step for a connection with new events."""

    WAIT = "all was done, and it is watched on"
    NEEDS_THREAD = "something that takes a thread"
    CLOSE = "nothing any more: to give it up takes no thread"
    HANDED_ON = "nothing here: it was forgotten, and something else goes on with the connection"


class Pollable(Protocol):
    """A connection that waits for its client. `timeout` is the longest wait for the next bytes, in seconds.

    `timed_out` is called after `timeout`, and does not return WAIT. After `give_up`, `resume` only closes the
    connection, without waiting; a listener's wakes its own thread. The descriptor stays open until then: otherwise a
    new connection could get its number. `peer_closed` is called when the peer sends no more, and returns whether there
    is nothing to read. `iteration` is the start of a poll iteration (`time.monotonic()`): every request that is
    answered in the iteration had begun to arrive by then.
    """

    @property
    def timeout(self) -> float: ...

    def fileno(self) -> int: ...

    def peer_closed(self) -> bool: ...

    def answer_at_once(self, iteration: float) -> Next: ...

    def timed_out(self) -> Next: ...

    def give_up(self) -> None: ...


class Disk(Protocol):
    """The disk, as used in the poller's thread. `polling` is the current operation, a distinct object for each.

    `lost` reports an operation that hangs, with the earliest time it can have begun, and the identifier of its thread,
    which is the poller no more; `found` reports that the thread is back. Between the two calls, its successor starts
    no operation, and what the lost thread goes on with is no operation of the poller's thread.
    """

    polling: Optional[float]

    def lost(self, operation: object, since: float, thread: int) -> None: ...

    def found(self, operation: object, thread: int) -> None: ...


class _NoDisk:
    polling: Optional[float] = None

    def lost(self, operation: object, since: float, thread: int) -> None: ...

    def found(self, operation: object, thread: int) -> None: ...


@dataclass
class _Watched:
    pollable: Pollable
    resume: Callable[[], None]
    until: float
    fd: int


class _Shift:
    """One thread's time as the poller. The thread writes the first three fields, the supervisor the others."""

    def __init__(self) -> None:
        self.thread = 0  # its identifier
        self.iteration = 0.0
        self.answering: Optional[_Watched] = None  # kept until the next one
        self.operation: Optional[float] = None  # the disk operation that hangs
        self.replaced = False  # another thread is the poller; reliable only under Poller's lock


class Poller:
    """Watches pollables. `spawn` starts a thread with the `resume` of one that needs it.

    `upkeep` is called every `_TICK` seconds, and must not wait. `disk` is the disk that may hang.
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
        self._lock = threading.Lock()  # guards the six fields below
        self._epoll: Optional[select.epoll] = None  # from `open` to the end of `run`
        self._watched: Dict[int, _Watched] = {}  # by descriptor
        self._wake = self._bell = -1
        self._shift = _Shift()
        self._lost = 0  # threads that hang

    def watch(self, pollable: Pollable, resume: Callable[[], None]) -> bool:
        """Watch a pollable; returns whether it is watched. If so, the poller owns it."""
        fd = pollable.fileno()
        with self._lock:
            if self._epoll is None:
                return False
            self._watched[fd] = _Watched(pollable, resume, time.monotonic() + pollable.timeout, fd)
            try:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
            except (OSError, ValueError):
                del self._watched[fd]
                return False  # closed, or the user's limit of epoll watches is reached
        return True

    def forget(self, pollable: Pollable) -> None:
        """Stop watching a pollable, if it is watched.

        Does not wait for a current `answer_at_once`, whose result may still resume the pollable.
        """
        with self._lock:
            watched = self._watched.get(pollable.fileno())
            if watched is not None and watched.pollable is pollable and self._epoll is not None:
                del self._watched[pollable.fileno()]
                self._epoll.unregister(pollable.fileno())

    def open(self) -> None:
        """Accept `watch` and `stop` from now on, even before the thread of `run` starts. Idempotent."""
        with self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._wake, self._bell = os.pipe()
                self._epoll.register(self._wake, select.EPOLLIN)

    def run(self) -> None:
        """Poll in this thread until `stop`, or until the thread is lost."""
        self.open()
        self._serve(self._shift)

    def supervise(self) -> None:
        """Replace the poller's thread whenever it hangs; returns when polling has ended."""
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
        """End polling: each watched pollable is resumed in a thread. Idempotent."""
        with self._lock:
            if self._bell >= 0:
                os.write(self._bell, b"!")  # a byte always fits into the pipe

    def _begin(self, shift: _Shift) -> None:
        try:
            self._spawn("idle", partial(self._serve, shift))
        except RuntimeError:
            self._serve(shift)  # no thread available: polling matters more than supervision

    def _serve(self, shift: _Shift) -> None:
        epoll = self._epoll
        assert epoll is not None  # only the thread on shift closes it
        try:
            self._watch_all(shift, epoll, self._wake)
        finally:
            with self._lock:
                on_shift = not shift.replaced
            if on_shift:
                self._end(epoll)

    def _end(self, epoll: select.epoll) -> None:
        with epoll:
            with self._lock:
                ends = self._wake, self._bell
                self._epoll, self._wake, self._bell = None, -1, -1
            self._ended.set()
            for fd, watched in list(self._watched.items()):
                self._let_go(epoll, fd, watched, Next.NEEDS_THREAD)
            for end in ends:
                os.close(end)

    def _replace(self, operation: float) -> Optional[_Shift]:
        """Declare the thread in this operation lost; returns its successor's shift, None if the thread is back."""
        with self._lock:
            shift = self._shift
            # Set `replaced`, then read `polling`: the thread clears `polling`, then reads `replaced`. So one notices.
            shift.replaced = True
            watched = shift.answering
            if self._disk.polling is not operation or watched is None or self._epoll is None or self._lost >= _MAX_LOST:
                shift.replaced = False
                return None
            if self._watched.get(watched.fd) is watched:  # from now on the lost thread owns it, like a session's
                del self._watched[watched.fd]
                try:
                    self._epoll.unregister(watched.fd)
                except OSError:
                    pass  # closed already
            shift.operation = operation
            self._lost += 1
            self._disk.lost(operation, shift.iteration, shift.thread)
            self._disk.polling = None
            self._shift = _Shift()
            return self._shift

    def _watch_all(self, shift: _Shift, epoll: select.epoll, wake: int) -> None:
        expired_at = time.monotonic()
        shift.thread = threading.get_ident()
        while True:
            spoken = epoll.poll(_TICK)
            shift.iteration = now = time.monotonic()
            for fd, events in spoken:
                if fd == wake or not self._answer(shift, epoll, fd, events, now):
                    return
            if now - expired_at >= _TICK:
                self._expire(epoll, now)
                _guarded(self._upkeep)
                expired_at = now

    def _answer(self, shift: _Shift, epoll: select.epoll, fd: int, events: int, now: float) -> bool:
        """Handle the events of a descriptor; returns whether this thread is still the poller."""
        watched = self._watched.get(fd)
        if watched is None:
            return True  # `forget` was called meanwhile
        shift.answering = watched
        if events & select.EPOLLRDHUP and _guarded(watched.pollable.peer_closed):
            what = Next.CLOSE
        else:
            what = _guarded(watched.pollable.answer_at_once, now) or Next.CLOSE
        if shift.replaced and self._was_lost(shift):
            # `_replace` has removed the pollable, and the epoll may be closed.
            if what is not Next.WAIT or not self.watch(watched.pollable, watched.resume):
                self._go_on(watched, Next.NEEDS_THREAD if what is Next.WAIT else what)
            return False
        if what is Next.WAIT:
            watched.until = now + watched.pollable.timeout
        elif what is not Next.HANDED_ON:
            self._let_go(epoll, fd, watched, what)
        return True

    def _was_lost(self, shift: _Shift) -> bool:
        """Whether this thread, back from an operation, was lost meanwhile."""
        with self._lock:
            if not shift.replaced:
                return False  # it was back in time
            self._lost -= 1
            self._disk.found(shift.operation, shift.thread)
            return True

    def _expire(self, epoll: select.epoll, now: float) -> None:
        with self._lock:
            silent = [(fd, watched) for fd, watched in self._watched.items() if watched.until <= now]
        for fd, watched in silent:
            self._let_go(epoll, fd, watched, _guarded(watched.pollable.timed_out) or Next.CLOSE)

    def _let_go(self, epoll: select.epoll, fd: int, watched: _Watched, what: Next) -> None:
        with self._lock:
            if self._watched.get(fd) is watched:  # OpenSSL may have closed it, and a new one has its number
                del self._watched[fd]
                try:
                    epoll.unregister(fd)
                except OSError:
                    pass  # closed already
        self._go_on(watched, what)

    def _go_on(self, watched: _Watched, what: Next) -> None:
        """Resume a pollable that is no longer watched in a thread, or close it here."""
        if what is Next.HANDED_ON:
            return
        if what is Next.NEEDS_THREAD:
            try:
                self._spawn("session", watched.resume)
                return
            except RuntimeError:
                pass  # no thread available: the connection has to be closed
        _guarded(watched.pollable.give_up)
        _guarded(watched.resume)


def _guarded(step: Callable[..., _Result], *arguments: float) -> Optional[_Result]:
    """Run a step of a pollable. A bug is logged and ends only that pollable: the thread serves all of them."""
    try:
        return step(*arguments)
    except Exception:  # noqa: BLE001 - a boundary, like that of a thread
        _log.exception("A bug in dduct ended a connection")
        return None
