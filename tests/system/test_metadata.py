"""Indexes, lists and manifests whose responses are unusual: how they are framed, coded, described, and named."""

from __future__ import annotations

import gzip
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Tuple

import pytest
from support.client import Answer, wait_until
from support.origin import TIMEOUT, Asked, Connection
from support.registry import LIST, MANIFEST, NEW_CLIENT, OLD_CLIENT
from support.running import HOST, RunningDduct

BODY = b'{"manifests": []}'
DIGEST = "sha256:" + hashlib.sha256(BODY).hexdigest()


def get(dduct: RunningDduct, port: int, path: str, *fields: str, method: str = "GET") -> Answer:
    """One request through dduct, on a connection of its own."""
    with dduct.client() as client:
        lines = [f"{method} http://{HOST}:{port}{path} HTTP/1.1", f"Host: {HOST}:{port}", *fields, "", ""]
        client.send("\r\n".join(lines).encode())
        return client.read(method=method)


def readers(dduct: RunningDduct) -> int:
    """How many requests read along, or wait to."""
    return sum(fill.snapshot().readers for fill in dduct.fills())


# --- framing and coding of manifests ----------------------------------------------------------------


@pytest.mark.parametrize("reference", ["1", DIGEST])
def test_a_manifest_that_comes_in_gzip_is_sent_on(dduct: RunningDduct, reference: str) -> None:
    """The stated digest is that of the content, not of the coded bytes."""
    coded = gzip.compress(BODY)
    fields = [("Content-Type", LIST), ("Content-Encoding", "gzip"), ("Docker-Content-Digest", DIGEST)]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, coded), tls=False)
    answer = get(dduct, origin.port, f"/v2/a/manifests/{reference}", "Accept-Encoding: gzip")
    assert (answer.status, answer.body) == (200, coded)


def test_a_manifest_with_too_large_fields_is_sent_on(dduct: RunningDduct) -> None:
    fields = [("Content-Type", LIST), ("Docker-Content-Digest", DIGEST), ("X-Long", "x" * 8000)]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, BODY), tls=False)
    assert get(dduct, origin.port, "/v2/a/manifests/1").body == BODY


@pytest.mark.parametrize("wrong", [False, True])
def test_a_manifest_in_chunks_is_read_whole_too(dduct: RunningDduct, wrong: bool) -> None:
    stated = "sha256:" + "0" * 64 if wrong else DIGEST

    def answer(asked: Asked, connection: Connection) -> None:
        fields = [("Content-Type", LIST), ("Docker-Content-Digest", stated), ("Transfer-Encoding", "chunked")]
        connection.head(200, fields)
        connection.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))

    origin = dduct.origin(answer, tls=False)
    if wrong:
        assert get(dduct, origin.port, "/v2/a/manifests/1").status == 502
        assert not dduct.stored()
        return
    assert get(dduct, origin.port, "/v2/a/manifests/1").body == BODY
    assert get(dduct, origin.port, f"/v2/a/manifests/{DIGEST}").body == BODY
    assert len(origin.requests) == 1


# --- negotiation ------------------------------------------------------------------------------------


def test_a_client_that_also_takes_anything_does_not_choose_for_a_stricter_one(dduct: RunningDduct) -> None:
    fields = [("Content-Type", "text/html"), ("ETag", '"1"')]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, b"index"), tls=False)
    get(dduct, origin.port, "/simple/a/", "Accept: application/json, */*")
    origin.close()
    assert get(dduct, origin.port, "/simple/a/", "Accept: */*").status == 200
    assert get(dduct, origin.port, "/simple/a/", "Accept: application/json").status == 502


def test_the_order_of_accepted_types_says_nothing_beside_vary(dduct: RunningDduct) -> None:
    fields = [("Content-Type", "text/html"), ("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "max-age=60")]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, b"index"), tls=False)
    for accept in ("text/html, text/x", "text/x,text/html"):
        get(dduct, origin.port, "/simple/a/", f"Accept: {accept}")
    origin.close()
    assert get(dduct, origin.port, "/simple/a/", "Accept: text/x, text/html").body == b"index"


# --- origins that are away --------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["max-age=600, must-revalidate", "s-maxage=600", "max-age=600, stale-if-error=0"])
def test_what_is_fresh_by_its_origin_is_sent_while_that_is_away(dduct: RunningDduct, said: str) -> None:
    fields = [("Content-Type", "application/json"), ("Cache-Control", said)]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, b"{}"), tls=False)
    assert get(dduct, origin.port, "/v2/a/tags/list").body == b"{}"
    origin.close()
    assert get(dduct, origin.port, "/v2/a/tags/list").body == b"{}"


# --- other servers' pages ---------------------------------------------------------------------------


def test_a_page_that_sets_a_cookie_is_its_clients(dduct: RunningDduct) -> None:
    """Elsewhere, paths like those of indexes are pages of a session."""
    fields = [("Content-Type", "text/html"), ("Set-Cookie", "session=1")]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, b"csrf"), tls=False)
    for _ in range(2):
        assert get(dduct, origin.port, "/info/login").get("set-cookie") == "session=1"
    assert not dduct.stored()


def test_a_cookie_of_a_balancer_in_front_is_left_out(dduct: RunningDduct) -> None:
    fields = [("Content-Type", "application/json"), ("Set-Cookie", "__cf_bm=1; Path=/"), ("Set-Cookie", "AWSALB=2")]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, b"{}"), tls=False)
    assert get(dduct, origin.port, "/simple/a/").get("set-cookie") is None
    assert len(dduct.stored()) == 1


def test_who_reads_along_gets_no_type_that_it_does_not_accept(dduct: RunningDduct) -> None:
    """What a digest names is one object for all; while it comes, too."""
    index, held = hashlib.sha256(BODY).hexdigest(), threading.Event()

    def answer(asked: Asked, connection: Connection) -> None:
        kind = LIST if LIST in (asked.get("accept") or "") else MANIFEST
        if kind == LIST:
            held.wait(TIMEOUT)
        connection.respond(200, [("Content-Type", kind)], BODY)

    origin = dduct.origin(answer, tls=False)
    path = f"/v2/a/manifests/sha256:{index}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get, dduct, origin.port, path, NEW_CLIENT)
        wait_until(lambda: len(origin.requests) == 1)
        second = pool.submit(get, dduct, origin.port, path, OLD_CLIENT)
        wait_until(lambda: readers(dduct) == 1)
        held.set()
        assert first.result(TIMEOUT).get("content-type") == LIST
        assert second.result(TIMEOUT).get("content-type") == MANIFEST


@pytest.mark.parametrize("methods", [("GET", "HEAD"), ("HEAD", "GET"), ("HEAD", "HEAD")])
def test_two_clients_at_once_cause_one_transfer(dduct: RunningDduct, methods: Tuple[str, str]) -> None:
    held = threading.Event()

    def answer(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Type", LIST), ("Content-Length", str(len(BODY)))])
        connection.send(BODY[:5])
        held.wait(TIMEOUT)
        connection.send(BODY[5:])

    origin = dduct.origin(answer, tls=False)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get, dduct, origin.port, "/v2/a/manifests/1", method=methods[0])
        wait_until(lambda: len(origin.requests) == 1)
        second = pool.submit(get, dduct, origin.port, "/v2/a/manifests/1", method=methods[1])
        wait_until(lambda: readers(dduct) == 1)
        held.set()
        for method, answered in zip(methods, (first.result(TIMEOUT), second.result(TIMEOUT))):
            assert answered.get("content-length") == str(len(BODY))
            assert answered.body == (BODY if method == "GET" else b"")
    assert len(origin.requests) == 1


def test_who_waits_for_a_manifest_gets_it_although_the_first_client_leaves(dduct: RunningDduct) -> None:
    held = threading.Event()

    def answer(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Type", LIST), ("Content-Length", str(len(BODY)))])
        connection.send(BODY[:5])
        if len(origin.requests) == 1:
            held.wait(TIMEOUT)
        connection.send(BODY[5:])

    origin = dduct.origin(answer, tls=False)
    path = f"http://{HOST}:{origin.port}/v2/a/manifests/1"
    first = dduct.client()
    first.send(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    wait_until(lambda: len(origin.requests) == 1)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(get, dduct, origin.port, "/v2/a/manifests/1")
        wait_until(lambda: readers(dduct) == 1)
        first.reset()
        assert second.result(TIMEOUT).body == BODY
    held.set()
