"""The poller's thread answers hits by itself: the same bytes as a session thread would have sent."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Origin
from support.running import HOST, RunningDduct

from fetching import small_hit
from fetching.cacheable_request import CacheableRequest
from fetching.memory_cache import MemoryCache
from fetching.small_hit import PlainRequest
from monitoring.metrics import Counter

BODY = bytes(range(256)) * 20
LARGE = bytes(small_hit.SMALL + 1)
DIGEST = hashlib.sha256(BODY).hexdigest()
BLOB = f"/v2/a/blobs/sha256:{DIGEST}"
LONG_AGO = ("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
FRESH = ("Cache-Control", "max-age=600")
OBJECTS: Dict[str, Tuple[bytes, List[Tuple[str, str]]]] = {
    "/fresh.deb": (BODY, [FRESH, ("ETag", '"1"'), ("content-type", "application/x-deb"), ("X-Odd", "a\xe9b")]),
    "/guessed.deb": (BODY, [LONG_AGO]),
    "/expires.deb": (BODY, [("Expires", "Fri, 01 Jan 2100 00:00:00 GMT"), ("Age", "7")]),
    "/vary.deb": (BODY, [FRESH, ("Vary", "Accept-Language, Accept-Encoding")]),
    "/no-cache.deb": (BODY, [("Cache-Control", "no-cache"), ("ETag", '"1"')]),
    "/stale.deb": (BODY, [("Cache-Control", "max-age=0"), ("ETag", '"1"')]),
    "/private.deb": (BODY, [("Cache-Control", "private, max-age=600"), ("ETag", '"1"')]),
    "/large.deb": (LARGE, [FRESH]),
    "/one%2ebyte.deb": (b"x", [FRESH]),
    BLOB: (BODY, []),
    "/dists/x/Packages.xz": (BODY, [FRESH, ("ETag", '"1"')]),
    "/q.deb?a=b": (BODY, [FRESH]),
    "/q.deb?token=secret": (BODY, [FRESH]),
}


class Case(NamedTuple):
    path: str
    fields: str = ""
    quick: bool = True  # whether the poller's thread answers it
    line: str = "GET {path} HTTP/1.1"


CASES = [
    Case("/fresh.deb"),
    Case("/fresh.deb", "User-Agent: x\r\nAccept: */*\r\nX-Request-Id: 1\r\n"),
    Case("/fresh%2Edeb"),
    Case("/guessed.deb"),
    Case("/expires.deb"),
    Case("/vary.deb"),
    Case("/vary.deb", "Accept-Encoding: gzip\r\n"),
    Case("/vary.deb", "Accept-Language: fr\r\n", quick=False),
    Case("/no-cache.deb", quick=False),
    Case("/stale.deb", quick=False),
    Case("/private.deb", quick=False),
    Case("/large.deb", quick=False),
    Case("/one%2ebyte.deb"),
    Case(BLOB),
    Case("/dists/x/Packages.xz", quick=False),
    Case("/q.deb?a=b"),
    Case("/q.deb?token=secret"),
    Case("/fresh.deb", "Range: bytes=1-9\r\n"),
    Case("/fresh.deb", 'If-None-Match: "1"\r\n'),
    Case("/fresh.deb", 'If-Match: "2"\r\n', quick=False),
    Case("/fresh.deb", 'If-Match: "1"\r\n'),
    Case("/fresh.deb", 'If-None-Match: W/"1", "7"\r\n'),
    Case("/fresh.deb", 'If-None-Match: "7"\r\n'),
    Case("/guessed.deb", "If-Modified-Since: Wed, 01 Jan 2020 00:00:00 GMT\r\n"),
    Case("/guessed.deb", "If-Modified-Since: Tue, 31 Dec 2019 00:00:00 GMT\r\n"),
    Case("/guessed.deb", "Range: bytes=0-0\r\n"),
    Case("/guessed.deb", line="HEAD {path} HTTP/1.1"),
    Case("/fresh.deb", "Range: bytes=-7\r\n"),
    Case("/fresh.deb", "Range: bytes=5000-\r\n"),
    Case("/fresh.deb", "Range: bytes=99999-\r\n"),
    Case("/fresh.deb", "Range: bytes=5-1\r\n"),
    Case("/fresh.deb", 'Range: bytes=1-9\r\nIf-Range: "1"\r\n'),
    Case("/fresh.deb", 'Range: bytes=1-9\r\nIf-Range: "2"\r\n'),
    Case("/fresh.deb", 'Range: bytes=1-9\r\nIf-None-Match: "1"\r\n', line="HEAD {path} HTTP/1.1"),
    Case("/fresh.deb", "Range: bytes=1-9\r\nCache-Control: no-cache\r\n", quick=False),
    Case(BLOB, line="HEAD {path} HTTP/1.1"),
    Case(BLOB, "Range: bytes=9-99\r\nAuthorization: Bearer x\r\n"),
    Case("/large.deb", "Range: bytes=1-9\r\n", quick=False),
    Case("/no-cache.deb", line="HEAD {path} HTTP/1.1", quick=False),
    Case("/stale.deb", "Range: bytes=1-9\r\n", quick=False),
    Case("/vary.deb", "Range: bytes=1-9\r\nAccept-Language: fr\r\n", quick=False),
    Case("/vary.deb", line="HEAD {path} HTTP/1.1"),
    Case("/private.deb", "Authorization: Basic eDp5\r\n"),
    Case("/private.deb", "Authorization: Basic eDp5\r\nRange: bytes=1-9\r\n"),
    Case("/private.deb", 'Authorization: Basic eDp5\r\nIf-None-Match: "1"\r\n'),
    Case("/private.deb", "Authorization: Basic b3RoZXI=\r\n", quick=False),
    Case("/private.deb", line="HEAD {path} HTTP/1.1", quick=False),
    Case("/q.deb?token=secret", line="HEAD {path} HTTP/1.1"),
    Case("/dists/x/Packages.xz", line="HEAD {path} HTTP/1.1", quick=False),
    Case("/missing.deb", line="HEAD {path} HTTP/1.1", quick=False),
    Case("/fresh.deb", "If-Modified-Since: Fri, 01 Jan 2021 00:00:00 GMT\r\n"),
    Case("/fresh.deb", "Cache-Control: max-age=5\r\n", quick=False),
    Case("/fresh.deb", "Pragma: no-cache\r\n", quick=False),
    Case("/fresh.deb", "Authorization: Basic eDp5\r\n", quick=False),
    Case("/fresh.deb", "Cookie: a=b\r\n", quick=False),
    Case("/fresh.deb", "X_Api_Key: 1\r\n", quick=False),
    Case("/fresh.deb", "Connection: close\r\n", quick=False),
    Case("/fresh.deb", "Connection: keep-alive, X-Foo\r\n", quick=True),
    Case("/fresh.deb", "Content-Length: 0\r\n"),
    Case("/fresh.deb", "Content-Length: 0\r\nContent-Length: 0\r\n"),
    Case("/fresh.deb", "Transfer-Encoding: chunked\r\n\r\n0\r\n", quick=False),
    Case("/fresh.deb", "Expect: 100-continue\r\n", quick=False),
    Case("/fresh.deb", "Via: 1.1 another\r\n", quick=False),
    Case("/fresh.deb", "Host: other.test\r\n", quick=False),
    Case("/fresh.deb", line="HEAD {path} HTTP/1.1"),
    Case("/fresh.deb", line="GET {path} HTTP/1.0", quick=False),
    Case("/fresh.deb", line="GET {path}#fragment HTTP/1.1", quick=False),
    Case("/fresh.deb", line="GET  {path} HTTP/1.1", quick=False),
    Case("/fresh.deb", line="GET {path} HTTP/1.1 ", quick=False),
    Case("/fresh.deb", line="GET https://127.0.0.1:{port}{path} HTTP/1.1"),
    Case("/fresh.deb", line="GET https://other.test{path} HTTP/1.1", quick=False),
    Case("/missing.deb", quick=False),
    Case("/page", quick=False),
    Case("/../fresh.deb", quick=False),
]


def origin_of(asked: Asked, connection: Connection) -> None:
    path = asked.target.replace("%2E", ".").replace("/one.byte", "/one%2ebyte")
    if path not in OBJECTS:
        connection.respond(404, [], b"nothing here")
        return
    body, fields = OBJECTS[path]
    if asked.get("if-none-match") == '"1"':
        connection.head(304, [field for field in fields if field[0] == "ETag"])
    else:
        connection.respond(200, fields, body)


def comparable(answer: Answer) -> Any:
    fields = [
        (name, re.sub("ttl=[0-9]+", "ttl=N", value))
        for name, value in answer.headers
        if name not in ("Age", "Date") or (answer.status == 200 and name == "Age" and not value.isdigit())
    ]
    return answer.status, fields, answer.body


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """The names of objects that the poller's thread has sent."""
    real, real_other, found = MemoryCache.answer, MemoryCache.answer_other, []

    def answer_other(cache: MemoryCache, request: CacheableRequest, iteration: float) -> object:
        result = real_other(cache, request, iteration)
        if result is not None:
            found.append(request.name.path)
        return result

    def answer(cache: MemoryCache, request: PlainRequest, iteration: Optional[float] = None) -> object:
        result = real(cache, request, iteration)
        if result is not None and iteration is not None:
            found.append(request.name.path)
        return result

    monkeypatch.setattr(MemoryCache, "answer", answer)
    monkeypatch.setattr(MemoryCache, "answer_other", answer_other)
    return found


def refuse_not_to_wait(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make reads that must not wait fail with this error."""
    real = os.preadv

    def preadv(fd: int, views: List[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(number, os.strerror(number))
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)


def ask(dduct: RunningDduct, origin: Origin, case: Case) -> Answer:
    line = case.line.format(path=case.path, port=origin.port)
    host = "" if case.fields.startswith("Host:") else f"Host: {HOST}:{origin.port}\r\n"
    with dduct.intercepted(origin) as client:
        client.send(f"{line}\r\n{host}{case.fields}\r\n".encode("latin-1"))
        return client.read(line.partition(" ")[0])


@pytest.mark.one_process
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.line} {case.path} {case.fields}".strip())
def test_the_poller_sends_what_a_thread_would_send(
    dduct: RunningDduct, answered: List[str], monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    origin = dduct.origin(origin_of)
    if case.path.replace("%2E", ".") in OBJECTS:
        fields = "Authorization: Basic eDp5" if "private" in case.path else ""
        assert dduct.fetch(origin, case.path, *filter(None, [fields])).status == 200
        dduct.wait_until_durable()
    quick = comparable(ask(dduct, origin, case))
    assert bool(answered) is case.quick
    if case.quick:  # once more, when it may be remembered, and then from memory
        assert [comparable(ask(dduct, origin, case)) for _ in range(2)] == [quick] * 2
    with monkeypatch.context() as without:
        without.setattr(MemoryCache, "answer", lambda *_: None)
        without.setattr(MemoryCache, "answer_other", lambda *_: None)
        assert comparable(ask(dduct, origin, case)) == quick


@pytest.mark.one_process
def test_several_ranges_take_a_thread(dduct: RunningDduct, answered: List[str]) -> None:
    origin = dduct.origin(origin_of)
    dduct.fetch(origin, "/fresh.deb")
    dduct.wait_until_durable()
    answer = dduct.fetch(origin, "/fresh.deb", "Range: bytes=0-1,7-8")
    assert answer.status == 206 and b"Content-Range: bytes 7-8/" in answer.body and not answered


@pytest.mark.one_process
def test_other_requests_are_logged_as_by_a_thread(
    dduct: RunningDduct, answered: List[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(origin_of)
    dduct.fetch(origin, "/fresh.deb")
    dduct.wait_until_durable()
    caplog.set_level("INFO")

    def lines() -> List[str]:
        caplog.clear()
        with dduct.intercepted(origin) as client:
            for line, field in [("HEAD", ""), ("GET", "Range: bytes=1-9\r\n"), ("GET", 'If-None-Match: "1"\r\n')]:
                client.send(f"{line} /fresh.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n{field}\r\n".encode())
                client.read(line)
        wait_until(lambda: sum("/fresh.deb" in record.getMessage() for record in caplog.records) == 3)
        texts = [record.getMessage() for record in caplog.records if "/fresh.deb" in record.getMessage()]
        return [re.sub(" [0-9.]+s |ttl=[0-9]+", " ", text) for text in texts]

    quick, hits = lines(), dduct.counted(Counter.HITS)
    assert len(answered) == hits == 3
    monkeypatch.setattr(MemoryCache, "answer_other", lambda *_: None)
    assert lines() == quick and dduct.counted(Counter.HITS) == 6


@pytest.mark.one_process
def test_hits_of_many_objects_are_counted_and_logged(
    dduct: RunningDduct, answered: List[str], caplog: pytest.LogCaptureFixture
) -> None:
    origin = dduct.origin(origin_of)
    paths = ["/fresh.deb", BLOB, "/vary.deb"]
    for path in paths:
        dduct.fetch(origin, path)
    dduct.wait_until_durable()
    caplog.set_level("INFO")
    with dduct.intercepted(origin) as client:
        for path in paths:
            assert client.get(path, f"{HOST}:{origin.port}").body == BODY
    assert len(answered) == len(paths) == dduct.counted(Counter.HITS)
    lines = [record.getMessage() for record in caplog.records if " GET " in record.getMessage()]
    for path in paths:
        assert any(f"{path} 200 {len(BODY)} " in line and " hit" in line for line in lines)


@pytest.mark.one_process
def test_pipelined_hits_are_answered_in_their_order(dduct: RunningDduct, answered: List[str]) -> None:
    origin = dduct.origin(origin_of)
    paths = ["/fresh.deb", "/one%2ebyte.deb", BLOB, "/large.deb", "/fresh.deb", "/missing.deb", "/one%2ebyte.deb"]
    for path in paths:
        dduct.fetch(origin, path)
    dduct.wait_until_durable()
    with dduct.intercepted(origin) as client:
        request = "GET {} HTTP/1.1\r\nHost: {}:{}\r\n\r\n"
        client.send("".join(request.format(path, HOST, origin.port) for path in paths).encode())
        bodies = [client.read().body for _ in paths]
    assert bodies == [BODY, b"x", BODY, LARGE, BODY, b"nothing here", b"x"]
    assert len(answered) >= 3


@pytest.mark.one_process
def test_bytes_that_are_not_in_memory_are_read_by_a_thread(
    dduct: RunningDduct, answered: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(origin_of)
    dduct.fetch(origin, "/fresh.deb")
    dduct.wait_until_durable()

    with monkeypatch.context() as cold:
        refuse_not_to_wait(cold, errno.EAGAIN)
        assert dduct.fetch(origin, "/fresh.deb").body == BODY
    assert not answered and len(origin.requests) == 1
    assert dduct.fetch(origin, "/fresh.deb").body == BODY
    assert answered


@pytest.mark.one_process
def test_a_file_system_that_cannot_tell_whether_a_read_waits_is_read(
    dduct: RunningDduct, answered: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(origin_of)
    dduct.fetch(origin, "/fresh.deb")
    dduct.wait_until_durable()
    refuse_not_to_wait(monkeypatch, errno.EOPNOTSUPP)
    assert dduct.fetch(origin, "/fresh.deb").body == BODY
    assert answered


@pytest.mark.one_process
def test_an_object_of_a_clock_that_was_ahead_has_no_negative_age(
    dduct: RunningDduct, answered: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(origin_of)
    assert dduct.fetch(origin, BLOB).body == BODY
    dduct.wait_until_durable()
    assert dduct.fetch(origin, BLOB).get("age") == "0" and len(answered) == 1
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    answer = dduct.fetch(origin, BLOB)
    assert answer.body == BODY and answer.get("age") == "0"
    assert len(answered) == 1  # by a thread


@pytest.mark.one_process
@pytest.mark.parametrize("field", ["", 'If-None-Match: "old"\r\n'])
def test_a_client_that_asks_again_gets_what_a_thread_would_send(
    start_dduct: Callable[..., RunningDduct], field: str
) -> None:
    """Whatever it asks for: it may have found the object outdated (`CachedFetch._is_doubted`)."""
    dduct, now = start_dduct(retry_window=120.0), ["old"]

    def react(asked: Asked, connection: Connection) -> None:
        tag = ("ETag", f'"{now[0]}"')
        if asked.get("if-none-match") == tag[1]:
            connection.head(304, [tag])
        else:
            connection.respond(200, [LONG_AGO, tag], now[0].encode() * 500)

    origin = dduct.origin(react)
    assert dduct.fetch(origin, "/guessed.deb").status == 200
    dduct.wait_until_durable()
    now[0] = "new"
    answer = ask(dduct, origin, Case("/guessed.deb", field))
    assert (answer.status, answer.body) == (200, b"new" * 500)
    assert len(origin.requests) == 2
