"""Crowds: slow clients and idle tunnels by the thousand, and healthy clients that do not notice."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest
from support.client import Client, wait_until
from support.origin import Asked, Connection, Origin
from support.process import Process, write

from hardship.measure import Dduct

MANY_READERS = 1000
TUNNELS = 2000
SMALL, LARGE = os.urandom(4096), os.urandom(20_000_000)


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * TUNNELS + 1000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, and may have {hard}")
    # dduct raises its own soft limit by itself, so it begins with the lower one.
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def handler(asked: Asked, connection: Connection) -> None:
    body = LARGE if asked.target == "/large.deb" else SMALL
    connection.respond(200, [("ETag", '"1"'), ("Cache-Control", "max-age=600")], body)


@pytest.fixture
def dduct(tmp_path: Path, certificates: Path) -> Iterator[Dduct]:
    shutil.copytree(certificates, tmp_path / "certs")
    path = write(
        tmp_path,
        {"min_free": ""},
        {"server_dns_sans": ["origin.test"], "server_ip_sans": []},
        idle_timeout="30s",
        max_connections=4096,
    )
    process = Process(path)
    try:
        yield Dduct(process)
    finally:
        process.close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    raise_limit()
    with Origin(handler) as origin:
        yield origin


class Crowd:
    """Many connections that one thread keeps busy with next to nothing."""

    def __init__(self, port: int, count: int, first: bytes, drop: Callable[[socket.socket], None]) -> None:
        self._sockets: List[socket.socket] = []
        self._drop = drop
        self._stopping = threading.Event()
        for _ in range(count):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", port))
            sock.sendall(first)
            sock.setblocking(False)
            self._sockets.append(sock)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        while not self._stopping.wait(0.5):
            for sock in self._sockets:
                with suppress(OSError):
                    self._drop(sock)

    def alive(self) -> int:
        """How many dduct has not hung up on."""
        poll = select.poll()
        for sock in self._sockets:
            poll.register(sock, select.POLLRDHUP)
        return len(self._sockets) - len(poll.poll(0))


def one_byte(sock: socket.socket) -> None:
    sock.send(b"x")


def read_a_little(sock: socket.socket) -> None:
    sock.recv(500)


def healthy(port: int, url: str, seconds: int = 6) -> Dict[str, float]:
    script = Path(__file__).with_name("healthy.py")
    command = [sys.executable, str(script), str(port), url, str(len(SMALL)), "20", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.pop("errors") == []
    return dict(figures)


@pytest.mark.parametrize("kind", ["headers", "bodies", "reads"])
def test_a_crowd_of_slow_clients_does_not_delay_a_healthy_one(dduct: Dduct, origin: Origin, kind: str) -> None:
    host = f"127.0.0.1:{origin.port}"
    small, large = f"http://{host}/small.deb", f"http://{host}/large.deb"
    alone = dduct.descriptors()
    with ExitStack() as stack:
        client = stack.enter_context(Client(dduct.port))
        for url, body in ((small, SMALL), (large, LARGE)):
            assert client.get(url, host).body == body
        client.sock.close()
        healthy(dduct.port, small, 1)
        before = dduct.descriptors(), dduct.threads()
        head = f"Host: {host}\r\n"
        first, drop = {
            "headers": (f"GET {small} HTTP/1.1\r\n{head}X: ", one_byte),
            "bodies": (f"PUT http://{host}/upload HTTP/1.1\r\n{head}Content-Length: 1000000\r\n\r\n", one_byte),
            "reads": (f"GET {large} HTTP/1.1\r\n{head}\r\n", read_a_little),
        }[kind]
        with Crowd(dduct.port, MANY_READERS, first.encode(), drop) as crowd:
            wait_until(lambda: dduct.descriptors() >= alone + MANY_READERS)
            figures = healthy(dduct.port, small)
            memory = dduct.memory()
            assert crowd.alive() == MANY_READERS
        wait_until(lambda: dduct.descriptors() <= before[0] and dduct.threads() <= before[1])
    print(f"slow {kind}: healthy p50 {figures['p50']:.1f} ms, p95 {figures['p95']:.1f} ms; {memory / 2**20:.0f} MiB")
    assert figures["p95"] < 200
    assert memory < 300 * 2**20


def test_idle_tunnels_are_cheap(dduct: Dduct) -> None:
    raise_limit()
    with ExitStack() as stack:
        far = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        held: List[socket.socket] = []

        def hold() -> None:
            with suppress(OSError):
                while True:
                    held.append(far.accept()[0])

        holding = threading.Thread(target=hold)
        holding.start()
        authority = f"127.0.0.1:{far.getsockname()[1]}"
        with Client(dduct.port) as client:
            client.connect(authority)
            client.send(b"ping")
        memory, descriptors = dduct.memory(), dduct.descriptors()
        for _ in range(TUNNELS):
            client = stack.enter_context(Client(dduct.port))
            assert client.connect(authority).status == 200
        each = (dduct.memory() - memory) / TUNNELS
        print(f"an idle tunnel takes {each / 1024:.0f} KiB")
        far.shutdown(socket.SHUT_RDWR)
        holding.join(20)
        for sock in held:
            sock.close()
    wait_until(lambda: dduct.descriptors() <= descriptors)
    assert each < 150 * 1024


def test_clients_beyond_a_limit_get_an_error_at_once(tmp_path: Path, certificates: Path) -> None:
    """At the limit a newcomer waits a little, is told 503 and when to come again; below it everything is as before."""
    shutil.copytree(certificates, tmp_path / "certs")
    process = Process(write(tmp_path, workers=1, max_connections=50))
    try:
        port = process.ports()[0]
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        began = time.monotonic()
        with Client(port) as client:
            answer = client.read()
            assert answer.status == 503 and answer.get("retry-after") == "5"
        assert time.monotonic() - began < 5
        for sock in held:
            sock.close()
        wait_until(lambda: _served(port))
    finally:
        process.close()


def _served(port: int) -> bool:
    with Client(port) as client:
        return client.get("/healthz", "localhost").status == 200
