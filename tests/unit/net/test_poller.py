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
from support.household import HOST, House
from support.origin import Files, Origin

from net import poller
from net.listener import Listener, Threads
from net.poller import Idle, Next
from proxy.session import Session

PATIENCE = 20.0

pytestmark = pytest.mark.one_process


class Guest:
    """One end of a pair of sockets; says what it is told to say when the other end has spoken."""

    def __init__(self, stack: ExitStack, *answers: Next, patience: float = PATIENCE) -> None:
        self.sock, self.far = (stack.enter_context(sock) for sock in socket.socketpair())
        self.patience = patience
        self._answers = list(answers)
        self.heard = b""
        self.turns: List[float] = []
        self.given_up = False
        self.leaves = False  # as soon as the other end has, and all is read
        self.resumed = threading.Event()
        self.resumed_by = ""

    def fileno(self) -> int:
        return self.sock.fileno()

    def has_left(self) -> bool:
        return self.leaves and not self.sock.recv(1, socket.MSG_PEEK)

    def answer_at_once(self, turn: float) -> Next:
        self.turns.append(turn)
        self.heard += self.sock.recv(100)
        return self._answers.pop(0)

    def timed_out(self) -> Next:
        return Next.END

    def give_up(self) -> None:
        self.given_up = True

    def resume(self) -> None:
        self.resumed_by = threading.current_thread().name
        self.resumed.set()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    assert threads.join(PATIENCE)


@pytest.fixture
def watching(threads: Threads) -> Iterator[Idle]:
    watching = Idle(threads.spawn)
    threads.spawn("idle", watching.run)
    wait_until(lambda: watching._epoll is not None)
    yield watching
    watching.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_what_happens_before_its_thread_has_begun_is_not_lost(stack: ExitStack, threads: Threads) -> None:
    watching = Idle(threads.spawn)
    watching.open()
    guest = Guest(stack)
    assert watching.watch(guest, guest.resume)
    watching.stop()
    watching.run()
    assert guest.resumed.wait(PATIENCE)


def test_each_look_is_a_turn_of_its_own(watching: Idle, stack: ExitStack) -> None:
    """Or what was right once would be right for ever."""
    guest = Guest(stack, Next.WATCH, Next.WORK)
    assert watching.watch(guest, guest.resume)
    guest.far.send(b"one")
    wait_until(lambda: guest.heard == b"one")
    guest.far.send(b"two")
    assert guest.resumed.wait(PATIENCE)
    first, second = guest.turns
    assert first < second


def test_who_has_left_is_not_asked_what_he_wants(watching: Idle, stack: ExitStack) -> None:
    guest = Guest(stack, Next.WATCH, Next.WORK)  # the second is what he would have wanted
    guest.leaves = True
    assert watching.watch(guest, guest.resume)
    guest.far.sendall(b"last words")
    guest.far.shutdown(socket.SHUT_WR)
    assert guest.resumed.wait(PATIENCE)
    assert guest.heard == b"last words" and guest.given_up


def test_who_is_watched_is_answered_until_it_takes_a_thread(watching: Idle, stack: ExitStack) -> None:
    guest = Guest(stack, Next.WATCH, Next.WATCH, Next.WORK)
    assert watching.watch(guest, guest.resume)
    for count in (1, 2):
        guest.far.send(b"x")
        wait_until(lambda count=count: len(guest.heard) == count)  # type: ignore[misc]
        assert not guest.resumed.is_set()
    guest.far.send(b"x")
    assert guest.resumed.wait(PATIENCE)
    assert guest.resumed_by == "session" and not guest.given_up
    assert not watching._watched


def test_what_is_closed_is_not_watched(watching: Idle, stack: ExitStack) -> None:
    guest = Guest(stack)
    guest.sock.close()
    assert not watching.watch(guest, guest.resume)
    assert not watching._watched


def test_who_is_forgotten_is_not_answered_any_more(watching: Idle, stack: ExitStack) -> None:
    guest, other = Guest(stack, Next.WATCH), Guest(stack, Next.END)
    for one in (guest, other):
        assert watching.watch(one, one.resume)
    watching.forget(guest)
    watching.forget(guest)
    guest.far.send(b"x")
    other.far.send(b"x")
    assert other.resumed.wait(PATIENCE)
    assert not guest.heard and not guest.resumed.is_set() and not watching._watched
    assert watching.watch(guest, guest.resume)


def test_who_is_forgotten_in_the_round_in_which_he_has_spoken_is_not_missed(watching: Idle, stack: ExitStack) -> None:
    first, gate, held = Guest(stack), threading.Event(), threading.Event()
    guests = [Guest(stack), Guest(stack)]
    answered: List[Guest] = []

    def hold(turn: float) -> Next:
        held.set()
        assert gate.wait(PATIENCE)
        return Next.END

    def forget(guest: Guest, other: Guest, turn: float) -> Next:
        answered.append(guest)
        watching.forget(other)
        return Next.END

    first.answer_at_once = hold  # type: ignore[method-assign]
    for guest, other in (guests, guests[::-1]):
        guest.answer_at_once = partial(forget, guest, other)  # type: ignore[method-assign]
    for one in (first, *guests):
        assert watching.watch(one, one.resume)
    first.far.send(b"x")
    assert held.wait(PATIENCE)
    for guest in guests:
        guest.far.send(b"x")
    gate.set()  # both have spoken when they are looked at
    wait_until(lambda: bool(answered))
    assert answered[0].resumed.wait(PATIENCE)
    other = Guest(stack, Next.END)
    assert watching.watch(other, other.resume)
    other.far.send(b"x")
    assert other.resumed.wait(PATIENCE) and len(answered) == 1


def test_what_a_thread_is_busy_with_is_not_watched_and_may_come_back(watching: Idle, stack: ExitStack) -> None:
    guest = Guest(stack, Next.WORK, Next.WORK)
    for _ in range(2):
        assert watching.watch(guest, guest.resume)
        guest.far.send(b"x")
        assert guest.resumed.wait(PATIENCE)
        guest.resumed.clear()
    guest.far.send(b"x")
    other = Guest(stack, Next.WORK)  # whose answer shows that the first one was not asked again
    assert watching.watch(other, other.resume)
    other.far.send(b"x")
    assert other.resumed.wait(PATIENCE)
    assert guest.heard == b"xx"


def test_what_is_over_takes_no_thread(watching: Idle, stack: ExitStack) -> None:
    guest = Guest(stack, Next.END)
    assert watching.watch(guest, guest.resume)
    guest.far.send(b"x")
    assert guest.resumed.wait(PATIENCE)
    assert guest.given_up and guest.resumed_by == "idle"


def test_who_says_nothing_for_too_long_is_given_up(
    watching: Idle, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "_TICK", 0.01)
    silent, patient = Guest(stack, patience=0.02), Guest(stack)
    for guest in (patient, silent):
        assert watching.watch(guest, guest.resume)
    assert silent.resumed.wait(PATIENCE) and silent.given_up
    assert not patient.resumed.is_set()


def test_at_the_end_threads_go_on_with_whoever_is_here(threads: Threads, stack: ExitStack) -> None:
    watching = Idle(threads.spawn)
    threads.spawn("idle", watching.run)
    wait_until(lambda: watching._epoll is not None)
    guests = [Guest(stack) for _ in range(3)]
    for guest in guests:
        assert watching.watch(guest, guest.resume)
    watching.stop()
    assert all(guest.resumed.wait(PATIENCE) and not guest.given_up for guest in guests)
    wait_until(lambda: watching._epoll is None)
    watching.stop()
    late = Guest(stack)
    assert not watching.watch(late, late.resume)


def test_without_a_thread_to_be_had_a_connection_ends(threads: Threads, stack: ExitStack) -> None:
    def no_room(name: str, work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    watching = Idle(no_room)
    threads.spawn("idle", watching.run)
    wait_until(lambda: watching._epoll is not None)
    guest = Guest(stack, Next.WORK)
    assert watching.watch(guest, guest.resume)
    guest.far.send(b"x")
    assert guest.resumed.wait(PATIENCE) and guest.given_up
    watching.stop()


def test_a_bug_is_the_end_of_its_guest_alone(
    watching: Idle, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    buggy, other = Guest(stack), Guest(stack, Next.END)  # the first has no answer
    for guest in (buggy, other):
        assert watching.watch(guest, guest.resume)
    with caplog.at_level(logging.ERROR):
        buggy.far.send(b"x")
        assert buggy.resumed.wait(PATIENCE) and buggy.given_up
    assert "A bug in dduct ended a connection" in caplog.text
    assert not other.resumed.is_set()
    other.far.send(b"x")
    assert other.resumed.wait(PATIENCE)


@pytest.mark.parametrize("what", [Next.WORK, Next.END])
def test_a_newcomer_with_the_number_of_one_that_is_gone_stays(watching: Idle, stack: ExitStack, what: Next) -> None:
    """OpenSSL closes a socket that it cannot take over, and the system gives its number to the next connection."""
    guest, newcomer = Guest(stack, what), Guest(stack, Next.END)
    number = guest.fileno()

    def answer_at_once(turn: float) -> Next:
        guest.sock.close()
        os.dup2(newcomer.fileno(), number)
        newcomer.fileno = lambda: number  # type: ignore[method-assign]
        assert watching.watch(newcomer, newcomer.resume)
        return what

    guest.answer_at_once = answer_at_once  # type: ignore[method-assign]
    assert watching.watch(guest, guest.resume)
    guest.far.send(b"x")
    assert guest.resumed.wait(PATIENCE)
    assert not newcomer.resumed.is_set() and not newcomer.given_up
    newcomer.far.send(b"x")
    assert newcomer.resumed.wait(PATIENCE)
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
        assert self.gate.wait(PATIENCE)
        self.polling = None


class Asking(Guest):
    """A guest whose first answer takes the disk."""

    def __init__(self, stack: ExitStack, disk: Disk, *answers: Next) -> None:
        super().__init__(stack, *answers)
        self._disk = disk

    def answer_at_once(self, turn: float) -> Next:
        what = super().answer_at_once(turn)
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
def supervised(threads: Threads, disk: Disk) -> Iterator[Idle]:
    watching = Idle(threads.spawn, disk=disk)
    watching.open()
    for work in (watching.run, watching.supervise):
        threads.spawn("idle", work)
    yield watching
    disk.gate.set()
    watching.stop()


@pytest.mark.parametrize("what", [Next.WATCH, Next.WORK, Next.END])
def test_who_hangs_in_the_disk_has_a_successor(supervised: Idle, disk: Disk, stack: ExitStack, what: Next) -> None:
    asking, other = Asking(stack, disk, what, Next.END), Guest(stack, Next.WATCH, Next.WATCH)
    for guest in (asking, other):
        assert supervised.watch(guest, guest.resume)
    asking.far.send(b"1")
    assert disk.hanging.wait(PATIENCE)
    for heard in (b"x", b"xx"):
        other.far.send(b"x")
        wait_until(lambda heard=heard: other.heard == heard)  # type: ignore[misc]
    asking.far.send(b"2")
    other.far.send(b"x")  # with no answer: a bug of his, which shows that all that has been said has been looked at
    assert other.resumed.wait(PATIENCE)
    assert asking.heard == b"1" and not asking.resumed.is_set() and disk.told == ["lost"]
    disk.gate.set()
    assert asking.resumed.wait(PATIENCE)
    assert asking.heard == (b"12" if what is Next.WATCH else b"1")
    assert asking.given_up is (what is not Next.WORK)
    assert disk.told == ["lost", "found"] and not supervised._lost and not supervised._watched


def test_what_a_lost_thread_has_not_looked_at_its_successor_is_told(
    supervised: Idle, disk: Disk, stack: ExitStack
) -> None:
    gate, held = threading.Event(), threading.Event()
    first, asking = Guest(stack), Asking(stack, disk, Next.WORK)
    others = [Guest(stack, Next.WORK) for _ in range(3)]

    def hold(turn: float) -> Next:
        held.set()
        assert gate.wait(PATIENCE)
        return Next.END

    first.answer_at_once = hold  # type: ignore[method-assign]
    for guest in (first, asking, *others):
        assert supervised.watch(guest, guest.resume)
    first.far.send(b"x")
    assert held.wait(PATIENCE)
    for guest in (asking, *others):  # in one batch, with the one that hangs at its head
        guest.far.send(b"x")
    gate.set()
    for guest in others:
        assert guest.resumed.wait(PATIENCE)
    assert not asking.resumed.is_set()
    disk.gate.set()
    assert asking.resumed.wait(PATIENCE)
    assert [guest.heard for guest in (asking, *others)] == [b"x"] * 4


def test_the_end_does_not_wait_for_a_lost_thread(
    supervised: Idle, disk: Disk, stack: ExitStack, threads: Threads
) -> None:
    asking, other = Asking(stack, disk, Next.WATCH), Guest(stack)
    for guest in (asking, other):
        assert supervised.watch(guest, guest.resume)
    asking.far.send(b"x")
    assert disk.hanging.wait(PATIENCE)
    supervised.stop()  # lost or not yet
    assert other.resumed.wait(PATIENCE)
    wait_until(lambda: supervised._epoll is None)
    assert not asking.resumed.is_set()
    disk.gate.set()  # now there is nobody who watches
    assert asking.resumed.wait(PATIENCE) and not asking.given_up


def test_without_a_thread_to_be_had_the_supervisor_goes_on(disk: Disk, stack: ExitStack, threads: Threads) -> None:
    def no_room(name: str, work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    watching = Idle(no_room, disk=disk)
    watching.open()
    for work in (watching.run, watching.supervise):
        threads.spawn("idle", work)
    asking, other = Asking(stack, disk, Next.WATCH), Guest(stack, Next.END)
    for guest in (asking, other):
        assert watching.watch(guest, guest.resume)
    asking.far.send(b"x")
    assert disk.hanging.wait(PATIENCE)
    other.far.send(b"x")
    assert other.resumed.wait(PATIENCE)
    disk.gate.set()
    watching.stop()


def test_who_has_come_back_just_in_time_goes_on(supervised: Idle, disk: Disk, stack: ExitStack) -> None:
    guest = Guest(stack, Next.WATCH, Next.END)
    assert supervised.watch(guest, guest.resume)
    guest.far.send(b"x")
    wait_until(lambda: guest.heard == b"x")
    assert supervised._replace(time.monotonic()) is None  # it is over since
    guest.far.send(b"x")
    assert guest.resumed.wait(PATIENCE) and not disk.told


def test_only_so_many_are_lost(supervised: Idle, disk: Disk, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Semaphore(0)

    def none_more(watching: Idle, operation: float, replace: Any = Idle._replace) -> None:
        assert replace(watching, operation) is None
        looks.release()

    monkeypatch.setattr(poller, "_LOST_AT_MOST", 0)
    monkeypatch.setattr(Idle, "_replace", none_more)
    asking = Asking(stack, disk, Next.WORK)
    assert supervised.watch(asking, asking.resume)
    asking.far.send(b"x")
    for _ in range(2):
        assert looks.acquire(timeout=PATIENCE)
    assert not disk.told
    disk.gate.set()
    assert asking.resumed.wait(PATIENCE)


# --- in the house -------------------------------------------------------------------------------

BODY = b"0123456789" * 400


def work(house: House) -> Tuple[int, int]:
    """How many threads have something to do, besides listening and watching; and how many are watched."""
    watched = list(house.server._idle._watched.values())
    return house.server._threads._running - 4, sum(not isinstance(one.guest, Listener) for one in watched)


def known(house: House, path: str = "/x.deb") -> Origin:
    """An object that has been asked for often enough."""
    origin = house.origin(Files({path: BODY}, [("Cache-Control", "max-age=600")]))
    assert house.fetch(origin, path).body == BODY
    house.settle()  # what was known before that has to be looked at again
    for _ in range(2):
        assert house.fetch(origin, path).body == BODY
        wait_until(lambda: not house.server.connections)  # what is remembered is so after the client has its answer
    return origin


def alone(house: House) -> Session:
    """The session of the one client there is, when those before it are gone, whose ends dduct may see late."""
    wait_until(lambda: len(house.server.connections) == 1)
    (connection,) = house.server.connections._all.values()
    assert connection.session is not None
    return connection.session


def test_a_newcomer_takes_no_thread_before_it_wants_something(house: House) -> None:
    clients = [house.client() for _ in range(10)]
    wait_until(lambda: work(house) == (0, 10))
    for client in clients:
        client.send(b"GET /healthz HTT")
    wait_until(lambda: work(house) == (10, 0))
    for client in clients:
        client.send(b"P/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read().status == 200


def test_who_repeats_itself_takes_no_thread(house: House) -> None:
    origin = known(house)
    with house.inside(origin) as client:
        for _ in range(5):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
            wait_until(lambda: work(house) == (0, 1))
        assert client.get("/y.deb", f"{HOST}:{origin.port}").status == 404
        assert work(house) == (1, 0)
    assert len(origin.requests) == 2


def test_pipelined_requests_that_repeat_themselves_are_all_answered(house: House) -> None:
    origin = known(house)
    request = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode()
    with house.inside(origin) as client:
        for count in (1, 1, 5, 1, 3):
            client.send(request * count)
            assert [client.read().body for _ in range(count)] == [BODY] * count


def test_a_request_in_pieces_is_waited_for(house: House) -> None:
    origin = known(house)
    with house.inside(origin) as client:
        for _ in range(3):
            client.get("/x.deb", f"{HOST}:{origin.port}")
        client.send(b"GET /x.deb HT")
        wait_until(lambda: work(house) == (1, 0))
        client.send(f"TP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        assert client.read().body == BODY


def test_a_client_that_does_not_trust_us_is_told_of_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    origin = known(house)  # so that the leaf is at hand
    with caplog.at_level(logging.INFO), house.client() as client:
        assert client.connect(f"{HOST}:{origin.port}").status == 200
        client.send(b"\x16\x03\x01\x00\x05hello")
        wait_until(lambda: "makes no TLS connection with us" in caplog.text)
    wait_until(lambda: work(house) == (0, 0))


def slots_taken(house: House) -> int:
    return house.server.connections.places.taken


def test_connections_whose_handshakes_fail_leave_nothing_and_throw_nobody_out(house: House) -> None:
    """A build that does not trust our authority tries it again and again; others come and go meanwhile."""
    origin = known(house)
    over = threading.Event()
    answers: List[int] = []

    def distrust() -> None:
        for _ in range(100):
            with house.client() as client:
                assert client.connect(f"{HOST}:{origin.port}").status == 200
                client.send(b"\x16\x03\x01\x00\x05hello")
                client.at_end()

    def come_and_go() -> None:
        while not over.is_set():
            with house.client() as client:
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
    wait_until(lambda: not house.server.connections and not slots_taken(house))


def test_a_connection_that_breaks_as_its_tls_begins_ends_alone(house: House) -> None:
    """With unread octets on a connection that is gone, wrap_socket raises, and has closed it."""
    origin = known(house)
    authority = f"{HOST}:{origin.port}"
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nX: ".encode()
    head += b"a" * (16384 - len(head) - 4) + b"\r\n\r\n"  # as much as is read at once
    for _ in range(5):
        with house.client() as client:
            client.send(head + b"\x16\x03\x01more")
    wait_until(lambda: not house.server.connections and not slots_taken(house))
    assert house.server._idle._epoll is not None
    assert house.fetch(origin, "/x.deb").body == BODY


def test_a_client_that_had_to_wait_for_its_answer_is_idle_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutdown does not wait for it."""
    origin = known(house)
    with house.inside(origin) as client:
        for _ in range(4):
            client.get("/x.deb", f"{HOST}:{origin.port}")
        session = alone(house)
        whole = session._stream.send_nowait
        halves: List[int] = []

        def send_half(view: memoryview) -> int:
            halves.append(whole(view[: len(view) // 2]))
            return halves[-1]

        monkeypatch.setattr(session._stream, "send_nowait", send_half)
        assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
        assert len(halves) == 1
        wait_until(lambda: not session.busy)
        monkeypatch.undo()
        for path, status in (("/x.deb", 200), ("/x.deb", 200), ("/y.deb", 404)):  # a thread's, Idle's and a thread's
            assert client.get(path, f"{HOST}:{origin.port}").status == status  # and nothing is sent twice


def test_a_handshake_that_drips_is_a_thread_s(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.server._household.leaves.context("origin.test")
    with house.client() as client:
        assert client.connect("origin.test:443").status == 200
        session = alone(house)
        client.send(b"\x16")
        wait_until(lambda: session._stream.handshaking)
        steps, step = [0], session._stream.continue_tls

        def count() -> bool:
            over = step()
            steps[0] += 1  # now it has read the octet, and cannot read two at once
            return over

        monkeypatch.setattr(session._stream, "continue_tls", count)
        for turn, octet in enumerate((b"\x03", b"\x01"), 1):
            client.send(octet)
            wait_until(lambda turn=turn: steps[0] == turn)  # type: ignore[misc]
        wait_until(lambda: work(house) == (1, 0))


def test_a_large_answer_to_a_client_that_reads_late_is_complete(house: House) -> None:
    body = bytes(range(256)) * 250
    origin = house.origin(Files({"/x.deb": body}, [("Cache-Control", "max-age=600")]))
    request = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode()
    with house.inside(origin) as client:
        for _ in range(4):
            client.send(request)
            assert client.read().body == body
        count = 200  # 13 MB: more than sockets hold
        for _ in range(count):  # a record each: by one thread, as OpenSSL demands of those who share a connection
            client.send(request)
        bodies: List[bytes] = [client.read().body for _ in range(count)]
        assert bodies == [body] * count
