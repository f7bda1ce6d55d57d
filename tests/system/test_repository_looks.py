"""Whether a repository of images is public: what dduct asks, and what the answers show."""

from __future__ import annotations

from typing import Callable, List, Tuple

import pytest
from support.client import wait_until
from support.registry import NEW_CLIENT, Registry
from support.running import HOST, RunningDduct

from fetching.repositories import Access, _key
from monitoring.metrics import Counter

Build = Callable[..., RunningDduct]
REPOSITORY = "library/app"


def looked(registry: Registry) -> bool:
    """Whether dduct has noted the answer to a question of its own."""
    wait_until(lambda: registry.dduct.counters.value(Counter.LOOKS) == 1)
    return True


@pytest.mark.parametrize("asks", [True, False])
def test_an_image_that_only_users_have_asked_for_is_found_to_be_public(start_dduct: Build, asks: bool) -> None:
    registry = Registry(start_dduct(ask_anonymously=asks))
    index, manifest, layer = registry.add(REPOSITORY, "1")
    alice = registry.token(REPOSITORY, "alice")
    for digest in (index, manifest):
        assert registry.manifest(REPOSITORY, digest, alice).body == registry.content(digest)
    assert registry.blob(REPOSITORY, layer, alice).body == registry.content(layer)
    registry.dduct.wait_until_durable()
    assert registry.manifest(REPOSITORY, index, alice).body == registry.content(index)
    assert not asks or looked(registry)
    registry.origin.close()
    status = 200 if asks else 502
    wait_until(lambda: registry.blob(REPOSITORY, layer).status == status)
    assert registry.manifest(REPOSITORY, manifest).status == status


@pytest.mark.parametrize("asked", [True, False])
def test_a_tag_that_nobody_in_particular_validates_is_for_all(start_dduct: Build, asked: bool) -> None:
    registry = Registry(start_dduct(ask_anonymously=False))
    registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1", registry.token(REPOSITORY, "alice")).status == 200
    registry.dduct.wait_until_durable()
    assert registry.manifest(REPOSITORY, "1", registry.token(REPOSITORY, "bob")).status == 200
    anybody = registry.token(REPOSITORY)
    if asked:
        assert registry.manifest(REPOSITORY, "1", anybody).status == 200
    registry.origin.close()
    assert registry.manifest(REPOSITORY, "1", anybody).status == (200 if asked else 502)


def test_a_private_image_stays_private_after_a_look(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    registry.private.add(REPOSITORY)
    index, _, layer = registry.add(REPOSITORY, "1")
    alice = registry.token(REPOSITORY, "alice")
    assert registry.manifest(REPOSITORY, index, alice).status == registry.blob(REPOSITORY, layer, alice).status == 200
    dduct.wait_until_durable()
    assert registry.manifest(REPOSITORY, index, alice).status == 200
    assert looked(registry)
    tokens = len(registry.asked("/token"))
    assert registry.manifest(REPOSITORY, index, alice).status == 200
    assert registry.blob(REPOSITORY, layer).status == registry.manifest(REPOSITORY, index).status == 401
    assert len(registry.asked("/token")) == tokens  # it looks once a day
    registry.origin.close()
    assert registry.blob(REPOSITORY, layer).status == registry.manifest(REPOSITORY, index).status == 502


def test_an_image_that_has_become_private_is_noticed_at_the_next_look(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    index, manifest, layer = registry.add(REPOSITORY, "1")
    token = registry.token(REPOSITORY)
    for digest in (index, manifest):
        assert registry.manifest(REPOSITORY, digest, token).status == 200
    assert registry.blob(REPOSITORY, layer, token).status == 200
    dduct.wait_until_durable()
    registry.private.add(REPOSITORY)
    assert registry.blob(REPOSITORY, layer).status == 200  # within a day
    target = registry.target(f"/v2/{REPOSITORY}/blobs/{layer}")
    dduct.server.runtime.services.repositories._table.remove(_key(target))  # the day is over
    assert registry.manifest(REPOSITORY, index).status == 200
    assert looked(registry)
    wait_until(lambda: registry.blob(REPOSITORY, layer).status == 401)
    assert registry.manifest(REPOSITORY, manifest).status == registry.manifest(REPOSITORY, index).status == 401
    alice = registry.token(REPOSITORY, "alice")
    assert registry.blob(REPOSITORY, layer, alice).body == registry.content(layer)


def test_a_registry_that_is_away_leaves_what_is_known(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, index).status == 200
    target = registry.target(f"/v2/{REPOSITORY}/manifests/1")
    dduct.server.runtime.services.repositories._table.remove(_key(target))
    registry.origin.close()
    for _ in range(3):
        assert registry.manifest(REPOSITORY, index).status == 200
    assert dduct.counters.value(Counter.LOOKS) == 0


def forget(registry: Registry) -> None:
    """A day is over."""
    target = registry.target(f"/v2/{REPOSITORY}/manifests/1")
    registry.dduct.server.runtime.services.repositories._table.remove(_key(target))


def look_at(registry: Registry, digest: str, *fields: str) -> None:
    """Ask for what is stored, and wait for what dduct learns by a look of its own."""
    before = registry.dduct.counters.value(Counter.LOOKS)
    forget(registry)
    assert registry.manifest(REPOSITORY, digest, *fields).status == 200
    wait_until(lambda: registry.dduct.counters.value(Counter.LOOKS) == before + 1)


@pytest.mark.parametrize(
    "answer",
    [
        (200, [("Content-Type", "text/html"), ("Docker-Distribution-Api-Version", "registry/2.0")]),
        (200, [("Docker-Content-Digest", "sha256:" + "0" * 64)]),
        (302, [("Location", "https://login.example/")]),
        (404, [("Docker-Distribution-Api-Version", "registry/2.0")]),
    ],
)
def test_a_page_for_logging_in_makes_nothing_public(
    dduct: RunningDduct, answer: Tuple[int, List[Tuple[str, str]]]
) -> None:
    registry = Registry(dduct)
    registry.private.add(REPOSITORY)
    index, _, _ = registry.add(REPOSITORY, "1")
    alice, bob = (registry.token(REPOSITORY, user) for user in ("alice", "bob"))
    assert registry.manifest(REPOSITORY, index, alice).status == 200
    dduct.wait_until_durable()
    registry.trouble = lambda asked: answer if (asked.get("authorization") or "").endswith("-") else None
    look_at(registry, index, bob)
    registry.trouble = lambda asked: None
    assert registry.manifest(REPOSITORY, index).status == 401


@pytest.mark.parametrize("coded", [True, False])
def test_what_a_token_server_says_without_a_token_takes_nothing_away(dduct: RunningDduct, coded: bool) -> None:
    """One that is coded although nobody asked for that; a page in place of an answer."""
    registry = Registry(dduct)
    registry.realm = f"https://{registry.host}/token"
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, index, registry.token(REPOSITORY)).status == 200
    dduct.wait_until_durable()
    registry.coded_tokens = coded
    if not coded:
        registry.trouble = lambda asked: (200, [("Content-Type", "text/html")]) if "/token" in asked.target else None
    forget(registry)
    assert registry.manifest(REPOSITORY, index).status == 200
    wait_until(lambda: bool(registry.asked("/token")[1:]))
    assert not coded or looked(registry)
    registry.origin.close()
    assert registry.manifest(REPOSITORY, index).status == 200


def test_a_look_says_which_program_asks(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    registry.realm = f"https://{registry.host}/token"
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, index, registry.token(REPOSITORY)).status == 200
    dduct.wait_until_durable()
    registry.trouble = lambda asked: None if asked.get("user-agent") else (403, [])
    look_at(registry, index, "User-Agent: docker")
    assert registry.manifest(REPOSITORY, index).status == 200
    token = [one for one in registry.origin.requests if "/token" in one.target][-1]
    assert (token.get("user-agent"), token.get("accept")) == ("docker", None)


def test_a_registry_that_says_neither_is_not_asked_each_minute(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, index, registry.token(REPOSITORY)).status == 200
    dduct.wait_until_durable()
    registry.trouble = lambda asked: (404, []) if asked.method == "HEAD" else None
    look_at(registry, index)
    target = registry.target(f"/v2/{REPOSITORY}/manifests/1")
    assert dduct.server.runtime.services.repositories.known(target) is Access.UNKNOWN


def test_a_query_with_a_secret_makes_nothing_public(dduct: RunningDduct) -> None:
    """Nor does a path that an origin takes for another repository's."""
    registry = Registry(dduct)
    registry.private.add(REPOSITORY)
    index, _, _ = registry.add(REPOSITORY, "1")
    alice = registry.token(REPOSITORY, "alice")
    assert registry.manifest(REPOSITORY, index, alice).status == 200
    dduct.wait_until_durable()
    registry.opens = lambda asked: "token=alices" in asked.target or "%2f" in asked.target
    assert registry.get(f"/v2/{REPOSITORY}/manifests/{index}?token=alices", NEW_CLIENT).status == 200
    assert registry.get(f"/v2/{REPOSITORY}/manifests/..%2f..%2fopen%2fmanifests%2f1", NEW_CLIENT).status == 404
    registry.tags[REPOSITORY, "..%2f..%2fopen%2fmanifests%2f1"] = index
    assert registry.get(f"/v2/{REPOSITORY}/manifests/..%2f..%2fopen%2fmanifests%2f1", NEW_CLIENT).status == 200
    for _ in range(2):
        assert registry.manifest(REPOSITORY, index).status == 401
    target = registry.target(f"/v2/{REPOSITORY}/manifests/1")
    assert dduct.server.runtime.services.repositories.known(target) is not Access.PUBLIC


def test_another_origin_does_not_open_what_has_become_private(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    index, _, layer = registry.add(REPOSITORY, "1")
    token = registry.token(REPOSITORY)
    assert registry.manifest(REPOSITORY, index, token).status == registry.blob(REPOSITORY, layer, token).status == 200
    dduct.wait_until_durable()
    registry.private.add(REPOSITORY)
    look_at(registry, index)
    wait_until(lambda: registry.blob(REPOSITORY, layer).status == 401)
    claim = b"x" * len(registry.content(layer))
    other = dduct.origin(lambda asked, connection: connection.respond(200, [], claim))
    with dduct.intercepted(other) as client:
        client.send(f"GET /v2/their/app/blobs/{layer} HTTP/1.1\r\nHost: {HOST}:{other.port}\r\n\r\n".encode())
        assert client.read().body == claim


def test_a_layer_from_behind_a_registry_is_public_once_its_repository_is_known_to_be(dduct: RunningDduct) -> None:
    """Its own response shows nothing of that: storage has sent it."""
    registry = Registry(dduct)
    registry.bare_layers = True
    index, _, layer = registry.add(REPOSITORY, "1")
    alice, anybody = registry.token(REPOSITORY, "alice"), registry.token(REPOSITORY)
    assert registry.blob(REPOSITORY, layer, alice).body == registry.content(layer)
    dduct.wait_until_durable()
    assert registry.manifest(REPOSITORY, index, anybody).body == registry.content(index)
    assert registry.blob(REPOSITORY, layer, alice).body == registry.content(layer)
    before = len(registry.origin.requests)
    assert registry.blob(REPOSITORY, layer).body == registry.content(layer)
    assert len(registry.origin.requests) == before
