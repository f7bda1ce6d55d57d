"""Connections that one thread watches."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Iterator, List, Optional

import pytest
from support.client import wait_until

from net import poller
from net.listener import ThreadPool
from net.poller import Next, Poller

TIMEOUT = 20.0

pytestmark = pytest.mark.one_process


class Pollable:
    """One end of a pair of sockets; says what it is told to say when the other end has spoken."""

    def __init__(self, stack: ExitStack, *answers: Next, timeout: float = TIMEOUT) -> None:
        self.sock, self.far = (stack.enter_context(sock) for sock in socket.socketpair())
        self.timeout = timeout
        self._answers = list(answers)
        self.heard = b""
        self.turns: List[float] = []
        self.given_up = False
        self.leaves = False  # as soon as the other end has, and all is read
        self.resumed = threading.Event()
        self.resumed_by = ""

    def fileno(self) -> int:
        return self.sock.fileno()

    def peer_closed(self) -> bool:
        return self.leaves and not self.sock.recv(1, socket.MSG_PEEK)

    def answer_at_once(self, iteration: float) -> Next:
        self.turns.append(iteration)
        self.heard += self.sock.recv(100)
        return self._answers.pop(0)

    def timed_out(self) -> Next:
        return Next.CLOSE

    def give_up(self) -> None:
        self.given_up = True

    def resume(self) -> None:
        self.resumed_by = threading.current_thread().name
        self.resumed.set()


@pytest.fixture
def threads() -> Iterator[ThreadPool]:
    threads = ThreadPool()
    yield threads
    assert threads.join(TIMEOUT)


@pytest.fixture
def watching(threads: ThreadPool) -> Iterator[Poller]:
    watching = Poller(threads.spawn)
    threads.spawn("idle", watching.run)
    wait_until(lambda: watching._epoll is not None)
    yield watching
    watching.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_events_before_the_pollers_thread_starts_are_not_lost(stack: ExitStack, threads: ThreadPool) -> None:
    watching = Poller(threads.spawn)
    watching.open()
    pollable = Pollable(stack)
    assert watching.watch(pollable, pollable.resume)
    watching.stop()
    watching.run()
    assert pollable.resumed.wait(TIMEOUT)


def test_each_poll_is_an_iteration_of_its_own(watching: Poller, stack: ExitStack) -> None:
    """Otherwise an answer that was right once would be used for ever."""
    pollable = Pollable(stack, Next.WAIT, Next.NEEDS_THREAD)
    assert watching.watch(pollable, pollable.resume)
    pollable.far.send(b"one")
    wait_until(lambda: pollable.heard == b"one")
    pollable.far.send(b"two")
    assert pollable.resumed.wait(TIMEOUT)
    first, second = pollable.turns
    assert first < second


def test_a_closed_peer_is_not_asked_for_its_request(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.WAIT, Next.NEEDS_THREAD)  # the second would need a thread
    pollable.leaves = True
    assert watching.watch(pollable, pollable.resume)
    pollable.far.sendall(b"last words")
    pollable.far.shutdown(socket.SHUT_WR)
    assert pollable.resumed.wait(TIMEOUT)
    assert pollable.heard == b"last words" and pollable.given_up


def test_a_watched_connection_is_answered_until_it_needs_a_thread(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.WAIT, Next.WAIT, Next.NEEDS_THREAD)
    assert watching.watch(pollable, pollable.resume)
    for count in (1, 2):
        pollable.far.send(b"x")
        wait_until(lambda count=count: len(pollable.heard) == count)  # type: ignore[misc]
        assert not pollable.resumed.is_set()
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT)
    assert pollable.resumed_by == "session" and not pollable.given_up
    assert not watching._watched


def test_a_closed_connection_is_not_watched(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack)
    pollable.sock.close()
    assert not watching.watch(pollable, pollable.resume)
    assert not watching._watched


def test_a_forgotten_connection_is_not_answered(watching: Poller, stack: ExitStack) -> None:
    pollable, other = Pollable(stack, Next.WAIT), Pollable(stack, Next.CLOSE)
    for one in (pollable, other):
        assert watching.watch(one, one.resume)
    watching.forget(pollable)
    watching.forget(pollable)
    pollable.far.send(b"x")
    other.far.send(b"x")
    assert other.resumed.wait(TIMEOUT)
    assert not pollable.heard and not pollable.resumed.is_set() and not watching._watched
    assert watching.watch(pollable, pollable.resume)


def test_a_connection_forgotten_in_the_iteration_of_its_event_is_skipped(watching: Poller, stack: ExitStack) -> None:
    first, gate, held = Pollable(stack), threading.Event(), threading.Event()
    guests = [Pollable(stack), Pollable(stack)]
    answered: List[Pollable] = []

    def hold(iteration: float) -> Next:
        held.set()
        assert gate.wait(TIMEOUT)
        return Next.CLOSE

    def forget(pollable: Pollable, other: Pollable, iteration: float) -> Next:
        answered.append(pollable)
        watching.forget(other)
        return Next.CLOSE

    first.answer_at_once = hold  # type: ignore[method-assign]
    for pollable, other in (guests, guests[::-1]):
        pollable.answer_at_once = partial(forget, pollable, other)  # type: ignore[method-assign]
    for one in (first, *guests):
        assert watching.watch(one, one.resume)
    first.far.send(b"x")
    assert held.wait(TIMEOUT)
    for pollable in guests:
        pollable.far.send(b"x")
    gate.set()  # both have spoken when they are looked at
    wait_until(lambda: bool(answered))
    assert answered[0].resumed.wait(TIMEOUT)
    other = Pollable(stack, Next.CLOSE)
    assert watching.watch(other, other.resume)
    other.far.send(b"x")
    assert other.resumed.wait(TIMEOUT) and len(answered) == 1


def test_a_connection_in_a_thread_is_not_watched_and_may_return(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.NEEDS_THREAD, Next.NEEDS_THREAD)
    for _ in range(2):
        assert watching.watch(pollable, pollable.resume)
        pollable.far.send(b"x")
        assert pollable.resumed.wait(TIMEOUT)
        pollable.resumed.clear()
    pollable.far.send(b"x")
    other = Pollable(stack, Next.NEEDS_THREAD)  # whose answer shows that the first one was not asked again
    assert watching.watch(other, other.resume)
    other.far.send(b"x")
    assert other.resumed.wait(TIMEOUT)
    assert pollable.heard == b"xx"


def test_a_finished_connection_takes_no_thread(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.CLOSE)
    assert watching.watch(pollable, pollable.resume)
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT)
    assert pollable.given_up and pollable.resumed_by == "idle"


def test_a_silent_connection_times_out(watching: Poller, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "_TICK", 0.01)
    silent, patient = Pollable(stack, timeout=0.02), Pollable(stack)
    for pollable in (patient, silent):
        assert watching.watch(pollable, pollable.resume)
    assert silent.resumed.wait(TIMEOUT) and silent.given_up
    assert not patient.resumed.is_set()


def test_at_the_stop_threads_take_over_all_connections(threads: ThreadPool, stack: ExitStack) -> None:
    watching = Poller(threads.spawn)
    threads.spawn("idle", watching.run)
    wait_until(lambda: watching._epoll is not None)
    guests = [Pollable(stack) for _ in range(3)]
    for pollable in guests:
        assert watching.watch(pollable, pollable.resume)
    watching.stop()
    assert all(pollable.resumed.wait(TIMEOUT) and not pollable.given_up for pollable in guests)
    wait_until(lambda: watching._epoll is None)
    watching.stop()
    late = Pollable(stack)
    assert not watching.watch(late, late.resume)


def test_a_connection_ends_if_no_thread_can_start(threads: ThreadPool, stack: ExitStack) -> None:
    def no_room(name: str, work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    watching = Poller(no_room)
    threads.spawn("idle", watching.run)
    wait_until(lambda: watching._epoll is not None)
    pollable = Pollable(stack, Next.NEEDS_THREAD)
    assert watching.watch(pollable, pollable.resume)
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT) and pollable.given_up
    watching.stop()


def test_an_exception_ends_only_its_connection(
    watching: Poller, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    buggy, other = Pollable(stack), Pollable(stack, Next.CLOSE)  # the first has no answer
    for pollable in (buggy, other):
        assert watching.watch(pollable, pollable.resume)
    with caplog.at_level(logging.ERROR):
        buggy.far.send(b"x")
        assert buggy.resumed.wait(TIMEOUT) and buggy.given_up
    assert "A bug in dduct ended a connection" in caplog.text
    assert not other.resumed.is_set()
    other.far.send(b"x")
    assert other.resumed.wait(TIMEOUT)


@pytest.mark.parametrize("what", [Next.NEEDS_THREAD, Next.CLOSE])
def test_a_new_connection_may_reuse_the_descriptor_of_a_closed_one(
    watching: Poller, stack: ExitStack, what: Next
) -> None:
    """OpenSSL closes a socket that it cannot take over, and the system gives its number to the next connection."""
    pollable, newcomer = Pollable(stack, what), Pollable(stack, Next.CLOSE)
    number = pollable.fileno()

    def answer_at_once(iteration: float) -> Next:
        pollable.sock.close()
        os.dup2(newcomer.fileno(), number)
        newcomer.fileno = lambda: number  # type: ignore[method-assign]
        assert watching.watch(newcomer, newcomer.resume)
        return what

    pollable.answer_at_once = answer_at_once  # type: ignore[method-assign]
    assert watching.watch(pollable, pollable.resume)
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT)
    assert not newcomer.resumed.is_set() and not newcomer.given_up
    newcomer.far.send(b"x")
    assert newcomer.resumed.wait(TIMEOUT)
    os.close(number)


# --- a disk that hangs ----------------------------------------------------------------------------


class Disk:
    """A disk operation that hangs until the gate is open."""

    def __init__(self) -> None:
        self.polling: Optional[float] = None
        self.told: List[str] = []
        self.gate = threading.Event()
        self.hanging = threading.Event()

    def lost(self, operation: object, since: float, thread: int) -> None:
        assert operation is self.polling and since <= time.monotonic() and thread != threading.get_ident()
        self.told.append("lost")

    def found(self, operation: object, thread: int) -> None:
        assert thread == threading.get_ident()
        self.told.append("found")

    def ask(self) -> None:
        self.polling = time.monotonic()
        self.hanging.set()
        assert self.gate.wait(TIMEOUT)
        self.polling = None


class Asking(Pollable):
    """A connection whose first answer needs the disk."""

    def __init__(self, stack: ExitStack, disk: Disk, *answers: Next) -> None:
        super().__init__(stack, *answers)
        self._disk = disk

    def answer_at_once(self, iteration: float) -> Next:
        what = super().answer_at_once(iteration)
        if not self._disk.hanging.is_set():
            self._disk.ask()
        return what


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(poller, "_LOOK_EVERY", 0.01)
    disk = Disk()
    yield disk
    disk.gate.set()


@pytest.fixture
def supervised(threads: ThreadPool, disk: Disk) -> Iterator[Poller]:
    watching = Poller(threads.spawn, disk=disk)
    watching.open()
    for work in (watching.run, watching.supervise):
        threads.spawn("idle", work)
    yield watching
    disk.gate.set()
    watching.stop()


@pytest.mark.parametrize("what", [Next.WAIT, Next.NEEDS_THREAD, Next.CLOSE])
def test_a_poller_thread_that_hangs_in_the_disk_gets_a_successor(
    supervised: Poller, disk: Disk, stack: ExitStack, what: Next
) -> None:
    asking, other = Asking(stack, disk, what, Next.CLOSE), Pollable(stack, Next.WAIT, Next.WAIT)
    for pollable in (asking, other):
        assert supervised.watch(pollable, pollable.resume)
    asking.far.send(b"1")
    assert disk.hanging.wait(TIMEOUT)
    for heard in (b"x", b"xx"):
        other.far.send(b"x")
        wait_until(lambda heard=heard: other.heard == heard)  # type: ignore[misc]
    asking.far.send(b"2")
    other.far.send(b"x")  # without an answer it raises, which shows that all events have been handled
    assert other.resumed.wait(TIMEOUT)
    assert asking.heard == b"1" and not asking.resumed.is_set() and disk.told == ["lost"]
    disk.gate.set()
    assert asking.resumed.wait(TIMEOUT)
    assert asking.heard == (b"12" if what is Next.WAIT else b"1")
    assert asking.given_up is (what is not Next.NEEDS_THREAD)
    assert disk.told == ["lost", "found"] and not supervised._lost and not supervised._watched


def test_a_successor_handles_the_events_that_the_lost_thread_left(
    supervised: Poller, disk: Disk, stack: ExitStack
) -> None:
    gate, held = threading.Event(), threading.Event()
    first, asking = Pollable(stack), Asking(stack, disk, Next.NEEDS_THREAD)
    others = [Pollable(stack, Next.NEEDS_THREAD) for _ in range(3)]

    def hold(iteration: float) -> Next:
        held.set()
        assert gate.wait(TIMEOUT)
        return Next.CLOSE

    first.answer_at_once = hold  # type: ignore[method-assign]
    for pollable in (first, asking, *others):
        assert supervised.watch(pollable, pollable.resume)
    first.far.send(b"x")
    assert held.wait(TIMEOUT)
    for pollable in (asking, *others):  # in one batch, with the one that hangs at its head
        pollable.far.send(b"x")
    gate.set()
    for pollable in others:
        assert pollable.resumed.wait(TIMEOUT)
    assert not asking.resumed.is_set()
    disk.gate.set()
    assert asking.resumed.wait(TIMEOUT)
    assert [pollable.heard for pollable in (asking, *others)] == [b"x"] * 4


def test_a_stop_does_not_wait_for_a_lost_thread(
    supervised: Poller, disk: Disk, stack: ExitStack, threads: ThreadPool
) -> None:
    asking, other = Asking(stack, disk, Next.WAIT), Pollable(stack)
    for pollable in (asking, other):
        assert supervised.watch(pollable, pollable.resume)
    asking.far.send(b"x")
    assert disk.hanging.wait(TIMEOUT)
    supervised.stop()  # lost or not yet
    assert other.resumed.wait(TIMEOUT)
    wait_until(lambda: supervised._epoll is None)
    assert not asking.resumed.is_set()
    disk.gate.set()  # now no thread watches
    assert asking.resumed.wait(TIMEOUT) and not asking.given_up


def test_the_supervisor_continues_if_no_thread_can_start(disk: Disk, stack: ExitStack, threads: ThreadPool) -> None:
    def no_room(name: str, work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    watching = Poller(no_room, disk=disk)
    watching.open()
    for work in (watching.run, watching.supervise):
        threads.spawn("idle", work)
    asking, other = Asking(stack, disk, Next.WAIT), Pollable(stack, Next.CLOSE)
    for pollable in (asking, other):
        assert watching.watch(pollable, pollable.resume)
    asking.far.send(b"x")
    assert disk.hanging.wait(TIMEOUT)
    other.far.send(b"x")
    assert other.resumed.wait(TIMEOUT)
    disk.gate.set()
    watching.stop()


def test_a_thread_that_returns_in_time_is_not_replaced(supervised: Poller, disk: Disk, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.WAIT, Next.CLOSE)
    assert supervised.watch(pollable, pollable.resume)
    pollable.far.send(b"x")
    wait_until(lambda: pollable.heard == b"x")
    assert supervised._replace(time.monotonic()) is None  # it is over since
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT) and not disk.told


def test_the_number_of_lost_threads_is_limited(
    supervised: Poller, disk: Disk, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def none_more(watching: Poller, operation: float, replace: Any = Poller._replace) -> None:
        assert replace(watching, operation) is None
        looks.release()

    monkeypatch.setattr(poller, "_MAX_LOST", 0)
    monkeypatch.setattr(Poller, "_replace", none_more)
    asking = Asking(stack, disk, Next.NEEDS_THREAD)
    assert supervised.watch(asking, asking.resume)
    asking.far.send(b"x")
    for _ in range(2):
        assert looks.acquire(timeout=TIMEOUT)
    assert not disk.told
    disk.gate.set()
    assert asking.resumed.wait(TIMEOUT)
