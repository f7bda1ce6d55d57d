"""Threads are reused, and waited for at the stop."""

from __future__ import annotations

import errno
import logging
import queue
import socket
import threading
from contextlib import contextmanager
from functools import partial
from typing import Iterator, List, Tuple, Union

import pytest
from support.client import wait_until

from monitoring import request_number
from monitoring.request_number import RequestNumbers
from net.listener import Listener, ThreadPool, bind
from net.poller import Poller

TIMEOUT = 20.0

Connection = Tuple[socket.socket, str]


def wait_for(what: Union[threading.Barrier, threading.Event]) -> None:
    what.wait(TIMEOUT)


def test_threads_are_reused() -> None:
    threads = ThreadPool()
    seen: List[int] = []

    def note(done: threading.Event) -> None:
        seen.append(threading.get_ident())
        done.set()

    for _ in range(20):
        done = threading.Event()
        threads.spawn("work", partial(note, done))
        assert done.wait(TIMEOUT)
        wait_until(lambda: threads._waiting == 1)
    assert len(seen) == 20 and len(set(seen)) == 1
    assert threads.join(TIMEOUT)


def test_work_that_arrives_at_once_runs_in_parallel() -> None:
    threads = ThreadPool()
    together = threading.Barrier(11)
    for _ in range(2):  # with new threads, then with those
        for _ in range(10):
            threads.spawn("work", partial(wait_for, together))
        together.wait(TIMEOUT)
    assert threads.join(TIMEOUT)


def test_work_may_start_work_and_stop_waits_for_all_of_it() -> None:
    threads = ThreadPool()
    gate, done = threading.Event(), threading.Event()

    def first() -> None:
        gate.wait(TIMEOUT)
        threads.spawn("second", done.set)

    threads.spawn("first", first)
    assert not threads.join(0.01)
    gate.set()
    assert threads.join(TIMEOUT) and done.is_set()


def test_work_has_the_number_of_the_request_that_asked_for_it() -> None:
    threads = ThreadPool()
    seen: List[object] = []
    numbers = RequestNumbers(17)

    def work() -> None:
        seen.append(request_number.current())
        if len(seen) == 1:
            threads.spawn("more", work)

    with numbers:
        numbers.begin()
        threads.spawn("work", work)
        numbers.begin()
    wait_until(lambda: len(seen) == 2)
    threads.spawn("other", work)  # perhaps in the same thread
    assert threads.join(TIMEOUT) and seen == [(17, 1), (17, 1), None]


def test_an_exception_ends_only_its_own_work(caplog: pytest.LogCaptureFixture) -> None:
    threads = ThreadPool()

    def bug() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        threads.spawn("buggy", bug)
        wait_until(lambda: threads._waiting == 1)
        done = threading.Event()
        threads.spawn("work", done.set)
        assert done.wait(TIMEOUT)
        assert threads.join(TIMEOUT)
    assert "A bug in dduct ended the thread buggy" in caplog.text


def test_a_listener_ends_when_its_socket_listens_no_more_and_does_not_spin() -> None:
    """As when the process above shuts it down for all; `stop` then finds nothing to wait for."""
    threads = ThreadPool()
    sock = bind("127.0.0.1", 0)
    listener = Listener(sock, threads, lambda *_: None, Poller(threads.spawn))
    listener.start()
    sock.shutdown(socket.SHUT_RDWR)
    assert threads.join(TIMEOUT)
    listener.stop()
    listener.stop()


@contextmanager
def accepting() -> Iterator[Tuple[Listener, queue.Queue[Connection]]]:
    """A listener whose connections are watched for by another thread, and what it serves: socket, thread."""
    threads = ThreadPool()
    poller = Poller(threads.spawn)
    served: queue.Queue[Connection] = queue.Queue()
    threads.spawn("idle", poller.run)
    wait_until(lambda: poller._epoll is not None)

    def serve(connection: socket.socket, _: str) -> None:
        served.put((connection, threading.current_thread().name))

    listener = Listener(bind("127.0.0.1", 0), threads, serve, poller)
    listener.start()
    wait_until(lambda: bool(poller._watched))
    try:
        yield listener, served
    finally:
        listener.stop()
        assert not poller._watched
        poller.stop()
        assert threads.join(TIMEOUT)


def test_connections_are_accepted_in_the_pollers_thread() -> None:
    with accepting() as (listener, served):
        for _ in range(3):
            with socket.create_connection(listener.address):
                connection, thread = served.get(timeout=TIMEOUT)
                connection.close()
                assert thread == "idle"


def test_a_listener_waits_when_descriptors_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("net.listener._SCARCITY_PAUSE", 0.01)
    accept = socket.socket.accept
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3

    def scarce(sock: socket.socket) -> Tuple[socket.socket, Tuple[str, int]]:
        if failures:
            raise failures.pop()
        return accept(sock)

    with accepting() as (listener, served):
        monkeypatch.setattr(socket.socket, "accept", scarce)
        with socket.create_connection(listener.address):
            connection, _ = served.get(timeout=TIMEOUT)
            connection.close()
        assert not failures
        with socket.create_connection(listener.address):  # and no place is lost
            connection, _ = served.get(timeout=TIMEOUT)
            connection.close()


def test_an_exception_in_serving_ends_only_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    threads = ThreadPool()
    poller = Poller(threads.spawn)
    threads.spawn("idle", poller.run)
    wait_until(lambda: poller._epoll is not None)

    def serve(*_: object) -> None:
        raise ZeroDivisionError

    listener = Listener(bind("127.0.0.1", 0), threads, serve, poller)
    listener.start()
    wait_until(lambda: bool(poller._watched))
    with caplog.at_level(logging.CRITICAL), socket.create_connection(listener.address, TIMEOUT) as client:
        assert client.recv(1) == b""
    listener.stop()
    poller.stop()
    assert threads.join(TIMEOUT)


def test_one_process_that_stops_does_not_stop_the_others() -> None:
    threads, address = ThreadPool(), ("127.0.0.1", 0)
    sock = bind(*address)
    came = threading.Event()

    def serve(connection: socket.socket, _: str) -> None:
        connection.close()
        came.set()

    one = Listener(sock.dup(), threads, serve, Poller(threads.spawn))
    other = Listener(sock, threads, serve, Poller(threads.spawn))
    for listener in (one, other):
        listener.start()
    one.stop()
    with socket.create_connection(other.address):
        assert came.wait(TIMEOUT)
    other.stop_all()
    assert threads.join(TIMEOUT)


def test_the_number_of_waiting_threads_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("net.listener._MAX_WAITING", 2)
    threads = ThreadPool()
    gate = threading.Event()
    for _ in range(8):
        threads.spawn("work", partial(wait_for, gate))
    gate.set()
    wait_until(lambda: len(threads._threads) == 2)
    assert threads.join(TIMEOUT)


def test_an_idle_thread_ends_after_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("net.listener._WAITING_FOR", 0.01)
    threads = ThreadPool()
    threads.spawn("work", lambda: None)
    wait_until(lambda: not threads._threads)
    assert threads.join(TIMEOUT)


def test_a_thread_that_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = ThreadPool()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            threads.spawn("work", lambda: None)
    assert threads.join(0) and not threads._threads
