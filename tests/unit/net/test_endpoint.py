"""Ends of connections: how they close, how they are woken, what they know. `far` is the end that the test plays."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import ssl
import threading
import time
import weakref
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import pytest
from support.client import wait_until
from support.layers import (
    MEGABYTES,
    connect,
    eventually,
    read,
    read_to_end,
    select_readable,
)
from support.pairs import HOST, SOON, TIMEOUT, Inner, Pairs, client_context, in_thread, read_all, server_context

from net.endpoint import NamedSocket
from net.stream import Stream
from tls.openssl import let_kernel_encrypt

ULPS = Path("/proc/sys/net/ipv4/tcp_available_ulp")


def test_the_name_in_the_handshake_is_known(pairs: Pairs) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = NamedSocket
    server = server_context()

    def choose(sock: NamedSocket, name: str, _: ssl.SSLContext) -> None:
        sock.server_name = name
        sock.context = server

    context.sni_callback = choose  # type: ignore[assignment]
    near, far = pairs.streams()
    assert near.server_name is None
    started = in_thread(near.start_tls, context)
    far.start_tls(client_context(), HOST)
    started.result(TIMEOUT)
    assert near.server_name == HOST
    assert far.server_name is None


def raw_end(layer: str, pairs: Pairs) -> Tuple[Stream, ssl.SSLSocket]:
    return pairs.tls(server=layer == "server")


@pytest.mark.parametrize("role", ["server", "client"])
def test_close_sends_close_notify(pairs: Pairs, role: str) -> None:
    stream, far = raw_end(role, pairs)
    stream.send(b"all of it")
    stream.close()
    assert read_all(far) == b"all of it"  # a missing close_notify would raise
    stream.close()


@pytest.mark.parametrize("role", ["server", "client"])
def test_cut_sends_no_close_notify(pairs: Pairs, role: str) -> None:
    stream, far = raw_end(role, pairs)
    stream.send(b"part of it")
    stream.close_abruptly()
    assert far.recv(100) == b"part of it"
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        far.recv(100)
    stream.close()


def test_close_after_cut_sends_nothing(pairs: Pairs) -> None:
    stream, far = pairs.tls()
    stream.close_abruptly()
    stream.close()
    stream.linger(TIMEOUT)
    stream.reset()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        far.recv(100)


def test_cut_is_an_end_for_a_plain_peer(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    stream.send(b"part of it")
    stream.close_abruptly()
    assert read_all(far) == b"part of it"


def test_abort_resets(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.reset()
    assert select_readable(far)
    with socket.socket(fileno=os.dup(far.fileno())) as bare:
        assert bare.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_every_close_is_idempotent(pairs: Pairs, layer: str) -> None:
    for first in (Stream.close, Stream.close_abruptly, Stream.reset, lambda stream: stream.linger(SOON)):
        stream, _ = connect(pairs, layer)
        first(stream)
        for again in (
            Stream.close,
            Stream.close_abruptly,
            Stream.reset,
            Stream.cancel,
            lambda stream: stream.linger(SOON),
        ):
            again(stream)


@pytest.mark.parametrize("leave", [Stream.close, Stream.close_abruptly, Stream.reset])
def test_close_is_harmless_when_the_peer_is_gone(pairs: Pairs, layer: str, leave: Callable[[Stream], None]) -> None:
    stream, far = connect(pairs, layer)
    leave(far)
    assert select_readable(stream)
    stream.close()


def test_close_does_not_wait_for_a_peer_that_does_not_read(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    piece = memoryview(MEGABYTES)[: 1 << 16]
    while stream.send_nowait(piece):
        pass
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < TIMEOUT / 2


@pytest.mark.parametrize("layer", ["tls client", "nested client"])
def test_an_origin_that_closes_without_close_notify_is_an_error(pairs: Pairs, layer: str) -> None:
    """Otherwise an attacker who cuts a connection shortens a close-delimited body unnoticed."""
    stream, far = connect(pairs, layer)
    far.send(b"half of it")
    far.close_abruptly()
    assert read(stream, 10) == b"half of it"
    with pytest.raises(OSError):
        read(stream, 1)


class Space(bytearray):
    """A buffer that can be referred to weakly."""


def test_a_broken_connection_keeps_no_buffer(pairs: Pairs) -> None:
    """Its error must not refer to itself: the buffer of each broken transfer, 1 MiB, would stay until a collection."""
    stream, far = pairs.tls(server=False)
    far.close()
    spaces = [Space(10)]
    kept = weakref.ref(spaces[0])
    collecting = gc.isenabled()
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            eventually(lambda: stream.readinto_nowait(memoryview(spaces[0])))
        spaces.clear()
        assert kept() is None
    finally:
        if collecting:
            gc.enable()


def test_a_close_notify_of_a_parent_proxy_is_not_the_origins(pairs: Pairs) -> None:
    """The outer TLS ends in good order, the inner one does not: what came through is not complete."""
    stream, far = pairs.streams()
    started = in_thread(far.start_tls, server_context())
    stream.start_tls(client_context(), HOST)
    started.result(TIMEOUT)
    inner = Inner(far, server=True)
    handshake = in_thread(inner.handshake)
    stream.start_tls(client_context(), HOST)
    handshake.result(TIMEOUT)
    far.send(inner.record(b"half of it"))
    far.close()
    assert read(stream, 10) == b"half of it"
    with pytest.raises(OSError):
        read(stream, 1)


@pytest.mark.parametrize("layer", ["tls client", "nested client"])
def test_a_close_notify_of_the_origin_is_the_end(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"all of it")
    far.close()
    assert read_to_end(stream) == b"all of it"
    assert read_to_end(stream) == b""


@pytest.mark.parametrize("layer", ["plain", "tls server", "nested server"])
def test_a_client_may_close_without_close_notify(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.close_abruptly()
    assert stream.read_head(TIMEOUT) == b""


def test_cancel_wakes_a_reader(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    reading: List[object] = []
    started = threading.Event()

    def read_until_woken() -> None:
        started.set()
        try:
            reading.append(read(stream, 1))
        except OSError as error:
            reading.append(error)

    waiting = in_thread(read_until_woken)
    assert started.wait(TIMEOUT)
    stream.cancel()
    waiting.result(TIMEOUT)
    assert reading[0] == b"" or not isinstance(reading[0], socket.timeout)


@pytest.mark.parametrize("name", [None, HOST], ids=["server", "client"])
def test_cancel_wakes_a_handshake(pairs: Pairs, name: Optional[str]) -> None:
    """A peer that says nothing must not hold up the end of dduct."""
    stream, _ = pairs.plain()
    context = server_context() if name is None else client_context()
    shaking = in_thread(stream.start_tls, context, name)
    wait_until(lambda: stream.encrypted)
    stream.cancel()
    with pytest.raises(OSError) as caught:
        shaking.result(TIMEOUT / 2)
    assert not isinstance(caught.value, socket.timeout)


def test_cancel_wakes_a_writer(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    while stream.send_nowait(memoryview(MEGABYTES)[: 1 << 16]):
        pass
    writing = in_thread(stream.send, memoryview(MEGABYTES)[: 1 << 16])
    stream.cancel()
    with pytest.raises(OSError) as caught:
        writing.result(TIMEOUT)
    assert not isinstance(caught.value, socket.timeout)


def test_sendfile_is_used_under_tls_only_if_the_kernel_encrypts(pairs: Pairs, layer: str, tmp_path: Path) -> None:
    """Whether it can for TLS depends on the machine; that nothing arrives in plaintext does not."""
    for make in (server_context, client_context):
        let_kernel_encrypt(make())
    near, far = connect(pairs, layer)
    if layer == "plain":
        assert near.takes_files
    elif not layer.startswith("tls") or "tls" not in ULPS.read_text().split():
        assert not near.takes_files
    (tmp_path / "file").write_bytes(MEGABYTES)
    received = in_thread(read, far, len(MEGABYTES))
    with (tmp_path / "file").open("rb") as file:
        offset = 0
        while near.takes_files and offset < len(MEGABYTES):
            offset += near.send_file(file.fileno(), offset, len(MEGABYTES) - offset)
    near.send(MEGABYTES[offset:])
    assert received.result(TIMEOUT) == MEGABYTES
