"""Whether an object was stored: in the log at the end, and in Cache-Status where nothing can be stored."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import threading
from typing import Callable, List

import pytest
from support.client import wait_until
from support.origin import Asked, Connection, Files
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter

BODY = os.urandom(400_000)
LARGE = "attachment; filename*=UTF-8''" + "%E4%BD%A0" * 300
ENCODED = gzip.compress(BODY)


def said(caplog: pytest.LogCaptureFixture, path: str) -> str:
    """The last line about a request for a path."""

    def lines() -> List[str]:
        return [one.getMessage() for one in caplog.records if " GET " in one.getMessage() and path in one.getMessage()]

    wait_until(lambda: bool(lines()))
    return lines()[-1]


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stored_object_is_logged_as_stored(dduct: RunningDduct, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dduct")
    origin = dduct.origin(Files({"/x.deb": BODY}))
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert said(caplog, "/x.deb").endswith("fwd=uri-miss; stored")


@pytest.mark.parametrize("broken", ["pwrite", "replace"])
def test_an_object_that_the_disk_refuses_is_not_logged_as_stored(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    caplog.set_level(logging.INFO, "dduct")
    origin = dduct.origin(Files({"/x.deb": BODY}))
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        assert dduct.fetch(origin, "/x.deb").body == BODY
        assert said(caplog, "/x.deb").endswith("fwd=uri-miss; not stored: No space left on device")


def test_a_broken_transfer_is_not_logged_as_stored(dduct: RunningDduct, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dduct")

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:-9])
        connection.fin()

    origin = dduct.origin(handler)
    dduct.fetch(origin, "/x.deb")
    line = said(caplog, "/x.deb")
    assert "the origin broke off" in line and not line.endswith("; stored")


def test_a_transfer_whose_client_hangs_up_is_not_logged_as_stored(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dduct")
    gate = threading.Event()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY) * 100))])
        connection.send_body(BODY)
        for _ in range(99):
            connection.send_body(BODY)
            if not caplog.text.count("still being"):
                gate.wait(0.05)
        gate.wait(20)

    origin = dduct.origin(handler)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /x.zip HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        wait_until(lambda: dduct.counters.value(Counter.FILLS) == 1)
    try:
        assert "fwd=uri-miss; still being fetched; cut by the client" in said(caplog, "/x.zip")
    finally:
        gate.set()


def test_an_object_that_is_too_large_or_deep_is_relayed_with_its_reason(
    start_dduct: Callable[..., RunningDduct], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dduct")
    dduct = start_dduct(max_size=300_000)
    deep = "/d" * 500 + "/x.deb"
    origin = dduct.origin(Files({"/x.deb": BODY, deep: b"deep"}))
    answer = dduct.fetch(origin, "/x.deb")
    assert answer.body == BODY and "stored" not in str(answer.get("cache-status"))
    assert said(caplog, "/x.deb").endswith("not stored: it is larger than cache.max_size")
    answer = dduct.fetch(origin, deep)
    assert answer.body == b"deep"
    assert answer.get("cache-status") == "dduct; fwd=bypass; detail=path"
    assert said(caplog, "/d/d").endswith("detail=path; not stored: its path has more than 32 levels")
    assert dduct.counters.value(Counter.UNSTORABLE) == 2


def test_an_object_whose_metadata_does_not_fit_is_relayed_with_all_its_fields(
    dduct: RunningDduct, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dduct")
    fields = [
        ("Content-Disposition", LARGE),
        ("Content-Encoding", "gzip"),
        ("Cache-Control", "no-cache"),
        ("ETag", "x"),
    ]
    origin = dduct.origin(lambda asked, connection: connection.respond(200, fields, ENCODED))
    for _ in range(2):
        answer = dduct.fetch(origin, "/x.deb")
        assert answer.body == ENCODED and [answer.get(name) for name, _ in fields] == [value for _, value in fields]
    assert "not stored: its metadata takes" in said(caplog, "/x.deb")
    assert list(dduct.stored()) == []


def test_a_lack_of_space_is_named_as_the_reason(
    start_dduct: Callable[..., RunningDduct], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dduct")
    dduct = start_dduct()
    dduct.reload(min_free=2**60)
    origin = dduct.origin(Files({"/x.deb": BODY}))
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert said(caplog, "/x.deb").endswith("cache.min_free") or "cache.min_free" in said(caplog, "/x.deb")
