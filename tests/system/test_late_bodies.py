"""A late body that an origin sends for a response without one: it must not answer the next request."""

from __future__ import annotations

import hashlib
import threading
from typing import Dict, List, Tuple

import pytest
from support.client import Answer, Client
from support.origin import Asked, Connection, Origin
from support.running import HOST, RunningDduct

FORGED = {
    "200": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nCache-Control: max-age=999\r\n\r\nforged",
    "304": b'HTTP/1.1 304 No\r\nETag: "forged"\r\nX-Forged: 1\r\n\r\n',
    "304 of no name": b"HTTP/1.1 304 No\r\nLast-Modified: Mon, 01 Jan 2001 00:00:00 GMT\r\nX-Forged: 1\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nX-Forged: 1\r\n\r\n",
    "no HTTP": b"forged",
}
RIGHT = b"what was asked for"
BODILESS: Dict[str, Tuple[str, int, List[Tuple[str, str]]]] = {
    "HEAD": ("HEAD", 200, [("Content-Length", "6")]),
    "204": ("GET", 204, []),
    "304": ("GET", 304, [("Content-Length", "6")]),
    "200 of no length": ("GET", 200, [("Content-Length", "0")]),
    "a redirect": ("GET", 302, [("Content-Length", "0"), ("Location", "https://127.0.0.1:1/x")]),
    "404": ("HEAD", 404, [("Content-Length", "6")]),
}


class Late:
    """After an answer without a body it sends one, at the moment at which it is asked again on that connection."""

    def __init__(self, kind: str, forged: str) -> None:
        self.method, self.status, self.fields = BODILESS[kind]
        self.forged = FORGED[forged]
        self.age = 0
        self._lock = threading.Lock()  # guards the connections that are to get it
        self._owed: List[Connection] = []

    def __call__(self, asked: Asked, connection: Connection) -> None:
        with self._lock:
            owed = connection in self._owed
        if owed:
            connection.send(self.forged)
        etag = f'"{asked.target}"'
        fields = [("Cache-Control", f"max-age={self.age}"), ("ETag", etag)]
        if asked.target.startswith("/bodiless"):
            connection.head(self.status, self.fields)
        elif asked.get("if-none-match") == etag:
            connection.head(304, fields)
        else:
            connection.respond(200, fields, RIGHT, head_only=asked.method == "HEAD")
            if asked.method != "HEAD":
                return
        with self._lock:
            self._owed.append(connection)


def ask(client: Client, origin: Origin, target: str, *fields: str, method: str = "GET") -> Answer:
    return client.get(target, f"{HOST}:{origin.port}", *fields, method=method)


def is_right(answer: Answer, method: str = "GET") -> bool:
    forged = b"forged" in answer.body or answer.get("x-forged") is not None or answer.get("etag") == '"forged"'
    return answer.status == 200 and not forged and (method == "HEAD" or answer.body == RIGHT)


@pytest.mark.parametrize("forged", FORGED)
def test_a_late_body_does_not_answer_another_url(dduct: RunningDduct, forged: str) -> None:
    for kind in BODILESS:
        late = Late(kind, forged)
        origin = dduct.origin(late)
        with dduct.intercepted(origin) as client:
            for target, method in [("/x.deb", "GET"), ("/y", "GET"), ("/z", "HEAD"), ("/y.deb", "HEAD")]:
                for bodiless in ("/bodiless", "/bodiless.deb"):
                    ask(client, origin, bodiless, 'If-None-Match: "x"', method=late.method)
                assert is_right(ask(client, origin, target, method=method), method), (kind, target)
            assert is_right(ask(client, origin, "/x.deb")), kind


@pytest.mark.parametrize("forged", FORGED)
def test_a_late_body_does_not_answer_a_conditional_request(dduct: RunningDduct, forged: str) -> None:
    origin = dduct.origin(Late("304", forged))
    with dduct.intercepted(origin) as client:
        for number in range(3):
            ask(client, origin, "/bodiless", 'If-None-Match: "x"')
            answer = ask(client, origin, f"/{number}", f'If-None-Match: "/{number}"')
            assert (answer.status, answer.get("etag"), answer.get("x-forged")) == (304, f'"/{number}"', None)


@pytest.mark.parametrize("forged", ["200", "304", "no HTTP"])
@pytest.mark.parametrize("known", [(), ("Authorization: x",)], ids=["anybody's", "needs authorization"])
def test_a_late_body_does_not_validate_another_object(dduct: RunningDduct, forged: str, known: Tuple[str, ...]) -> None:
    origin = dduct.origin(Late("204", forged))
    with dduct.intercepted(origin) as client:
        for round_ in range(2):
            for number in range(4):
                answer = ask(client, origin, f"/{number}.deb", *known)
                assert is_right(answer) and answer.get("etag") == f'"/{number}.deb"', round_


def test_validations_without_late_bodies_share_one_connection(dduct: RunningDduct) -> None:
    class Honest(Late):
        def __call__(self, asked: Asked, connection: Connection) -> None:
            self._owed.clear()
            super().__call__(asked, connection)

    origin = dduct.origin(Honest("204", "200"))
    with dduct.intercepted(origin) as client:
        for _ in range(3):
            for number in range(10):
                assert is_right(ask(client, origin, f"/{number}.deb"))
    assert (origin.accepted, len(origin.requests)) == (1, 30)


@pytest.mark.parametrize("trickle", [False, True])
def test_the_body_of_a_followed_redirect_is_not_waited_for(
    dduct: RunningDduct, trickle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect's, here: what it leads to is asked for although the rest of its body does not come, or not soon."""
    monkeypatch.setattr("upstream.exchange._DRAINED_FOR", 0.1)
    done = threading.Event()

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target == "/x.deb":
            connection.respond(200, [], RIGHT)
            return
        connection.head(302, [("Location", "/x.deb"), ("Content-Length", "60000")])
        while not done.wait(0.02 if trickle else 20):
            try:
                connection.send(b"x")
            except OSError:
                break
        connection.over = True

    origin = dduct.origin(handler)
    try:
        assert dduct.fetch(origin, "/y.deb").body == RIGHT
        assert not done.is_set()
    finally:
        done.set()


@pytest.mark.parametrize("forged", FORGED)
def test_a_late_body_says_nothing_of_a_tag(dduct: RunningDduct, forged: str) -> None:
    """After HEAD, only the digest that is stored counts on that connection."""
    owed: List[Connection] = []

    def answer(asked: Asked, connection: Connection) -> None:
        if connection in owed:
            connection.send(FORGED[forged])
        body = asked.target.encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        connection.respond(200, [("Docker-Content-Digest", digest)], body, head_only=asked.method == "HEAD")
        if asked.method == "HEAD":
            owed.append(connection)

    origin = dduct.origin(answer)
    with dduct.intercepted(origin) as client:
        for _ in range(3):
            for number in range(3):
                target = f"/v2/a/manifests/{number}"
                assert ask(client, origin, target).body == target.encode()
    assert [one.method for one in origin.requests].count("GET") == 3
