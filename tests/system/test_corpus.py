"""The whole corpus of malformed and ambiguous messages against a running dduct, plain and intercepted."""

from __future__ import annotations

import re
import socket
from typing import Callable, Iterator, List, Tuple

import pytest
from support.client import Client
from support.corpus import Case, load
from support.origin import Asked, Connection, Origin
from support.running import HOST, RunningDduct

from protocol import http1

Build = Callable[..., RunningDduct]
CONTROLS = [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F]


def cases(name: str) -> List[Case]:
    return [param.values[0] for param in load(name)]  # type: ignore[attr-defined]


def controls_in_requests() -> Iterator[Case]:
    for byte in CONTROLS:
        x = bytes([byte])
        for place, head in (
            ("method", b"G" + x + b"T / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            ("target", b"GET /a" + x + b"b HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            ("name", b"GET / HTTP/1.1\r\nHost: a.example\r\nX" + x + b"Y: 1\r\n\r\n"),
            ("value", b"GET / HTTP/1.1\r\nHost: a.example\r\nX: a" + x + b"b\r\n\r\n"),
        ):
            yield Case("400", f"control {byte:#04x} in the {place}", head)


BAD_CHUNKS = [
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b'5;a="b\r\nhello\r\n0\r\n\r\n',
    b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    b"g\r\n\r\n",
    b"\r\n",
    b"fffffffffffffffff\r\n",
    b"0\r\nX\r\n\r\n",
    b"0\r\n X: 1\r\n\r\n",
    b"0\r\nX: a\x00b\r\n\r\n",
    b"0\r\n" + b"X: 1\r\n" * 201 + b"\r\n",
]
# Accepted from origins only: a reader of responses cannot misunderstand it.
PADDED_CHUNKS = [
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0 \t\r\n\r\n",
    b"5;a=b \r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX : 1\r\n\r\n",
]
REQUESTS = [case for case in cases("requests.txt") if case.verdict != "ok"] + list(controls_in_requests())


class Recorder:
    """An origin that remembers every byte it is sent."""

    def __init__(self) -> None:
        self.heard = b""

    def __call__(self, asked: Asked, connection: Connection) -> None:
        connection.over = True  # it reads for itself

    def listen(self, connection: Connection) -> None:
        connection.over = True
        while True:
            data = connection.sock.recv(65536)
            if not data:
                return
            self.heard += data


@pytest.fixture
def recorder(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> Tuple[Recorder, Origin, Origin]:
    """The recorder, and origins with and without TLS that are it."""
    recorder = Recorder()

    def read_request(connection: Connection) -> None:
        recorder.listen(connection)

    monkeypatch.setattr(Connection, "read_request", read_request)
    return recorder, dduct.origin(recorder), dduct.origin(recorder, tls=False)


def refused(client: Client, raw: bytes, complete: bool) -> int:
    """The status of the refusal, 0 where the connection just ends."""
    try:
        client.send(raw)
        if not complete:
            socket.socket.shutdown(client.sock, socket.SHUT_WR)
        answer = client.read()
    except OSError:
        return 0
    assert answer.complete
    # What is understood, and out of place inside CONNECT, need not end the connection.
    if answer.status not in (405, 421):
        assert client.at_end(), "the connection goes on after a message that nobody understands"
    return answer.status


def addressed(raw: bytes, origin: Origin, absolute: bool) -> bytes:
    """The head as it would be sent to this origin, through the proxy's plain port or inside CONNECT."""
    if raw.startswith(b"CONNECT"):
        return raw
    authority = f"{HOST}:{origin.port}".encode()
    if absolute:
        raw = re.sub(rb"^(\S+ )/", rb"\1http://" + authority + b"/", raw, count=1)
    return raw.replace(b"a.example", authority)


def test_no_malformed_request_is_forwarded(dduct: RunningDduct, recorder: Tuple[Recorder, Origin, Origin]) -> None:
    listening, encrypted, plain = recorder
    assert len(REQUESTS) >= 300
    wrong = []
    for case in REQUESTS:
        complete = http1.head_end(bytearray(case.raw)) >= 0 and bool(case.raw.strip())
        for way in ("plain", "intercepted"):
            with dduct.client() if way == "plain" else dduct.intercepted(encrypted) as client:
                raw = addressed(case.raw, plain if way == "plain" else encrypted, way == "plain")
                status = refused(client, raw, complete)
                if not (400 <= status <= 505 or (status == 0 and not complete)):
                    wrong.append((way, status, case))
    assert wrong == []
    assert listening.heard == b""


@pytest.mark.parametrize("way", ["plain", "intercepted"])
def test_no_malformed_chunk_is_forwarded(
    dduct: RunningDduct, recorder: Tuple[Recorder, Origin, Origin], way: str
) -> None:
    """The head has left by then; what follows never completes the message at the origin."""
    listening, encrypted, plain = recorder
    for body in BAD_CHUNKS + PADDED_CHUNKS:
        listening.heard = b""
        origin = plain if way == "plain" else encrypted
        with dduct.client() if way == "plain" else dduct.intercepted(encrypted) as client:
            target = f"http://{HOST}:{origin.port}/page" if way == "plain" else "/page"
            head = f"POST {target} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.send(head.encode() + body)
            assert client.at_end()
        assert not listening.heard.endswith(b"0\r\n\r\n")


def controls_in_responses() -> Iterator[Case]:
    for byte in CONTROLS:
        x = bytes([byte])
        yield Case("502", f"control {byte:#04x} in a name", b"HTTP/1.1 200 OK\r\nX" + x + b"Y: 1\r\n\r\n")
        yield Case("502", f"control {byte:#04x} in a value", b"HTTP/1.1 200 OK\r\nX: a" + x + b"b\r\n\r\n")


def chunks_in_responses() -> Iterator[Case]:
    for body in BAD_CHUNKS:
        yield Case("cut", "a bad chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)


RESPONSES = (
    [case for case in cases("responses.txt") if case.verdict != "ok"]
    + list(controls_in_responses())
    + list(chunks_in_responses())
)


@pytest.mark.parametrize("tls", [True, False], ids=["intercepted", "plain"])
def test_no_malformed_response_is_believed(start_dduct: Build, tls: bool) -> None:
    assert len(RESPONSES) >= 100
    dduct = start_dduct()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.send(RESPONSES[int(asked.target[1:].partition(".")[0])].raw)
        connection.close_notify()

    origin = dduct.origin(handler, tls=tls)
    wrong = []
    for number, case in enumerate(RESPONSES):
        for ending in ("deb", "page"):
            authority = f"{HOST}:{origin.port}"
            target = f"/{number}.{ending}" if tls else f"http://{authority}/{number}.{ending}"
            with dduct.intercepted(origin) if tls else dduct.client() as client:
                try:
                    answer = client.get(target, authority)
                    believed = answer.complete and answer.status != 502
                except OSError:
                    believed = False
                if believed:
                    wrong.append((ending, case, answer))
    assert wrong == []
    assert dduct.stored() == []


ODDITIES = [
    b"get / HTTP/1.1\r\nhost: AUTHORITY\r\naccept:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHOST:AUTHORITY\r\nX-Empty: \r\n\r\n",
    b"GET https://AUTHORITY/ HTTP/1.1\r\nHost: AUTHORITY\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: AUTHORITY\r\n\r\n",
    b"GET /?a?b#".replace(b"#", b"") + b" HTTP/1.1\r\nHost: AUTHORITY\r\nAccept: a\r\nAccept: b\r\n\r\n",
]


@pytest.mark.parametrize("raw", ODDITIES)
def test_odd_but_valid_messages_pass(dduct: RunningDduct, raw: bytes) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [], b"fine"))
    with dduct.intercepted(origin) as client:
        client.send(raw.replace(b"AUTHORITY", f"{HOST}:{origin.port}".encode()))
        assert client.read().body == b"fine"
    assert len(origin.requests) == 1


@pytest.mark.parametrize("body", PADDED_CHUNKS)
@pytest.mark.parametrize("ending", ["deb", "page"])
def test_blanks_around_an_origins_chunk_sizes_are_removed(dduct: RunningDduct, body: bytes, ending: str) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
        connection.close_notify()

    origin = dduct.origin(handler)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /x.{ending} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\nConnection: close\r\n\r\n".encode())
        head = client.read_until(b"\r\n\r\n")
        assert b" 200 " in head and b"hello" in client._rest()[0]
        assert b" \r\n" not in client._buffer and b" :" not in client._buffer
    assert dduct.stored() == ([f"https/{HOST}:{origin.port}/x.deb"] if ending == "deb" else [])
