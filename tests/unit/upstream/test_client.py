"""Origins: what is learnt of an origin that does not answer. No network: names are looked up by the test."""

from __future__ import annotations

import socket
from typing import Any, List

import pytest
from support.knowledge import known

from monitoring.metrics import Counters
from net.addresses import Reach
from protocol.headers import Headers
from protocol.http1 import Authority, Target
from upstream.client import Origins
from upstream.dialling import NoAnswer, Settings, UpstreamError
from upstream.origin_tls import TlsSettings
from upstream.request import Purpose, Request

TARGET = Target("http", Authority("away.test", 80), "/x.deb")
REQUEST = Request(b"GET", TARGET, Headers([]), Reach.NOTHING, Purpose.FILL)


class Names:
    """A resolver that knows no name, and takes `seconds` of the clock to say so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = 0.0
        self.asked: List[str] = []
        self.error: Exception = socket.gaierror(socket.EAI_AGAIN, "no such name")

    def look_up(self, host: str, *_: object, **__: object) -> Any:
        self.now += self.seconds
        self.asked.append(host)
        raise self.error


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.look_up)
    return names


@pytest.fixture
def origins(names: Names) -> Origins:
    settings = Settings(connect_timeout=10.0, fill_timeout=60.0, relay_timeout=300.0, tls=TlsSettings())
    return Origins(settings, Counters(), known(), lambda: names.now)


def fails_slowly(names: Names, origins: Origins) -> None:
    names.seconds = 2.0
    with pytest.raises(UpstreamError):
        origins.exchange(REQUEST)
    names.seconds = 0.0


def test_a_trial_that_fails_at_once_is_followed_by_the_next(names: Names, origins: Origins) -> None:
    """A failure that costs no time is no outage: the trial is over with it, not when its time is."""
    fails_slowly(names, origins)
    with pytest.raises(NoAnswer):
        origins.exchange(REQUEST)
    assert origins.away(TARGET) is not None
    names.now += 6.0
    for _ in range(3):
        assert origins.away(TARGET) is None
        with pytest.raises(UpstreamError, match="cannot resolve"):
            origins.exchange(REQUEST)
    assert len(names.asked) == 4


def test_a_trial_that_could_not_dial_is_followed_by_the_next(names: Names, origins: Origins) -> None:
    """A tunnel to the same port has failed meanwhile, so that nobody dials for a moment."""
    fails_slowly(names, origins)
    names.now += 6.0
    names.seconds = 2.0
    with pytest.raises(UpstreamError, match="cannot resolve"):
        origins.dial(TARGET.authority, Reach.NOTHING)
    assert origins.away(TARGET) is None
    with pytest.raises(NoAnswer):
        origins.exchange(REQUEST)
    names.now += 11.0
    assert origins.away(TARGET) is None


def test_a_trial_that_nobody_waits_for_any_more_is_followed_by_the_next(names: Names, origins: Origins) -> None:
    class Unwanted(Exception):
        """As a filler's, whose last reader has left."""

    fails_slowly(names, origins)
    names.now += 6.0
    names.error = Unwanted()
    for _ in range(2):
        assert origins.away(TARGET) is None
        with pytest.raises(Unwanted):
            origins.exchange(REQUEST)
