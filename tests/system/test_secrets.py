"""What must not be written down is not: not in the log, not on the disk, not in an answer."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
from contextlib import closing
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest
from support.client import wait_until
from support.origin import Asked, Connection
from support.running import HOST, RunningDduct, written

from cache import Cache, Lead
from monitoring.log import LineFormatter, RateLimitedLog
from storage.eviction import Evictor
from storage.record import Digest, Metadata
from storage.space import Limits, SpaceLimits
from storage.store import Key
from storage.verify import verify

BODY = os.urandom(100_000)
SECRETS = (
    "hunter2-bearer",
    "hunter2-cookie",
    "hunter2-token",
    "hunter2-query",
    "hunter2-signature",
    "hunter2-location",
)
CREDENTIALS = (
    "Authorization: Bearer hunter2-bearer",
    "Cookie: session=hunter2-cookie",
    "PRIVATE-TOKEN: hunter2-token",
)


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.NOTSET + 1, logger="dduct"):
        yield caplog


def handler(asked: Asked, connection: Connection) -> None:
    path = asked.target.partition("?")[0]
    if path == "/redirected.deb":
        connection.head(307, [("Location", "/there.deb?X-Amz-Signature=hunter2-location"), ("Content-Length", "0")])
    elif path == "/broken.deb":
        connection.send(b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n")
        connection.fin()
    elif path == "/short.deb":
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:10])
        connection.fin()
    else:
        connection.respond(200, [("ETag", '"1"'), ("Set-Cookie", "session=hunter2-cookie")], BODY)


def test_no_secret_is_written_to_disk_or_log(
    start_dduct: Callable[..., RunningDduct], everything_logged: pytest.LogCaptureFixture
) -> None:
    dduct = start_dduct(stale_if_error=True)
    origin = dduct.origin(handler)
    said: List[bytes] = []
    for path in ("/x.deb", "/redirected.deb", "/broken.deb", "/short.deb", "/page"):
        for query in (
            "",
            "?X-Amz-Signature=hunter2-signature",
            "?password=hunter2-query",
            "?v=1&access%5Ftoken=hunter2-query",
        ):
            for credentials in ((), CREDENTIALS):
                answer = dduct.fetch(origin, path + query, *credentials)
                if answer.status != 200:
                    said.append(repr(answer).encode())
    with dduct.client() as client:
        said.append(repr(client.get(f"http://{HOST}:1/x.deb?sig=hunter2-query", HOST, *CREDENTIALS)).encode())
    with dduct.client() as client:
        client.send(b"GET http://\x00hunter2-query HTTP/1.1\r\nAuthorization: hunter2-bearer\r\n\r\n")
        said.append(repr(client.read()).encode())
    with dduct.client() as client:
        said.append(client.get("/metrics", "localhost").body)
    assert len(said) > 5 and len(everything_logged.records) > 20
    seen = [*written(dduct.files), *said, *(record.getMessage().encode() for record in everything_logged.records)]
    assert [secret for secret in SECRETS if any(secret.encode() in raw for raw in seen)] == []


TARGETS = [  # of requests, and whether they are asked for with CONNECT
    ("http://bob:hunter2@repo.test/x.deb", "http://repo.test/x.deb"),
    ("HTTP://bob:hunter2@repo.test:80/a@b?sig=hunter2", "HTTP://repo.test:80/a@b"),
    ("http://hunter2@repo.test", "http://repo.test"),
    ("http://bob:hunter2@[::1]/x.deb", "http://[::1]/x.deb"),
    ("http://bob:hun@ter2@repo.test/x.deb", "http://repo.test/x.deb"),
    ("http://bob:hunter2/@repo.test/x.deb", "?"),
    ("http://bob:hunter2?@repo.test/x.deb", "?"),
    ("http:/bob:hunter2@repo.test/x.deb", "?"),
    ("http:///bob:hunter2@repo.test/x.deb", "?"),
    ("bob:hunter2@repo.test/x.deb", "repo.test/x.deb"),
    ("ftp://bob:hunter2@repo.test/x.deb", "ftp://repo.test/x.deb"),
]


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
@pytest.mark.parametrize(("target", "shown"), TARGETS)
def test_userinfo_of_a_target_is_not_logged(
    dduct: RunningDduct, everything_logged: pytest.LogCaptureFixture, method: str, target: str, shown: str
) -> None:
    with dduct.client() as client:
        answer = client.get(target, "repo.test", method=method)
        assert answer.status in (400, 501)
        wait_until(lambda: f" {answer.status} " in everything_logged.text)
    assert f"{method} {shown} {answer.status} " in everything_logged.text
    assert "hun" not in everything_logged.text + repr(answer) and "ter2" not in everything_logged.text + repr(answer)


def test_an_at_sign_outside_of_userinfo_is_logged(
    dduct: RunningDduct, everything_logged: pytest.LogCaptureFixture
) -> None:
    for target in ("/@scope/package", f"http://{HOST}:1/@scope/package", "*"):
        with dduct.client() as client:
            answer = client.get(target, "localhost")
            wait_until(lambda: f"GET {target} {answer.status} " in everything_logged.text)  # noqa: B023


def test_userinfo_in_other_fields_is_not_logged(
    dduct: RunningDduct, everything_logged: pytest.LogCaptureFixture
) -> None:
    url = "https://bob:hunter2@repo.test/y.deb?sig=hunter2"

    def handler(asked: Asked, connection: Connection) -> None:
        fields = [("Location", url), ("Content-Length", "0")]
        connection.head(302, fields) if asked.target == "/away.deb" else connection.respond(200, [], BODY)

    origin = dduct.origin(handler)
    for path, status in (("/away.deb", 302), ("/away", 200), ("/x.deb", 200)):
        assert dduct.fetch(origin, path, f"Referer: {url}").status == status
    with dduct.client() as client:
        answer = client.get("/x.deb", "bob:hunter2@repo.test")
        assert answer.status == 400
    seen = [*written(dduct.files), everything_logged.text.encode(), repr(answer).encode()]
    assert not any(b"hunter2" in raw for raw in seen)


QUERIES = ("?access_token=hunter2", "?v=1&u=hunter2", ";jsessionid=hunter2?hunter2")


@pytest.mark.parametrize("query", QUERIES)
def test_log_lines_name_files_without_their_query(
    tmp_path: Path, everything_logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    cache = Cache(tmp_path)
    metadata = Metadata(f"https://h/x.zip{query}", (("ETag", '"1"'),), 1.0)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/https/h/x.zip{query}")

    def fill(name: str, attribute: str, digest: Optional[Digest] = None) -> None:
        claim = cache.claim(Key(f"https/h/{name}.zip{query}", digest))
        assert isinstance(claim, Lead)
        with closing(claim.fill), monkeypatch.context() as broken:
            claim.fill.start(metadata, 3)
            broken.setattr(os, attribute, refuse)
            claim.fill.attach()
            claim.fill.write(memoryview(b"abc"))
            claim.fill.publish()
            claim.fill.detach()
        cache.store.trouble = RateLimitedLog(logging.getLogger("dduct.store"))

    fill("full", "pwrite")
    fill("nameless", "replace")
    fill("no-alias", "replace", Digest("sha256", hashlib.sha256(b"abc").hexdigest()))
    left = tmp_path / f"https/h/left.zip{query}.dduct"
    for unlink in (os.unlink, refuse):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half")
        with monkeypatch.context() as broken:
            broken.setattr(os, "unlink", unlink)
            Evictor(SpaceLimits(tmp_path, Limits)).sweep()
    said: List[str] = []
    os.setxattr(left, "user.dduct", b"damaged")
    left.rename(left.with_name(f"damaged.zip{query}"))
    verify(tmp_path, True, lambda _: None, said.append)
    for part in ("Goes on without the disk", "Cannot keep", "Cannot note", "the remains of a crash", "Cannot remove"):
        assert part in everything_logged.text
    assert ".zip" in "".join(said)
    assert "hunter2" not in everything_logged.text + "".join(said)


def test_a_traceback_shows_no_query() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    log = logging.Logger("dduct")
    log.addHandler(handler)
    try:
        os.stat("/no/such/x.zip?token=hunter2")
    except OSError:
        log.exception("A bug in dduct")
    assert "x.zip?…" in stream.getvalue() and "hunter2" not in stream.getvalue()
