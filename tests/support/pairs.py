"""Two ends of one TCP connection, for the tests of the rooms that carry bytes."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import struct
import tempfile
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Callable, List, Optional, Tuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from net.stream import Stream
from tls.openssl import require_close_notify

HOST = "a.example"
TIMEOUT = 30.0  # seconds; a wait that reaches it has failed
SOON = 0.01  # seconds; for waits that are meant to end by themselves

T = TypeVar("T")


def in_thread(function: Callable[..., T], *arguments: object) -> Future[T]:
    """The outcome of `function`, which runs in a thread of its own; take it with `.result(TIMEOUT)`."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - it is handed on
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def meet(
    server: ssl.SSLContext, client: ssl.SSLContext, session: Optional[ssl.SSLSession] = None, name: str = HOST
) -> ssl.SSLObject:
    """The client's end of a connection in memory, with the ticket it got."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for one in (near, far, near):
        with contextlib.suppress(ssl.SSLWantReadError):
            one.do_handshake()
    far.do_handshake()
    far.write(b"!")
    assert near.read(1) == b"!"
    return near


def tcp_pair(buffers: Optional[int] = None) -> Tuple[socket.socket, socket.socket]:
    """Two connected sockets; `buffers` makes the kernel hold no more than about so many bytes between them."""
    with socket.socket() as listener:
        if buffers is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket()
        if buffers is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    if buffers is not None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    far.settimeout(TIMEOUT)
    return near, far


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end of the stream."""
    pieces: List[bytes] = []
    while True:
        piece = sock.recv(1 << 16)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def server_context() -> ssl.SSLContext:
    return _contexts()[0]


def client_context() -> ssl.SSLContext:
    """Trusts `server_context()` to be HOST or 127.0.0.1."""
    return _contexts()[1]


@cache
def _contexts() -> Tuple[ssl.SSLContext, ssl.SSLContext, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    names = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime.datetime(2020, 1, 1)).not_valid_after(datetime.datetime(2049, 1, 1))
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server, strict_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "both.pem")
        path.write_bytes(key.private_bytes(*encoding) + pem)
        server.load_cert_chain(path)
        strict_server.load_cert_chain(path)
    client = require_close_notify(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    client.load_verify_locations(cadata=pem.decode())
    return server, client, require_close_notify(strict_server)


class Inner:
    """The far end of TLS inside what the plain or encrypted stream `far` carries, record by record."""

    def __init__(self, far: Stream, server: bool) -> None:
        self.far = far
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = server_context() if server else client_context()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server, server_hostname=None if server else HOST
        )

    def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.far.send(self._outgoing.read())
                self.fetch()
                continue
            self.far.send(self._outgoing.read())
            return

    def fetch(self) -> None:
        view = memoryview(bytearray(1 << 16))
        self._incoming.write(view[: self.far.readinto(view)])

    def first_flight(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def record(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()


class Pairs:
    """Makes connections and closes their ends, whatever became of them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        _contexts()  # here, for the two ends may ask for it in two threads at once

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, end: T) -> T:
        """Have `end` closed with the others."""
        self._stack.callback(end.close_abruptly if isinstance(end, Stream) else end.close)  # type: ignore[attr-defined]
        return end

    def plain(self, timeout: float = TIMEOUT, buffers: Optional[int] = None) -> Tuple[Stream, socket.socket]:
        """A stream and the socket at its other end."""
        near, far = tcp_pair(buffers)
        return self.keep(Stream(near, timeout)), self.keep(far)

    def streams(self, timeout: float = TIMEOUT, buffers: Optional[int] = None) -> Tuple[Stream, Stream]:
        near, far = tcp_pair(buffers)
        return self.keep(Stream(near, timeout)), self.keep(Stream(far, timeout))

    def tls(
        self, timeout: float = TIMEOUT, *, server: bool = True, buffers: Optional[int] = None
    ) -> Tuple[Stream, ssl.SSLSocket]:
        """A stream under TLS, as `server` or as client, and the TLS socket at its other end."""
        stream, far = self.plain(timeout, buffers)
        return stream, self.keep(self.secure(stream, far, server=server))

    def secure(self, stream: Stream, far: socket.socket, *, server: bool) -> ssl.SSLSocket:
        """Start TLS at both ends."""
        wrapped = in_thread(_wrap, far, server)
        stream.start_tls(server_context() if server else client_context(), None if server else HOST)
        return wrapped.result(TIMEOUT)

    def nested(
        self, timeout: float = TIMEOUT, *, server: bool = True, buffers: Optional[int] = None
    ) -> Tuple[Stream, Stream]:
        """A stream under TLS in TLS, as `server` or as client, and the stream at its other end."""
        near, far = self.streams(timeout, buffers)
        for _ in range(2):
            ends = (near, far) if server else (far, near)
            started = in_thread(ends[0].start_tls, server_context())
            ends[1].start_tls(client_context(), HOST)
            started.result(TIMEOUT)
        return near, far


def _wrap(sock: socket.socket, client: bool) -> ssl.SSLSocket:
    context = client_context() if client else _contexts()[2]
    wrapped = context.wrap_socket(
        sock,
        server_side=not client,
        server_hostname=HOST if client else None,
        suppress_ragged_eofs=False,  # here a missing close_notify must show
    )
    wrapped.settimeout(TIMEOUT)
    return wrapped
