"""Requests that are read at a glance mean what they mean to `routing.decide`; everything else is left to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import List

import pytest
from support.corpus import Case, load

from fetching.naming import Naming, Parameters
from net.addresses import Reach
from net.arrival import Arrival
from protocol import http1
from protocol.http1 import Authority, Framing, ProtocolError
from protocol.request_fields import DEFAULT
from proxy import routing
from proxy.plain_requests import PlainRequests
from proxy.routing import Fetch, Hosts, Rules
from server import config

CACHE = config.defaults(Path("/nowhere"))
RULES = Rules(
    Hosts(["a.example"]),
    Hosts(["proxy.test"]),
    Naming(CACHE.proxy.filters, Parameters(CACHE.cache.ignore_query), CACHE.cache.volatile),
)
LOCAL = Authority("192.0.2.9", 8000)
INSIDE = Arrival(LOCAL, Reach.NOTHING, encrypted=True, connect_target=Authority("a.example", 443))
ELSEWHERE = Arrival(LOCAL, Reach.NOTHING, encrypted=True, connect_target=Authority("a.example", 8443))
UNLISTED = Arrival(LOCAL, Reach.NOTHING, encrypted=True, connect_target=Authority("other.example", 443))
PLAIN = Arrival(LOCAL, Reach.NOTHING)
DIRECT = Arrival(LOCAL, Reach.NOTHING, encrypted=True)
ARRIVALS = [INSIDE, ELSEWHERE, UNLISTED, PLAIN, DIRECT]

TARGETS: List[bytes] = [
    *(b"/x.deb", b"/a/b%2Edeb", b"/x.deb?a=b", b"/x.deb?X-Amz-Signature=1", b"/x.deb#a", b"/x", b"*", b"//x.deb", b""),
    *(b"/\xc3\xa9.deb", b"/a b.deb", b"/\x01.deb", b"/\x7f.deb", b"/" + b"x" * 3000 + b".deb", b"/dists/a/Packages.gz"),
    *(b"http://a.example/x.deb", b"https://a.example/x.deb", b"http://b.example:81/x.deb", b"http://proxy.test/x.deb"),
    *(b"ftp://a.example/x.deb", b"http://a.example", b"http:///x.deb", b"http://a.example:0/x.deb", b"a.example:443"),
    b"/v2/a/blobs/sha256:" + b"a" * 64,
    *(b"/v2/a/blobs/sha256:%s?ns=%s" % (b"a" * 64, host) for host in (b"a.example", b"a.example:8443", b"b.example")),
    b"/v2/a.example/a/blobs/sha256:" + b"a" * 64,
]
FIELDS: List[bytes] = [
    *(b"", b"Host: a.example\r\n", b"Host: a.example:443\r\n", b"Host: a.example:8443\r\n", b"host:A.EXAMPLE\r\n"),
    *(b"Host: other.example\r\n", b"Host: a.example\r\nHost: a.example\r\n", b"Host: a.example\r\nAccept: */*\r\n"),
    *(b"Host: a.example\r\nRange: bytes=0-1\r\n", b"Host: a.example\r\n folded\r\n", b"Host: a b\r\n"),
    *(b"Host: a.example\r\nCookie: x\r\n", b"Host: a.example\r\nCookie:\r\n", b"Host: a.example\r\nX_Token: x\r\n"),
    *(b"Host: a.example\r\nContent-Length: 1\r\n", b"Host: a.example\r\nTransfer-Encoding: chunked\r\n"),
    *(b"Host: a.example\r\nMax-Forwards: 0\r\n", b"Host: a.example\r\nX: \x01\r\n", b"Host: a.example\nX: 1\r\n"),
    b"Host: proxy.test:8000\r\n",
    *(b"Host: a.example\r\nConnection: close\r\n", b"Host: a.example\r\nExpect: 100-continue\r\n"),
]


def check(requests: PlainRequests, block: bytes, arrival: Arrival) -> bool:
    """Read twice; returns whether it was plain. The second time, it is remembered."""
    for again in (False, True):
        request = requests.read(block, arrival)
        if request is None:
            return False
        head = http1.parse_request(block)
        decision = routing.decide(head, arrival, RULES)
        assert isinstance(decision, Fetch) and decision.name == request.name
        sent = decision.target.path_query.encode() if decision.mirrored else head.target
        assert request.head == replace(head, target=sent) and head.persistent
        assert http1.request_framing(head).kind is Framing.NONE
        assert not DEFAULT.opening(head.headers) and b"range" not in head.headers
        assert request.name is not None and not request.name.volatile
        assert not request.name.signature and not request.name.secrets
        assert request.reach is arrival.reach and request.target == decision.target
        assert not again or requests.known(block, arrival) is request
    return True


def test_every_plain_request_means_what_the_full_decision_says() -> None:
    requests = PlainRequests(RULES, DEFAULT, b"1.1 dduct")
    plain = 0
    for arrival in ARRIVALS:
        for target in TARGETS:
            for fields in FIELDS:
                for version in (b"1.1", b"1.0", b"2.0"):
                    block = b"GET " + target + b" HTTP/" + version + b"\r\n" + fields + b"\r\n"
                    plain += check(requests, block, arrival)
    assert plain > 100


@pytest.mark.parametrize("case", load("requests.txt"))
@pytest.mark.parametrize("arrival", ARRIVALS[:1] + ARRIVALS[3:4], ids=["inside", "plain"])
def test_no_malformed_request_is_plain(case: Case, arrival: Arrival) -> None:
    requests = PlainRequests(RULES, DEFAULT, b"1.1 dduct")
    for block in (case.raw, case.raw.replace(b"GET / ", b"GET /x.deb ", 1)):
        try:
            check(requests, block, arrival)
        except ProtocolError:
            pytest.fail(f"read as plain: {block!r}")


def test_two_heads_are_not_one_request() -> None:
    requests = PlainRequests(RULES, DEFAULT, b"1.1 dduct")
    block = b"GET /x.deb HTTP/1.1\r\nHost: a.example\r\n\r\n"
    assert requests.read(block, INSIDE) is not None
    assert requests.read(block + block, INSIDE) is None
    assert requests.read(block[:-2], INSIDE) is None
