"""Transfers that break off and are resumed: what proves the rest, how often, and with which client's request."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Optional, Tuple

import pytest
from support.client import wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct

from cache import Cache, Lead
from fetching.naming import Name
from monitoring.metrics import Counter
from storage.record import Digest, Metadata
from storage.store import Key

BODY = os.urandom(2_000_000)
NAMED = "/v2/x/blobs/sha256:" + hashlib.sha256(BODY).hexdigest()
ETAGS = {"no tag": None, "a weak tag": 'W/"1"', "no proper tag": "1", "a strong tag": '"1"'}


class Link:
    """An origin at the other end of a link that breaks off after `each` bytes; what it does is in its attributes."""

    def __init__(self, each: int = 150_000, etag: Optional[str] = '"1"') -> None:
        self.each = each
        self.etag = etag
        self.ranges: List[int] = []
        self.knows_ranges = True
        self.total = str(len(BODY))  # in Content-Range
        self.resumed = BODY  # what it takes ranges from
        self.chunked = False
        self.progress: Callable[[int], int] = lambda start: self.each
        self.refuses: Callable[[Asked], int] = lambda asked: 0
        self.gate: Optional[Gate] = None

    def __call__(self, asked: Asked, connection: Connection) -> None:
        status = self.refuses(asked)
        if status:
            connection.respond(status, [("WWW-Authenticate", "Bearer")], b"no")
            return
        if self.etag is not None and asked.get("if-none-match") == self.etag:
            connection.head(304, [("ETag", self.etag)])
            return
        start = int((asked.get("range") or "bytes=0-")[len("bytes=") : -1])
        fields = [("Content-Type", "x/y")] if self.etag is None else [("ETag", self.etag)]
        if asked.get("range") is not None:
            self.ranges.append(start)
        if not self.knows_ranges or asked.get(
            "if-range",
        ) not in (None, self.etag):
            start = 0
        if start:
            fields.append(("Content-Range", f"bytes {start}-{len(BODY) - 1}/{self.total}"))
        body = (self.resumed if start else BODY)[start:]
        chunked = self.chunked and not start
        fields.append(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body))))
        connection.head(206 if start else 200, fields)
        piece = body[: self.progress(start)]
        if chunked:
            connection.send(b"%x\r\n" % len(body))
        connection.send_body(piece)
        if len(piece) < len(body):
            if self.gate is not None:
                self.gate.wait()
            connection.fin()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.filler._PAUSES", (0.0,) * 5)


@pytest.mark.parametrize("etag", ETAGS)
def test_a_digest_named_object_is_resumed_whatever_its_tag(dduct: RunningDduct, etag: str) -> None:
    link = Link(etag=ETAGS[etag])
    origin = dduct.origin(link)
    assert dduct.fetch(origin, NAMED).body == BODY
    assert origin.body_sent == len(BODY) and len(link.ranges) == 13
    assert dduct.counted(Counter.PUBLISHED) == 1


@pytest.mark.parametrize("odd", ["total unknown", "begins chunked", "no ranges"])
def test_a_digest_named_object_is_resumed_with_or_without_ranges(dduct: RunningDduct, odd: str) -> None:
    link = Link(etag=None)
    if odd == "total unknown":
        link.total = "*"
    elif odd == "begins chunked":
        link.chunked = True
    else:
        link.knows_ranges = False
        grown = iter(range(300_000, 9_000_000, 400_000))
        link.progress = lambda start: next(grown)
    origin = dduct.origin(link)
    assert dduct.fetch(origin, NAMED).body == BODY
    assert dduct.counted(Counter.PUBLISHED) == 1


def test_bytes_of_an_origin_without_ranges_are_skipped_if_its_tag_is_equal(dduct: RunningDduct) -> None:
    link = Link()
    link.knows_ranges = False
    grown = iter([500_000, 900_000, 2_000_000])
    link.progress = lambda start: next(grown)
    origin = dduct.origin(link)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.counted(Counter.RESUMED) == 2 and dduct.counted(Counter.PUBLISHED) == 1


def test_the_number_of_skipped_bytes_is_bounded(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.filler.MAX_SKIPPED", 1_000_000)
    link = Link()
    link.knows_ranges = False
    grown = iter(range(300_000, 9_000_000, 100_000))
    link.progress = lambda start: next(grown)
    origin = dduct.origin(link)
    assert not dduct.fetch(origin, "/x.deb").whole
    assert origin.body_sent < 4_000_000


@pytest.mark.parametrize("kind", ["other bytes", "another place", "not to the end", "another total"])
def test_a_wrong_rest_never_completes_an_object(dduct: RunningDduct, kind: str) -> None:
    link = Link(etag=None)
    link.resumed = bytes(len(BODY)) if kind == "other bytes" else BODY

    def answer(asked: Asked, connection: Connection) -> None:
        wrong = {"another place": "1-1999999/2000000", "not to the end": "150000-1999998/2000000"}
        wrong["another total"] = "150000-1999999/2000001"
        if kind in wrong and asked.get("range") is not None:
            connection.respond(206, [("Content-Range", "bytes " + wrong[kind])], BODY[150_000:])
        else:
            link(asked, connection)

    origin = dduct.origin(answer)
    assert not dduct.fetch(origin, NAMED).whole
    assert dduct.stored() == []
    link.each, link.resumed = len(BODY), BODY
    assert dduct.fetch(origin, NAMED).body == BODY


def test_resumptions_that_bring_bytes_may_be_many(dduct: RunningDduct) -> None:
    link = Link(each=20_000)
    origin = dduct.origin(link)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert len(link.ranges) == 99 and origin.body_sent == len(BODY)


@pytest.mark.parametrize("brings", [0, 1, 1000])
@pytest.mark.parametrize("target", ["/x.deb", NAMED], ids=["tag", "digest"])
def test_resumptions_that_bring_nothing_are_limited(dduct: RunningDduct, brings: int, target: str) -> None:
    link = Link(etag='"1"')
    link.progress = lambda start: brings if start else 500_000
    origin = dduct.origin(link)
    assert not dduct.fetch(origin, target).whole
    assert len(link.ranges) == 5 and dduct.stored() == []


def test_resumptions_in_all_are_limited(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.filler._RESUMPTIONS", 10)
    link = Link(each=20_000)
    origin = dduct.origin(link)
    assert not dduct.fetch(origin, "/x.deb").whole
    assert len(link.ranges) == 10 and dduct.stored() == []


# --- with whose request -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("target", ["/x.deb", NAMED], ids=["tag", "digest"])
def test_an_expired_token_ends_the_transfer_for_its_own_client_only(
    dduct: RunningDduct, status: int, target: str
) -> None:
    link = Link(each=500_000)
    link.gate = Gate()
    expired: List[str] = []
    link.refuses = lambda asked: status if asked.get("authorization") in expired else 0
    origin = dduct.origin(link)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(dduct.fetch, origin, target, "Authorization: Bearer a")
        link.gate.reached()
        others = [pool.submit(dduct.fetch, origin, target, f"Authorization: Bearer {name}") for name in "bc"]
        dduct.counted(Counter.COLLAPSED, 2)
        expired.append("Bearer a")
        link.gate.open()
        assert all(other.result(30).body == BODY for other in others)
        first.result(30)
    assert dduct.counted(Counter.PUBLISHED) == 1
    assert origin.body_sent < len(BODY) + 100_000


def test_a_partial_download_stays_when_the_token_of_its_fill_expires(dduct: RunningDduct) -> None:
    link = Link(each=1_500_000)
    link.gate = Gate()
    expired: List[str] = []
    link.refuses = lambda asked: 401 if asked.get("authorization") in expired else 0
    origin = dduct.origin(link)
    with dduct.intercepted(origin) as client:
        head = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\nAuthorization: Bearer a\r\n\r\n"
        client.send(head.encode())
        link.gate.reached()
        client.read_until(b"\r\n\r\n")
    expired.append("Bearer a")
    link.gate.open()
    dduct.counted(Counter.DROPPED)
    for _ in range(2):  # a refused client does not damage it
        assert dduct.fetch(origin, "/x.deb", "Authorization: Bearer a").status == 401
    assert dduct.fetch(origin, "/x.deb", "Authorization: Bearer b").body == BODY
    assert link.ranges[-1] == 1_500_000 and origin.body_sent <= len(BODY) + 10


def test_an_expired_signature_is_renewed_through_the_first_url(dduct: RunningDduct) -> None:
    link = Link(each=500_000)
    signed: List[str] = []
    link.refuses = lambda asked: 403 if asked.target != signed[-1] else 0
    store = dduct.origin(link)

    def registry(asked: Asked, connection: Connection) -> None:
        signed.append(f"/blob?X-Amz-Signature={len(signed)}")
        connection.respond(307, [("Location", f"https://{HOST}:{store.port}{signed[-1]}")], b"there")

    origin = dduct.origin(registry)
    assert dduct.fetch(origin, NAMED).body == BODY
    assert len(signed) == 4 and store.body_sent == len(BODY)


# --- partial downloads ------------------------------------------------------------------------------


def dead_leader(dduct: RunningDduct, origin: Origin, name: Name, etag: Optional[str], size: int) -> None:
    """Another process that was fetching an object, and has died."""
    claim = Cache(dduct.files).claim(Key(name.path, None if name.digest is None else Digest(*name.digest)))
    assert isinstance(claim, Lead)
    fields: Tuple[Tuple[str, str], ...] = () if etag is None else (("ETag", etag),)
    url = f"https://{HOST}:{origin.port}{'/' + name.path.split('/', 2)[2]}"
    claim.fill.start(Metadata(url, fields, 0.0), len(BODY), resumable=True)
    claim.fill.write(memoryview(BODY)[:size])
    os.close(claim.fill.file.fd)


@pytest.mark.parametrize("etag", ETAGS)
def test_a_partial_download_of_a_digest_named_object_is_resumed(dduct: RunningDduct, etag: str) -> None:
    link = Link(each=len(BODY), etag=ETAGS[etag])
    origin = dduct.origin(link)
    name = Name(f"https/{HOST}:{origin.port}{NAMED}", Digest("sha256", NAMED.rpartition(":")[2]))
    dead_leader(dduct, origin, name, ETAGS[etag], 1_500_000)
    assert dduct.fetch(origin, NAMED).body == BODY
    assert link.ranges == [1_500_000] and origin.body_sent == 500_000


def test_a_partial_download_stays_while_its_origin_is_away(dduct: RunningDduct) -> None:
    link = Link(each=len(BODY))
    away = [True]

    def answer(asked: Asked, connection: Connection) -> None:
        if away:
            connection.reset()
        else:
            link(asked, connection)

    origin = dduct.origin(answer)
    dead_leader(dduct, origin, Name(f"https/{HOST}:{origin.port}/x.deb"), '"1"', 1_500_000)
    assert dduct.fetch(origin, "/x.deb").status == 502
    away.clear()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert origin.body_sent == 500_000


def test_a_partial_download_outlives_a_client_that_hangs_up(dduct: RunningDduct) -> None:
    link, gate = Link(each=len(BODY)), Gate()

    def answer(asked: Asked, connection: Connection) -> None:
        if len(origin.requests) == 1:
            gate.wait()
            connection.over = True
        else:
            link(asked, connection)

    origin = dduct.origin(answer)
    dead_leader(dduct, origin, Name(f"https/{HOST}:{origin.port}/x.deb"), '"1"', 1_500_000)
    client = dduct.intercepted(origin)
    client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    gate.reached()
    client.sock.close()
    wait_until(lambda: not dduct.server.connections and not dduct.fills())
    gate.open()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert origin.body_sent == 500_000
