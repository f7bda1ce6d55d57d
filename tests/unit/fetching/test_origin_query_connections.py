"""The connections of queries to an origin: each is handed on, or ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Optional

import pytest

from fetching.origin_query import OriginQuery
from net.addresses import Reach
from net.body import IncompleteBody
from net.client_watch import ClientGone
from protocol import http1
from protocol.headers import Headers
from protocol.http1 import Authority, Target
from protocol.request_fields import DEFAULT
from upstream.dialling import UpstreamError

WHOLE = b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 10\r\n\r\n'


class Exchange:
    """An exchange with this head; to skip bytes of its body raises `error`."""

    def __init__(self, head: bytes, error: Optional[Exception] = None) -> None:
        self.head = http1.parse_response(head)
        self.body = self
        self.error = error
        self.done: List[str] = []

    def consume(self, count: int) -> None:
        self.done.append(f"skipped {count}")
        if self.error is not None:
            raise self.error

    def discard(self) -> None:
        self.done.append("discarded")


def a_query(exchange: Exchange) -> OriginQuery:
    services: Any = SimpleNamespace(origins=SimpleNamespace(follow=lambda _: exchange))
    request: Any = SimpleNamespace(
        only_if_cached=False,
        sent_fields=Headers([]),
        target=Target("https", Authority("some.thing", 443), "/x.deb"),
        url="https://some.thing/x.deb",
        reach=Reach.NOTHING,
        names=DEFAULT,
        lent=False,
        credentials=b"",
    )
    return OriginQuery(services, request, lambda _: None)


def test_the_rest_of_a_whole_answer_begins_after_what_is_there() -> None:
    exchange = Exchange(WHOLE)
    assert a_query(exchange).get_range(b'"a"', 4, 10) is exchange  # type: ignore[comparison-overlap]
    assert exchange.done == ["skipped 4"]


@pytest.mark.parametrize(
    ("error", "raised"), [(ClientGone("gone"), ClientGone), (IncompleteBody("broken off"), UpstreamError)]
)
def test_a_connection_on_which_skipping_fails_is_ended(error: Exception, raised: type[Exception]) -> None:
    exchange = Exchange(WHOLE, error)
    with pytest.raises(raised):
        a_query(exchange).get_range(b'"a"', 4, 10)
    assert exchange.done == ["skipped 4", "discarded"]
