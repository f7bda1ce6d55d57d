"""dduct as a mirror of registries: requests to dduct itself that name a registry, from clients without its CA."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from support.client import Answer
from support.origin import Asked, Connection, Files, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from net.addresses import Reach
from proxy import mirror
from proxy.access import hash_password

Build = Callable[..., RunningDduct]
BODY = bytes(range(256)) * 80
DIGEST = hashlib.sha256(BODY).hexdigest()
BLOB = f"/v2/team/app/blobs/sha256:{DIGEST}"
TAG = "/v2/team/app/manifests/1"


def forms(origin: Origin, path: str) -> List[str]:
    """A path at an origin as containerd asks a mirror for it, and as podman does."""
    return [f"{path}?ns={HOST}%3A{origin.port}", f"/v2/{HOST}:{origin.port}{path[3:]}"]


def get(dduct: RunningDduct, target: str, *fields: str, method: str = "GET") -> Answer:
    with dduct.client() as client:
        return client.get(target, f"mirror.lab:{dduct.tcp_port}", *fields, method=method)


@contextmanager
def nobody() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else gets."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        yield int(sock.getsockname()[1])


# --- the same objects, by the same rules ------------------------------------------------------------


@pytest.mark.parametrize("form", [0, 1])
def test_a_blob_is_the_same_object_as_through_the_proxy(dduct: RunningDduct, form: int) -> None:
    origin = dduct.origin(Files({BLOB: BODY}))
    mirrored = forms(origin, BLOB)[form]
    assert get(dduct, mirrored).body == BODY
    dduct.wait_until_durable()
    for answer in (get(dduct, mirrored), get(dduct, mirrored, method="HEAD"), dduct.fetch(origin, BLOB)):
        assert answer.status == 200 and (answer.get("cache-status") or "").startswith("dduct; hit")
    assert get(dduct, mirrored, "Range: bytes=5-9").body == BODY[5:10]
    assert [asked.target for asked in origin.requests] == [BLOB]
    assert origin.requests[0].get("host") == f"{HOST}:{origin.port}"
    assert f"sha256/{DIGEST[:2]}/{DIGEST}" in dduct.stored()


@pytest.mark.parametrize("form", [0, 1])
def test_what_came_through_the_proxy_is_a_hit_for_the_mirror(dduct: RunningDduct, form: int) -> None:
    origin = dduct.origin(Files({"/v2/a/x.deb": BODY}, [("Cache-Control", "max-age=1000")]))
    assert dduct.fetch(origin, "/v2/a/x.deb").body == BODY
    client = dduct.client()
    for _ in range(6):  # the poller's thread answers the last ones
        answer = client.get(forms(origin, "/v2/a/x.deb")[form], f"mirror.lab:{dduct.tcp_port}")
        assert answer.body == BODY and (answer.get("cache-status") or "").startswith("dduct; hit")
    assert len(origin.requests) == 1


def test_other_parameters_are_passed_on(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/v2/a/tags/list?n=5&last=%20x": b"{}"}))
    assert get(dduct, f"/v2/a/tags/list?n=5&ns={HOST}:{origin.port}&last=%20x").body == b"{}"


@pytest.mark.parametrize("form", [0, 1])
def test_a_tag_is_asked_for_at_the_registry(dduct: RunningDduct, form: int) -> None:
    origin = dduct.origin(Files({TAG: b"{}", "/v2/": b"{}"}, [("Docker-Content-Digest", "sha256:0")]))
    head = get(dduct, forms(origin, TAG)[form], "Accept: application/x", method="HEAD")
    assert (head.status, head.get("docker-content-digest")) == (200, "sha256:0")
    assert get(dduct, forms(origin, TAG)[form]).body == b"{}"
    assert get(dduct, forms(origin, "/v2/")[form]).body == b"{}"
    assert {asked.target for asked in origin.requests} == {TAG, "/v2/"}


def test_a_blob_behind_a_redirect_is_followed_and_kept(dduct: RunningDduct) -> None:
    storage = dduct.origin(Files({"/data?Signature=1": BODY}))

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(307, [("Location", f"https://{HOST}:{storage.port}/data?Signature=1")])

    origin = dduct.origin(handler)
    assert get(dduct, forms(origin, BLOB)[0]).body == get(dduct, forms(origin, BLOB)[1]).body == BODY
    assert len(origin.requests) == len(storage.requests) == 1


def private(asked: Asked, connection: Connection) -> None:
    """A registry that wants a token."""
    if asked.get("authorization") != "Bearer right":
        challenge = 'Bearer realm="https://tokens.test/t",service="s",scope="repository:team/app:pull"'
        connection.respond(401, [("WWW-Authenticate", challenge)], b"{}", head_only=asked.method == "HEAD")
        return
    connection.respond(200, [("ETag", '"1"')], BODY, head_only=asked.method == "HEAD")


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("path", [BLOB, TAG])
def test_a_challenge_and_a_token_pass(dduct: RunningDduct, form: int, path: str) -> None:
    origin = dduct.origin(private)
    target = forms(origin, path)[form]
    for _ in range(2):  # what the second client has brought is not for the first
        refused = get(dduct, target)
        assert refused.status == 401 and (refused.get("www-authenticate") or "").startswith("Bearer realm=")
        assert 'realm="https://tokens.test/t"' in (refused.get("www-authenticate") or "")
        assert get(dduct, target, "Authorization: Bearer wrong").status == 401
        assert get(dduct, target, "Authorization: Bearer right").body == BODY


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status", "line"),
    [
        (f"{BLOB}?ns=evil.test", 404, "evil.test is not in certs.server_dns_sans or certs.server_ip_sans"),
        (f"/v2/evil.test{BLOB[3:]}", 404, "evil.test is not in certs.server_dns_sans or certs.server_ip_sans"),
        (f"{BLOB}?ns=docker.io", 404, "registry-1.docker.io is not in certs.server_dns_sans"),
        (f"{BLOB}?ns=", 400, "no name of a registry"),
        (f"{BLOB}?ns={HOST}&ns={HOST}", 400, "ns names more than one registry"),
        (f"{BLOB}?ns=https://{HOST}", 400, "no name of a registry: malformed host or port"),
        (f"{BLOB}?ns={HOST}%0d%0aX-Evil:1", 400, "no name of a registry: malformed"),
        (f"{BLOB}?ns={HOST}:0", 400, "no name of a registry: missing or impossible port"),
        (BLOB, 404, "name the registry of an image"),
        ("/v2/token?scope=repository:evil.test/a:pull", 404, "evil.test is not in certs.server_dns_sans"),
        ("/v2/token", 400, "expected one scope"),
    ],
)
def test_a_request_for_no_listed_registry_is_refused_in_one_line(
    dduct: RunningDduct, target: str, status: int, line: str
) -> None:
    client = dduct.client()
    for method in ("GET", "HEAD") if "token" not in target else ("GET", "GET"):
        answer = client.get(target, f"mirror.lab:{dduct.tcp_port}", method=method)  # the connection stays
        assert answer.status == status and answer.get("x-evil") is None
        assert answer.get("cache-status") in ("dduct; detail=refused", "dduct; detail=malformed")
        if method == "GET":
            assert answer.body.startswith(b"dduct: ") and line in answer.body.decode()
            assert answer.body.count(b"\n") == 1
    assert dduct.counted(Counter.REFUSED, 2) == 2
    assert dduct.stored() == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_mirror_takes_nothing(dduct: RunningDduct, method: str) -> None:
    origin = dduct.origin(Files({BLOB: BODY}))
    client = dduct.client()
    for target in (*forms(origin, BLOB), *forms(origin, "/v2/team/app/blobs/uploads/"), "/v2/"):
        client.send(f"{method} {target} HTTP/1.1\r\nHost: mirror.lab:{dduct.tcp_port}\r\n".encode())
        client.send(b"Content-Length: 5\r\n\r\n12345")
        answer = client.read(method)
        assert (answer.status, answer.get("allow")) == (405, "GET, HEAD") and b"no pushes" in answer.body
    assert origin.accepted == 0
    assert dduct.counted(Counter.REFUSED, 5) == 5


@pytest.mark.parametrize("form", [0, 1])
def test_a_remote_client_does_not_reach_this_machine_through_the_mirror(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, form: int
) -> None:
    monkeypatch.setattr("proxy.connections.reach_of", lambda client, host: Reach.NOTHING)
    origin = dduct.origin(Files({BLOB: BODY, TAG: b"{}"}))
    for path in (BLOB, TAG):
        refused = get(dduct, forms(origin, path)[form])
        assert refused.status == 403 and b"proxy.allow_own" in refused.body
    scope = f"/v2/token?scope=repository:{HOST}:{origin.port}/team/app:pull"
    assert get(dduct, scope).status == 403
    assert origin.accepted == 0
    opened = replace(dduct.config.proxy, allow_own=(f"{HOST}:{origin.port}",))
    dduct.server.reload(replace(dduct.config, proxy=opened))
    assert get(dduct, forms(origin, BLOB)[form]).body == BODY


@pytest.mark.parametrize("form", [0, 1])
def test_a_mirror_of_dduct_itself_is_a_loop(dduct: RunningDduct, form: int) -> None:
    for port in (dduct.tcp_port, dduct.tls_port):
        target = [f"{TAG}?ns={HOST}:{port}", f"/v2/{HOST}:{port}{TAG[3:]}"][form]
        assert get(dduct, target).status == 508
    origin = dduct.origin(Files({TAG: b"{}"}))
    via = get(dduct, forms(origin, TAG)[form]).get("via") or ""
    assert get(dduct, forms(origin, TAG)[form], f"Via: {via}").status == 508


def test_without_a_password_there_is_no_mirror(start_dduct: Build, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(hash_password("ada", "secret") + "\n")
    dduct = start_dduct(auth_file=users)
    origin = dduct.origin(Files({BLOB: BODY}))
    basic = "Proxy-Authorization: Basic YWRhOnNlY3JldA=="
    scope = f"/v2/token?scope=repository:{HOST}:{origin.port}/team/app:pull"
    for target in (*forms(origin, BLOB), scope):
        for fields in ([], [basic], ["Authorization: Basic YWRhOnNlY3JldA=="]):
            refused = get(dduct, target, *fields)
            assert refused.status == 403 and b"proxy.auth_file" in refused.body
    assert origin.accepted == 0
    # A client that uses dduct as its proxy, too, can send a password.
    own = f"http://{HOST}:{dduct.tcp_port}"
    assert get(dduct, own + forms(origin, BLOB)[0]).status == 407
    assert get(dduct, own + forms(origin, BLOB)[0], basic).body == BODY


def test_clients_that_are_not_allowed_have_no_mirror(start_dduct: Build) -> None:
    dduct = start_dduct(allow_clients=("192.0.2.0/24",))
    origin = dduct.origin(Files({BLOB: BODY}))
    assert get(dduct, forms(origin, BLOB)[0]).status == 403
    assert origin.accepted == 0


@pytest.mark.parametrize("form", [0, 1])
def test_the_tls_port_is_a_mirror_that_may_ask_for_certificates(start_dduct: Build, form: int) -> None:
    dduct = start_dduct(require_client_cert=True)
    certs = dduct.config.misc.cert_dir
    origin = dduct.origin(Files({BLOB: BODY}))
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    with dduct.client(dduct.tls_port) as client, pytest.raises((OSError, ConnectionError)):
        client.start_tls(context, HOST)
        client.get(forms(origin, BLOB)[form], f"mirror.lab:{dduct.tls_port}")
    context.load_cert_chain(certs / "client.crt", certs / "client.key")
    with dduct.client(dduct.tls_port) as client:
        client.start_tls(context, HOST)
        assert client.get(forms(origin, BLOB)[form], f"mirror.lab:{dduct.tls_port}").body == BODY


def test_an_origin_that_fails_is_502_so_that_clients_fall_back(dduct: RunningDduct) -> None:
    with nobody() as port:
        for target in (f"{TAG}?ns={HOST}:{port}", f"/v2/{HOST}:{port}{TAG[3:]}"):
            assert get(dduct, target).status == 502


# --- tokens for clients that name the registry in a path --------------------------------------------


class Tokens:
    """A token server, and a registry that sends its clients there."""

    def __init__(self, dduct: RunningDduct, scheme: str = "https") -> None:
        self.server = dduct.origin(self._issue)
        self.realm = f"{scheme}://{HOST}:{self.server.port}/t?a=b"
        self.registry = dduct.origin(self._serve)

    def _issue(self, asked: Asked, connection: Connection) -> None:
        wanted = asked.get("authorization") in (None, "Basic right")
        connection.respond(200 if wanted else 401, [], b'{"token": "t"}' if wanted else b"{}")

    def _serve(self, asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") == "Bearer t":
            connection.respond(200, [("ETag", '"1"')], BODY)
            return
        challenge = f'Basic realm="x", Bearer realm="{self.realm}", service="a \\"b\\""'
        connection.respond(401, [("WWW-Authenticate", challenge)], b"{}")


def token(dduct: RunningDduct, registry: Origin, *fields: str) -> Answer:
    scope = f"repository%3A{HOST}%3A{registry.port}%2Fa%2Fb%3Apull,push"
    return get(dduct, f"/v2/token?service=dduct&scope={scope}", *fields)


def test_a_client_that_asks_for_the_mirror_alone_learns_where_tokens_are(dduct: RunningDduct) -> None:
    own = f"mirror.lab:{dduct.tcp_port}"
    answer = get(dduct, "/v2/")
    assert answer.get("www-authenticate") == f'Bearer realm="http://{own}/v2/token",service="dduct"'
    assert (answer.status, answer.get("docker-distribution-api-version")) == (401, "registry/2.0")
    assert get(dduct, "/v2/", "Authorization: Bearer x").status == 200
    with dduct.client(dduct.tls_port) as client:
        client.start_tls(dduct.trust, HOST)
        realm = client.get("/v2/", f"mirror.lab:{dduct.tls_port}").get("www-authenticate")
        assert realm == f'Bearer realm="https://mirror.lab:{dduct.tls_port}/v2/token",service="dduct"'


def test_a_token_comes_from_the_registrys_own_server(dduct: RunningDduct) -> None:
    tokens = Tokens(dduct)
    answer = token(dduct, tokens.registry)
    assert (answer.status, answer.body) == (200, b'{"token": "t"}')
    (question,) = tokens.server.requests
    assert question.target == "/t?a=b&service=a%20%22b%22&scope=repository:a/b:pull"
    assert get(dduct, forms(tokens.registry, BLOB)[1], "Authorization: Bearer t").body == BODY
    assert get(dduct, forms(tokens.registry, BLOB)[1]).status == 401


def test_a_password_goes_to_the_token_server_alone(dduct: RunningDduct) -> None:
    tokens = Tokens(dduct)
    assert token(dduct, tokens.registry, "Authorization: Basic right", "X-Secret: 5").status == 200
    assert token(dduct, tokens.registry, "Authorization: Basic wrong").status == 401
    assert [asked.get("authorization") for asked in tokens.server.requests] == ["Basic right", "Basic wrong"]
    assert all(asked.target == "/v2/" and asked.get("authorization") is None for asked in tokens.registry.requests)
    assert all(asked.get("x-secret") is None for asked in tokens.registry.requests)


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_no_password_is_sent_to_a_token_server_without_tls(dduct: RunningDduct, scheme: str) -> None:
    tokens = Tokens(dduct, scheme)
    answer = token(dduct, tokens.registry, "Authorization: Basic right")
    assert answer.status == 502 and b"token server" in answer.body
    assert tokens.server.accepted == 0


def test_a_registry_without_tokens_gives_one_that_is_never_passed_on(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({BLOB: BODY, TAG: b"{}", "/v2/": b"{}"}))
    given: Any = json.loads(token(dduct, origin).body)
    assert given == {"token": mirror.ANONYMOUS, "access_token": mirror.ANONYMOUS, "expires_in": 300}
    bearer = f"Authorization: Bearer {given['token']}"
    client = dduct.client()
    for path in (TAG, *[BLOB] * 6):  # the poller's thread answers the last ones
        assert client.get(forms(origin, path)[1], f"mirror.lab:{dduct.tcp_port}", bearer).status == 200
    assert get(dduct, forms(origin, BLOB)[0]).body == BODY
    assert all(asked.get("authorization") is None for asked in origin.requests)
    assert [asked.target for asked in origin.requests] == ["/v2/", TAG, BLOB]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_in_trouble_gives_no_token(dduct: RunningDduct, status: int) -> None:
    origin = dduct.origin(lambda asked, connection: connection.respond(status, [], b"later"))
    answer = token(dduct, origin)
    assert answer.status == 502 and f"answers {status}" in answer.body.decode()


def test_an_unreachable_registry_gives_no_token(dduct: RunningDduct) -> None:
    with nobody() as port:
        assert get(dduct, f"/v2/token?scope=repository:{HOST}:{port}/a/b:pull").status == 502


def test_a_token_that_a_client_asks_for_with_a_body_disturbs_nothing(dduct: RunningDduct) -> None:
    tokens = Tokens(dduct)
    client = dduct.client()
    target = f"/v2/token?scope=repository:{HOST}:{tokens.registry.port}/a/b:pull"
    for _ in range(2):
        client.send(f"GET {target} HTTP/1.1\r\nHost: mirror.lab:{dduct.tcp_port}\r\n".encode())
        client.send(b"Content-Length: 3\r\n\r\nabc")
        assert client.read().body == b'{"token": "t"}'
    assert all(asked.body == b"" for asked in tokens.server.requests)
