"""Credentials of dduct's own: who gets what they bring, and where they go."""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Callable, List

import pytest
from support.client import wait_until
from support.origin import Asked, Connection, Gate
from support.registry import NEW_CLIENT, Registry
from support.running import HOST, RunningDduct, written

from monitoring.metrics import Counter
from protocol.http1 import parse_absolute
from proxy.access import hash_password
from server.config_keys import CredentialRule
from upstream.dialling import Parent

pytestmark = pytest.mark.one_process  # a reload reaches the first one only
Build = Callable[..., RunningDduct]
REPOSITORY = "secret/app"
PASSWORD, WRONG = "hunter2-right", "hunter2-wrong"
OTHER = "127.0.0.3"  # the address of a client for which no rule is


def rule(**keys: Any) -> CredentialRule:
    """A rule; what is left out has its default."""
    defaults = {one.name: one.metadata["declared"].default for one in fields(CredentialRule)}
    values = {**defaults, "password_file": None, "token_file": None, "realms": (), "users": (), "clients": (), **keys}
    return CredentialRule(**values)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture
def lent(password: Path) -> Callable[..., Registry]:
    """A private registry, with credentials for clients at 127.0.0.1 unless told otherwise."""

    def build(dduct: RunningDduct, **keys: Any) -> Registry:
        dduct.reload(ask_anonymously=False)  # requests are counted
        registry = Registry(dduct)
        registry.private.add(REPOSITORY)
        registry.passwords["bot"] = PASSWORD
        registry.realm = f"https://{registry.host}/token"
        given = {"hosts": (registry.host,), "username": "bot", "password_file": password, "clients": (HOST,), **keys}
        dduct.lend(rule(**given))
        return registry

    return build


def logins(registry: Registry) -> List[str]:
    """The requests that had the password."""
    return [
        one.target for one in list(registry.origin.requests) if (one.get("authorization") or "").startswith("Basic")
    ]


def pull(registry: Registry, **client: Any) -> List[int]:
    """The statuses of a pull: index by tag and digest, manifest, layer; the bytes are right where there are any."""
    index = registry.tags[REPOSITORY, "1"]
    manifest = json.loads(registry.content(index))["manifests"][0]
    layer = json.loads(registry.content(manifest))["layers"][0]
    found = []
    for method in ("HEAD", "GET"):
        for kind, reference, digest in (
            ("manifests", "1", index),
            ("manifests", index, index),
            ("manifests", manifest, manifest),
            ("blobs", layer, layer),
        ):
            answer = registry.get(f"/v2/{REPOSITORY}/{kind}/{reference}", NEW_CLIENT, method=method, **client)
            found.append(answer.status)
            assert method == "HEAD" or (answer.body == registry.content(digest)) == (answer.status == 200)
    return found


GIVEN, REFUSED = [200] * 8, [401] * 8

# --- who gets what ----------------------------------------------------------------------------------


@pytest.mark.parametrize("basic", [False, True])
def test_only_clients_of_a_rule_get_what_it_brings(
    dduct: RunningDduct, lent: Callable[..., Registry], basic: bool
) -> None:
    registry = lent(dduct)
    registry.basic = basic
    registry.add(REPOSITORY, "1")
    assert pull(registry, source=OTHER) == REFUSED
    assert pull(registry) == GIVEN
    dduct.wait_until_durable()
    assert pull(registry, source=OTHER) == REFUSED
    assert pull(registry) == GIVEN
    assert pull(registry, source=OTHER) == REFUSED
    assert dduct.counters.value(Counter.CREDENTIALS_FAILED) == 0


def test_a_token_is_asked_for_once_and_a_permission_for_all_clients_of_a_rule(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    registry = lent(dduct, clients=())
    _, _, layer = registry.add(REPOSITORY, "1")
    assert registry.blob(REPOSITORY, layer).body == registry.content(layer)
    assert logins(registry) == ["/token?service=registry&scope=repository:secret/app:pull"]
    before = len(registry.origin.requests)
    for source in (HOST, OTHER):
        for fields_ in ([], ["Range: bytes=5-9"]):
            answer = registry.get(f"/v2/{REPOSITORY}/blobs/{layer}", *fields_, source=source)
            assert answer.whole and answer.body == (
                registry.content(layer)[5:10] if fields_ else registry.content(layer)
            )
    assert len(registry.origin.requests) == before


def test_users_of_a_rule_and_their_removal(start_dduct: Build, lent: Callable[..., Registry], tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("".join(hash_password(name, "pw") + "\n" for name in ("alice", "bob")))
    dduct = start_dduct(auth_file=users)
    registry = lent(dduct, clients=(), users=("alice",))
    _, _, layer = registry.add(REPOSITORY, "1")
    path = f"/v2/{REPOSITORY}/blobs/{layer}"
    assert registry.get(path, user="bob").status == 401
    assert registry.get(path, user="alice").body == registry.content(layer)
    assert registry.get(path, user="bob").status == 401
    before = len(registry.origin.requests)
    assert registry.get(path, user="alice").body == registry.content(layer)
    assert len(registry.origin.requests) == before
    dduct.lend(replace(dduct.config.credentials[0], users=("bob",)))
    assert registry.get(path, user="alice").status == 401
    assert registry.get(path, user="bob").body == registry.content(layer)
    dduct.lend()
    assert registry.get(path, user="bob").status == 401


def test_with_users_and_clients_a_client_needs_both(
    start_dduct: Build, lent: Callable[..., Registry], tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text("".join(hash_password(name, "pw") + "\n" for name in ("alice", "bob")))
    registry = lent(start_dduct(auth_file=users), users=("alice",))
    registry.add(REPOSITORY, "1")
    for user, source, status in (("alice", HOST, 200), ("alice", OTHER, 401), ("bob", HOST, 401), ("bob", OTHER, 401)):
        assert registry.get(f"/v2/{REPOSITORY}/manifests/1", NEW_CLIENT, user=user, source=source).status == status


def test_a_changed_password_counts_at_once_and_ends_permissions(
    dduct: RunningDduct, lent: Callable[..., Registry], password: Path
) -> None:
    registry = lent(dduct)
    _, _, layer = registry.add(REPOSITORY, "1")
    assert registry.blob(REPOSITORY, layer).status == 200
    password.write_text(WRONG)
    assert registry.blob(REPOSITORY, layer).status == 401
    registry.passwords["bot"] = WRONG
    password.write_text("hunter2-new")
    assert registry.blob(REPOSITORY, layer).status == 401
    registry.passwords["bot"] = "hunter2-new"
    registry.add(REPOSITORY, "2")
    password.write_text(PASSWORD)
    registry.passwords["bot"] = PASSWORD
    assert registry.blob(REPOSITORY, layer).body == registry.content(layer)


def test_a_client_with_credentials_of_its_own_never_gets_others(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    registry = lent(dduct)
    _, _, layer = registry.add(REPOSITORY, "1")
    assert registry.blob(REPOSITORY, layer).status == 200
    for field in ("Authorization: Bearer wrong", "Cookie: a=b", "X-Api-Key: 1"):
        assert registry.blob(REPOSITORY, layer, field).status == 401
    assert registry.get(f"/v2/{REPOSITORY}/blobs/{layer}?token=1").status == 401


def test_a_token_that_anybody_gets_is_none(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    _, _, layer = registry.add(REPOSITORY, "1")
    dduct.lend()
    anybody = registry.token(REPOSITORY)
    dduct.lend(rule(hosts=(registry.host,), username="bot", password_file=dduct.directory.parent / "password"))
    assert registry.blob(REPOSITORY, layer, anybody).body == registry.content(layer)
    sent = [one.get("authorization") for one in registry.origin.requests if layer in one.target]
    assert len(sent) == 2 and sent[0] == anybody.partition(": ")[2] and (sent[1] or "").endswith("-bot")


def test_what_is_public_needs_no_credentials(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.origin.close()
    open_ = Registry(dduct, tokens=False)
    _, _, layer = open_.add(REPOSITORY, "1")
    dduct.lend(replace(dduct.config.credentials[0], hosts=(open_.host,)))
    assert open_.blob(REPOSITORY, layer).status == 200
    before = len(open_.origin.requests)
    assert open_.get(f"/v2/{REPOSITORY}/blobs/{layer}", source=OTHER).body == open_.content(layer)
    assert len(open_.origin.requests) == before
    assert logins(open_) == []


def test_a_ping_is_answered_so_that_clients_ask_for_no_token(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    assert registry.get("/v2/").body == b"{}"
    assert registry.get("/v2/", method="HEAD").status == 200
    assert registry.get("/v2/", source=OTHER).status == 401


def test_another_cache_on_the_way_keeps_nothing_for_its_clients(
    start_dduct: Build, lent: Callable[..., Registry]
) -> None:
    """What a rule brings is `private` although the request for it shows no credentials: here, to another dduct."""
    parent = start_dduct()
    registry = lent(parent, clients=())
    _, _, layer = registry.add(REPOSITORY, "1")
    path = f"/v2/{REPOSITORY}/blobs/{layer}"
    for _ in ("brought", "stored"):
        assert "private" in (registry.get(path).get("cache-control") or "")
    assert registry.get(f"/v2/{REPOSITORY}/tags/list").get("cache-control") == "private"
    ca = parent.config.misc.cert_dir / "ca.crt"
    registry.dduct = start_dduct(upstream_proxy=Parent(HOST, parent.tcp_port), upstream_ca=ca)
    assert registry.get(path).body == registry.content(layer)
    before = parent.counters.value(Counter.HITS)
    parent.lend()
    assert registry.get(path).status == 401
    assert parent.counters.value(Counter.HITS) == before


# --- followers --------------------------------------------------------------------------------------


def test_a_growing_fill_is_followed_by_clients_of_its_rule_only(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    registry = lent(dduct)
    registry.gate = gate = Gate()
    _, _, layer = registry.add(REPOSITORY, "1")
    data = registry.content(layer)
    path = f"/v2/{REPOSITORY}/blobs/{layer}"
    with registry.connected() as first, registry.connected() as second:
        for client in (first, second):
            client.send(f"GET {path} HTTP/1.1\r\nHost: {registry.host}\r\n\r\n".encode())
        wait_until(lambda: dduct.counters.value(Counter.COLLAPSED) > 0)
        assert registry.get(path, source=OTHER).status == 401
        gate.open()
        assert first.read().body == second.read().body == data
    sent = [one for one in registry.origin.requests if path in one.target and one.get("authorization")]
    assert len(sent) == 1


# --- where they go ----------------------------------------------------------------------------------


def test_a_password_goes_to_no_token_server_that_a_rule_does_not_name(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    registry, foreign = lent(dduct), Registry(dduct)
    registry.add(REPOSITORY, "1")
    registry.realm = f"https://{foreign.host}/token"
    assert registry.manifest(REPOSITORY, "1").status == 401
    registry.realm = f"http://{registry.host}/token"
    assert registry.manifest(REPOSITORY, "1").status == 401
    assert foreign.origin.requests == [] and logins(registry) == []
    assert dduct.counters.value(Counter.CREDENTIALS_FAILED) == 2
    dduct.lend(replace(dduct.config.credentials[0], realms=(foreign.host,)))
    registry.realm = f"https://{foreign.host}/token"
    registry.manifest(REPOSITORY, "1")
    assert len(logins(foreign)) == 1


def test_a_redirect_takes_no_credentials_along(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry, seen = lent(dduct), []
    _, _, layer = registry.add(REPOSITORY, "1")

    def elsewhere(asked: Asked, connection: Connection) -> None:
        seen.append(asked.get("authorization"))
        connection.respond(401, [("WWW-Authenticate", f'Bearer realm="https://{registry.host}/token"')], b"no")

    other = dduct.origin(elsewhere)

    def redirected(asked: Asked) -> Any:
        if "/blobs/" in asked.target and asked.get("authorization"):
            return 307, [("Location", f"https://{HOST}:{other.port}/x")]
        return None

    registry.trouble = redirected
    assert registry.blob(REPOSITORY, layer).status == 307
    assert seen and set(seen) == {None}


def test_a_redirect_within_the_host_takes_no_credentials_along(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    """A client may choose where it leads, such as to the token server; the client itself follows it."""
    registry = lent(dduct)
    registry.basic = registry.names_nobody = True
    _, _, layer = registry.add(REPOSITORY, "1")
    where = "/token?service=registry&scope=repository:secret/app:push"
    registry.trouble = lambda asked: (
        (302, [("Location", where)]) if "/blobs/" in asked.target and asked.get("authorization") else None
    )
    for method in ("GET", "HEAD"):
        answer = registry.get(f"/v2/{REPOSITORY}/blobs/{layer}", method=method)
        assert (answer.status, answer.get("location"), answer.body) == (
            302,
            where,
            b"trouble" if method == "GET" else b"",
        )
    assert [target for target in logins(registry) if "/blobs/" not in target] == []


def test_a_redirect_of_a_token_server_is_not_followed(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    registry.trouble = lambda asked: (
        (302, [("Location", f"https://{registry.host}/v2/")]) if "token" in asked.target else None
    )
    assert registry.manifest(REPOSITORY, "1").status == 401
    assert len(logins(registry)) == 1


def test_only_reading_requests_have_credentials(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    for method in ("PUT", "POST", "PATCH", "DELETE", "OPTIONS"):
        for path in (f"/v2/{REPOSITORY}/manifests/1", f"/v2/{REPOSITORY}/tags/list", "/v2/"):
            for fields_ in ([], ["Content-Length: 0"]):
                assert registry.get(path, *fields_, method=method).status == 401
    assert registry.get("/v2/", "Connection: upgrade", "Upgrade: websocket").status == 401
    assert registry.get("/v2/", "Content-Length: 0").status in (200, 401)
    assert len(logins(registry)) <= 1  # for the last one


def test_a_field_that_turns_a_request_into_another_does_not_go_along(
    dduct: RunningDduct, lent: Callable[..., Registry]
) -> None:
    registry = lent(dduct)
    registry.basic = True
    registry.add(REPOSITORY, "1")
    assert registry.get("/v2/", "X-HTTP-Method-Override: DELETE", "X-Original-URL: /admin").status == 200
    (sent,) = [one for one in registry.origin.requests if one.get("authorization")]
    assert sent.get("x-http-method-override") is None and sent.get("x-original-url") is None


@pytest.mark.parametrize(
    "path",
    [
        "/token?service=registry&scope=repository:secret/app:push",
        "/token/x.deb?s%63ope=repository:secret/app:push",
        "/api/token",
        "/v2/_catalog",
    ],
)
def test_answers_that_may_be_made_for_one_user_are_not_asked_for(
    dduct: RunningDduct, lent: Callable[..., Registry], path: str
) -> None:
    """A token server would give the client a token of the rule's user."""
    registry = lent(dduct)
    registry.basic = registry.names_nobody = True
    assert registry.get(path).status == 401
    assert logins(registry) == []


def test_a_cookie_for_credentials_is_not_passed_on(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.basic = True
    _, _, layer = registry.add(REPOSITORY, "1")
    cookie = [("Set-Cookie", "session=hunter2-cookie"), ("Cache-Control", "no-store")]
    registry.trouble = lambda asked: (200, cookie) if asked.get("authorization") else None
    for answer in (registry.blob(REPOSITORY, layer), registry.get("/v2/"), registry.get("/v2/", method="HEAD")):
        assert answer.status == 200 and answer.get("set-cookie") is None


@pytest.mark.parametrize("allowed", [False, True])
def test_plain_http_has_to_be_allowed(dduct: RunningDduct, password: Path, allowed: bool) -> None:
    seen: List[Any] = []

    def answer(asked: Asked, connection: Connection) -> None:
        seen.append(asked.get("authorization"))
        challenge = [] if asked.get("authorization") else [("WWW-Authenticate", 'Basic realm="x"')]
        connection.respond(401 if challenge else 200, challenge, b"a package")

    origin = dduct.origin(answer, tls=False)
    host = f"{HOST}:{origin.port}"
    dduct.lend(rule(hosts=(host,), username="bot", password_file=password, allow_http=allowed))
    with dduct.client() as client:
        assert client.get(f"http://{host}/x.deb", host).status == (200 if allowed else 401)
    assert len(seen) == (2 if allowed else 1)


def test_an_unverified_host_gets_none(start_dduct: Build, lent: Callable[..., Registry]) -> None:
    registry = lent(start_dduct(upstream_insecure=(HOST,)))
    registry.add(REPOSITORY, "1")
    assert pull(registry) == REFUSED and logins(registry) == []


def test_another_port_of_the_host_gets_none(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct, hosts=(HOST, f"{HOST}:1"))
    registry.add(REPOSITORY, "1")
    assert pull(registry) == REFUSED and logins(registry) == []


# --- failures ---------------------------------------------------------------------------------------


def test_a_token_that_was_just_made_is_not_replaced(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").status == 200
    registry.revoke()
    assert registry.manifest(REPOSITORY, "1").status == 401
    assert len(logins(registry)) == 1


def test_an_ended_token_is_replaced(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.lifetime = -1  # not a lifetime: the usual one
    registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").status == 200
    dduct.lend(*dduct.config.credentials)  # a reload keeps no token
    assert registry.manifest(REPOSITORY, "1").status == 200
    assert len(logins(registry)) == 2


@pytest.mark.parametrize("basic", [False, True])
def test_a_wrong_password_gives_the_origins_401_and_one_line(
    dduct: RunningDduct, lent: Callable[..., Registry], caplog: pytest.LogCaptureFixture, basic: bool
) -> None:
    registry = lent(dduct)
    registry.basic, registry.passwords["bot"] = basic, WRONG
    registry.add(REPOSITORY, "1")
    with caplog.at_level(logging.WARNING, logger="dduct"):
        for _ in range(3):
            answer = registry.manifest(REPOSITORY, "1")
            assert (answer.status, answer.body) == (401, b"who are you?")
    lines = [record.getMessage() for record in caplog.records if record.name == "dduct.credentials"]
    assert len(lines) == 1 and registry.host in lines[0] and "hunter2" not in lines[0]
    assert dduct.counters.value(Counter.CREDENTIALS_FAILED) == 3
    assert basic or len(logins(registry)) == 1


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b"nonsense", b'{"token": 5}', b'{"token": "a\\nb"}', b"x" * 70_000]
)
def test_a_token_server_without_a_usable_token(
    dduct: RunningDduct, lent: Callable[..., Registry], answer: bytes
) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    tokens = dduct.origin(lambda asked, connection: connection.respond(200, [], answer))
    registry.realm = f"https://{HOST}:{tokens.port}/token"
    dduct.lend(replace(dduct.config.credentials[0], realms=(f"{HOST}:{tokens.port}",)))
    for _ in range(2):
        assert registry.manifest(REPOSITORY, "1").status == 401
    assert len(tokens.requests) == 1


def test_a_token_server_that_is_away(dduct: RunningDduct, lent: Callable[..., Registry]) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    tokens = dduct.origin(lambda asked, connection: connection.fin())
    registry.realm = f"https://{HOST}:{tokens.port}/token"
    dduct.lend(replace(dduct.config.credentials[0], realms=(f"{HOST}:{tokens.port}",)))
    assert registry.manifest(REPOSITORY, "1").status == 401
    tokens.close()
    assert registry.manifest(REPOSITORY, "1").status == 401


# --- tokens and helpers -----------------------------------------------------------------------------


def test_a_token_file_is_sent_as_it_is(dduct: RunningDduct, lent: Callable[..., Registry], tmp_path: Path) -> None:
    registry = lent(dduct)
    _, _, layer = registry.add(REPOSITORY, "1")
    dduct.lend()
    token = tmp_path / "token"
    token.write_text(registry.token(REPOSITORY, "somebody").partition("Bearer ")[2] + "\n")
    dduct.lend(rule(hosts=(registry.host,), token_file=token, clients=(HOST,)))
    assert registry.blob(REPOSITORY, layer).body == registry.content(layer)
    assert registry.get(f"/v2/{REPOSITORY}/blobs/{layer}", source=OTHER).status == 401
    registry.basic = True
    assert registry.manifest(REPOSITORY, "1").status == 401


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(script: str) -> str:
        path = tmp_path / "docker-credential-test"
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/runs\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return "test"

    return write


def test_a_helper_is_asked_once(
    dduct: RunningDduct, lent: Callable[..., Registry], helper: Callable[[str], str], tmp_path: Path
) -> None:
    script = f"""cat > {tmp_path}/host; echo '{{"ServerURL": "x", "Username": "bot", "Secret": "{PASSWORD}"}}'"""
    registry = lent(dduct, username="", password_file=None, helper=helper(script))
    registry.add(REPOSITORY, "1")
    assert pull(registry) == GIVEN
    assert pull(registry, source=OTHER) == REFUSED
    assert (tmp_path / "runs").read_text() == "get\n"
    assert (tmp_path / "host").read_text() == registry.host


@pytest.mark.parametrize("script", ["echo nonsense", "exit 1", "echo '{}'", "cat /dev/zero", "exec sleep 1000 >&-"])
def test_a_helper_that_fails(
    dduct: RunningDduct,
    lent: Callable[..., Registry],
    helper: Callable[[str], str],
    script: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("upstream.secret_sources.Helper.__init__.__defaults__", (0.5,))
    registry = lent(dduct, username="", password_file=None, helper=helper(script))
    registry.add(REPOSITORY, "1")
    with caplog.at_level(logging.WARNING, logger="dduct"):
        assert registry.manifest(REPOSITORY, "1").status == 401
    assert "docker-credential-test: it" in caplog.text


# --- secrets ----------------------------------------------------------------------------------------


def test_no_secret_is_logged_shown_or_stored(
    dduct: RunningDduct, lent: Callable[..., Registry], caplog: pytest.LogCaptureFixture
) -> None:
    registry = lent(dduct)
    registry.add(REPOSITORY, "1")
    said: List[bytes] = []
    with caplog.at_level(logging.NOTSET + 1, logger="dduct"):
        for basic in (True, False):
            registry.basic = basic
            assert pull(registry) == GIVEN
            said += [registry.manifest(REPOSITORY, "1").body, repr(registry.get("/v2/").headers).encode()]
        with dduct.client() as client:
            said.append(client.get("/metrics", HOST).body)
    dduct.wait_until_durable()
    said += [caplog.text.encode(), repr(dduct.server.runtime).encode(), *written(dduct.files)]
    assert not any(b"hunter2" in one or b"-bot" in one for one in said)


def test_two_workers_share_permissions(start_dduct: Build, lent: Callable[..., Registry]) -> None:
    registry = lent(start_dduct(workers=1))
    _, _, layer = registry.add(REPOSITORY, "1")
    given = registry.dduct.config.credentials
    registry.dduct = dduct = start_dduct(workers=2, credentials=given, ask_anonymously=False)
    assert registry.blob(REPOSITORY, layer).body == registry.content(layer)
    wait_until(lambda: len(dduct.stored()) >= 2)
    before = len(registry.origin.requests)
    for _ in range(8):
        assert registry.blob(REPOSITORY, layer).body == registry.content(layer)
    assert len(registry.origin.requests) == before
    assert registry.get(f"/v2/{REPOSITORY}/blobs/{layer}", source=OTHER).status == 401


def test_a_token_for_a_rule_is_not_taken_for_one_that_anybody_gets(dduct: RunningDduct, password: Path) -> None:
    """A registry may name its own `/v2/` as the token server, and put a token into its answer there."""

    def answer(asked: Asked, connection: Connection) -> None:
        realm = f'Bearer realm="https://{HOST}:{origin.port}/v2/"'
        given = [] if asked.get("authorization") else [("WWW-Authenticate", realm)]
        connection.respond(401 if given else 200, given, b'{"token": "t-of-the-rule"}')

    origin = dduct.origin(answer)
    dduct.lend(rule(hosts=(f"{HOST}:{origin.port}",), username="bot", password_file=password))
    for _ in range(2):
        assert b"t-of-the-rule" in dduct.fetch(origin, "/v2/").body
    target = parse_absolute(f"https://{HOST}:{origin.port}/v2/".encode())
    assert not dduct.server.runtime.services.public_tokens.is_public(target, b"Bearer t-of-the-rule")
