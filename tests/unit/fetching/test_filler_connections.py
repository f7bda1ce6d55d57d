"""The filler's connections: each is ended, however its transfer ends."""

from __future__ import annotations

import select
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List

import pytest

from cache import Cache, Lead
from fetching import filler
from fetching.filler import carry
from monitoring.metrics import Counter, Counters
from net import client_watch
from net.addresses import Reach
from net.body import IncompleteBody
from protocol import http1
from protocol.headers import Headers
from protocol.http1 import Authority, Target
from storage.record import Metadata
from storage.store import Key
from transfers.follow import FillReader
from transfers.states import FillState
from upstream.request import Purpose, Request

LENGTH = 10**9
HEAD = http1.parse_response(b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: %d\r\n\r\n' % LENGTH)


class BreaksOff:
    """The first answer: a little of a large body."""

    head = HEAD

    def __init__(self) -> None:
        self.body = self
        self.closed = False

    def chunks(self, *_: memoryview, much: bool) -> Iterator[memoryview]:
        yield memoryview(b"a")
        raise IncompleteBody("it broke off")

    def close(self) -> None:
        self.closed = True


class WholeAgain(BreaksOff):
    """The second one, whose origin knows no ranges and is slow: meanwhile the last reader leaves."""

    def __init__(self, reader: FillReader) -> None:
        super().__init__()
        self.reader = reader

    def consume(self, count: int) -> None:
        self.reader.close()
        waiting = client_watch.current()
        assert waiting is not None
        waiting.wait(select.poll(), 1.0)

    discard = BreaksOff.close


def test_a_second_connection_is_ended_if_nobody_wants_the_rest_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filler, "_PAUSES", (0.0,))
    monkeypatch.setattr(client_watch, "POLL_INTERVAL", 0.0)
    monkeypatch.setattr(filler, "_WORTH_WAITING", 0.0)
    cache = Cache(tmp_path / "files")
    claim = cache.claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    fill, first = claim.fill, BreaksOff()
    fill.start(Metadata("https://some.thing/x.deb", (), 1000.0), LENGTH, resumable=True)
    second = WholeAgain(cache.reader(fill))
    asked: List[Request] = []

    def follow(request: Request) -> WholeAgain:
        asked.append(request)
        return second

    services: Any = SimpleNamespace(counters=Counters(), origins=SimpleNamespace(follow=follow))
    target = Target("https", Authority("some.thing", 443), "/x.deb")
    request = Request(b"GET", target, Headers([]), Reach.NOTHING, Purpose.FILL)
    exchange: Any = first
    carry(fill, exchange, request, "x.deb", services)
    assert asked[0].headers.get(b"range") == b"bytes=1-"
    assert fill.state is FillState.GONE and services.counters.value(Counter.DROPPED) == 1
    assert first.closed and second.closed
