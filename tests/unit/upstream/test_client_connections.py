"""Origins: which connection a request takes, which redirects it follows. The test dials, and plays the origins."""

from __future__ import annotations

import queue
import socket
from typing import Iterator, List, Optional, Tuple, cast

import pytest
from support.knowledge import known
from support.pairs import TIMEOUT, Pairs, in_thread
from support.sessions import read_until

from monitoring.metrics import Counters
from net.addresses import Reach, Scope
from net.body import BodyReader
from net.stream import Stream
from protocol.headers import Headers
from protocol.http1 import Authority, BodyFraming, Framing, Target
from upstream.client import REDIRECT_LIMIT, Origins
from upstream.connection_pool import IDLE_TIMEOUT
from upstream.dialling import Dialler, Parent, Settings, Unanswered, UpstreamError
from upstream.exchange import Exchange
from upstream.origin_tls import TlsSettings
from upstream.request import Purpose, Request

AUTHORITY = Authority("a.example", 80)
NO_FIELDS = Headers([])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SETTINGS = Settings(connect_timeout=TIMEOUT, fill_timeout=TIMEOUT, relay_timeout=TIMEOUT, tls=TlsSettings())


class FakeDialler:
    """Dials pairs of sockets. Each connection's far end gives the next of `scripts`: an answer for each request."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.scripts: List[List[bytes]] = []
        self.dialled: List[Tuple[str, Reach]] = []
        self.heads: queue.Queue[bytes] = queue.Queue()  # of the requests
        self.in_use: List[Stream] = []
        self.scopes: List[Scope] = []  # of the next connections; then ALL
        self.closed = False

    def parent_for(self, _: str) -> Optional[Parent]:
        return None

    def dial(self, authority: Authority, reach: Reach) -> Stream:
        self.dialled.append((str(authority), reach))
        stream, far = self.pairs.plain()
        in_thread(self._play, far, self.scripts.pop(0))
        self.in_use.append(stream)
        return stream

    def _play(self, far: socket.socket, script: List[bytes]) -> None:
        for answer in script:
            self.heads.put(read_until(far, b"\r\n\r\n"))
            far.sendall(answer)
        if not script or not script[-1]:
            far.close()

    def start_tls(self, stream: Stream, authority: Authority) -> None:
        pass

    def scope(self, stream: Stream, authority: Authority) -> Scope:
        return self.scopes.pop(0) if self.scopes else Scope.ALL

    def use(self, stream: Stream) -> None:
        self.in_use.append(stream)

    def release(self, stream: Stream) -> None:
        self.in_use.remove(stream)

    def close(self) -> None:
        self.closed = True


class Dialled:
    """Origins, the clock that they see, and the one who dials for them."""

    def __init__(self, pairs: Pairs) -> None:
        self.now = 1000.0
        self.dialler = FakeDialler(pairs)
        dialler = cast(Dialler, self.dialler)
        self.origins = Origins(SETTINGS, Counters(), known(), lambda: self.now, dialler)

    def script(self, *answers: bytes) -> None:
        """What the next connection's origin answers; b"" ends the connection in place of an answer."""
        self.dialler.scripts.append(list(answers))


@pytest.fixture
def dialled() -> Iterator[Dialled]:
    with Pairs() as pairs:
        dialled = Dialled(pairs)
        yield dialled
        dialled.origins.close()
        assert dialled.dialler.in_use == [] and dialled.dialler.closed


def get(path: str = "/x", reach: Reach = Reach.NOTHING, scheme: str = "http", headers: Headers = NO_FIELDS) -> Request:
    return Request(b"GET", Target(scheme, AUTHORITY, path), headers, reach, Purpose.FILL)


def read(exchange: Exchange) -> bytes:
    """The whole body; the exchange ends."""
    body = b"".join(bytes(piece) for piece in exchange.body.chunks(memoryview(bytearray(100))))
    exchange.close()
    return body


def moved(place: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_connection_whose_answer_was_read_serves_the_next_request(dialled: Dialled) -> None:
    dialled.script(OK, OK)
    assert [read(dialled.origins.exchange(get())) for _ in range(2)] == [b"ok", b"ok"]
    assert dialled.dialler.dialled == [("a.example:80", Reach.NOTHING)]


def test_a_connection_that_was_idle_for_too_long_serves_no_more(dialled: Dialled) -> None:
    dialled.script(OK)
    dialled.script(OK)
    read(dialled.origins.exchange(get()))
    dialled.now += IDLE_TIMEOUT + 1
    assert read(dialled.origins.exchange(get())) == b"ok"
    assert len(dialled.dialler.dialled) == 2


def test_clients_of_another_reach_share_no_connection(dialled: Dialled) -> None:
    dialled.script(OK)
    dialled.script(OK)
    for reach in (Reach.NOTHING, Reach.EVERYTHING):
        read(dialled.origins.exchange(get(reach=reach)))
    assert dialled.dialler.dialled == [("a.example:80", Reach.NOTHING), ("a.example:80", Reach.EVERYTHING)]


def test_a_kept_connection_that_ends_in_place_of_an_answer_is_replaced(dialled: Dialled) -> None:
    dialled.script(OK, b"")
    dialled.script(OK)
    read(dialled.origins.exchange(get()))
    assert read(dialled.origins.exchange(get())) == b"ok"
    assert len(dialled.dialler.dialled) == 2 and dialled.dialler.heads.qsize() == 3


def test_a_new_connection_that_ends_in_place_of_an_answer_is_an_error(dialled: Dialled) -> None:
    dialled.script(b"")
    with pytest.raises(Unanswered, match=r"no answer from a\.example:80: connection closed") as caught:
        dialled.origins.exchange(get())
    assert caught.value.status == 502


def test_a_request_with_a_body_takes_a_new_connection(dialled: Dialled) -> None:
    dialled.script(OK)
    dialled.script(OK)
    read(dialled.origins.exchange(get()))
    stream, far = dialled.dialler.pairs.plain()
    far.sendall(b"body")
    framing = BodyFraming(Framing.LENGTH, 4)
    post = Request(
        *(b"POST", Target("http", AUTHORITY, "/x"), Headers([]), Reach.NOTHING, Purpose.RELAY),
        framing=framing,
        body=BodyReader(stream, framing),
    )
    assert read(dialled.origins.exchange(post)) == b"ok"
    assert len(dialled.dialler.dialled) == 2


def test_a_redirect_is_followed_without_credentials_to_another_host(dialled: Dialled) -> None:
    dialled.script(moved("http://b.example/y"))
    dialled.script(OK)
    dialled.dialler.scopes = [Scope.OWN_ADDRESS, Scope.ALL]
    headers = Headers([(b"Authorization", b"secret"), (b"Accept", b"*/*")])
    exchange = dialled.origins.follow(get(headers=headers))
    assert [str(hop.target) for hop in exchange.hops] == ["http://b.example/y"]
    assert exchange.scope is Scope.OWN_ADDRESS  # that of the redirect, which led there
    assert read(exchange) == b"ok"
    first, second = dialled.dialler.heads.get(), dialled.dialler.heads.get()
    assert b"secret" in first and b"secret" not in second and b"*/*" in second


@pytest.mark.parametrize(("scheme", "place"), [("https", "http://a.example/y"), ("http", "/x"), ("http", "ftp://b/")])
def test_a_redirect_down_to_http_or_in_a_loop_or_elsewhere_is_returned(
    dialled: Dialled, scheme: str, place: str
) -> None:
    dialled.script(moved(place))
    exchange = dialled.origins.follow(get(scheme=scheme))
    assert (exchange.head.status, exchange.hops) == (302, ())
    exchange.close()


def test_redirects_have_an_end(dialled: Dialled) -> None:
    for number in range(REDIRECT_LIMIT + 1):
        dialled.script(moved(f"/{number}"))  # an answer without a body: its connection is kept for such answers
    exchange = dialled.origins.follow(get())
    assert (exchange.head.status, len(exchange.hops)) == (302, REDIRECT_LIMIT)
    exchange.close()


def test_origins_that_a_reload_has_replaced_keep_no_connection(dialled: Dialled) -> None:
    dialled.script(OK)
    exchange = dialled.origins.exchange(get())
    dialled.origins.retire()
    assert read(exchange) == b"ok"  # one in use goes on
    dialled.script(OK)
    assert read(dialled.origins.exchange(get())) == b"ok"
    assert len(dialled.dialler.dialled) == 2


def test_an_error_of_the_dialler_is_the_request_s(dialled: Dialled, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Stream:
        raise UpstreamError("a.example is on dduct's own machine", 403)

    monkeypatch.setattr(dialled.dialler, "dial", refuse)
    with pytest.raises(UpstreamError, match="own machine"):
        dialled.origins.exchange(get())


def test_an_answer_that_is_not_http_is_an_error(dialled: Dialled) -> None:
    dialled.script(b"SSH-2.0-x\r\n\r\n")
    with pytest.raises(Unanswered, match="bad response head") as caught:
        dialled.origins.exchange(get())
    assert caught.value.status == 502
