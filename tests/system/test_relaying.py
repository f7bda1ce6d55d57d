"""What is passed on and not kept: bodies both ways, interim responses, trailers, expectations, other protocols."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Callable, List, Optional

import pytest
from support.client import Client
from support.origin import Asked, Connection, Gate, Origin
from support.pairs import TIMEOUT, read_all, tcp_pair
from support.running import HOST, RunningDduct

from net.response import Reply
from net.stream import Stream
from protocol.headers import Headers
from protocol.http1 import RequestHead, ResponseHead
from upstream.relay import forward

Build = Callable[..., RunningDduct]
BODY = os.urandom(100_000)


class Script:
    """An origin's end of one connection, by hand: `play` gets the raw connection before any request is read."""

    def __init__(self, play: Callable[[Connection, bytes], None]) -> None:
        self._play = play
        self.failure: Optional[BaseException] = None
        self.done = threading.Event()

    def __call__(self, asked: Asked, connection: Connection) -> None:
        raise AssertionError("the script reads for itself")

    def attach(self, connection: Connection) -> None:
        try:
            head = connection._until(b"\r\n\r\n")
            if head is not None:
                self._play(connection, head)
        except (AssertionError, OSError) as error:
            self.failure = error
        finally:
            connection.over = True
            self.done.set()


def scripted(
    dduct: RunningDduct, play: Callable[[Connection, bytes], None], monkeypatch: pytest.MonkeyPatch, tls: bool = True
) -> Origin:
    """An origin that plays a script on every connection."""
    script = Script(play)

    def read_request(connection: Connection) -> None:
        script.attach(connection)

    monkeypatch.setattr(Connection, "read_request", read_request)
    return dduct.origin(script, tls=tls)


def send_head(client: Client, origin: Origin, method: str, target: str, *fields: str) -> None:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}:{origin.port}", *fields]
    client.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def field(head: bytes, name: str) -> Optional[str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return next((line.partition(": ")[2] for line in lines if line.lower().startswith(name.lower() + ":")), None)


# --- trailers ---------------------------------------------------------------------------------------


def test_trailers_pass_both_ways(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 §6.5; what frames or authenticates a message is left out."""
    seen: List[bytes] = []

    def play(connection: Connection, head: bytes) -> None:
        seen.append(head)
        seen.append(connection._until(b"0\r\n") or b"")
        seen.append(connection._until(b"\r\n\r\n") or b"")
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n")
        connection.send(b"2\r\nok\r\n0\r\nDigest: sha-256=x\r\nContent-Length: 9\r\nSet-Cookie: a=1\r\n\r\n")

    origin = scripted(dduct, play, monkeypatch)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "PUT", "/page", "Transfer-Encoding: chunked", "Trailer: X-Sum", "TE: trailers")
        client.send(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nAuthorization: x\r\n\r\n")
        head = client.read_until(b"\r\n\r\n")
        assert field(head, "Trailer") == "Digest"
        assert client.read_until(b"\r\n\r\n") == b"2\r\nok\r\n0\r\nDigest: sha-256=x"
    assert field(seen[0], "trailer") == "X-Sum" and field(seen[0], "te") == "trailers"
    assert (seen[1], seen[2]) == (b"3\r\nabc\r\n", b"X-Sum: 1")


# --- interim responses ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/page", "/x.deb"])
def test_interim_responses_are_passed_on(dduct: RunningDduct, path: str) -> None:
    """RFC 9110 §15.2: before the final one, as they come."""
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nConnection: x\r\n\r\n")
        gate.wait()
        connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        connection.respond(200, [("ETag", '"1"')], BODY)

    origin = dduct.origin(handler)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "GET", path)
        hints = client.read()
        assert (hints.status, hints.get("link"), hints.get("connection")) == (103, "</style.css>; rel=preload", None)
        gate.open()
        assert client.read().status == 102
        assert client.read().body == BODY


def test_an_http_1_0_client_gets_no_interim_response(dduct: RunningDduct) -> None:
    """RFC 9110 §15.2: HTTP/1.0 did not define any."""

    def handler(asked: Asked, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        connection.respond(200, [], b"done")

    origin = dduct.origin(handler)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /page HTTP/1.0\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        assert client.read().body == b"done"


# --- Expect: 100-continue ---------------------------------------------------------------------------


def test_the_origin_decides_whether_a_body_is_wanted(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 §10.1.1: a push that is refused is refused before gigabytes have crossed the uplink."""
    monkeypatch.setattr("upstream.origin_connection._CONTINUE_TIMEOUT", 20.0)
    seen: List[bytes] = []
    over = threading.Event()

    def play(connection: Connection, head: bytes) -> None:
        seen.append(head)
        connection.send(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\nno")
        seen.append(connection._exactly(1))
        over.set()

    origin = scripted(dduct, play, monkeypatch)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "PUT", "/page", "Content-Length: 5000000000", "Expect: 100-continue")
        refused = client.read()
        assert (refused.status, refused.body, refused.get("connection")) == (401, b"no", "close")
        assert client.at_end()
    assert over.wait(20)
    assert field(seen[0], "expect") == "100-continue" and seen[1:] == [b""]


@pytest.mark.parametrize("knows", [True, False], ids=["an origin that knows it", "one that never heard of it"])
def test_a_client_that_expects_100_continue_gets_it(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    def play(connection: Connection, head: bytes) -> None:
        if knows:
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = connection._exactly(5)
        connection.send(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\n" + body)

    origin = scripted(dduct, play, monkeypatch)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "PUT", "/page", "Content-Length: 5", "Expect: 100-continue")
        assert client.read().status == 100
        client.send(b"hello")
        assert client.read().body == b"hello"


def test_an_unknown_expectation_fails(dduct: RunningDduct) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b""))
    with dduct.intercepted(origin) as client:
        assert client.get("/page", f"{HOST}:{origin.port}", "Expect: wonders").status == 417
    assert origin.requests == []


# --- large bodies -----------------------------------------------------------------------------------


def test_an_origin_that_answers_early_is_heard(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops reading and says why; the client learns that instead of waiting for ever."""

    def play(connection: Connection, head: bytes) -> None:
        connection._exactly(1000)
        connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhuge")
        connection.fin()
        while connection.sock.recv(1 << 16):
            pass

    # Without TLS: this client reads and writes in two threads, which no TLS socket is made for.
    origin = scripted(dduct, play, monkeypatch, tls=False)
    with dduct.client() as client, ThreadPoolExecutor(1) as pool:
        send_head(client, origin, "PUT", f"http://{HOST}:{origin.port}/page", "Content-Length: 1000000000")

        def push() -> None:
            try:
                while True:
                    client.sock.send(BODY)
            except OSError:
                pass

        pushing = pool.submit(push)
        assert b" 413 " in client.read_until(b"\r\n\r\n")
        client.sock.shutdown(socket.SHUT_RDWR)
        pushing.result(20)


def test_a_push_takes_no_more_memory_than_buffers_hold(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """An origin that does not read stops the client: nothing piles up in between."""
    gate = Gate()
    total = 60_000_000

    def play(connection: Connection, head: bytes) -> None:
        gate.wait()
        received = len(connection._buffer)
        while received < total:
            received += len(connection.sock.recv(1 << 18))
        connection.respond(200, [], str(received).encode())

    origin = scripted(dduct, play, monkeypatch)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "PUT", "/page", f"Content-Length: {total}")
        client.sock.settimeout(0.5)
        sent = 0
        piece = bytes(1 << 16)
        try:
            while sent < total:
                sent += client.sock.send(piece[: total - sent])
        except (socket.timeout, TimeoutError):
            pass
        assert sent < total // 2  # what the kernel's buffers take
        gate.open()
        client.sock.settimeout(20)
        while sent < total:
            sent += client.sock.send(piece[: total - sent])
        assert client.read().body == str(total).encode()


# --- Upgrade ----------------------------------------------------------------------------------------


def test_an_upgraded_connection_is_tunnelled(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 §7.8, inside an intercepted connection; bytes that came with the request are not lost."""
    seen: List[bytes] = []

    def play(connection: Connection, head: bytes) -> None:
        seen.append(head)
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX: 1\r\n\r\nhi ")
        seen.append(connection._exactly(10))
        connection.send(seen[1][::-1])
        connection.close_notify()

    origin = scripted(dduct, play, monkeypatch)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "GET", "/page", "Connection: Upgrade, X-Hop", "Upgrade: echo", "X-Hop: 1")
        client.send(b"early")
        switched = client.read_until(b"\r\n\r\n")
        assert b" 101 " in switched.partition(b"\r\n")[0]
        assert [field(switched, name) for name in ("upgrade", "connection", "x")] == ["echo", "Upgrade", "1"]
        client.send(b" late")
        assert client._exactly(13) == b"hi " + b"early late"[::-1]
        assert client.at_end()
    assert field(seen[0], "upgrade") == "echo" and field(seen[0], "connection") == "Upgrade"
    assert field(seen[0], "x-hop") is None


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
@pytest.mark.parametrize("encrypted", [True, False])
def test_an_upgrade_with_an_empty_body_is_passed_on(dduct: RunningDduct, method: str, encrypted: bool) -> None:
    """kubectl exec and docker attach say `Content-Length: 0`."""

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.get("upgrade") != "SPDY/3.1":
            connection.respond(400, [], b"upgrade required")
            return
        connection.head(101, [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")])
        connection.send(b"first " + connection._exactly(5)[::-1])
        connection.close_notify()

    origin = dduct.origin(handler, tls=encrypted)
    with dduct.intercepted(origin) if encrypted else dduct.client() as client:
        place = "/exec?command=sh" if encrypted else f"http://{HOST}:{origin.port}/exec?command=sh"
        answer = client.get(
            place,
            f"{HOST}:{origin.port}",
            "Connection: Upgrade",
            "Upgrade: SPDY/3.1",
            "Content-Length: 0",
            method=method,
        )
        assert answer.status == 101
        client.send(b"hello")
        assert client._exactly(11) == b"first olleh"
        assert client.at_end()
    assert origin.requests[0].get("content-length") == (None if method == "GET" else "0")


def test_an_upgrade_with_a_body_is_not_passed_on(dduct: RunningDduct) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b"no"))
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "POST", "/page", "Connection: Upgrade", "Upgrade: x", "Content-Length: 2")
        client.send(b"hi")
        assert client.read().body == b"no"
    assert origin.requests[0].get("upgrade") is None and origin.requests[0].body == b"hi"


@pytest.mark.parametrize(("length", "status"), [("0", 200), ("0, 0", 200), ("5", 400)])
def test_a_connect_may_say_that_it_has_no_body(dduct: RunningDduct, length: str, status: int) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b"fine"))
    tunnelled = dduct.origin(lambda asked, connection: connection.respond(200, [], b"fine"), host="127.0.0.3")
    for place in (f"{HOST}:{origin.port}", f"127.0.0.3:{tunnelled.port}"):
        with dduct.client() as client:
            assert client.get(place, place, f"Content-Length: {length}", method="CONNECT").status == status


def test_a_get_that_says_it_has_no_body_is_answered_from_the_cache(dduct: RunningDduct) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [("Cache-Control", "max-age=60")], BODY))
    for _ in range(2):
        assert dduct.fetch(origin, "/x.deb", "Content-Length: 0").body == BODY
    assert len(origin.requests) == 1 and origin.requests[0].get("content-length") is None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/page", "/x.deb"])
def test_odd_but_harmless_response_heads_are_corrected(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    def play(connection: Connection, head: bytes) -> None:
        lines = (b"X-Foo : bar", b"Content-Length: 4", b"Content-Length\t: 4", b"Connection: close")
        connection.send(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b"" if method == "HEAD" else b"fine"]))
        connection.close_notify()

    origin = scripted(dduct, play, monkeypatch)
    with dduct.intercepted(origin) as client:
        send_head(client, origin, method, path)
        head = client.read_until(b"\r\n\r\n")
        assert b"\r\nX-Foo: bar\r\n" in head and head.lower().count(b"content-length") == 1
        assert method == "HEAD" or client._exactly(4) == b"fine"


def test_an_upgrade_may_be_declined(dduct: RunningDduct) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b"no"))
    with dduct.intercepted(origin) as client:
        host = f"{HOST}:{origin.port}"
        assert client.get("/page", host, "Connection: upgrade", "Upgrade: websocket").body == b"no"
        assert client.get("/page", host).body == b"no"


@pytest.mark.parametrize("fields", [["Upgrade: websocket"], ["Connection: upgrade", "Upgrade: h2c"]])
def test_an_invalid_upgrade_is_not_passed_on(dduct: RunningDduct, fields: List[str]) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b""))
    with dduct.intercepted(origin) as client:
        client.get("/page", f"{HOST}:{origin.port}", *fields)
    assert origin.requests[0].get("upgrade") is None and origin.requests[0].get("connection") is None


def test_an_upgrade_to_an_unrequested_protocol_is_502(dduct: RunningDduct) -> None:
    origin = dduct.origin(lambda asked, connection: connection.head(101, [("Upgrade", "x")]))
    with dduct.intercepted(origin) as client:
        assert client.get("/page", f"{HOST}:{origin.port}").status == 502


# --- TRACE, OPTIONS, Max-Forwards -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS"])
def test_max_forwards_counts_down(dduct: RunningDduct, method: str) -> None:
    """RFC 9110 §7.6.2."""
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b"from the origin"))
    with dduct.intercepted(origin) as client:
        host = f"{HOST}:{origin.port}"
        assert client.get("/page", host, "Max-Forwards: 2", method=method).body == b"from the origin"
        assert origin.requests[0].get("max-forwards") == "1"
        last = client.get("/page", host, "Max-Forwards: 0", "Cookie: secret", "X: 1", method=method)
        assert last.status == 200 and len(origin.requests) == 1
        assert client.get("/page", host, "Max-Forwards: many", method=method).status == 400
    if method == "TRACE":
        assert last.get("content-type") == "message/http"
        assert last.body == f"TRACE /page HTTP/1.1\r\nHost: {host}\r\nMax-Forwards: 0\r\nX: 1\r\n\r\n".encode()
    else:
        assert "GET" in (last.get("allow") or "") and last.body == b""


def test_max_forwards_is_ignored_for_other_methods(dduct: RunningDduct) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b""))
    with dduct.intercepted(origin) as client:
        client.get("/page", f"{HOST}:{origin.port}", "Max-Forwards: 0")
    assert origin.requests[0].get("max-forwards") == "0"


def test_options_asterisk_is_answered_by_the_server(dduct: RunningDduct) -> None:
    """RFC 9112 §3.2.4."""
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [("Allow", "GET")], b""), tls=False)
    with dduct.client() as client:
        assert client.get(f"http://{HOST}:{origin.port}", f"{HOST}:{origin.port}", method="OPTIONS").status == 200
        own = client.get("*", f"localhost:{dduct.tcp_port}", method="OPTIONS")
        assert own.status == 200 and "CONNECT" in (own.get("allow") or "")
        assert client.get("*", f"localhost:{dduct.tcp_port}").status == 400
    assert [asked.target for asked in origin.requests] == ["*"]


def test_a_trace_with_a_body_is_refused(dduct: RunningDduct) -> None:
    """RFC 9110 §9.3.8."""
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b""))
    with dduct.intercepted(origin) as client:
        send_head(client, origin, "TRACE", "/page", "Content-Length: 1")
        client.send(b"x")
        assert client.read().status == 400
    assert origin.requests == []


# --- order ------------------------------------------------------------------------------------------


def test_ten_pipelined_downloads_are_answered_in_order_on_one_connection(dduct: RunningDduct) -> None:
    """As apt sends them."""
    files = {f"/{number}.deb": os.urandom(1000 + number) for number in range(10)}

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("ETag", f'"{asked.target}"')], files[asked.target])

    origin = dduct.origin(handler)
    for _ in ("cold", "warm"):
        with dduct.intercepted(origin) as client:
            client.send(
                b"".join(f"GET {name} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode() for name in files)
            )
            assert [client.read().body for _ in files] == list(files.values())
    assert len(origin.requests) == 10


# --- answers without a body --------------------------------------------------------------------------


def test_a_refused_head_request_for_a_digest_named_object_has_no_body(dduct: RunningDduct) -> None:
    """RFC 9110 §9.3.2; what followed would be taken for the next answer on the connection."""
    digest = hashlib.sha256(BODY).hexdigest()

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target.startswith("/v2/a/"):
            connection.respond(200, [], BODY)
        else:
            refusal = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Injected: yes\r\n\r\n"
            connection.respond(404, [], refusal, head_only=asked.method == "HEAD")

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, f"/v2/a/blobs/sha256:{digest}").body == BODY
    with dduct.intercepted(origin) as client:
        authority = f"{HOST}:{origin.port}"
        refused = client.get(f"/v2/b/blobs/sha256:{digest}", authority, method="HEAD")
        assert refused.status == 404
        following = client.get("/v2/", authority)
        assert following.status == 404 and following.get("x-injected") is None


def test_a_body_is_not_passed_on_where_none_is_allowed() -> None:
    """Whatever the answer was to, the client asked with HEAD."""
    near, far = tcp_pair()
    with near, far:
        reply = Reply(Stream(near, TIMEOUT), RequestHead(b"HEAD", b"/", 1, Headers()), b"1.1 x")
        head = ResponseHead(404, b"", 1, Headers([(b"Content-Length", b"6")]))
        body = SimpleNamespace(length=6, trailers=(), chunks=lambda view: [memoryview(b"bytes")])
        forward(reply, SimpleNamespace(head=head, body=body, relayed=lambda: None))  # type: ignore[arg-type]
        near.shutdown(socket.SHUT_WR)
        received = read_all(far)
    assert received.endswith(b"\r\n\r\n") and b"Content-Length: 6\r\n" in received


# --- connections to origins that are authenticated ---------------------------------------------------


def mailbox(asked: Asked, connection: Connection) -> None:
    """NTLM logs a connection in, not a request: whatever comes over it later is its user's."""
    if "TlRMTVNTUAAD" in (asked.get("authorization") or ""):
        connection.user = "alice"  # type: ignore[attr-defined]
    user = getattr(connection, "user", None)
    if user is None:
        scheme = "Basic, NTLM" if asked.target == "/x" else "NTLM TlRMTVNTUAAC"
        connection.respond(401, [("WWW-Authenticate", scheme)], b"who?")
    else:
        connection.respond(200, [], user.encode())


@pytest.mark.parametrize("word", ["NTLM", "Negotiate", "nEGOTIATE"])
def test_an_authenticated_origin_connection_is_not_shared(dduct: RunningDduct, word: str) -> None:
    origin = dduct.origin(mailbox)
    assert dduct.fetch(origin, "/mail", f"Authorization: {word} TlRMTVNTUAADAAAA").body == b"alice"
    assert dduct.fetch(origin, "/mail").status == 401


@pytest.mark.one_process
@pytest.mark.parametrize("target", ["/x", "/y"])
def test_an_origin_connection_in_the_middle_of_authentication_is_not_shared(dduct: RunningDduct, target: str) -> None:
    origin = dduct.origin(mailbox)
    for _ in range(2):
        assert dduct.fetch(origin, target).status == 401
    assert origin.accepted == 2
