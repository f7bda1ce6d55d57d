"""Client connections that wait with the poller, and requests that its thread answers."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import List, Tuple

import pytest
from support.client import wait_until
from support.origin import Files, Origin
from support.running import HOST, RunningDduct

from net.listener import Listener
from proxy.connections import Connection

pytestmark = pytest.mark.one_process

BODY = b"0123456789" * 400


def work(dduct: RunningDduct) -> Tuple[int, int]:
    """How many threads have something to do, besides listening and watching; and how many are watched."""
    watched = list(dduct.server._poller._watched.values())
    return dduct.server.snapshot().threads - 5, sum(not isinstance(one.pollable, Listener) for one in watched)


def known(dduct: RunningDduct, path: str = "/x.deb") -> Origin:
    """An object that has been requested often enough to be in memory."""
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


def test_a_new_connection_takes_no_thread_before_it_sends(dduct: RunningDduct) -> None:
    clients = [dduct.client() for _ in range(10)]
    wait_until(lambda: work(dduct) == (0, 10))
    for client in clients:
        client.send(b"GET /healthz HTT")
    wait_until(lambda: work(dduct) == (10, 0))
    for client in clients:
        client.send(b"P/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read().status == 200


def test_a_repeated_request_takes_no_thread(dduct: RunningDduct) -> None:
    origin = known(dduct)
    with dduct.intercepted(origin) as client:
        for _ in range(5):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
            wait_until(lambda: work(dduct) == (0, 1))
        assert client.get("/y.deb", f"{HOST}:{origin.port}").status == 404
        assert work(dduct) == (1, 0)
    assert len(origin.requests) == 2


def test_repeated_pipelined_requests_are_all_answered(dduct: RunningDduct) -> None:
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


def test_a_client_that_rejects_our_certificate_is_logged(dduct: RunningDduct, caplog: pytest.LogCaptureFixture) -> None:
    origin = known(dduct)  # so that the leaf is cached
    with caplog.at_level(logging.INFO), dduct.client() as client:
        assert client.connect(f"{HOST}:{origin.port}").status == 200
        client.send(b"\x16\x03\x01\x00\x05hello")
        wait_until(lambda: "makes no TLS connection with us" in caplog.text)
    wait_until(lambda: work(dduct) == (0, 0))


def slots_taken(dduct: RunningDduct) -> int:
    return dduct.server.connections.limit.taken


def test_failed_handshakes_leave_nothing_and_disturb_no_other_connection(dduct: RunningDduct) -> None:
    """A build that does not trust our authority retries it repeatedly while other clients connect."""
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


def test_a_connection_that_breaks_at_the_start_of_tls_ends_alone(dduct: RunningDduct) -> None:
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


def test_a_client_that_had_to_wait_for_its_answer_becomes_idle_again(
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
        # Answered by a thread, the poller and a thread.
        for path, status in (("/x.deb", 200), ("/x.deb", 200), ("/y.deb", 404)):
            assert client.get(path, f"{HOST}:{origin.port}").status == status  # and nothing is sent twice


def test_a_dripping_handshake_is_handed_to_a_thread(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
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
        for _ in range(count):  # a record each, written by one thread: OpenSSL allows no two at once
            client.send(request)
        bodies: List[bytes] = [client.read().body for _ in range(count)]
        assert bodies == [body] * count
