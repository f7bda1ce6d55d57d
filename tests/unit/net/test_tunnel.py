"""Tunnels: what goes in at one end comes out at the other, copied or carried by the kernel."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import sys
import termios
from concurrent.futures import Future
from typing import Callable, Iterator, List, Optional, Set
from unittest.mock import Mock

import pytest
from support.client import wait_until
from support.pairs import TIMEOUT, Inner, Pairs, in_thread, read_all, reset, server_context

from net import tunnel as module
from net.stream import Stream

BODY = os.urandom(6_000_000)
SPLICES = hasattr(os, "splice")  # Python 3.10 and later
needs_splice = pytest.mark.skipif(not SPLICES, reason="Python 3.9 knows no splice")
Splice = Callable[..., int]
IS_HERE = module._is_here


class Ends:
    """A client and an origin with a tunnel between them."""

    def __init__(self, pairs: Pairs, poller: float = TIMEOUT, buffers: Optional[int] = None) -> None:
        near, self.client = pairs.plain(buffers=buffers)
        far, self.origin = pairs.plain(buffers=buffers)
        self._streams = near, far
        self._running: Future[None] = in_thread(module.tunnel, near, far, poller)

    def end(self) -> None:
        """Wait for the tunnel's end; raises what it raised."""
        try:
            self._running.result(TIMEOUT)
        finally:
            for stream in self._streams:
                stream.close_abruptly()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    before = pipes()
    with Pairs() as pairs:
        yield pairs
    assert pipes() == before


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends are taken for other machines: for those, the kernel carries what it can."""
    monkeypatch.setattr(module, "_is_here", lambda stream: False)


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """How many bytes each splice has moved."""
    counts: List[int] = []
    if SPLICES:
        real: Splice = os.splice

        def splice(source: int, sink: int, count: int) -> int:
            counts.append(real(source, sink, count))
            return counts[-1]

        monkeypatch.setattr(os, "splice", splice)
    return counts


def pipes() -> Set[str]:
    """The pipes that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the listing's own
    return {link for link in found if link.startswith("pipe:")}


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read(sock: socket.socket, count: int) -> bytes:
    heard = b""
    while len(heard) < count:
        heard += sock.recv(count - len(heard))
    return heard


def stuck(sock: socket.socket) -> bool:
    """Whether the peer reads nothing: no more bytes can be sent for a tenth of a second."""
    before = unsent(sock)
    return before > 0 and not select.select([], [sock], [], 0.1)[1] and unsent(sock) == before


def unsent(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def exchange(ends: Ends, up: bytes, down: bytes) -> None:
    """Both ends say all they have to say at once, and hear all of the other's."""
    senders = [in_thread(send_all, ends.client, up), in_thread(send_all, ends.origin, down)]
    heard = [in_thread(read_all, ends.client), in_thread(read_all, ends.origin)]
    assert [one.result(TIMEOUT) for one in heard] == [down, up]
    for one in senders:
        one.result(TIMEOUT)
    ends.end()


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("buffers", [None, 4096])
def test_everything_arrives_in_both_directions(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, by_kernel: bool, buffers: Optional[int]
) -> None:
    if not by_kernel:
        monkeypatch.delattr(os, "splice", raising=False)
    body = BODY if buffers is None else BODY[:500_000]
    exchange(Ends(pairs, buffers=buffers), body, body[::-1])


@needs_splice
def test_the_kernel_splices_all_but_the_first_bytes(
    pairs: Pairs, spliced: List[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUIET", TIMEOUT)  # or the count starts again after a pause
    ends = Ends(pairs)
    exchange(ends, b"a few words", BODY)
    assert sum(spliced) >= 2 * (len(BODY) - 200_000)  # in and out; the beginning is two buffers


def test_a_short_exchange_takes_no_pipe(pairs: Pairs, spliced: List[int]) -> None:
    exchange(Ends(pairs), b"hello", b"and goodbye")
    assert spliced == []


def test_tunnels_within_this_machine_are_copied(
    pairs: Pairs, spliced: List[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_here", IS_HERE)
    exchange(Ends(pairs), BODY, BODY[::-1])
    assert spliced == []


@pytest.mark.parametrize(
    ("peer", "own", "here"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("192.0.2.7", "192.0.2.7", True),  # it has gone by the machine's name
        ("192.0.2.8", "192.0.2.7", False),
        ("", "192.0.2.7", False),  # it has left
    ],
)
def test_local_peers_are_recognized(peer: str, own: str, here: bool) -> None:
    stream = Mock(Stream, peer=peer, address=(own, 8443))
    assert IS_HERE(stream) is here


@pytest.mark.parametrize(("raw", "yields"), [(len(BODY), True), (50_000, False)])
@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_busy_tunnel_yields_to_other_threads(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, by_kernel: bool, raw: int, yields: bool
) -> None:
    if not by_kernel:
        monkeypatch.delattr(os, "splice", raising=False)
    calls: List[None] = []
    monkeypatch.setattr(module, "_let_others_run", lambda: calls.append(None))
    exchange(Ends(pairs), b"up", BODY[:raw])
    assert bool(calls) is yields


def test_the_buffer_grows_with_the_bytes_that_arrive_at_once() -> None:
    buffer = module._Buffer()
    sizes = []
    for _ in range(8):
        sizes.append(len(buffer.get()))
        buffer.note(sizes[-1])
    assert sizes == [16384, 32768, 65536, 131072, 262144, 524288, 524288, 524288]
    buffer.drop()
    assert len(buffer.get()) == 16384
    buffer.note(16383)  # there was room for more
    assert len(buffer.get()) == 16384


def test_bytes_read_ahead_are_sent_first(pairs: Pairs) -> None:
    near, client = pairs.plain()
    far, origin = pairs.plain()
    client.sendall(BODY[:1000])
    wait_until(near.arrived)
    running = in_thread(module.tunnel, near, far, TIMEOUT)
    sender = in_thread(send_all, client, BODY[1000:])
    origin.shutdown(socket.SHUT_WR)
    assert read_all(origin) == BODY
    sender.result(TIMEOUT)
    running.result(TIMEOUT)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("good", [0, 1, 6])
@needs_splice
def test_bytes_are_copied_if_the_kernel_cannot_splice(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, number: int, good: int
) -> None:
    """Whether it says so about a socket that is read, or about one that is written to with bytes in the pipe."""
    real: Splice = os.splice
    calls: List[int] = []

    def splice(source: int, sink: int, count: int) -> int:
        calls.append(count)
        if len(calls) > good:
            raise OSError(number, os.strerror(number))
        return real(source, sink, count)

    monkeypatch.setattr(os, "splice", splice)
    exchange(Ends(pairs), b"up", BODY)
    assert len(calls) == good + 1


@pytest.mark.parametrize("name", ["pipe2", "fcntl"])
@needs_splice
def test_bytes_are_copied_if_no_pipe_is_available(
    pairs: Pairs, spliced: List[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def small(fd: int, command: int, size: int = 0) -> int:
        if size:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return 4096

    if name == "pipe2":
        monkeypatch.setattr(os, "pipe2", full)
    else:
        monkeypatch.setattr("fcntl.fcntl", small)
    exchange(Ends(pairs), b"up", BODY)
    assert spliced == []


@needs_splice
def test_a_tunnel_gives_its_pipe_back_when_it_is_quiet(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET", 0.01)
    before = pipes()
    ends = Ends(pairs)
    for _ in range(2):
        sender = in_thread(ends.origin.sendall, BODY)
        heard = 0
        while heard < len(BODY):
            heard += len(ends.client.recv(1 << 18))
        sender.result(TIMEOUT)
        wait_until(lambda: pipes() == before)
    exchange(ends, b"up", b"down")


@needs_splice
def test_bytes_in_a_pipe_survive_a_quiet_time(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing for a while gets all of it later."""
    monkeypatch.setattr(module, "_QUIET", 0.05)
    rested: List[bool] = []
    real = module._Direction.rest

    def rest(direction: module._Direction) -> None:
        rested.append(direction.wants_write() and direction._pipe is not None)
        real(direction)

    monkeypatch.setattr(module._Direction, "rest", rest)
    ends = Ends(pairs)
    sender = in_thread(send_all, ends.origin, BODY * 4)
    wait_until(lambda: any(rested))
    ends.client.shutdown(socket.SHUT_WR)
    assert read_all(ends.client) == BODY * 4
    sender.result(TIMEOUT)
    ends.end()


def test_one_stuck_direction_does_not_block_the_other(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it does not keep the tunnel busy: while one end reads nothing, only the other direction wakes it."""
    monkeypatch.setattr(module, "_QUIET", 0.05)
    waits: List[List[module._Direction]] = []
    real = module._Watch.wait

    def wait(watch: module._Watch, seconds: float) -> List[module._Direction]:
        found = real(watch, seconds)
        if found:
            waits.append(found)
        return found

    monkeypatch.setattr(module._Watch, "wait", wait)
    ends = Ends(pairs, buffers=4096)
    body = BODY[:3_000_000]  # more than a pipe holds, so that the sender is stuck, too
    sender = in_thread(send_all, ends.origin, body)
    wait_until(lambda: bool(waits) and stuck(ends.origin))
    before = len(waits)
    for word in (b"one", b"two", b"three"):
        ends.client.sendall(word)
        assert ends.origin.recv(100) == word
    assert len(waits) - before <= 3 * 2 + 1
    ends.client.shutdown(socket.SHUT_WR)
    assert read_all(ends.client) == body
    sender.result(TIMEOUT)
    ends.end()


def test_a_tunnel_ends_when_nothing_moves_for_too_long(pairs: Pairs) -> None:
    ends = Ends(pairs, poller=0.05)
    with pytest.raises(socket.timeout, match="for too long"):
        ends.end()


def test_urgent_data_does_not_end_a_tunnel(pairs: Pairs, spliced: List[int]) -> None:
    """splice finds nothing before the urgent byte; what comes after it is still to be carried."""
    ends = Ends(pairs)

    def speak() -> None:
        for _ in range(10):
            ends.client.sendall(BODY[:100_000])
        ends.client.send(b"!", socket.MSG_OOB)
        send_all(ends.client, BODY)

    speaking = in_thread(speak)
    ends.origin.shutdown(socket.SHUT_WR)
    heard = read_all(ends.origin)
    assert heard == BODY[:100_000] * 10 + BODY
    assert read_all(ends.client) == b""
    speaking.result(TIMEOUT)
    ends.end()
    assert bool(spliced) == SPLICES


@pytest.mark.parametrize("raw", [0, len(BODY)])
def test_an_error_at_one_end_ends_the_tunnel(pairs: Pairs, raw: int) -> None:
    first = BODY[:raw]
    ends = Ends(pairs)
    sender = in_thread(ends.origin.sendall, first)
    heard = 0
    while heard < len(first):
        heard += len(ends.client.recv(1 << 18))
    sender.result(TIMEOUT)
    reset(ends.origin)
    with pytest.raises(OSError):
        ends.end()


def test_bytes_under_tls_are_copied(pairs: Pairs, spliced: List[int]) -> None:
    """What is encrypted here cannot be carried past us."""
    near, client = pairs.tls()
    far, origin = pairs.plain()
    running = in_thread(module.tunnel, near, far, TIMEOUT)
    sender = in_thread(send_all, origin, BODY)
    heard = b""
    while len(heard) < len(BODY):
        heard += client.recv(1 << 18)
    assert heard == BODY and spliced == []
    sender.result(TIMEOUT)
    client.close()
    try:
        running.result(TIMEOUT)
    except OSError:
        pass  # without close_notify it is a broken end


def test_bytes_buffered_by_tls_are_sent(pairs: Pairs) -> None:
    """Many records came at once: the kernel has told of them, and will not do so again."""
    near, client = pairs.streams()
    inner = Inner(client, server=False)
    client.send(b"CONNECT a:1 HTTP/1.1\r\n\r\n" + inner.first_flight())
    near.read_head(TIMEOUT)
    started = in_thread(near.start_tls, server_context())
    inner.handshake()
    started.result(TIMEOUT)
    far, origin = pairs.plain()
    running = in_thread(module.tunnel, near, far, TIMEOUT)
    words = [b"%03d" % number for number in range(100)]
    client.send(b"".join([inner.record(word) for word in words]))
    assert read(origin, 300) == b"".join(words)
    origin.close()
    client.close_abruptly()
    with contextlib.suppress(OSError):
        running.result(TIMEOUT)


@needs_splice
def test_bytes_in_the_pipe_are_sent_first(pairs: Pairs) -> None:
    """Even where poll has promised room for it, and there was none."""
    near, origin = pairs.plain(buffers=4096)
    far, client = pairs.plain(buffers=4096)
    way = module._Direction(near, far, module._Buffer())
    sender = in_thread(send_all, origin, BODY[:500_000])
    heard = b""
    try:
        while not way.done:
            for _ in range(3):
                way.move()
            if way.wants_write() or way.done:
                heard += client.recv(1 << 16)
        heard += read_all(client)
    finally:
        way.close()
    assert heard == BODY[:500_000]
    sender.result(TIMEOUT)
