"""Which clients may have an object that another client fetched: by its request, theirs, and the origin's answer."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Callable, List, Optional, Tuple

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Gate
from support.running import HOST, RunningDduct

from storage.record import Metadata, Record

Build = Callable[..., RunningDduct]
BODY = os.urandom(3000)


# --- what restricts an object -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", ["Authorization", "api_key", "X-Session-Id", "X-Access", "DPoP", "npm-otp", "X-Amz-Security-Token"]
)
def test_an_unknown_request_field_restricts_the_object(dduct: RunningDduct, field: str) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        known = asked.get(field) == "s3cret"
        connection.respond(200 if known else 401, [("ETag", '"1"')], BODY if known else b"who are you?")

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.zip", f"{field}: s3cret").body == BODY
    for fields in ([], [f"{field}: guess"], ["Accept: */*", "X-Request-Id: 1"]):
        assert dduct.fetch(origin, "/x.zip", *fields).status == 401
    assert dduct.fetch(origin, "/x.zip", f"{field}: s3cret").body == BODY


def test_harmless_request_fields_restrict_nothing(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Cache-Control", "max-age=1000")], BODY)

    origin = dduct.origin(handler)
    tracing = ["traceparent: 00-1-1-00", "X-Request-Id: 7", "npm-session: 1", "Sec-Fetch-Mode: cors", "DNT: 1"]
    assert dduct.fetch(origin, "/x.zip", *tracing).body == BODY
    assert dduct.fetch(origin, "/x.zip", "pacote-req-type: tarball").body == BODY
    assert len(origin.requests) == 1


def test_harmless_fields_can_be_configured(start_dduct: Build) -> None:
    dduct = start_dduct(harmless_fields=("X-Build-*",))

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Cache-Control", "max-age=1000")], BODY)

    origin = dduct.origin(handler)
    for fields in (["X-Build-Id: 1"], ["x_build_id: 2"], []):
        assert dduct.fetch(origin, "/x.zip", *fields).body == BODY
    assert len(origin.requests) == 1


@pytest.mark.parametrize("field", ["X_Forwarded_Host", "X_Original_Url", "x-original-uri", "X_HTTP_Method_Override"])
def test_a_field_that_overrides_host_or_url_never_affects_other_clients(dduct: RunningDduct, field: str) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Cache-Control", "max-age=1000")], (asked.get(field) or "nothing").encode())

    origin = dduct.origin(handler)
    for fields in ([f"{field}: evil"], []):
        assert dduct.fetch(origin, "/x.zip", *fields).body == b"nothing"
    assert len(origin.requests) == 1
    assert dduct.fetch(origin, "/page", f"{field}: mine").body == b"mine"


def test_a_secret_in_the_query_restricts_an_object_shared_by_digest(dduct: RunningDduct) -> None:
    """It is part of the name; but bytes that a digest names are shared by all names."""
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"

    def handler(asked: Asked, connection: Connection) -> None:
        known = asked.target == path + "?api_key=good"
        connection.respond(200 if known else 403, [("ETag", '"1"')], BODY if known else b"no key")

    def evil(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], b"!" * len(BODY))

    origin, other = dduct.origin(handler), dduct.origin(evil)
    assert dduct.fetch(origin, path + "?api_key=good").body == BODY
    assert dduct.fetch(other, path).body == b"!" * len(BODY)
    for query in ("", "?api_key=bad", "?apiKey=good"):
        assert dduct.fetch(origin, path + query).status == 403
    assert dduct.fetch(origin, path + "?api_key=good").body == BODY


def test_possible_credentials_are_not_sent_to_another_host(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target == "/x.zip":
            connection.respond(302, [("Location", f"https://127.0.0.1:{store.port}/y.zip")])
        else:
            connection.respond(200, [], BODY)

    origin, store = dduct.origin(handler), dduct.origin(handler)
    assert dduct.fetch(origin, "/x.zip", "X-Session-Id: 1", "traceparent: 2").body == BODY
    assert origin.requests[0].get("x-session-id") == "1"
    assert (store.requests[0].get("x-session-id"), store.requests[0].get("traceparent")) == (None, "2")


# --- permission: the request that fetched the object, the one that asks, the origin's answer --------

ALICE, BOB, STRANGER = "Authorization: Bearer alice", "Authorization: Bearer bob", "Accept: */*"
MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"
Fields = Tuple[Tuple[str, str], ...]
FRESH: Fields = (("Cache-Control", "max-age=1000"),)
STALE: Fields = (("Cache-Control", "max-age=60"), ("Age", "100"))


class Exports:
    """An origin with an export of its own for each client at one URL; `validators` are its fields."""

    def __init__(self, *validators: str, lifetime: Fields = FRESH) -> None:
        self.validators = validators
        self.lifetime = lifetime
        self.gate: Optional[Gate] = None

    def __call__(self, asked: Asked, connection: Connection) -> None:
        word = (asked.get("authorization") or "").rpartition(" ")[2]
        if word not in ("alice", "bob"):
            connection.respond(401, [], b"who are you?", head_only=asked.method == "HEAD")
            return
        dates = {"alice": TUESDAY, "bob": MONDAY}
        fields = [("Content-Type", "application/zip"), *self.lifetime]
        if "date" in self.validators:
            fields.append(("Last-Modified", dates[word]))
        if "same date" in self.validators:
            fields.append(("Last-Modified", MONDAY))
        if "weak" in self.validators:
            fields.append(("ETag", 'W/"1"'))
        if "tag" in self.validators:
            fields.append(("ETag", f'"{word}"'))
        since = asked.get("if-modified-since")
        if since in (MONDAY, TUESDAY) and (since == TUESDAY or dates[word] == MONDAY):
            connection.head(304, [] if "bare" in self.validators else fields)
        elif asked.get("if-none-match") in ('W/"1"', f'"{word}"'):
            connection.head(304, fields)
        elif self.gate is not None and word == "alice" and asked.method == "GET":
            connection.head(200, [*fields, ("Content-Length", str(len(export(word))))])
            connection.send_body(export(word)[:100])
            self.gate.wait()
            connection.send_body(export(word)[100:])
        else:
            connection.respond(200, fields, export(word), head_only=asked.method == "HEAD")


def export(word: str) -> bytes:
    return (word + "-----")[:5].encode() * 200


VALIDATORS = [(), ("date",), ("date", "bare"), ("same date",), ("weak",), ("weak", "same date"), ("tag",)]


@pytest.mark.parametrize("lifetime", [FRESH, STALE], ids=["fresh", "stale"])
@pytest.mark.parametrize("validators", VALIDATORS, ids=" ".join)
def test_each_client_gets_their_own_object(dduct: RunningDduct, validators: Tuple[str, ...], lifetime: Fields) -> None:
    origin = dduct.origin(Exports(*validators, lifetime=lifetime))
    for who, word in ((ALICE, "alice"), (BOB, "bob"), (ALICE, "alice"), (BOB, "bob")):
        assert dduct.fetch(origin, "/export.zip", who).body == export(word)
    assert dduct.fetch(origin, "/export.zip", BOB, "Range: bytes=0-3").body.startswith(b"bob-")
    assert dduct.fetch(origin, "/export.zip", STRANGER).status == 401
    with dduct.intercepted(origin) as client:
        assert client.get("/export.zip", f"{HOST}:{origin.port}", BOB, method="HEAD").status == 200
        assert client.get("/export.zip", f"{HOST}:{origin.port}", method="HEAD").status == 401


@pytest.mark.parametrize("validators", VALIDATORS, ids=" ".join)
def test_each_client_gets_their_own_object_while_another_one_grows(
    dduct: RunningDduct, validators: Tuple[str, ...]
) -> None:
    exports = Exports(*validators)
    exports.gate = Gate()
    origin = dduct.origin(exports)
    leader = dduct.intercepted(origin)
    leader.send(f"GET /export.zip HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n{ALICE}\r\n\r\n".encode())
    exports.gate.reached()
    assert dduct.fetch(origin, "/export.zip", BOB).body == export("bob")
    assert dduct.fetch(origin, "/export.zip", STRANGER).status == 401
    exports.gate.open()
    assert leader.read().body == export("alice")


def test_equal_bytes_prove_permission_without_validators(dduct: RunningDduct) -> None:
    """Where the origin has no validators, each client has its own answer once, and a hit after it."""

    def handler(asked: Asked, connection: Connection) -> None:
        known = asked.get("authorization") is not None
        connection.respond(200 if known else 401, [("Content-Type", "application/zip"), *FRESH], BODY)

    origin = dduct.origin(handler)
    for _ in range(3):
        for who in (ALICE, BOB):
            assert dduct.fetch(origin, "/x.zip", who).body == BODY
    assert len(origin.requests) == 2


# --- redirects --------------------------------------------------------------------------------------


class Signed:
    """A store that requires a signature, and a front that redirects there: with the client's query, or without."""

    def __init__(self, keeps_query: bool) -> None:
        self.keeps_query = keeps_query
        self.place = ""
        self.gate: Optional[Gate] = None

    def front(self, asked: Asked, connection: Connection) -> None:
        path, _, query = asked.target.partition("?")
        if not self.keeps_query and "Signature=ok" not in query:
            connection.respond(403, [], b"denied")
            return
        location = self.place + "/store" + path + (f"?{query}" if self.keeps_query and query else "")
        connection.respond(301, [("Location", location)])

    def store(self, asked: Asked, connection: Connection) -> None:
        if self.keeps_query and "Signature=ok" not in asked.target:
            connection.respond(403, [], b"denied")
        elif asked.get("if-none-match") == '"s"':
            connection.head(304, [("ETag", '"s"')])
        elif self.gate is not None and asked.method == "GET":
            connection.head(200, [("ETag", '"s"'), ("Content-Length", str(len(BODY)))])
            connection.send_body(BODY[:100])
            self.gate.wait()
            connection.send_body(BODY[100:])
        else:
            connection.respond(200, [("ETag", '"s"')], BODY, head_only=asked.method == "HEAD")


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("keeps_query", [True, False])
@pytest.mark.parametrize("plain", [True, False], ids=["from http", "from another host"])
def test_a_redirect_does_not_permit_what_a_signature_opened(
    dduct: RunningDduct, keeps_query: bool, growing: bool, plain: bool
) -> None:
    signed = Signed(keeps_query)
    store = dduct.origin(signed.store)
    front = dduct.origin(signed.front, tls=not plain)
    signed.place = f"https://{HOST}:{store.port}"
    scheme = "http" if plain else "https"

    def ask(query: str, *fields: str, method: str = "GET") -> Answer:
        if plain:
            with dduct.client() as client:
                return client.get(f"{scheme}://{HOST}:{front.port}/x.tar{query}", HOST, *fields, method=method)
        with dduct.intercepted(front) as client:
            return client.get(f"/x.tar{query}", f"{HOST}:{front.port}", *fields, method=method)

    good = "?X-Amz-Signature=ok&X-Amz-Date=1"
    with ThreadPoolExecutor(1) as pool:
        signed.gate = Gate() if growing else None
        first = pool.submit(ask, good)
        if signed.gate is not None:
            signed.gate.reached()
        else:
            assert first.result(60).body == BODY
        for query in ("", "?X-Amz-Signature=no", "?X-Amz-Date=1"):
            assert BODY[:50] not in ask(query).body
            assert BODY[:50] not in ask(query, "Range: bytes=0-99").body
            assert ask(query, method="HEAD").status in (301, 403)
        if signed.gate is not None:
            signed.gate.open()
        assert first.result(60).body == BODY
    assert BODY[:50] not in ask("").body
    assert ask("?X-Amz-Signature=ok&X-Amz-Date=2").body == BODY


def test_a_redirect_to_a_public_url_without_query_is_permission(start_dduct: Build) -> None:
    dduct = start_dduct(auth_grace=0.0)

    def store(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("ETag", '"s"'), *FRESH], BODY)

    def front(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") is None:
            connection.respond(401, [], b"who are you?")
        else:
            connection.respond(
                302, [("Location", f"https://{HOST}:{there.port}/a.tar"), ("Cache-Control", "max-age=99")]
            )

    there, origin = dduct.origin(store), dduct.origin(front)
    for _ in range(2):
        assert dduct.fetch(origin, "/x.tar", ALICE).body == BODY
    assert dduct.fetch(origin, "/x.tar", STRANGER).status == 401
    assert len(there.requests) == 1


# --- replacing and removing -------------------------------------------------------------------------


class Doorman:
    """An origin that sends `page` to unknown clients, and the object to known ones."""

    def __init__(self, status: int, fields: Fields, page: bytes, lifetime: Fields = STALE) -> None:
        self.page = (status, fields, page)
        self.lifetime = lifetime
        self.sent = 0

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") not in ("Bearer alice", "Bearer bob"):
            status, fields, page = self.page
            connection.respond(status, fields, page)
        elif asked.get("if-none-match") == '"z"':
            connection.head(304, [("ETag", '"z"'), *self.lifetime])
        else:
            self.sent += 1
            connection.respond(200, [("Content-Type", "application/zip"), ("ETag", '"z"'), *self.lifetime], BODY)


HTML = (("Content-Type", "text/html; charset=utf-8"), ("ETag", '"login"'))
PAGES: List[Tuple[int, Fields, bytes]] = [
    (200, HTML, b"<html>log in</html>"),
    (200, (("Content-Type", "application/json"),), b'{"error": "log in"}'),
    (200, (("Content-Type", "text/plain"), ("ETag", '"p"')), b"log in"),
    (200, (("Content-Type", "application/zip"), ("ETag", '"demo"')), b"a demonstration"),
    (200, (), b"log in"),
    (404, (), b"nothing here"),
    (410, (), b"gone"),
    (403, (), b"no"),
    (302, (("Location", "/login"),), b"log in"),
]


@pytest.mark.parametrize("lifetime", [FRESH, STALE], ids=["fresh", "stale"])
@pytest.mark.parametrize("guess", [[], ["Authorization: Bearer guess"], ["Cookie: guess"]], ids=["no", "bad", "odd"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page[0]} {dict(page[1]).get('Content-Type')}")
def test_a_client_without_permission_neither_replaces_nor_removes_an_object(
    dduct: RunningDduct, page: Tuple[int, Fields, bytes], guess: List[str], lifetime: Fields
) -> None:
    status, fields, body = page
    if guess and dict(fields).get("Content-Type") == "application/zip":
        return  # with credentials of the right kind, and of the right type: that is a new version
    doorman = Doorman(status, fields, body, lifetime)
    origin = dduct.origin(doorman)
    assert dduct.fetch(origin, "/x.zip", ALICE).body == BODY
    for _ in range(2):
        assert dduct.fetch(origin, "/x.zip", *guess).body in (body, b"log in")
    for who in (ALICE, BOB):
        assert dduct.fetch(origin, "/x.zip", who).body == BODY
    assert doorman.sent == 1


def test_a_failed_delete_by_an_unauthorized_client_removes_nothing(dduct: RunningDduct) -> None:
    """An origin answers 200 to a DELETE, with a page to log in."""
    doorman = Doorman(*PAGES[0], FRESH)
    origin = dduct.origin(doorman)
    assert dduct.fetch(origin, "/x.zip", ALICE).body == BODY
    with dduct.intercepted(origin) as client:
        assert client.get("/x.zip", f"{HOST}:{origin.port}", method="DELETE").status == 200
    assert dduct.fetch(origin, "/x.zip", ALICE).body == BODY
    assert doorman.sent == 1
    assert origin.requests[-1].get("if-none-match") == '"z"'


def test_an_authorized_client_replaces_a_restricted_object(dduct: RunningDduct) -> None:
    etag = ['"1"']

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") is None:
            connection.respond(404, [], b"nothing here")
        elif asked.get("if-none-match") == etag[0]:
            connection.head(304, [("ETag", etag[0]), *STALE])
        else:
            fields = [("Content-Type", "application/json"), ("ETag", etag[0]), *STALE]
            connection.respond(200, fields, etag[0].encode() * 100)

    origin = dduct.origin(handler)
    for tag in ('"1"', '"2"', '"3"'):
        etag[0] = tag
        assert dduct.fetch(origin, "/x/y.crate.json.gz", ALICE).body == tag.encode() * 100
        assert dduct.fetch(origin, "/x/y.crate.json.gz").status == 404
    assert dduct.fetch(origin, "/x/y.crate.json.gz", ALICE).get("cache-status") == "dduct; fwd=stale; fwd-status=304"


def test_an_html_page_is_not_stored_as_an_archive(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        if "Mozilla" in (asked.get("user-agent") or ""):
            connection.respond(200, [("Content-Type", "text/html")], b"<html>are you human?</html>")
        else:
            connection.respond(200, [("Content-Type", "text/plain")], BODY)  # as small servers say of an archive

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.zip", "User-Agent: Mozilla/5.0").body.startswith(b"<html>")
    assert [dduct.fetch(origin, "/x.zip", "User-Agent: Wget").body for _ in range(2)] == [BODY] * 2
    assert len(origin.requests) == 2


# --- with credentials and without -------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [True, False])
def test_a_public_object_is_confirmed_once_for_all_clients_with_credentials(dduct: RunningDduct, tagged: bool) -> None:
    tag = [("ETag", '"1"')] if tagged else []

    def handler(asked: Asked, connection: Connection) -> None:
        if tagged and asked.get("if-none-match") == '"1"':
            connection.head(304, [*tag, *FRESH])
        else:
            connection.respond(200, [*tag, *FRESH], BODY)

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.tgz").body == BODY
    dduct.wait_until_durable()
    for who in (ALICE, BOB, "X-Api-Key: 1", STRANGER, ALICE):
        assert dduct.fetch(origin, "/x.tgz", who).body == BODY
    assert len(origin.requests) == 2
    with dduct.intercepted(origin) as client:
        hits = [client.get("/x.tgz", f"{HOST}:{origin.port}", BOB) for _ in range(4)]
    assert all((hit.get("cache-status") or "").startswith("dduct; hit") for hit in hits)
    assert len(origin.requests) == 2


def test_clients_with_credentials_get_their_own_object_beside_a_public_one(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [*FRESH], (asked.get("authorization") or "public").encode())

    origin = dduct.origin(handler)
    for _ in range(2):
        assert dduct.fetch(origin, "/x.tgz").body == b"public"
        assert dduct.fetch(origin, "/x.tgz", ALICE).body == b"Bearer alice"
        assert dduct.fetch(origin, "/x.tgz", BOB).body == b"Bearer bob"
    assert dduct.fetch(origin, "/x.tgz").get("cache-status") is not None
    assert [asked.get("authorization") for asked in origin.requests].count(None) == 1


def test_an_object_that_the_origin_gives_without_credentials_becomes_public(dduct: RunningDduct) -> None:
    """Brought with a token that opens nothing: npm sends one for public packages, too."""

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"'), *FRESH])
        else:
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.tgz", ALICE).body == BODY
    dduct.wait_until_durable()
    for who in (STRANGER, STRANGER, BOB, STRANGER):
        assert dduct.fetch(origin, "/x.tgz", who).body == BODY
    assert len(origin.requests) == 2


@pytest.mark.parametrize("who", [(), ("Authorization: Bearer bob",)])
def test_permission_for_head_is_no_permission_for_the_bytes(dduct: RunningDduct, who: Tuple[str, ...]) -> None:
    """Signatures of S3 are for one method; and some services guard GET alone."""

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET" and asked.get("authorization") != "Bearer alice":
            connection.respond(401, [], b"no")
        elif asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"'), *FRESH])
        else:
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.tgz", ALICE).body == BODY
    dduct.wait_until_durable()
    for _ in range(2):
        with dduct.intercepted(origin) as client:
            assert client.get("/x.tgz", f"{HOST}:{origin.port}", *who, method="HEAD").status == 200
        assert dduct.fetch(origin, "/x.tgz", *who).body == b"no"


def test_a_public_object_is_sent_to_clients_with_credentials_while_its_origin_is_away(dduct: RunningDduct) -> None:
    answers = [True]

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, list(FRESH), BODY) if answers[0] else connection.reset()

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.tgz").body == BODY
    answers[0] = False
    assert dduct.fetch(origin, "/x.tgz", ALICE).body == BODY


# --- digests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", ["", "Docker-Content-Digest", "ETag"])
def test_a_digest_is_proof_only_if_the_origin_states_it(dduct: RunningDduct, stated: str) -> None:
    """Another tenant of the same host has a file of the same length."""
    digest = hashlib.sha256(BODY).hexdigest()

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target.startswith("/attacker/"):
            connection.respond(200, [("ETag", '"a"')], b"X" * len(BODY))
        elif asked.get("authorization") != "Bearer alice":
            connection.respond(404, [], b"nothing here")
        else:
            says = {"Docker-Content-Digest": f"sha256:{digest}", "ETag": f'"sha256:{digest}"'}
            connection.respond(200, [(stated, says[stated])] if stated else [], BODY)

    origin = dduct.origin(handler)
    path = f"/by-hash/SHA256/{digest}"
    assert dduct.fetch(origin, "/victim" + path, ALICE).body == BODY
    assert dduct.fetch(origin, "/victim" + path).status == 404
    for who in (STRANGER, ALICE):
        assert dduct.fetch(origin, "/attacker" + path, who).body == b"X" * len(BODY)
    answers = []
    for _ in range(2):
        answers.append(dduct.fetch(origin, "/sister" + path, ALICE))
        wait_until(lambda: not dduct.server.connections)  # what it proves is noted after the client has it
    assert [answer.body for answer in answers] == [BODY] * 2
    hits = [(answer.get("cache-status") or "").startswith("dduct; hit") for answer in answers]
    assert hits == [bool(stated), True]  # once read, its own bytes are a proof, too


# --- records ----------------------------------------------------------------------------------------


def test_records_of_other_versions_can_be_read() -> None:
    old = Record(Metadata("http://a/x", (("ETag", '"1"'),), 1.0, restricted=True), 5, sha256="0" * 64)
    values = json.loads(old.encode())
    assert not {"restricted_by", "same_for_all", "must_validate"} & set(values["metadata"])
    assert Record.decode(json.dumps(values).encode()) == old
    values["metadata"]["of_tomorrow"] = values["of_tomorrow"] = 1
    assert Record.decode(json.dumps(values).encode()) == old
    new = replace(old, metadata=replace(old.metadata, restricted_by=("fields", "private"), same_for_all=True))
    assert Record.decode(new.encode()) == new and hash(new.metadata)
