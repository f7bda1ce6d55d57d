"""What clients get from the cache, end to end: freshness, validation, authorisation, ranges, digests, queries."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, List, Optional, Tuple

import pytest
from pytest import MonkeyPatch
from support.client import Answer, Client, wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from storage.record import Unstorable
from storage.space import Limits

Build = Callable[..., RunningDduct]
BODY = os.urandom(200_000)
OTHER = os.urandom(150_000)
Field = Tuple[str, str]
STALE: Tuple[Field, ...] = (("Cache-Control", "max-age=60"), ("Age", "100"))
FRESH: Tuple[Field, ...] = (("Cache-Control", "max-age=1000"),)


class Shelf:
    """An origin with one changing object at every path: validators, conditions, and whatever befalls it."""

    def __init__(self, *fields: Field, body: bytes = BODY, etag: Optional[str] = '"1"') -> None:
        self.fields = list(fields)
        self.body = body
        self.etag = etag
        self.modified: Optional[str] = None
        self.status: Optional[int] = None  # instead of everything else
        self.word: Optional[str] = None  # an Authorization that is asked for
        self.renewed: Optional[List[Field]] = None  # the fields of a 304, if they differ
        self.dead = False
        self.gate: Optional[Gate] = None  # in the middle of the body
        self.before: Optional[Gate] = None  # before the head
        self.answers: List[int] = []

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if self.before is not None:
            self.before.wait()
        if self.dead:
            connection.reset()
            return
        if self.word is not None and asked.get("authorization") != self.word:
            self._respond(connection, asked, 401, [("WWW-Authenticate", "Bearer")], b"who are you?")
        elif self.status is not None:
            self._respond(connection, asked, self.status, [], b"not today")
        elif self._unchanged(asked):
            self.answers.append(304)
            connection.head(304, [*self.fields, *self._validators()] if self.renewed is None else self.renewed)
        else:
            self._whole(asked, connection)

    def _unchanged(self, asked: Asked) -> bool:
        if asked.get("if-none-match") is not None:
            return asked.get("if-none-match") == self.etag
        return asked.get("if-modified-since") is not None and asked.get("if-modified-since") == self.modified

    def _whole(self, asked: Asked, connection: Connection) -> None:
        self.answers.append(200)
        fields = [*self.fields, ("Content-Length", str(len(self.body)))]
        connection.head(200, [*fields, *self._validators()])
        if asked.method == "HEAD":
            return
        if self.gate is not None:
            connection.send_body(self.body[:1000])
            self.gate.wait()
            connection.send_body(self.body[1000:])
        else:
            connection.send_body(self.body)

    def _validators(self) -> List[Field]:
        said = [("ETag", self.etag), ("Last-Modified", self.modified)]
        return [(name, value) for name, value in said if value]

    def _respond(self, connection: Connection, asked: Asked, status: int, fields: List[Field], body: bytes) -> None:
        self.answers.append(status)
        connection.respond(status, fields, body, head_only=asked.method == "HEAD")


def status_of(answer: Answer) -> str:
    return (answer.get("cache-status") or "").partition("; ")[2]


def ask(client: Client, origin: Origin, target: str, *fields: str, method: str = "GET") -> Answer:
    return client.get(target, f"{HOST}:{origin.port}", *fields, method=method)


# --- what a hit looks like --------------------------------------------------------------------------


def test_a_hit_and_a_miss_look_the_same(dduct: RunningDduct) -> None:
    described = [
        ("Content-Type", "application/x-thing"),
        ("Docker-Content-Digest", "sha256:0"),
        ("Content-Disposition", "attachment"),
        ("Link", "<a>; rel=next"),
        ("Date", "Mon, 23 Nov 2026 08:00:00 GMT"),
        ("Cache-Control", "max-age=999999999"),
        ("Expires", "Mon, 23 Nov 2099 08:00:00 GMT"),
    ]
    hop_by_hop = [("Connection", "X-Own"), ("X-Own", "1"), ("Keep-Alive", "9"), ("Set-Cookie", "a=1"), ("Age", "5")]
    origin = dduct.origin(Shelf(*described, *hop_by_hop))
    miss, hit = dduct.fetch(origin, "/x.deb"), dduct.fetch(origin, "/x.deb")
    for answer in (miss, hit):
        assert answer.body == BODY and answer.complete
        kept = [(name, value) for name, value in answer.headers if (name, value) in described]
        assert kept == described
        assert answer.get("etag") == '"1"' and answer.get("accept-ranges") == "bytes"
        assert [answer.get(name) for name in ("x-own", "keep-alive", "set-cookie")] == [None] * 3
        assert (answer.get("via") or "").startswith("1.1 dduct-")
        assert int(answer.get("age") or -1) >= 5
    assert status_of(miss) == "fwd=uri-miss; stored"
    assert re.fullmatch(r"hit; ttl=[0-9]+", status_of(hit))


def test_an_answer_without_date_gets_one(dduct: RunningDduct) -> None:
    """RFC 9110 §6.6.1, kept or relayed."""
    origin = dduct.origin(Shelf())
    assert all(dduct.fetch(origin, path).get("date") for path in ("/x.deb", "/x.deb", "/page"))


def test_a_head_request_is_answered_from_the_cache(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH))
    with dduct.intercepted(origin) as client:
        ask(client, origin, "/x.deb")
        head = ask(client, origin, "/x.deb", method="HEAD")
        assert (head.status, head.get("content-length")) == (200, str(len(BODY)))
        for method in ("HEAD", "GET"):
            unchanged = ask(client, origin, "/x.deb", 'If-None-Match: "1"', method=method)
            # RFC 9110 §8.6: it would be the length of the 200.
            assert (unchanged.status, unchanged.get("content-length")) == (304, None)
    assert len(origin.requests) == 1


def test_a_head_request_for_an_object_that_is_not_stored_asks_the_origin_once(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf())
    with dduct.intercepted(origin) as client:
        assert ask(client, origin, "/x.deb", method="HEAD").get("content-length") == str(len(BODY))
    assert len(origin.requests) == 1 and dduct.stored() == []


# --- freshness and validation -----------------------------------------------------------------------


def test_a_fresh_object_makes_no_contact(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    for _ in range(3):
        assert dduct.fetch(origin, "/x.deb").body == BODY
    assert shelf.answers == [200]


def test_a_stale_object_is_validated_and_fresh_again(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()  # what one process writes then may undo what another has just learnt
    shelf.renewed = [("Cache-Control", "max-age=500"), ("X-New", "yes"), ("ETag", '"1"')]
    validated = dduct.fetch(origin, "/x.deb")
    assert validated.body == BODY and status_of(validated) == "fwd=stale; fwd-status=304"
    assert validated.get("x-new") == "yes" and validated.get("cache-control") == "max-age=500"
    again = dduct.fetch(origin, "/x.deb")
    assert again.get("x-new") == "yes" and status_of(again).startswith("hit; ttl=")
    assert shelf.answers == [200, 304]
    assert origin.requests[1].get("if-none-match") == '"1"'


def test_a_stale_object_without_a_tag_is_validated_by_its_date(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE, etag=None)
    shelf.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert shelf.answers == [200, 304]


def test_a_stale_object_without_validators_is_fetched_again(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE, etag=None)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.body = OTHER
    assert dduct.fetch(origin, "/x.deb").body == OTHER
    assert shelf.answers == [200, 200]


def test_a_changed_object_replaces_the_stale_one(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.body, shelf.etag, shelf.fields = OTHER, '"2"', list(FRESH)
    changed = dduct.fetch(origin, "/x.deb")
    assert changed.body == OTHER and status_of(changed) == "fwd=stale; fwd-status=200; stored"
    assert dduct.fetch(origin, "/x.deb").body == OTHER
    assert shelf.answers == [200, 200]


def test_a_reader_of_a_replaced_object_reads_the_old_one_to_its_end(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE, body=os.urandom(30_000_000))
    old = shelf.body
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    slow = dduct.intercepted(origin)
    slow.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    origin.wait_for_requests(2)
    slow.read_until(b"\r\n\r\n")
    shelf.body, shelf.etag, shelf.fields = OTHER, '"2"', list(STALE)
    assert dduct.fetch(origin, "/x.deb").body == OTHER
    received = slow._exactly(len(old))
    assert received == old


@pytest.mark.parametrize("changed", [False, True])
def test_many_clients_of_a_stale_object_cause_one_validation(dduct: RunningDduct, changed: bool) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()
    if changed:
        shelf.body, shelf.etag = OTHER, '"2"'
    shelf.fields = list(FRESH)
    shelf.before = Gate()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(8)]
        shelf.before.reached()
        shelf.before.open()
        bodies = [answer.result(20).body for answer in answers]
    assert bodies == [OTHER if changed else BODY] * 8
    assert shelf.answers == [200, 200 if changed else 304]


def test_a_304_with_another_tag_is_not_believed(dduct: RunningDduct) -> None:
    """RFC 9111 §4.3.4: then the whole is asked for, without conditions."""
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.renewed = [("ETag", '"other"')]
    shelf.fields = list(FRESH)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert shelf.answers == [200, 304, 200]


@pytest.mark.parametrize(
    ("field", "answers"),
    [
        ("Cache-Control: no-cache", [200, 304]),
        ("Cache-Control: max-age=0", [200, 304]),
        ("Pragma: no-cache", [200, 304]),
        ("Cache-Control: min-fresh=5000", [200, 304]),
        ("Cache-Control: max-age=500", [200]),
        ("Cache-Control: only-if-cached", [200]),
        ("X-Request-Id: y", [200]),
        ("X: y", [200, 304]),  # it may be a credential
    ],
)
def test_a_request_may_ask_for_validation(dduct: RunningDduct, field: str, answers: List[int]) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    assert dduct.fetch(origin, "/x.deb", field).body == BODY
    assert shelf.answers == answers


def test_a_request_with_max_stale_gets_the_stale_object(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    assert dduct.fetch(origin, "/x.deb", "Cache-Control: max-stale=100").body == BODY
    assert shelf.answers == [200]


def test_only_if_cached_never_contacts_the_origin(dduct: RunningDduct) -> None:
    """RFC 9111 §5.2.1.7: cold, stale, and what is not kept at all."""
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    only = "Cache-Control: only-if-cached"
    assert dduct.fetch(origin, "/x.deb", only).status == 504
    dduct.fetch(origin, "/x.deb")
    assert dduct.fetch(origin, "/x.deb", only).status == 504
    assert shelf.answers == [200]


def test_a_request_with_no_store_stores_nothing(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    assert dduct.fetch(origin, "/x.deb", "Cache-Control: no-store").body == BODY
    assert dduct.stored() == []


def test_a_validation_that_forbids_storing_removes_the_object(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.body, shelf.etag, shelf.fields = OTHER, '"2"', [("Cache-Control", "no-store")]
    assert dduct.fetch(origin, "/x.deb").body == OTHER
    assert dduct.stored() == []


@pytest.mark.parametrize("status", [404, 410])
def test_an_object_that_is_gone_at_the_origin_is_removed(dduct: RunningDduct, status: int) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.status = status
    assert dduct.fetch(origin, "/x.deb").status == status
    assert dduct.stored() == []


# --- redirects --------------------------------------------------------------------------------------

FOR_EVER = ("Cache-Control", "public, max-age=31536000, immutable")


class Releases:
    """What is the latest is said by a redirect, to a place here or elsewhere; what is at its end never changes."""

    def __init__(self, *said: Field, status: int = 302) -> None:
        self.said = list(said)
        self.status = status
        self.store = ""
        self.latest = 1
        self.dead = False

    def __call__(self, asked: Asked, connection: Connection) -> None:
        etag = f'"{asked.target.partition("?")[0]}"'
        if self.dead:
            connection.reset()
        elif asked.target == "/newest.zip":
            location = f"{self.store}/v{self.latest}.zip?X-Amz-Signature={len(etag)}"
            connection.respond(self.status, [("Location", location), *self.said], b"moved")
        elif asked.get("if-none-match") == etag:
            connection.head(304, [("ETag", etag), FOR_EVER])
        else:
            connection.respond(200, [("ETag", etag), FOR_EVER], etag.encode())


def release(number: int) -> bytes:
    return f'"/v{number}.zip"'.encode()


OUT_OF_DATE: List[List[Field]] = [
    [],
    [("Cache-Control", "no-store")],
    [("Cache-Control", "no-cache")],
    [("Cache-Control", "private, no-cache, max-age=0")],
    [("Cache-Control", "max-age=60"), ("Age", "60")],
]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("said", OUT_OF_DATE, ids=lambda said: str(dict(said)))
def test_an_object_behind_a_redirect_is_validated_through_the_redirect(
    dduct: RunningDduct, said: List[Field], elsewhere: bool
) -> None:
    """A small question along the same way, and another object once the way leads elsewhere."""
    releases = Releases(*said)
    origin, store = dduct.origin(releases), dduct.origin(releases)
    releases.store = f"https://{HOST}:{store.port}" if elsewhere else ""
    for _ in range(3):
        answer = dduct.fetch(origin, "/newest.zip")
        assert answer.body == release(1)
        assert "31536000" not in (answer.get("cache-control") or "")  # caches behind dduct are told, too
    end = store if elsewhere else origin
    assert [asked.get("if-none-match") for asked in end.requests if asked.target != "/newest.zip"] == [
        None,
        release(1).decode(),
        release(1).decode(),
    ]
    releases.latest = 2
    assert [dduct.fetch(origin, "/newest.zip").body for _ in range(2)] == [release(2)] * 2
    assert origin.count("/newest.zip") == 5
    moved = 5 * len(b"moved")
    # A changed object may be requested once more: a connection that carried a 304 is not used again.
    least = moved + len(release(1)) + len(release(2))
    assert origin.body_sent + store.body_sent in (least, least + len(release(2)))


HUB_PLACES = ["/x.zip", "/" + "long/" * 120 + "x.zip"]


class Hub:
    """A hub that redirects to a store, and says of the object in the redirect what the store does not."""

    def __init__(self, dduct: RunningDduct, *said: Field, place: str) -> None:
        self.store = dduct.origin(Shelf(*FRESH))
        self.fields = [("X-Linked-ETag", '"hub"'), ("X-Repo-Commit", "c0ffee"), *said]
        self.location = f"https://{HOST}:{self.store.port}{place}"
        self.failure: object = None

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if self.failure == "away":
            connection.reset()
        elif self.failure is not None:
            connection.respond(503, [], b"", head_only=True)
        else:
            connection.respond(302, [("Location", self.location), *self.fields], b"there", asked.method == "HEAD")


def says_what_the_hub_says(answer: Answer, hub: Hub) -> bool:
    told = [answer.get(name) for name in ("location", "x-linked-etag", "x-repo-commit")]
    return answer.status == 302 and told == [hub.location, '"hub"', "c0ffee"]


@pytest.mark.parametrize("place", HUB_PLACES, ids=["short", "long"])
@pytest.mark.parametrize("said", [(), FRESH, (("Cache-Control", "no-store"),)], ids=["nothing", "fresh", "no-store"])
def test_a_head_request_for_a_redirect_gets_the_fields_of_the_redirect(
    dduct: RunningDduct, said: Tuple[Field, ...], place: str
) -> None:
    hub = Hub(dduct, *said, place=place)
    origin = dduct.origin(hub)
    client = dduct.intercepted(origin)
    assert says_what_the_hub_says(ask(client, origin, "/x.zip", method="HEAD"), hub)
    assert ask(client, origin, "/x.zip").body == BODY
    for _ in range(2):
        assert says_what_the_hub_says(ask(client, origin, "/x.zip", method="HEAD"), hub)
    assert ask(client, origin, "/x.zip").body == BODY and hub.store.count(place) <= 1 + (said != FRESH)


@pytest.mark.parametrize("failure", ["away", 503])
def test_a_head_request_for_a_redirect_is_answered_from_the_cache_if_the_origin_is_away(
    dduct: RunningDduct, failure: object
) -> None:
    hub = Hub(dduct, *FRESH, place="/x.zip")
    origin = dduct.origin(hub)
    assert dduct.fetch(origin, "/x.zip").body == BODY
    hub.failure = failure
    with dduct.intercepted(origin) as client:
        answer = ask(client, origin, "/x.zip", method="HEAD")
        assert (answer.status, answer.get("content-length")) == (200, str(len(BODY)))
        asked = len(origin.requests)
        assert ask(client, origin, "/x.zip", "Cache-Control: only-if-cached", method="HEAD").status == 200
        assert len(origin.requests) == asked


def test_a_head_request_for_an_object_from_another_url_asks_its_own_origin(dduct: RunningDduct) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    hub = Hub(dduct, *FRESH, place=f"/v2/x/blobs/sha256:{digest}")
    origin = dduct.origin(hub)
    assert dduct.fetch(hub.store, f"/v2/x/blobs/sha256:{digest}").body == BODY
    with dduct.intercepted(origin) as client:
        assert says_what_the_hub_says(ask(client, origin, f"/v2/y/blobs/sha256:{digest}", method="HEAD"), hub)


@pytest.mark.parametrize("changed", ["", "length", "time"])
def test_mirrors_behind_one_redirect_share_the_stored_object(dduct: RunningDduct, changed: str) -> None:
    """They keep times, and make tags of their own: no object is fetched again because another one is asked."""
    body = os.urandom(300_000)
    mirrors = [Shelf(body=body, etag=f'"{number}"') for number in range(2)]
    for mirror in mirrors:
        mirror.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    places = [dduct.origin(mirror) for mirror in mirrors]
    iteration = itertools.cycle(places)

    def redirector(asked: Asked, connection: Connection) -> None:
        connection.respond(302, [("Location", f"https://{HOST}:{next(iteration).port}{asked.target}")], b"")

    origin = dduct.origin(redirector)
    assert dduct.fetch(origin, "/x.rpm").body == body
    if changed == "length":
        mirrors[1].body = body[1:]
    elif changed == "time":
        mirrors[1].modified = "Tue, 02 Jan 2024 00:00:00 GMT"
    for _ in range(3):
        assert dduct.fetch(origin, "/x.rpm").body in (body, mirrors[1].body)
    expected = 3 if changed else 0
    assert dduct.counters.value(Counter.FILLS) == 1 + expected
    assert dduct.counted(Counter.VALIDATED, 3 - expected) == 3 - expected  # it is counted after it is sent


@pytest.mark.parametrize(
    ("status", "said"), [(302, [("Cache-Control", "max-age=1000")]), (301, []), (308, []), (307, [FOR_EVER])]
)
def test_a_fresh_redirect_is_not_validated(dduct: RunningDduct, status: int, said: List[Field]) -> None:
    releases = Releases(*said, status=status)
    origin = dduct.origin(releases)
    for _ in range(3):
        assert dduct.fetch(origin, "/newest.zip").body == release(1)
    assert origin.count("/newest.zip") == 1


def test_the_shortest_lived_redirect_counts(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        number = int(asked.target[1:-4])
        if number:
            fields = [("Location", f"/{number - 1}.zip"), ("Cache-Control", f"max-age={100 * number}")]
            connection.respond(302, fields)
        else:
            connection.respond(200, [FOR_EVER], BODY)

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/3.zip").get("cache-control") == "public, max-age=100"


def test_a_private_redirect_is_for_authorized_clients_only(dduct: RunningDduct) -> None:
    releases = Releases(("Cache-Control", "private, max-age=1000"))
    origin = dduct.origin(releases)
    for _ in range(3):
        assert dduct.fetch(origin, "/newest.zip").body == release(1)
    assert origin.count("/newest.zip") >= 3


def test_a_digest_named_object_is_a_hit_behind_any_redirect(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target.startswith("/v2/"):
            connection.respond(307, [("Location", "/store"), ("Cache-Control", "no-cache")])
        else:
            connection.respond(200, [FOR_EVER], BODY)

    origin = dduct.origin(handler)
    for _ in range(3):
        answer = dduct.fetch(origin, f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}")
        assert answer.body == BODY and answer.get("cache-control") == FOR_EVER[1]
    assert len(origin.requests) == 2


@pytest.mark.parametrize("obeyed", [True, False])
def test_a_stale_redirect_is_used_only_if_stale_if_error_allows_it(start_dduct: Build, obeyed: bool) -> None:
    dduct = start_dduct(stale_if_error=obeyed)
    releases = Releases()
    origin = dduct.origin(releases)
    assert dduct.fetch(origin, "/newest.zip").body == release(1)
    releases.dead = True
    answer = dduct.fetch(origin, "/newest.zip")
    assert (answer.status, answer.body == release(1)) == ((200, True) if obeyed else (502, False))


def test_a_200_with_the_same_strong_tag_confirms_the_stored_object(dduct: RunningDduct) -> None:
    """It knows no conditions, but its strong tag says that it is the same (RFC 9110 §8.8.1)."""
    origin = dduct.origin(lambda asked, connection: connection.respond(200, [("ETag", '"1"'), *STALE], BODY))
    answers = [dduct.fetch(origin, "/x.deb") for _ in range(3)]
    assert [answer.body for answer in answers] == [BODY] * 3
    assert status_of(answers[2]) == "fwd=stale; fwd-status=200"
    assert len(origin.requests) == 3 and dduct.counters.value(Counter.FILLS) == 1


# --- when the origin cannot be asked ----------------------------------------------------------------


@pytest.mark.parametrize("failure", ["dead", 500, 503])
def test_a_stale_object_is_sent_if_the_origin_fails(dduct: RunningDduct, failure: object) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.dead = failure == "dead"
    shelf.status = failure if isinstance(failure, int) else None
    answer = dduct.fetch(origin, "/x.deb")
    assert (answer.status, answer.body) == (200, BODY)
    assert re.fullmatch(r"hit; ttl=-[0-9]+", status_of(answer))
    with dduct.intercepted(origin) as client:
        assert ask(client, origin, "/x.deb", method="HEAD").status in (200, failure)
    dduct.counted(Counter.STALE)


@pytest.mark.one_process
@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_stored_objects_are_served_from_a_disk_that_cannot_be_written(dduct: RunningDduct, disk: str) -> None:
    """It is validated, and it is better than none."""
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()
    with MonkeyPatch.context() as patch:
        if disk == "full":
            patch.setattr(dduct.server.cache.store.space, "_limits", lambda: Limits(min_free=2**60))
        else:
            patch.setattr(dduct.server.cache.store.tree, "open_growing_file", _refuse)
        answer = dduct.fetch(origin, "/x.deb")
        assert answer.body == BODY
        assert shelf.answers == ([200, 304] if disk == "full" else [200, 200])
        shelf.dead = True
        assert dduct.fetch(origin, "/x.deb").body == BODY


def _refuse(_: str) -> int:
    raise Unstorable("read-only file system")


def test_many_clients_share_one_failed_validation(dduct: RunningDduct) -> None:
    shelf = Shelf(*STALE)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.dead, shelf.before = True, Gate()
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(6)]
        shelf.before.reached()
        shelf.before.open()
        assert [answer.result(20).body for answer in answers] == [BODY] * 6


@pytest.mark.parametrize(
    ("fields", "asked", "keys"),
    [
        ([("Cache-Control", "max-age=60, must-revalidate"), ("Age", "100")], [], {}),
        ([("Cache-Control", "max-age=60, proxy-revalidate"), ("Age", "100")], [], {}),
        ([("Cache-Control", "s-maxage=60"), ("Age", "100")], [], {}),
        ([("Cache-Control", "no-cache")], [], {}),
        (list(STALE), ["Cache-Control: no-cache"], {}),
        (list(STALE), ["Authorization: x"], {}),
        (list(STALE), [], {"stale_if_error": False}),
        ([("Cache-Control", "max-age=60, stale-if-error=10"), ("Age", "100")], [], {}),
    ],
)
def test_a_stale_object_is_not_sent_where_that_is_forbidden(
    start_dduct: Build, fields: List[Field], asked: List[str], keys: Dict[str, bool]
) -> None:
    dduct = start_dduct(**keys)
    shelf = Shelf(*fields)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb", *asked)
    shelf.dead = True
    assert dduct.fetch(origin, "/x.deb", *asked).status == 502
    shelf.dead, shelf.status = False, 503
    assert dduct.fetch(origin, "/x.deb", *asked).status == 503


# --- Vary, invalidation, no_store -------------------------------------------------------------------


def test_a_response_with_vary_answers_only_matching_requests(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH, ("Vary", "Accept, Accept-Encoding"))
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb", "Accept: a", "Accept-Encoding: gzip")
    assert dduct.fetch(origin, "/x.deb", "Accept: a").body == BODY
    assert shelf.answers == [200]
    assert dduct.fetch(origin, "/x.deb", "Accept: b").body == BODY
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert shelf.answers == [200, 200, 200]
    assert (
        dduct.fetch(origin, "/x.deb", "Accept: a").get(
            "cache-status",
        )
        is not None
    )
    assert shelf.answers == [200, 200, 200]
    assert origin.requests[0].get("accept-encoding") == "identity"


def test_vary_is_matched_with_the_fields_that_were_sent_to_the_origin(dduct: RunningDduct) -> None:
    """A field named by Connection is not passed on: the origin answered a request without it."""

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Vary", "Accept"), *FRESH], (asked.get("accept") or "none").encode())

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.deb", "Accept: a", "Connection: accept").body == b"none"
    assert dduct.fetch(origin, "/x.deb", "Accept: a").body == b"a"
    assert dduct.fetch(origin, "/x.deb").body == b"none"
    assert dduct.fetch(origin, "/x.deb", "Accept: b", "Connection: accept").body == b"none"
    assert len(origin.requests) == 2


REWRITING = [
    "Forwarded: host=evil.test",
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Proto: http",
    "X-Original-URL: /evil",
    "X-Rewrite-URL: /evil",
    "X-Host: evil.test",
    "X-HTTP-Method: PUT",
    "X-HTTP-Method-Override: PUT",
    "X-Real-IP: 127.0.0.1",
]


@pytest.mark.parametrize("field", REWRITING)
def test_fields_that_override_the_url_are_not_sent_for_stored_objects(dduct: RunningDduct, field: str) -> None:
    """Cache poisoning by a field that makes another answer and no other name; a relayed request is its client's own."""
    origin = dduct.origin(Shelf(*FRESH))
    name, _, value = field.partition(": ")
    for path, passed in (("/x.deb", None), ("/page", value)):
        assert dduct.fetch(origin, path, field).body == BODY
        assert origin.requests[-1].get(name) == passed


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "FROB"])
def test_an_unsafe_method_invalidates_the_stored_object(dduct: RunningDduct, method: str) -> None:
    """RFC 9111 §4.4."""
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    with dduct.intercepted(origin) as client:
        ask(client, origin, "/x.deb", "Content-Length: 0", method=method)
    assert dduct.stored() == []
    assert dduct.fetch(origin, "/x.deb").body == BODY


def test_an_unsafe_method_invalidates_the_urls_that_its_response_names(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    other = dduct.origin(Shelf(*FRESH))
    for path in ("/a.deb", "/b.deb", "/c.deb"):
        dduct.fetch(origin, path)
    dduct.fetch(other, "/d.deb")
    shelf.fields += [("Location", "b.deb"), ("Content-Location", f"https://{HOST}:{other.port}/d.deb")]
    with dduct.intercepted(origin) as client:
        ask(client, origin, "/form", "Content-Length: 0", method="POST")
    assert dduct.stored() == sorted(
        [f"https/{HOST}:{origin.port}/{name}" for name in ("a.deb", "c.deb")] + [f"https/{HOST}:{other.port}/d.deb"]
    )


def test_a_failed_unsafe_method_and_a_safe_one_invalidate_nothing(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    with dduct.intercepted(origin) as client:
        ask(client, origin, "/x.deb", method="OPTIONS")
        shelf.status = 403
        ask(client, origin, "/x.deb", "Content-Length: 0", method="DELETE")
    assert len(dduct.stored()) == 1


def test_no_store_can_be_overridden_by_configuration(start_dduct: Build) -> None:
    dduct = start_dduct(obey_no_store=False)
    shelf = Shelf(("Cache-Control", "private, no-store, max-age=100"))
    origin = dduct.origin(shelf)
    assert [dduct.fetch(origin, "/x.deb").body for _ in range(2)] == [BODY] * 2
    assert shelf.answers == [200]


# --- authorisation ----------------------------------------------------------------------------------

GOOD = "Authorization: Bearer good"


def guarded(*fields: Field) -> Shelf:
    shelf = Shelf(*fields)
    shelf.word = "Bearer good"
    return shelf


@pytest.mark.parametrize("fields", [FRESH, STALE], ids=["fresh", "stale"])
@pytest.mark.parametrize("credentials", [[], ["Authorization: Bearer bad"], ["Cookie: good"]], ids=["no", "bad", "odd"])
def test_the_cache_gives_no_access_to_a_stored_object(
    dduct: RunningDduct, fields: Tuple[Field, ...], credentials: List[str]
) -> None:
    shelf = guarded(*fields)
    origin = dduct.origin(shelf)
    assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY
    refused = dduct.fetch(origin, "/x.deb", *credentials)
    assert (refused.status, refused.body, refused.get("www-authenticate")) == (401, b"who are you?", "Bearer")
    with dduct.intercepted(origin) as client:
        assert ask(client, origin, "/x.deb", *credentials, method="HEAD").status == 401
        assert ask(client, origin, "/x.deb", *credentials, "Range: bytes=0-9").status == 401
        assert ask(client, origin, "/x.deb", *credentials, 'If-None-Match: "1"').status == 401


def test_the_cache_gives_no_access_to_a_growing_object(dduct: RunningDduct) -> None:
    shelf = guarded(*FRESH)
    shelf.gate = Gate()
    origin = dduct.origin(shelf)
    leader = dduct.intercepted(origin)
    leader.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n{GOOD}\r\n\r\n".encode())
    shelf.gate.reached()
    assert dduct.fetch(origin, "/x.deb").status == 401
    assert dduct.fetch(origin, "/x.deb", "Authorization: x").status == 401
    shelf.gate.open()
    assert leader.read().body == BODY


def test_the_cache_gives_no_access_while_the_origin_is_away(dduct: RunningDduct) -> None:
    shelf = guarded(*FRESH)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb", GOOD)
    shelf.dead = True
    assert dduct.fetch(origin, "/x.deb").status == 502
    assert dduct.fetch(origin, "/x.deb", "Authorization: Bearer bad").status == 502


@pytest.mark.one_process
def test_a_permission_is_remembered_for_a_limited_time(start_dduct: Build) -> None:
    for grace, answers in ((60.0, [200]), (0.0, [200, 304])):
        dduct = start_dduct(auth_grace=grace)
        shelf = guarded(*FRESH)
        origin = dduct.origin(shelf)
        assert [dduct.fetch(origin, "/x.deb", GOOD).body for _ in range(2)] == [BODY] * 2
        assert shelf.answers == answers
        shelf.word = "Bearer better"
        revoked = dduct.fetch(origin, "/x.deb", GOOD)
        assert revoked.status == (200 if grace else 401)
        assert dduct.fetch(origin, "/x.deb", "Authorization: Bearer better").body == BODY


@pytest.mark.parametrize("fields", [FRESH, STALE], ids=["fresh", "stale"])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_permission_is_for_one_version_of_the_object(
    dduct: RunningDduct, tagged: bool, fields: Tuple[Field, ...]
) -> None:
    """An origin with an export of its own for each client, at one URL."""

    def handler(asked: Asked, connection: Connection) -> None:
        who = asked.get("authorization") or ""
        if tagged and asked.get("if-none-match") == f'"{who}"':
            connection.head(304, [("ETag", f'"{who}"'), *fields])
        else:
            length = 1000 if who == "alice" else 2000
            connection.respond(200, [*([("ETag", f'"{who}"')] if tagged else []), *fields], who.encode() * length)

    origin = dduct.origin(handler)
    for who in ("bob", "alice", "bob", "alice", "alice"):
        assert dduct.fetch(origin, "/export.zip", f"Authorization: {who}").body[:5] == (who.encode() * 2)[:5]


@pytest.mark.one_process
def test_a_permission_outlives_a_validation(dduct: RunningDduct) -> None:
    """The strong tag says that it is the same; a date does not, and is not asked about."""
    for etag in ('"1"', None):
        shelf = guarded(*STALE)
        shelf.etag, shelf.modified = etag, "Mon, 01 Jan 2024 00:00:00 GMT"
        origin = dduct.origin(shelf)
        dduct.fetch(origin, "/x.deb", GOOD)
        shelf.renewed = [*FRESH, ("ETag", '"1"')]
        for _ in range(3):
            assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY
        assert shelf.answers == ([200, 304] if etag else [200] * 4)


def test_a_private_object_is_confirmed_for_each_request(dduct: RunningDduct) -> None:
    shelf = Shelf(("Cache-Control", "private, max-age=1000"))
    shelf.renewed = [*shelf.fields, ("ETag", '"1"')]
    origin = dduct.origin(shelf)
    assert [dduct.fetch(origin, "/x.deb").body for _ in range(3)] == [BODY] * 3
    assert shelf.answers == [200, 304, 304]


def test_an_object_that_becomes_private_is_no_longer_public(dduct: RunningDduct) -> None:
    """A validation says it, of the very same bytes."""
    shelf = Shelf(("Cache-Control", "max-age=0"))
    origin = dduct.origin(shelf)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    shelf.word = "Bearer good"
    shelf.renewed = [("ETag", '"1"'), ("Cache-Control", "private, max-age=1000")]
    assert dduct.fetch(origin, "/x.deb").status == 401
    assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY
    assert dduct.fetch(origin, "/x.deb").status == 401
    # Asked for once more, on a fresh connection, where the first one was kept: another worker has none.
    assert shelf.answers[:4] == [200, 401, 304, 401] and set(shelf.answers[4:]) <= {401}


def test_an_object_that_becomes_private_is_removed_if_its_record_cannot_be_written(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(("Cache-Control", "max-age=0"))
    origin = dduct.origin(shelf)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    dduct.wait_until_durable()
    shelf.renewed = [("ETag", '"1"'), ("Cache-Control", "private, max-age=1000")]

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for attributes")

    with monkeypatch.context() as broken:
        broken.setattr(os, "setxattr", fail)
        assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.stored() == []


def test_a_validation_with_credentials_permits_no_other_client(dduct: RunningDduct) -> None:
    shelf = Shelf(("Cache-Control", "max-age=0"))
    origin = dduct.origin(shelf)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    shelf.word = "Bearer good"
    shelf.renewed = [("ETag", '"1"'), ("Cache-Control", "max-age=1000")]
    assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY
    assert dduct.fetch(origin, "/x.deb").status == 401


def test_a_validation_may_add_fields_to_vary(dduct: RunningDduct) -> None:
    shelf = Shelf(("Cache-Control", "max-age=0"))
    origin = dduct.origin(shelf)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    dduct.wait_until_durable()
    shelf.renewed = [("ETag", '"1"'), ("Cache-Control", "max-age=1000"), ("Vary", "Accept")]
    assert dduct.fetch(origin, "/x.deb", "Accept: a").body == BODY
    shelf.body, shelf.etag = OTHER, '"2"'
    assert dduct.fetch(origin, "/x.deb", "Accept: b").body == OTHER
    assert dduct.fetch(origin, "/x.deb", "Accept: a").body == BODY


def test_a_variant_without_credentials_is_not_sent_to_clients_with_credentials(dduct: RunningDduct) -> None:
    """RFC 9111 §4.1: without Authorization or Cookie is a variant, too."""

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Vary", "Authorization, Cookie"), *FRESH], (asked.get("cookie") or "-").encode())

    origin = dduct.origin(handler)
    assert [dduct.fetch(origin, "/x.zip").body for _ in range(2)] == [b"-"] * 2
    assert dduct.fetch(origin, "/x.zip", "Cookie: me").body == b"me"
    assert dduct.fetch(origin, "/x.zip").body == b"-"
    assert len(origin.requests) == 2


def test_an_object_that_varies_by_credentials_is_a_hit_for_all_authorized_clients(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH, ("Vary", "Authorization, Cookie")))
    for fields in (["Authorization: Bearer a"], ["Authorization: Bearer b"], ["Cookie: c"], []):
        assert dduct.fetch(origin, "/x.deb", *fields).body == BODY
    assert origin.body_sent == len(BODY)


def test_a_restricted_object_that_has_changed_is_fetched_again(start_dduct: Build) -> None:
    dduct = start_dduct(auth_grace=0.0)
    shelf = guarded(*FRESH, ("Content-Type", "application/octet-stream"))
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb", GOOD)
    shelf.body, shelf.etag = OTHER, '"2"'
    assert dduct.fetch(origin, "/x.deb", GOOD).body == OTHER
    assert dduct.fetch(origin, "/x.deb", GOOD).body == OTHER
    assert shelf.answers[0] == 200 and shelf.answers[-1] == 304


@pytest.mark.parametrize("path", ["/x.zip", "/sent/away.zip"])
def test_a_200_without_validators_or_length_is_no_permission(dduct: RunningDduct, path: str) -> None:
    """It has no validators and no length, and was once mistaken for the object."""

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") == "Bearer good":
            connection.respond(200, [("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"), *FRESH], BODY)
        elif asked.target == "/sent/away.zip":
            connection.respond(302, [("Location", "/login")])
        else:
            connection.head(200, [("Content-Type", "text/html"), ("Transfer-Encoding", "chunked")])
            connection.send(b"6\r\n<form>\r\n0\r\n\r\n")

    origin = dduct.origin(handler)
    for fields, body in (([GOOD], BODY), ([], b"<form>"), ([GOOD], BODY)):
        assert dduct.fetch(origin, path, *fields).body == body
    assert dduct.fetch(origin, path, "Range: bytes=0-9").body in (b"<form>", b"")  # or sent there himself


def test_a_redirect_within_the_host_is_no_permission(start_dduct: Build) -> None:
    """nginx answers `return 302` before it authenticates the client."""
    dduct = start_dduct(auth_grace=0.0)

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target == "/newest.zip":
            connection.respond(302, [("Location", "/v2/real.zip"), ("Cache-Control", "max-age=1000")])
        elif asked.get("authorization") != "Bearer good":
            connection.respond(401, [("WWW-Authenticate", "Basic")], b"who are you?")
        elif asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"')])
        else:
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/newest.zip", GOOD).body == BODY
    for fields in ([], ["Authorization: Bearer bad"]):
        assert BODY not in dduct.fetch(origin, "/newest.zip", *fields).body
    assert dduct.fetch(origin, "/newest.zip", GOOD).body == BODY
    assert len(BODY) <= origin.body_sent < 2 * len(BODY)


class Login:
    """An origin that redirects unknown clients to a login page, and others to a store, here or elsewhere."""

    def __init__(self) -> None:
        self.store = ""

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if asked.target.startswith("/login"):
            connection.respond(200, [("Content-Type", "text/html")], b"<form>")
        elif asked.target.startswith("/store/"):
            if asked.get("if-none-match") == '"1"':
                connection.head(304, [("ETag", '"1"')])
            else:
                connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)
        elif asked.get("authorization") == "Bearer good":
            location = f"{self.store}/store/object?signature=1"
            connection.respond(307, [("Location", location), ("Cache-Control", "max-age=1000")])
        else:
            connection.respond(302, [("Location", "/login?next=x")])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_redirect_to_a_login_page_is_no_permission(start_dduct: Build, elsewhere: bool) -> None:
    dduct = start_dduct(auth_grace=0.0)
    login = Login()
    origin, store = dduct.origin(login), dduct.origin(login)
    login.store = f"https://{HOST}:{store.port}" if elsewhere else ""
    assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY
    for fields in ([], ["Authorization: Bearer bad"]):
        answer = dduct.fetch(origin, "/x.deb", *fields)
        assert BODY not in answer.body and answer.body == b"<form>"
    assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY
    assert len(BODY) <= origin.body_sent + store.body_sent < 2 * len(BODY)
    # The target of a redirect decides: it may be public.
    assert [one.count("/store/object?signature=1") for one in (origin, store)] == ([0, 2] if elsewhere else [2, 0])


@pytest.mark.parametrize("warm", [False, True])
def test_a_redirect_that_leads_to_a_refusal_is_passed_on_to_the_client(dduct: RunningDduct, warm: bool) -> None:
    """It may have credentials for the other host, and the challenge of that host is not this one's."""

    def second(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") == "Basic second":
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)
        else:
            connection.respond(401, [("WWW-Authenticate", "Basic realm=second")], b"who are you?")

    other = dduct.origin(second)
    location = f"https://{HOST}:{other.port}/x.whl"

    def first(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") == "Bearer direct":
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)
        else:
            connection.respond(302, [("Location", location)])

    origin = dduct.origin(first)
    if warm:
        assert dduct.fetch(origin, "/x.whl", "Authorization: Bearer direct").body == BODY
    answer = dduct.fetch(origin, "/x.whl", "Authorization: Bearer first")
    assert (answer.status, answer.get("location"), answer.get("www-authenticate")) == (302, location, None)
    assert origin.requests[-1].get("authorization") == "Bearer first"
    assert dduct.fetch(other, "/x.whl", "Authorization: Basic second").body == BODY


def test_a_login_page_is_not_stored_as_the_object(dduct: RunningDduct) -> None:
    origin = dduct.origin(Login())
    assert dduct.fetch(origin, "/x.deb").body == b"<form>"
    assert dduct.stored() == []
    assert dduct.fetch(origin, "/x.deb", GOOD).body == BODY


class TokenServer:
    """A private registry: a challenge, a token server, redirects to a store, and tokens that can be revoked."""

    store = ""  # where it is, if not here

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.digest = hashlib.sha256(blob).hexdigest()
        self.tokens = {"t-alice"}
        self.port = 0
        self.blobs_sent = 0

    def __call__(self, asked: Asked, connection: Connection) -> None:
        path = asked.target.partition("?")[0]
        if path == "/token":
            known = asked.get("authorization") == "Basic YWxpY2U6cHc="
            connection.respond(200 if known else 401, [], b'{"token": "t-alice"}' if known else b"{}")
        elif path.startswith("/store/"):
            if asked.get("if-none-match") == '"blob"':
                connection.head(304, [("ETag", '"blob"')])
                return
            self.blobs_sent += 1
            connection.respond(200, [("Content-Type", "application/octet-stream"), ("ETag", '"blob"')], self.blob)
        elif (asked.get("authorization") or "").partition(" ")[2] not in self.tokens:
            challenge = f'Bearer realm="https://{HOST}:{self.port}/token",service="registry"'
            connection.respond(401, [("WWW-Authenticate", challenge)], b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        elif "/blobs/" in path:
            connection.respond(307, [("Location", f"{self.store}/store/{self.digest}?X-Amz-Signature=secret")])
        else:
            connection.respond(200, [], b"{}")


def test_a_private_registry_stays_private(start_dduct: Build) -> None:
    dduct = start_dduct(auth_grace=0.0)
    registry = TokenServer(BODY)
    origin = dduct.origin(registry)
    registry.port, registry.store = origin.port, f"https://{HOST}:{dduct.origin(registry).port}"
    blob = f"/v2/team/app/blobs/sha256:{registry.digest}"
    challenge = dduct.fetch(origin, "/v2/")
    assert challenge.status == 401 and f"{HOST}:{origin.port}/token" in (challenge.get("www-authenticate") or "")
    assert b"t-alice" in dduct.fetch(origin, "/token", "Authorization: Basic YWxpY2U6cHc=").body
    alice = "Authorization: Bearer t-alice"
    for _ in range(3):
        assert dduct.fetch(origin, blob, alice).body == BODY
    assert registry.blobs_sent == 1
    for fields in ([], ["Authorization: Bearer t-mallory"]):
        refused = dduct.fetch(origin, blob, *fields)
        assert (refused.status, b"UNAUTHORIZED" in refused.body) == (401, True)
        assert refused.get("www-authenticate") == challenge.get("www-authenticate")
    registry.tokens = {"t-bob"}
    assert dduct.fetch(origin, blob, alice).status == 401
    assert dduct.fetch(origin, blob, "Authorization: Bearer t-bob").body == BODY
    other = f"/v2/other/app/blobs/sha256:{registry.digest}"
    assert dduct.fetch(origin, other).status == 401
    assert dduct.fetch(origin, other, "Authorization: Bearer t-bob").body == BODY
    assert registry.blobs_sent <= 2  # the second repository's own answer is asked for, and its body left alone
    wait_until(lambda: not any(name.endswith(".dduct") for name in dduct.stored()))  # the alias is being made
    for file in dduct.files.rglob("*"):
        if file.is_file() and file.name != ".evictor":
            record = os.getxattr(file, "user.dduct")
            assert not any(secret in record for secret in (b"t-alice", b"t-bob", b"secret"))


class Claiming:
    """An origin that claims to have every object, and sends another one; with a fitting length, or with none."""

    def __init__(self, length: Optional[int]) -> None:
        self.length = length

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if self.length is None:
            connection.head(200, [("Transfer-Encoding", "chunked")])
            connection.send(b"4\r\nmine\r\n0\r\n\r\n")
        else:
            connection.respond(200, [], b"!" * self.length)


@pytest.mark.parametrize("length", [None, len(BODY)], ids=["chunked", "of the right length"])
@pytest.mark.parametrize("credentials", [[GOOD], []], ids=["restricted", "public"])
def test_another_origin_does_not_open_a_restricted_digest_named_object(
    dduct: RunningDduct, length: Optional[int], credentials: List[str]
) -> None:
    """Another origin proves nothing about an object fetched with credentials: it can claim to have it."""
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    first, second = dduct.origin(guarded(*FRESH) if credentials else Shelf(*FRESH)), dduct.origin(Claiming(length))
    assert dduct.fetch(first, path, *credentials).body == BODY
    for _ in range(2):
        assert (dduct.fetch(second, path).body == BODY) is not bool(credentials)
    with dduct.intercepted(second) as client:
        assert ask(client, second, path, method="HEAD").status == 200
    assert len(second.requests) == (3 if credentials else 1)


def test_another_origin_does_not_open_a_growing_digest_named_object(dduct: RunningDduct) -> None:
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    shelf = guarded(*FRESH)
    shelf.gate = Gate()
    first, second = dduct.origin(shelf), dduct.origin(Claiming(len(BODY)))
    leader = dduct.intercepted(first)
    leader.send(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{first.port}\r\n{GOOD}\r\n\r\n".encode())
    shelf.gate.reached()
    assert dduct.fetch(second, path).body == b"!" * len(BODY)
    shelf.gate.open()
    assert leader.read().body == BODY


@pytest.mark.parametrize(
    ("query", "other"), [("", "?token=bad"), ("", "?key=bad"), ("?key=good", "?key=bad"), ("?key=good", "")]
)
def test_another_query_is_authorized_separately_while_a_digest_named_object_grows(
    dduct: RunningDduct, query: str, other: str
) -> None:
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        if not asked.target.endswith(query or path):
            connection.respond(403, [], b"no signature")
            return
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:1000])
        gate.wait()
        connection.send_body(BODY[1000:])

    origin = dduct.origin(handler)
    leader = dduct.intercepted(origin)
    leader.send(f"GET {path}{query} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    gate.reached()
    assert dduct.fetch(origin, path + other).status == 403
    assert dduct.counters.value(Counter.COLLAPSED) == 0
    gate.open()
    assert leader.read().body == BODY


def test_another_repository_of_the_registry_opens_an_object_that_it_proves_to_have(dduct: RunningDduct) -> None:
    digest = f"sha256:{hashlib.sha256(BODY).hexdigest()}"

    def registry(asked: Asked, connection: Connection) -> None:
        if asked.target.startswith("/v2/vague/"):
            Claiming(None)(asked, connection)
        elif asked.target.startswith("/v2/public/") or asked.get("authorization") == "Bearer good":
            connection.respond(200, [("Docker-Content-Digest", digest)], BODY)
        else:
            connection.respond(401, [], b"who are you?")

    origin = dduct.origin(registry)
    assert dduct.fetch(origin, f"/v2/private/blobs/{digest}", GOOD).body == BODY
    assert dduct.fetch(origin, f"/v2/private/blobs/{digest}").status == 401
    assert dduct.fetch(origin, f"/v2/vague/blobs/{digest}").body == b"mine"
    for _ in range(2):
        assert dduct.fetch(origin, f"/v2/public/blobs/{digest}").body == BODY
    assert origin.count(f"/v2/public/blobs/{digest}") == 1


# --- ranges -----------------------------------------------------------------------------------------

RANGES = [
    ("bytes=10-19", 206, BODY[10:20], f"bytes 10-19/{len(BODY)}"),
    ("bytes=199990-", 206, BODY[199990:], f"bytes 199990-199999/{len(BODY)}"),
    ("bytes=-5", 206, BODY[-5:], f"bytes 199995-199999/{len(BODY)}"),
    ("bytes=200000-", 416, b"", f"bytes */{len(BODY)}"),
    ("bytes=5-4", 200, BODY, None),
    ("lines=1-2", 200, BODY, None),
]


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize(("wanted", "status", "body", "said"), RANGES, ids=[row[0] for row in RANGES])
def test_a_range_is_cut_from_the_whole(
    dduct: RunningDduct, state: str, wanted: str, status: int, body: bytes, said: Optional[str]
) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    if state == "warm":
        dduct.fetch(origin, "/x.deb")
    answer = dduct.fetch(origin, "/x.deb", f"Range: {wanted}")
    assert (answer.status, answer.body, answer.get("content-range")) == (status, body, said)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert shelf.answers == [200]
    assert origin.requests[0].get("range") is None


def test_a_range_of_a_growing_object_waits_only_for_its_bytes(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    shelf.gate = Gate()
    origin = dduct.origin(shelf)
    with dduct.intercepted(origin) as early, dduct.intercepted(origin) as late:
        answer = ask(early, origin, "/x.deb", "Range: bytes=100-299")
        assert (answer.status, answer.body) == (206, BODY[100:300])
        late.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\nRange: bytes=-10\r\n\r\n".encode())
        shelf.gate.reached()
        shelf.gate.open()
        assert late.read().body == BODY[-10:]
    assert shelf.answers == [200]


def test_several_ranges_are_parts_of_one_multipart_response(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH, ("Content-Type", "x/y")))
    for _ in ("cold", "warm"):
        answer = dduct.fetch(origin, "/x.deb", "Range: bytes=0-3,100-103,-4")
        kind = answer.get("content-type") or ""
        assert answer.status == 206 and kind.startswith("multipart/byteranges; boundary=")
        assert answer.get("content-range") is None
        parts = answer.body.split(b"--" + kind.partition("=")[2].encode())
        assert parts[0] == b"" and parts[-1] == b"--\r\n"
        raw = [part.partition(b"\r\n\r\n")[2][:-2] for part in parts[1:-1]]
        assert raw == [BODY[:4], BODY[100:104], BODY[-4:]]
        assert all(b"Content-Type: x/y\r\n" in part for part in parts[1:-1])
        assert f"bytes 100-103/{len(BODY)}".encode() in parts[2]


@pytest.mark.parametrize("count", [300, 1000])
def test_a_thousand_ranges_are_parts_of_one_multipart_response(dduct: RunningDduct, count: int) -> None:
    """As zstd:chunked layers are asked for; here between numbers of as many digits as those of the largest have."""
    origin = dduct.origin(Shelf(*FRESH))
    starts = [place * 7 for place in range(count)]
    wanted = ",".join(f"{start:013}-{start + 2:013}" for start in starts)
    for _ in ("cold", "warm"):
        answer = dduct.fetch(origin, "/x.deb", f"Range: bytes={wanted}")
        assert answer.status == 206
        boundary = (answer.get("content-type") or "").partition("=")[2].encode()
        parts = [part.partition(b"\r\n\r\n")[2][:-2] for part in answer.body.split(b"--" + boundary)[1:-1]]
        assert parts == [BODY[start : start + 3] for start in starts]


def test_more_than_a_thousand_ranges_get_the_whole_object(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH))
    answer = dduct.fetch(origin, "/x.deb", "Range: bytes=" + ",".join(["0-0"] * 1001))
    assert (answer.status, answer.body) == (200, BODY)


def test_overlapping_ranges_get_no_more_than_the_whole_object(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH))
    answer = dduct.fetch(origin, "/x.deb", "Range: bytes=" + ",".join(["0-"] * 100))
    assert (answer.status, answer.body) == (200, BODY)


@pytest.mark.parametrize(
    ("condition", "status"), [('"1"', 206), ('"2"', 200), ('W/"1"', 200), ("Mon, 01 Jan 2024 00:00:00 GMT", 206)]
)
def test_if_range_guards_a_resumed_download(dduct: RunningDduct, condition: str, status: int) -> None:
    shelf = Shelf(*FRESH)
    shelf.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    answer = dduct.fetch(origin, "/x.deb", "Range: bytes=1000-", f"If-Range: {condition}")
    assert (answer.status, answer.body) == (status, BODY[1000:] if status == 206 else BODY)


def test_a_precondition_that_fails_in_the_cache_is_evaluated_by_the_origin(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    assert dduct.fetch(origin, "/x.deb", 'If-Match: "1"').status == 200
    assert shelf.answers == [200]
    shelf.status = 412
    assert dduct.fetch(origin, "/x.deb", 'If-Match: "2"').status == 412


def test_a_304_from_the_cache_has_the_required_fields_only(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH, ("Content-Type", "x/y"), ("Vary", "Accept")))
    dduct.fetch(origin, "/x.deb")
    answer = dduct.fetch(origin, "/x.deb", 'If-None-Match: "1"')
    assert answer.status == 304
    assert [answer.get(name) for name in ("etag", "vary", "cache-control")] == ['"1"', "Accept", "max-age=1000"]
    assert [answer.get(name) for name in ("content-type", "content-length")] == [None, None]


# --- digests and queries ----------------------------------------------------------------------------


def test_a_package_index_shares_by_blake2b(dduct: RunningDduct) -> None:
    digest = hashlib.blake2b(BODY, digest_size=32).hexdigest()
    path = f"/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/thing-1.0.whl"
    first, second = dduct.origin(Shelf(*STALE)), dduct.origin(Shelf(*STALE))
    for origin in (first, first, second):
        assert dduct.fetch(origin, path).body == BODY
    assert first.body_sent == len(BODY) and len(first.requests) == 1
    assert f"blake2b/{digest[:2]}/{digest}" in dduct.stored()


def test_a_file_beside_a_package_is_not_mistaken_for_the_package(dduct: RunningDduct) -> None:
    digest = hashlib.blake2b(BODY, digest_size=32).hexdigest()
    origin = dduct.origin(Shelf(*FRESH, body=b"Name: thing"))
    path = f"/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/thing-1.0.whl.metadata"
    assert dduct.fetch(origin, path).body == b"Name: thing"


@pytest.mark.parametrize(("directory", "algorithm"), [("SHA256", "sha256"), ("SHA512", "sha512")])
def test_an_apt_index_is_shared_by_its_hash(dduct: RunningDduct, directory: str, algorithm: str) -> None:
    digest = hashlib.new(algorithm, BODY).hexdigest()
    path = f"/debian/dists/stable/main/binary-amd64/by-hash/{directory}/{digest}"
    origin = dduct.origin(Shelf(("Cache-Control", "max-age=0")))
    for _ in range(3):
        assert dduct.fetch(origin, path, "Cache-Control: max-age=0").body == BODY
    assert len(origin.requests) == 1


@pytest.mark.parametrize("size", [10, 65_536, 65_537, 500_000])
def test_an_object_with_a_wrong_digest_is_cut_short_logged_and_counted(
    dduct: RunningDduct, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    origin = dduct.origin(Shelf(body=os.urandom(size)))
    path = f"/v2/a/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    answer = dduct.fetch(origin, path)
    if answer.status == 502:  # nothing had been sent: after another attempt the client gets an error
        assert b"digest" in answer.body
    else:
        assert size > 65_536
        assert not answer.complete and len(answer.body) <= size - 65_536
    assert dduct.counters.value(Counter.MISMATCHED) in ([2] if answer.status == 502 else [1, 2])
    assert any("do not match the digest sha256:" in record.getMessage() for record in caplog.records)
    assert not any(name.startswith("sha256/") for name in dduct.stored())


SIGNATURES = ["X-Amz-Signature=1&X-Amz-Date=2", "x-amz-signature=3", "sig=1&se=2&sp=r", "Expires=1&Signature=2", ""]


def test_a_signature_in_the_query_is_not_part_of_the_name(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    for query in SIGNATURES:
        assert dduct.fetch(origin, f"/x.deb?{query}").body == BODY
    assert origin.body_sent == len(BODY)
    assert {asked.target for asked in origin.requests} == {f"/x.deb?{query}" for query in SIGNATURES}


def test_a_signature_opens_the_object_only_for_requests_that_carry_it(dduct: RunningDduct) -> None:
    """A signature is like a password: each client needs its own."""

    def store(asked: Asked, connection: Connection) -> None:
        if asked.target != "/x.deb?token=good":
            connection.respond(403, [], b"no signature")
        elif asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"')])
        else:
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)

    origin = dduct.origin(store)
    assert dduct.fetch(origin, "/x.deb?token=good").body == BODY
    for target in ("/x.deb", "/x.deb?token=bad", "/x.deb?Signature=good"):
        assert dduct.fetch(origin, target).status == 403
    assert dduct.fetch(origin, "/x.deb?token=good").body == BODY
    assert origin.body_sent == len(BODY) + 3 * len(b"no signature")


def test_an_object_that_needs_no_signature_is_public(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    for query in ("", "?sig=1", "?sig=2", "", "?sig=3"):
        assert dduct.fetch(origin, f"/x.deb{query}").body == BODY
        dduct.wait_until_durable()
    assert set(shelf.answers[1:]) == {304}  # that it is the same with a signature is asked once
    asked = [request.target for request in origin.requests]
    assert "/x.deb?sig=2" not in asked and "/x.deb?sig=3" not in asked


def test_the_rest_of_a_query_is_part_of_the_name(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    for query in ("v=1", "v=2", "v=1&token=x", "w=a/../../b"):
        assert dduct.fetch(origin, f"/x.deb?{query}").body == BODY
    assert shelf.answers.count(200) == 3
    stored = {name.rpartition("/")[2] for name in dduct.stored()}
    assert stored == {"x.deb?v=1", "x.deb?v=2", "x.deb?w=a%2F..%2F..%2Fb"}


# --- counters ---------------------------------------------------------------------------------------


def test_counters_count_hits_misses_and_bytes(dduct: RunningDduct) -> None:
    origin = dduct.origin(Shelf(*FRESH))
    dduct.fetch(origin, "/x.deb")
    dduct.fetch(origin, "/x.deb")
    dduct.fetch(origin, "/page")
    for counter in (Counter.HITS, Counter.PUBLISHED):
        dduct.counted(counter)  # that is done when the client has had everything
    with dduct.client() as client:
        page = client.get("/metrics", f"localhost:{dduct.tcp_port}").body.decode()
    for name, value in {"hits": 1, "fills": 1, "published": 1, "relayed": 1, "intercepted": 3}.items():
        assert f"\ndduct_{name}_total {value}\n" in page
    assert "# TYPE dduct_hits_total counter" in page


def test_threads_do_not_lose_counts(dduct: RunningDduct) -> None:
    def count() -> None:
        for _ in range(1000):
            dduct.counters.add(Counter.HITS)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dduct.counters.value(Counter.HITS) == 4000


# --- volatile names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["public", "max-age=120", "max-age=120, immutable"])
def test_a_volatile_object_is_validated_on_every_request(dduct: RunningDduct, said: str) -> None:
    shelf = Shelf(("Cache-Control", said))
    shelf.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    origin = dduct.origin(shelf)
    path = "/dists/stable/main/binary-amd64/Packages.gz"
    assert [dduct.fetch(origin, path).body for _ in range(3)] == [BODY] * 3
    assert shelf.answers == [200, 304, 304] and origin.body_sent == len(BODY)
    shelf.body, shelf.etag, shelf.modified = OTHER, '"2"', "Tue, 02 Jan 2024 00:00:00 GMT"
    assert dduct.fetch(origin, path).body == OTHER


def test_a_volatile_object_is_never_answered_from_memory(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH, body=b"small")
    origin = dduct.origin(shelf)
    with dduct.intercepted(origin) as client:
        bodies = [client.get("/x/repodata.json.zst", f"{HOST}:{origin.port}").body for _ in range(6)]
    assert bodies == [b"small"] * 6 and len(origin.requests) == 6


@pytest.mark.one_process
def test_many_clients_of_a_volatile_object_cause_one_validation(dduct: RunningDduct) -> None:
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/APKINDEX.tar.gz")
    shelf.before = Gate()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(dduct.fetch, origin, "/APKINDEX.tar.gz") for _ in range(8)]
        shelf.before.reached()
        wait_until(lambda: sum(fill.snapshot().readers for fill in dduct.fills()) == 7)
        shelf.before.open()
    assert {answer.result().body for answer in answers} == {BODY}
    assert shelf.answers == [200, 304]


def test_a_volatile_object_is_sent_if_the_origin_fails(dduct: RunningDduct) -> None:
    shelf = Shelf(("Cache-Control", "max-age=600, must-revalidate"))
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/PACKAGES.gz")
    shelf.dead = True
    answer = dduct.fetch(origin, "/PACKAGES.gz")
    assert answer.body == BODY and dduct.counted(Counter.STALE) == 1


def test_configured_patterns_make_objects_volatile(start_dduct: Build) -> None:
    dduct = start_dduct(volatile=(re.compile("^/mine/"),))
    shelf = Shelf(*FRESH)
    origin = dduct.origin(shelf)
    for path in ("/mine/a.deb", "/mine/a.deb", "/Packages.gz", "/Packages.gz"):
        assert dduct.fetch(origin, path).body == BODY
    assert shelf.answers == [200, 304, 200]
