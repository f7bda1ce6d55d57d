"""Which registry a request to the mirror is for, and what it is there."""

from __future__ import annotations

from typing import List, Optional, Tuple

import pytest

from protocol.headers import Headers
from protocol.http1 import ProtocolError, RequestHead
from proxy import mirror
from proxy.mirror import NoRegistry, registry_target, token_scope
from proxy.routing import Hosts

LISTED = Hosts(["*.docker.io", "reg.test", "*.ecr.*.cloud.test", "::1", "192.0.2.1", "localhost"])

AT_REGISTRIES: List[Tuple[str, str]] = [
    # containerd
    ("/v2/library/app/manifests/1?ns=docker.io", "https://registry-1.docker.io/v2/library/app/manifests/1"),
    ("/v2/team/app/blobs/sha256:0?ns=docker.io", "https://registry-1.docker.io/v2/team/app/blobs/sha256:0"),
    ("/v2/app/manifests/1?ns=docker.io", "https://registry-1.docker.io/v2/library/app/manifests/1"),
    ("/v2/app/manifests/1?ns=index.docker.io", "https://registry-1.docker.io/v2/library/app/manifests/1"),
    ("/v2/app/tags/list?ns=docker.io&n=5", "https://registry-1.docker.io/v2/library/app/tags/list?n=5"),
    ("/v2/app/referrers/sha256:0?ns=docker.io", "https://registry-1.docker.io/v2/library/app/referrers/sha256:0"),
    ("/v2/app/x?ns=docker.io", "https://registry-1.docker.io/v2/app/x"),
    ("/v2/app/manifests/1?ns=reg.test", "https://reg.test/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=REG.Test.", "https://reg.test/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=reg.test:5000", "https://reg.test:5000/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=reg.test%3A5000", "https://reg.test:5000/v2/app/manifests/1"),
    ("/v2/app/manifests/1?%6Es=reg%2etest", "https://reg.test/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=reg.test:443", "https://reg.test/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=%5B::1%5D:5000", "https://[::1]:5000/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=[0::1]", "https://[::1]/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=192.0.2.1:5000", "https://192.0.2.1:5000/v2/app/manifests/1"),
    ("/v2/app/manifests/1?ns=localhost:5000", "https://localhost:5000/v2/app/manifests/1"),
    ("/v2/a/manifests/1?ns=7.ecr.north.cloud.test", "https://7.ecr.north.cloud.test/v2/a/manifests/1"),
    ("/v2/a/b?x=1&ns=reg.test&y=%20", "https://reg.test/v2/a/b?x=1&y=%20"),
    ("/v2/a/b?ns=reg.test&", "https://reg.test/v2/a/b"),
    ("/v2/a/b?NS=1&ns=reg.test&nsx=2", "https://reg.test/v2/a/b?NS=1&nsx=2"),
    ("/v2/?ns=reg.test", "https://reg.test/v2/"),
    # CRI-O and podman
    ("/v2/docker.io/library/app/manifests/1", "https://registry-1.docker.io/v2/library/app/manifests/1"),
    ("/v2/docker.io/app/manifests/1", "https://registry-1.docker.io/v2/library/app/manifests/1"),
    ("/v2/REG.test/a/b/manifests/1?n=5", "https://reg.test/v2/a/b/manifests/1?n=5"),
    ("/v2/reg.test:5000/a/manifests/1", "https://reg.test:5000/v2/a/manifests/1"),
    ("/v2/reg.test%3A5000/a/manifests/1", "https://reg.test:5000/v2/a/manifests/1"),
    ("/v2/localhost:5000/a/manifests/1", "https://localhost:5000/v2/a/manifests/1"),
    ("/v2/reg.test/", "https://reg.test/v2/"),
    ("/v2/reg.test", "https://reg.test/v2/"),
    ("/v2/reg.test/../x", "https://reg.test/v2/../x"),
    # The parameter counts, and the path stays as it is.
    ("/v2/docker.io/app/manifests/1?ns=reg.test", "https://reg.test/v2/docker.io/app/manifests/1"),
]


@pytest.mark.parametrize(("target", "url"), AT_REGISTRIES, ids=[target for target, _ in AT_REGISTRIES])
def test_a_request_to_the_mirror_is_one_to_its_registry(target: str, url: str) -> None:
    assert str(registry_target(target.encode(), LISTED)) == url


REFUSED: List[Tuple[str, int, str]] = [
    ("/v2/a/manifests/1?ns=evil.test", 404, "evil.test is not in certs.server_dns_sans or certs.server_ip_sans"),
    ("/v2/a/manifests/1?ns=reg.test.evil", 404, "reg.test.evil is not in"),
    ("/v2/a/manifests/1?ns=docker.io:5000", 404, "docker.io is not in"),
    ("/v2/a/manifests/1?ns=ecr.north.cloud.test", 404, "is not in"),
    ("/v2/evil.test/a/manifests/1", 404, "evil.test is not in"),
    ("/v2/a/manifests/1?ns=", 400, "no name of a registry"),
    ("/v2/a/manifests/1?ns", 400, "no name of a registry"),
    ("/v2/reg.test/manifests/1?ns=", 400, "no name of a registry"),
    ("/v2/a/manifests/1?ns=reg.test&ns=evil.test", 400, "more than one"),
    ("/v2/a/manifests/1?ns=reg.test&%6es=reg.test", 400, "more than one"),
    ("/v2/a/manifests/1?ns=reg.test/", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=https://reg.test", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=me:secret@reg.test", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=reg.test%", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=reg.test%00", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=reg.test%0d%0aX:y", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=reg%FF.test", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=reg.test+", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=reg.test:0", 400, "no name of a registry: missing or impossible port"),
    ("/v2/a/manifests/1?ns=reg.test:99999", 400, "no name of a registry: missing or impossible port"),
    ("/v2/a/manifests/1?ns=[::1", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=[::1%25eth0]", 400, "no name of a registry: malformed"),
    ("/v2/a/manifests/1?ns=" + "a" * 300, 400, "no name of a registry: malformed"),
    ("/v2/me@reg.test/a/manifests/1", 400, "no name of a registry: malformed"),
    ("/v2/library/app/manifests/1", 404, "name the registry of an image: with ?ns=docker.io"),
    ("/v2/localhost/app/manifests/1", 404, "name the registry"),
    ("/v2/../reg.test/manifests/1", 404, "name the registry"),
    ("/v2//reg.test/app/manifests/1", 404, "name the registry"),
    ("/v2/?x=1", 404, "name the registry"),
    ("/v2/_catalog", 404, "name the registry"),
]


@pytest.mark.parametrize(("target", "status", "reason"), REFUSED, ids=[target[:60] for target, _, _ in REFUSED])
def test_a_request_for_no_listed_registry_is_refused_in_one_line(target: str, status: int, reason: str) -> None:
    with pytest.raises(NoRegistry) as caught:
        registry_target(target.encode(), LISTED)
    assert caught.value.status == status and reason in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_malformed_target_is_refused_as_everywhere() -> None:
    with pytest.raises(ProtocolError):
        registry_target(b"/v2/a b?ns=reg.test", LISTED)


@pytest.mark.parametrize(
    ("query", "registry", "scope"),
    [
        ("scope=repository:docker.io/library/app:pull", "registry-1.docker.io:443", "repository:library/app:pull"),
        ("scope=repository%3Adocker.io%2Fa%3Apull&service=x", "registry-1.docker.io:443", "repository:library/a:pull"),
        ("account=a&scope=repository:reg.test/a/b:pull", "reg.test:443", "repository:a/b:pull"),
        ("scope=repository:reg.test:5000/a:pull,push", "reg.test:5000", "repository:a:pull"),
        ("scope=repository:reg.test/a:", "reg.test:443", "repository:a:pull"),
    ],
)
def test_a_token_is_asked_for_in_the_words_of_its_registry(query: str, registry: str, scope: str) -> None:
    wanted = token_scope(query, LISTED)
    assert (str(wanted.registry), wanted.scope) == (registry, scope)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (None, 400),
        ("", 400),
        ("scope=", 400),
        ("scope=registry:catalog:*", 400),
        ("scope=repository:app:pull", 400),
        ("scope=repository:reg.test/:pull", 400),
        ("scope=repository:reg.test/a", 400),
        ("scope=repository:reg.test/a:pull&scope=repository:reg.test/b:pull", 400),
        ("scope=repository:evil.test/a:pull", 404),
        ("scope=repository:library/a:pull", 404),
        ("scope=repository:me%40reg.test/a:pull", 400),
    ],
)
def test_a_scope_without_a_listed_registry_is_refused(query: Optional[str], status: int) -> None:
    with pytest.raises(NoRegistry) as caught:
        token_scope(query, LISTED)
    assert caught.value.status == status and "\n" not in str(caught.value)


def test_the_token_for_none_is_not_passed_on() -> None:
    def head(*values: str) -> RequestHead:
        fields = [(b"Authorization", value.encode()) for value in values]
        return RequestHead(b"GET", b"/v2/", 1, Headers([(b"Accept", b"*/*"), *fields]))

    assert mirror.without_empty_token(head(f"Bearer {mirror.ANONYMOUS}")) == head()
    for others in (("Bearer other",), (f"Basic {mirror.ANONYMOUS}",), ("Bearer a", f"Bearer {mirror.ANONYMOUS}"), ()):
        assert mirror.without_empty_token(head(*others)) == head(*others)
