"""Images: manifests and layers, tokens for anybody and for somebody, tags that move, registries that are away."""

from __future__ import annotations

import json
from typing import Callable, List

import pytest
from support.client import wait_until
from support.origin import Gate
from support.registry import LIST, MANIFEST, NEW_CLIENT, OLD_CLIENT, Registry
from support.running import RunningDduct

from monitoring.metrics import Counter

Build = Callable[..., RunningDduct]
REPOSITORY = "library/app"


# --- tokens for anybody -----------------------------------------------------------------------------


def test_what_a_token_for_anybody_brings_is_for_all(dduct: RunningDduct) -> None:
    """Twenty clients with a token each: no question about layers, one HEAD about the tag."""
    registry = Registry(dduct)
    index, manifest, layer = registry.add(REPOSITORY, "1")
    first = registry.token(REPOSITORY)
    assert registry.manifest(REPOSITORY, "1", first).body == registry.content(index)
    assert registry.manifest(REPOSITORY, manifest, first).body == registry.content(manifest)
    assert registry.blob(REPOSITORY, layer, first).body == registry.content(layer)
    tokens = [registry.token(REPOSITORY) for _ in range(20)]
    before = len(registry.origin.requests)
    for token in tokens:
        assert registry.manifest(REPOSITORY, index, token).body == registry.content(index)
        assert registry.manifest(REPOSITORY, manifest, token).body == registry.content(manifest)
        assert registry.blob(REPOSITORY, layer, token).body == registry.content(layer)
    assert registry.blob(REPOSITORY, layer).body == registry.content(layer)
    assert len(registry.origin.requests) == before


def test_a_token_of_a_user_makes_nothing_public(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    registry.private.add(REPOSITORY)
    index, _, layer = registry.add(REPOSITORY, "1")
    alice = registry.token(REPOSITORY, "alice")
    assert registry.manifest(REPOSITORY, "1", alice).body == registry.content(index)
    assert registry.blob(REPOSITORY, layer, alice).body == registry.content(layer)
    anybody, forged = registry.token(REPOSITORY), "Authorization: Bearer forged"
    for token in ([], [anybody], [forged]):
        assert registry.manifest(REPOSITORY, "1", *token).status == 401
        assert registry.manifest(REPOSITORY, index, *token).status == 401
        assert registry.blob(REPOSITORY, layer, *token).status == 401
    bob = registry.token(REPOSITORY, "bob")
    assert registry.blob(REPOSITORY, layer, bob).body == registry.content(layer)
    assert registry.manifest(REPOSITORY, "1", bob).body == registry.content(index)


def test_a_token_for_anybody_opens_nothing_of_a_private_repository(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    registry.private.add("secret/app")
    registry.add(REPOSITORY, "1")
    _, _, layer = registry.add("secret/app", "1")
    anybody, alice = registry.token(REPOSITORY), registry.token("secret/app", "alice")
    assert registry.blob("secret/app", layer, alice).body == registry.content(layer)
    assert registry.blob("secret/app", layer, anybody).status == 401
    assert registry.blob("secret/app", layer, alice).body == registry.content(layer)


@pytest.mark.parametrize("query", ["&account=alice", "&password=x", "&client=7"])
def test_a_token_for_a_request_that_may_name_a_user_is_that_users(start_dduct: Build, query: str) -> None:
    registry = Registry(start_dduct(ask_anonymously=False))
    _, _, layer = registry.add(REPOSITORY, "1")
    token = registry.token(REPOSITORY, query=query)
    assert registry.blob(REPOSITORY, layer, token).body == registry.content(layer)
    before = len(registry.origin.requests)
    assert registry.blob(REPOSITORY, layer).status == 401
    assert len(registry.origin.requests) == before + 1


def test_another_registry_that_names_the_same_token_server_is_judged_by_itself(start_dduct: Build) -> None:
    """The token is for anybody there; an origin that never named that server has said nothing of it."""
    dduct = start_dduct(ask_anonymously=False)
    registry, other = Registry(dduct), Registry(dduct, tokens=False)
    _, _, layer = other.add("their/app", "1")
    registry.add(REPOSITORY, "1")
    token = registry.token(REPOSITORY)
    assert other.blob("their/app", layer, token).body == other.content(layer)
    before = len(other.origin.requests)
    assert other.blob("their/app", layer).body == other.content(layer)
    assert len(other.origin.requests) == before + 1  # asked: it was brought by credentials


# --- tags -------------------------------------------------------------------------------------------


def test_a_tag_is_validated_by_head_and_costs_no_second_body(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").body == registry.content(index)
    dduct.wait_until_durable()
    for method in ("GET", "HEAD"):
        before = len(registry.origin.requests)
        answer = registry.manifest(REPOSITORY, "1", method=method)
        assert answer.get("docker-content-digest") == index
        assert [one.method for one in registry.origin.requests[before:]] == ["HEAD"]


def test_questions_about_a_tag_share_one_connection(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    registry.add(REPOSITORY, "1")
    registry.manifest(REPOSITORY, "1")
    dduct.wait_until_durable()
    for _ in range(5):
        assert registry.manifest(REPOSITORY, "1").status == 200
    assert registry.asked("manifests")[1:] == [f"HEAD /v2/{REPOSITORY}/manifests/1"] * 5
    assert registry.origin.accepted == 1


@pytest.mark.parametrize("etags", [True, False])
def test_a_tag_that_has_moved_is_found_at_once(dduct: RunningDduct, etags: bool) -> None:
    registry = Registry(dduct, tokens=False, etags=etags)
    old, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").body == registry.content(old)
    for method in ("HEAD", "GET"):
        new, _, _ = registry.add(REPOSITORY, "1")
        answer = registry.manifest(REPOSITORY, "1", method=method)
        assert answer.get("docker-content-digest") == new
        assert answer.get("content-length") == str(len(registry.content(new)))


def test_within_tag_check_nothing_is_asked(start_dduct: Build) -> None:
    registry = Registry(start_dduct(tag_check=60.0), tokens=False)
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").body == registry.content(index)
    before = len(registry.origin.requests)
    assert registry.manifest(REPOSITORY, "1").body == registry.content(index)
    assert registry.manifest(REPOSITORY, "1", method="HEAD").get("docker-content-digest") == index
    assert len(registry.origin.requests) == before
    assert registry.manifest(REPOSITORY, "1", "Cache-Control: no-cache").body == registry.content(index)
    assert len(registry.origin.requests) == before + 1


def test_few_requests_that_are_left_are_spared(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    index, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").body == registry.content(index)
    registry.remaining = 3
    assert registry.manifest(REPOSITORY, "1").body == registry.content(index)
    before = len(registry.origin.requests)
    assert registry.manifest(REPOSITORY, "1").body == registry.content(index)
    assert len(registry.origin.requests) == before
    assert dduct.client().get("/metrics", "localhost").body.count(b"dduct_ratelimit_remaining{") == 1


def test_a_push_ends_what_is_known_of_a_tag(start_dduct: Build) -> None:
    registry = Registry(start_dduct(tag_check=60.0), tokens=False)
    registry.add(REPOSITORY, "1")
    registry.manifest(REPOSITORY, "1")
    registry.manifest(REPOSITORY, "1", OLD_CLIENT)
    registry.trouble = lambda asked: (201, []) if asked.method == "PUT" else None
    assert registry.get(f"/v2/{REPOSITORY}/manifests/1", "Content-Length: 0", method="PUT").status == 201
    new, manifest, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").body == registry.content(new)
    assert registry.manifest(REPOSITORY, "1", OLD_CLIENT).body == registry.content(manifest)


def test_head_brings_a_manifest_and_its_digest(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    index, _, _ = registry.add(REPOSITORY, "1")
    answer = registry.manifest(REPOSITORY, "1", method="HEAD")
    assert (answer.status, answer.get("docker-content-digest")) == (200, index)
    assert answer.get("content-length") == str(len(registry.content(index)))
    assert registry.manifest(REPOSITORY, index).body == registry.content(index)
    assert registry.asked("manifests") == [f"GET /v2/{REPOSITORY}/manifests/1"]


def test_each_client_gets_what_it_accepts(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    index, manifest, _ = registry.add(REPOSITORY, "1")
    for _ in range(2):
        for accept, digest in ((OLD_CLIENT, manifest), (NEW_CLIENT, index)):
            assert registry.manifest(REPOSITORY, "1", accept).body == registry.content(digest)
    assert registry.manifest(REPOSITORY, index, OLD_CLIENT).get("content-type") == MANIFEST
    assert registry.manifest(REPOSITORY, index, NEW_CLIENT).get("content-type") == LIST


def test_the_order_of_accepted_types_says_nothing(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    registry.add(REPOSITORY, "1")
    registry.manifest(REPOSITORY, "1", f"Accept: {LIST},{MANIFEST}")
    registry.manifest(REPOSITORY, "1", f"Accept: {MANIFEST} , {LIST}")
    assert registry.asked("manifests") == [f"{method} /v2/{REPOSITORY}/manifests/1" for method in ("GET", "HEAD")]


def test_a_registry_without_head_is_asked_by_get(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    old, _, _ = registry.add(REPOSITORY, "1")
    registry.trouble = lambda asked: (405, []) if asked.method == "HEAD" else None
    assert registry.manifest(REPOSITORY, "1").body == registry.content(old)
    assert registry.manifest(REPOSITORY, "1").body == registry.content(old)
    new, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").body == registry.content(new)


def test_a_manifest_with_another_digest_than_stated_is_not_used(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    registry.add(REPOSITORY, "1")
    wrong = "sha256:" + "0" * 64
    registry.trouble = lambda asked: (200, [("Content-Type", LIST), ("Docker-Content-Digest", wrong)])
    assert registry.manifest(REPOSITORY, "1").status == 502
    assert not dduct.stored()


def test_a_tag_that_is_gone_is_gone(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1").status == 200
    del registry.tags[REPOSITORY, "1"]
    assert registry.manifest(REPOSITORY, "1").status == 404
    registry.origin.close()
    assert registry.manifest(REPOSITORY, "1").status == 502


# --- registries that are away, or refuse ------------------------------------------------------------


def pulled(registry: Registry, *fields: str) -> List[int]:
    """The statuses of all that a pull asks for, whose bytes must be right."""
    index = registry.tags[REPOSITORY, "1"]
    found = []
    for method in ("HEAD", "GET"):
        for reference in ("1", index):
            answer = registry.manifest(REPOSITORY, reference, *fields, method=method)
            found.append(answer.status)
            assert method == "HEAD" or answer.status != 200 or answer.body == registry.content(index)
    return found


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_public_image_is_pulled_whatever_its_registry_answers(dduct: RunningDduct, status: int) -> None:
    registry = Registry(dduct)
    _, _, layer = registry.add(REPOSITORY, "1")
    first, second = registry.token(REPOSITORY), registry.token(REPOSITORY)
    assert pulled(registry, first) == [200] * 4
    assert registry.blob(REPOSITORY, layer, first).status == 200
    registry.trouble = lambda asked: (status, [("Retry-After", "60")])
    for token in ([], [first], [second]):
        assert pulled(registry, *token) == [200] * 4
        assert registry.blob(REPOSITORY, layer, *token).body == registry.content(layer)
    assert registry.get("/v2/").status == 200


def test_a_public_image_is_pulled_while_its_registry_is_away_and_a_private_one_is_not(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    registry.private.add("secret/app")
    registry.add(REPOSITORY, "1")
    secret, _, layer = registry.add("secret/app", "1")
    first, alice = registry.token(REPOSITORY), registry.token("secret/app", "alice")
    assert pulled(registry, first) == [200] * 4
    assert registry.manifest("secret/app", "1", alice).status == registry.blob("secret/app", layer, alice).status == 200
    dduct.wait_until_durable()
    registry.origin.close()
    for token in ([], [first], ["Authorization: Bearer new"]):
        assert pulled(registry, *token) == [200] * 4
        for path in (f"manifests/{secret}", "manifests/1", f"blobs/{layer}"):
            assert registry.get(f"/v2/secret/app/{path}", NEW_CLIENT, *token).status == 502
    assert registry.get("/v2/").body == b"{}"
    assert registry.get("/v2/", "Authorization: Basic YTpi").status == registry.get("/v2/?a=b").status == 502


@pytest.mark.parametrize("status", [429, 503])
def test_a_public_image_is_pulled_while_its_token_server_is_away_and_a_private_one_is_not(
    dduct: RunningDduct, status: int
) -> None:
    registry = Registry(dduct)
    registry.private.add("secret/app")
    index, _, layer = registry.add(REPOSITORY, "1")
    secret, _, _ = registry.add("secret/app", "1")
    first, alice = registry.token(REPOSITORY), registry.token("secret/app", "alice")
    assert pulled(registry, first) == [200] * 4
    assert registry.manifest("secret/app", "1", alice).status == registry.manifest("secret/app", secret, alice).status
    dduct.wait_until_durable()
    registry.trouble = lambda asked: (status, []) if asked.target.startswith("/token") else None
    token = registry.token(REPOSITORY)
    assert pulled(registry, token) == [200] * 4
    for missing in (registry.blob(REPOSITORY, layer, token), registry.manifest(REPOSITORY, "2", token)):
        assert (missing.status, missing.body) == (503, b"dduct: its token server cannot be asked\n")
    # What the registry says to a token of its own counts, and to nobody.
    assert registry.manifest(REPOSITORY, "1").status == 401
    new, _, _ = registry.add(REPOSITORY, "1")
    assert registry.manifest(REPOSITORY, "1", token).body == registry.content(index)
    assert registry.manifest(REPOSITORY, "1", first).body == registry.content(new)
    # A client with a password gets such a token, too: it opens what anybody gets.
    token = registry.token(REPOSITORY, "alice", "&account=alice")
    assert registry.blob(REPOSITORY, layer, token).status == 503
    assert registry.manifest(REPOSITORY, index, token).body == registry.content(index)
    for reference in ("1", secret):
        assert registry.manifest("secret/app", reference, token).status == 503
    posted = registry.get("/token", "Content-Length: 0", method="POST", origin=registry.tokens)
    assert "access_token" in json.loads(posted.body)


@pytest.mark.parametrize("path", ["/v2/", "/token?service=registry"])
def test_a_registry_or_token_server_that_hangs_keeps_nobody_waiting_for_long(start_dduct: Build, path: str) -> None:
    """Far sooner than the time that relayed answers have, and at once while it is known."""
    registry = Registry(start_dduct(upstream_timeout=0.5, relay_timeout=300.0))
    registry.add(REPOSITORY, "1")
    registry.manifest(REPOSITORY, "1", registry.token(REPOSITORY))
    origin = registry.tokens if path.startswith("/token") else registry.origin
    gate = Gate()
    registry.trouble = lambda asked: gate.wait() if asked.target == path else None
    try:
        for _ in range(3):
            assert registry.get(path, origin=origin).status == 200
        assert origin.count(path) == 1
    finally:
        gate.open()


def test_v2_is_not_answered_for_a_registry_of_which_nothing_is_stored(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    registry.origin.close()
    assert registry.get("/v2/").status == 502


def test_a_client_that_accepts_other_types_gets_a_stored_one_that_it_accepts(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    index, manifest, _ = registry.add(REPOSITORY, "1")
    registry.manifest(REPOSITORY, "1", NEW_CLIENT)
    registry.manifest(REPOSITORY, "1", OLD_CLIENT)
    registry.origin.close()
    for accept, digest in ((f"Accept: {LIST}", index), (f"Accept: {MANIFEST}, text/x", manifest)):
        assert registry.manifest(REPOSITORY, "1", accept).body == registry.content(digest)
    assert registry.manifest(REPOSITORY, "1", "Accept: text/x").status == 502
    assert registry.manifest(REPOSITORY, "1", f"Accept: {LIST};q=0").status == 502


def test_an_object_whose_gateway_fails_leaves_the_others_fresh(dduct: RunningDduct) -> None:
    """Otherwise a client that finds such an object could keep everything else of its origin as it was."""
    registry = Registry(dduct, tokens=False)
    registry.add(REPOSITORY, "1")
    registry.trouble = lambda asked: (502, []) if asked.target.endswith("/broken") else None
    for _ in range(2):
        new, _, _ = registry.add(REPOSITORY, "1")
        assert registry.manifest(REPOSITORY, "broken").status == 502
        assert registry.manifest(REPOSITORY, "1").body == registry.content(new)


def test_a_registry_that_refuses_is_not_asked_again(dduct: RunningDduct) -> None:
    registry = Registry(dduct, tokens=False)
    _, _, layer = registry.add(REPOSITORY, "1")
    registry.trouble = lambda asked: (429, [("Retry-After", "60")])
    assert registry.manifest(REPOSITORY, "1").status == 429
    before = len(registry.origin.requests)
    for answer in (registry.manifest(REPOSITORY, "1"), registry.blob(REPOSITORY, layer)):
        assert answer.status == 429
        assert 0 < int(answer.get("retry-after") or 0) <= 60
    assert len(registry.origin.requests) == before
    assert dduct.counters.value(Counter.REFUSALS) == 1


def test_a_refusal_of_one_user_is_not_anothers(dduct: RunningDduct) -> None:
    registry = Registry(dduct)
    _, _, layer = registry.add(REPOSITORY, "1")
    alice, bob = (registry.token(REPOSITORY, user) for user in ("alice", "bob"))
    registry.trouble = lambda asked: (429, []) if asked.get("authorization") == alice.partition(": ")[2] else None
    assert registry.blob(REPOSITORY, layer, alice).status == 429
    assert registry.blob(REPOSITORY, layer, bob).body == registry.content(layer)


def test_two_workers_share_what_they_know(start_dduct: Build) -> None:
    """Tokens, permissions and refusals: whichever worker gets a request."""
    dduct = start_dduct(workers=2, ask_anonymously=False)
    registry = Registry(dduct)
    registry.private.add("secret/app")
    _, _, layer = registry.add(REPOSITORY, "1")
    _, _, secret = registry.add("secret/app", "1")
    anybody, alice, bob = registry.token(REPOSITORY), *(registry.token("secret/app", one) for one in ("alice", "bob"))
    assert registry.blob(REPOSITORY, layer, anybody).status == registry.blob("secret/app", secret, alice).status == 200
    wait_until(lambda: len(dduct.stored()) >= 4)
    before = len(registry.origin.requests)
    for _ in range(8):
        assert registry.blob(REPOSITORY, layer, anybody).body == registry.content(layer)
        assert registry.blob("secret/app", secret, bob).body == registry.content(secret)
    assert len(registry.origin.requests) - before == 1
