"""Connections that one thread watches."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest
from support.client import wait_until
from support.origin import Files, Origin
from support.running import HOST, RunningDduct

from net import poller
from net.listener import Listener, ThreadPool
from net.poller import Next, Poller
from proxy.connections import Connection

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


def test_what_happens_before_its_thread_has_begun_is_not_lost(stack: ExitStack, threads: ThreadPool) -> None:
    watching = Poller(threads.spawn)
    watching.open()
    pollable = Pollable(stack)
    assert watching.watch(pollable, pollable.resume)
    watching.stop()
    watching.run()
    assert pollable.resumed.wait(TIMEOUT)


def test_each_look_is_a_turn_of_its_own(watching: Poller, stack: ExitStack) -> None:
    """Or what was right once would be right for ever."""
    pollable = Pollable(stack, Next.WAIT, Next.NEEDS_THREAD)
    assert watching.watch(pollable, pollable.resume)
    pollable.far.send(b"one")
    wait_until(lambda: pollable.heard == b"one")
    pollable.far.send(b"two")
    assert pollable.resumed.wait(TIMEOUT)
    first, second = pollable.turns
    assert first < second


def test_who_has_left_is_not_asked_what_he_wants(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.WAIT, Next.NEEDS_THREAD)  # the second is what he would have wanted
    pollable.leaves = True
    assert watching.watch(pollable, pollable.resume)
    pollable.far.sendall(b"last words")
    pollable.far.shutdown(socket.SHUT_WR)
    assert pollable.resumed.wait(TIMEOUT)
    assert pollable.heard == b"last words" and pollable.given_up


def test_who_is_watched_is_answered_until_it_takes_a_thread(watching: Poller, stack: ExitStack) -> None:
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


def test_what_is_closed_is_not_watched(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack)
    pollable.sock.close()
    assert not watching.watch(pollable, pollable.resume)
    assert not watching._watched


def test_who_is_forgotten_is_not_answered_any_more(watching: Poller, stack: ExitStack) -> None:
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


def test_who_is_forgotten_in_the_round_in_which_he_has_spoken_is_not_missed(watching: Poller, stack: ExitStack) -> None:
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


def test_what_a_thread_is_busy_with_is_not_watched_and_may_come_back(watching: Poller, stack: ExitStack) -> None:
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


def test_what_is_over_takes_no_thread(watching: Poller, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.CLOSE)
    assert watching.watch(pollable, pollable.resume)
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT)
    assert pollable.given_up and pollable.resumed_by == "idle"


def test_who_says_nothing_for_too_long_is_given_up(
    watching: Poller, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "_TICK", 0.01)
    silent, patient = Pollable(stack, timeout=0.02), Pollable(stack)
    for pollable in (patient, silent):
        assert watching.watch(pollable, pollable.resume)
    assert silent.resumed.wait(TIMEOUT) and silent.given_up
    assert not patient.resumed.is_set()


def test_at_the_end_threads_go_on_with_whoever_is_here(threads: ThreadPool, stack: ExitStack) -> None:
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


def test_without_a_thread_to_be_had_a_connection_ends(threads: ThreadPool, stack: ExitStack) -> None:
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


def test_a_bug_is_the_end_of_its_guest_alone(
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
def test_a_newcomer_with_the_number_of_one_that_is_gone_stays(watching: Poller, stack: ExitStack, what: Next) -> None:
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
    """What one guest asks, and hangs in until the gate is open."""

    def __init__(self) -> None:
        self.polling: Optional[float] = None
        self.told: List[str] = []
        self.gate = threading.Event()
        self.hanging = threading.Event()

    def lost(self, operation: object, since: float) -> None:
        assert operation is self.polling and since <= time.monotonic()
        self.told.append("lost")

    def found(self, operation: object) -> None:
        self.told.append("found")

    def ask(self) -> None:
        self.polling = time.monotonic()
        self.hanging.set()
        assert self.gate.wait(TIMEOUT)
        self.polling = None


class Asking(Pollable):
    """A guest whose first answer takes the disk."""

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
def test_who_hangs_in_the_disk_has_a_successor(supervised: Poller, disk: Disk, stack: ExitStack, what: Next) -> None:
    asking, other = Asking(stack, disk, what, Next.CLOSE), Pollable(stack, Next.WAIT, Next.WAIT)
    for pollable in (asking, other):
        assert supervised.watch(pollable, pollable.resume)
    asking.far.send(b"1")
    assert disk.hanging.wait(TIMEOUT)
    for heard in (b"x", b"xx"):
        other.far.send(b"x")
        wait_until(lambda heard=heard: other.heard == heard)  # type: ignore[misc]
    asking.far.send(b"2")
    other.far.send(b"x")  # with no answer: a bug of his, which shows that all that has been said has been looked at
    assert other.resumed.wait(TIMEOUT)
    assert asking.heard == b"1" and not asking.resumed.is_set() and disk.told == ["lost"]
    disk.gate.set()
    assert asking.resumed.wait(TIMEOUT)
    assert asking.heard == (b"12" if what is Next.WAIT else b"1")
    assert asking.given_up is (what is not Next.NEEDS_THREAD)
    assert disk.told == ["lost", "found"] and not supervised._lost and not supervised._watched


def test_what_a_lost_thread_has_not_looked_at_its_successor_is_told(
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


def test_the_end_does_not_wait_for_a_lost_thread(
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
    disk.gate.set()  # now there is nobody who watches
    assert asking.resumed.wait(TIMEOUT) and not asking.given_up


def test_without_a_thread_to_be_had_the_supervisor_goes_on(disk: Disk, stack: ExitStack, threads: ThreadPool) -> None:
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


def test_who_has_come_back_just_in_time_goes_on(supervised: Poller, disk: Disk, stack: ExitStack) -> None:
    pollable = Pollable(stack, Next.WAIT, Next.CLOSE)
    assert supervised.watch(pollable, pollable.resume)
    pollable.far.send(b"x")
    wait_until(lambda: pollable.heard == b"x")
    assert supervised._replace(time.monotonic()) is None  # it is over since
    pollable.far.send(b"x")
    assert pollable.resumed.wait(TIMEOUT) and not disk.told


def test_only_so_many_are_lost(
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


# --- in the house -------------------------------------------------------------------------------

BODY = b"0123456789" * 400


def work(dduct: RunningDduct) -> Tuple[int, int]:
    """How many threads have something to do, besides listening and watching; and how many are watched."""
    watched = list(dduct.server._poller._watched.values())
    return dduct.server.snapshot().threads - 4, sum(not isinstance(one.pollable, Listener) for one in watched)


def known(dduct: RunningDduct, path: str = "/x.deb") -> Origin:
    """An object that has been asked for often enough."""
    origin = dduct.origin(Files({path: BODY}, [("Cache-Control", "max-age=600")]))
    assert dduct.fetch(origin, path).body == BODY
    dduct.wait_until_durable()  # what was known before that has to be looked at again
    for _ in range(2):
        assert dduct.fetch(origin, path).body == BODY
        wait_until(lambda: not dduct.server.connections)  # what is remembered is so after the client has its answer
    return origin


def alone(dduct: RunningDduct) -> Connection:
    """The connection of the one client there is, when those before it are gone, whose ends dduct may see late."""
    wait_until(lambda: len(dduct.server.connections) == 1)
    (connection,) = dduct.server.connections._all.values()
    return connection


def test_a_newcomer_takes_no_thread_before_it_wants_something(dduct: RunningDduct) -> None:
    clients = [dduct.client() for _ in range(10)]
    wait_until(lambda: work(dduct) == (0, 10))
    for client in clients:
        client.send(b"GET /healthz HTT")
    wait_until(lambda: work(dduct) == (10, 0))
    for client in clients:
        client.send(b"P/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read().status == 200


def test_who_repeats_itself_takes_no_thread(dduct: RunningDduct) -> None:
    origin = known(dduct)
    with dduct.intercepted(origin) as client:
        for _ in range(5):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
            wait_until(lambda: work(dduct) == (0, 1))
        assert client.get("/y.deb", f"{HOST}:{origin.port}").status == 404
        assert work(dduct) == (1, 0)
    assert len(origin.requests) == 2


def test_pipelined_requests_that_repeat_themselves_are_all_answered(dduct: RunningDduct) -> None:
    origin = known(dduct)
    request = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode()
    with dduct.intercepted(origin) as client:
        for count in (1, 1, 5, 1, 3):
            client.send(request * count)
            assert [client.read().body for _ in range(count)] == [BODY] * count


def test_a_request_in_pieces_is_waited_for(dduct: RunningDduct) -> None:
    origin = known(dduct)
    with dduct.intercepted(origin) as client:
        for _ in range(3):
            client.get("/x.deb", f"{HOST}:{origin.port}")
        client.send(b"GET /x.deb HT")
        wait_until(lambda: work(dduct) == (1, 0))
        client.send(f"TP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        assert client.read().body == BODY


def test_a_client_that_does_not_trust_us_is_told_of_in_the_log(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture
) -> None:
    origin = known(dduct)  # so that the leaf is at hand
    with caplog.at_level(logging.INFO), dduct.client() as client:
        assert client.connect(f"{HOST}:{origin.port}").status == 200
        client.send(b"\x16\x03\x01\x00\x05hello")
        wait_until(lambda: "makes no TLS connection with us" in caplog.text)
    wait_until(lambda: work(dduct) == (0, 0))


def slots_taken(dduct: RunningDduct) -> int:
    return dduct.server.connections.limit.taken


def test_connections_whose_handshakes_fail_leave_nothing_and_throw_nobody_out(dduct: RunningDduct) -> None:
    """A build that does not trust our authority tries it again and again; others come and go meanwhile."""
    origin = known(dduct)
    over = threading.Event()
    answers: List[int] = []

    def distrust() -> None:
        for _ in range(100):
            with dduct.client() as client:
                assert client.connect(f"{HOST}:{origin.port}").status == 200
                client.send(b"\x16\x03\x01\x00\x05hello")
                client.at_end()

    def come_and_go() -> None:
        while not over.is_set():
            with dduct.client() as client:
                answers.append(client.get("/healthz", "localhost").status)

    with ThreadPoolExecutor(4) as pool:
        honest = [pool.submit(come_and_go) for _ in range(2)]
        distrusting = [pool.submit(distrust) for _ in range(2)]
        for one in distrusting:
            one.result(60)
        over.set()
        for other in honest:
            other.result(20)
    assert set(answers) == {200}
    wait_until(lambda: not dduct.server.connections and not slots_taken(dduct))


def test_a_connection_that_breaks_as_its_tls_begins_ends_alone(dduct: RunningDduct) -> None:
    """With unread bytes on a connection that is gone, wrap_socket raises, and has closed it."""
    origin = known(dduct)
    authority = f"{HOST}:{origin.port}"
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nX: ".encode()
    head += b"a" * (16384 - len(head) - 4) + b"\r\n\r\n"  # as much as is read at once
    for _ in range(5):
        with dduct.client() as client:
            client.send(head + b"\x16\x03\x01more")
    wait_until(lambda: not dduct.server.connections and not slots_taken(dduct))
    assert dduct.server._poller._epoll is not None
    assert dduct.fetch(origin, "/x.deb").body == BODY


def test_a_client_that_had_to_wait_for_its_answer_is_idle_again(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shutdown does not wait for it."""
    origin = known(dduct)
    with dduct.intercepted(origin) as client:
        for _ in range(4):
            client.get("/x.deb", f"{HOST}:{origin.port}")
        connection = alone(dduct)
        whole = connection.stream.send_nowait
        halves: List[int] = []

        def send_half(view: memoryview) -> int:
            halves.append(whole(view[: len(view) // 2]))
            return halves[-1]

        monkeypatch.setattr(connection.stream, "send_nowait", send_half)
        assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
        assert len(halves) == 1
        wait_until(lambda: not connection.busy)
        monkeypatch.undo()
        for path, status in (("/x.deb", 200), ("/x.deb", 200), ("/y.deb", 404)):  # a thread's, Idle's and a thread's
            assert client.get(path, f"{HOST}:{origin.port}").status == status  # and nothing is sent twice


def test_a_handshake_that_drips_is_a_thread_s(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    dduct.server.runtime.leaf_certificates.context("origin.test")
    with dduct.client() as client:
        assert client.connect("origin.test:443").status == 200
        connection = alone(dduct)
        client.send(b"\x16")
        wait_until(lambda: connection.stream.handshaking)
        steps, step = [0], connection.stream.continue_tls

        def count() -> bool:
            over = step()
            steps[0] += 1  # now it has read the byte, and cannot read two at once
            return over

        monkeypatch.setattr(connection.stream, "continue_tls", count)
        for iteration, byte in enumerate((b"\x03", b"\x01"), 1):
            client.send(byte)
            wait_until(lambda iteration=iteration: steps[0] == iteration)  # type: ignore[misc]
        wait_until(lambda: work(dduct) == (1, 0))


def test_a_large_answer_to_a_client_that_reads_late_is_complete(dduct: RunningDduct) -> None:
    body = bytes(range(256)) * 250
    origin = dduct.origin(Files({"/x.deb": body}, [("Cache-Control", "max-age=600")]))
    request = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode()
    with dduct.intercepted(origin) as client:
        for _ in range(4):
            client.send(request)
            assert client.read().body == body
        count = 200  # 13 MB: more than sockets hold
        for _ in range(count):  # a record each: by one thread, as OpenSSL demands of those who share a connection
            client.send(request)
        bodies: List[bytes] = [client.read().body for _ in range(count)]
        assert bodies == [body] * count
