"""Requests that are not plain, as the poller's thread reads them."""

from __future__ import annotations

from pathlib import Path

from support.fetching import Around

from fetching.naming import Naming, Parameters
from net.addresses import Reach
from net.arrival import Arrival
from protocol.http1 import Authority
from proxy import mirror
from proxy.other_requests import other_request
from proxy.routing import Hosts, Rules
from server import config

RULES = Rules(
    Hosts(["a.example"]), Hosts(["proxy.test"]), Naming(config.defaults(Path("/x")).proxy.filters, Parameters(()))
)
ARRIVAL = Arrival(Authority("192.0.2.9", 8000), Reach.NOTHING)


def test_a_token_that_stands_for_none_is_no_credential(tmp_path: Path) -> None:
    services = Around(tmp_path).services
    target = f"/v2/a/blobs/sha256:{'a' * 64}"
    for url, token, known in (
        (f"{target}?ns=a.example", mirror.ANONYMOUS, False),
        (f"{target}?ns=a.example", "other", True),
        (f"http://a.example{target}", mirror.ANONYMOUS, True),
    ):
        block = f"GET {url} HTTP/1.1\r\nHost: proxy.test\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        request = other_request(block, ARRIVAL, RULES, services)
        assert request is not None and bool(request.credentials) is known
        assert (b"authorization" in request.sent.headers) is known
