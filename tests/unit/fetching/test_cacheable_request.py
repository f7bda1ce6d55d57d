"""What follows from a cacheable request before its origin is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Optional, Tuple, cast

import pytest
from support.knowledge import known

from fetching.cacheable_request import CacheableRequest, may_confirm_alias
from fetching.filler import Services
from fetching.naming import Name
from monitoring.details import Detail
from net.addresses import Reach
from protocol.freshness import FreshnessRules
from protocol.headers import Headers
from protocol.http1 import Authority, RequestHead, Target
from protocol.request_fields import DEFAULT
from storage.record import Digest, Metadata

DIGEST = Digest("sha256", "0" * 64)
URL = "https://some.thing/x.deb"
TOKEN = (b"Authorization", b"Bearer t")


def a_request(
    *fields: Tuple[bytes, bytes],
    method: bytes = b"GET",
    query: str = "",
    digest: Optional[Digest] = None,
    signature: str = "",
) -> CacheableRequest:
    facts = known()
    services = SimpleNamespace(
        names=DEFAULT,
        freshness=FreshnessRules(),
        via=b"1.1 dduct",
        public_tokens=facts.public_tokens,
        rate_limits=facts.rate_limits,
    )
    path = "https/some.thing/x.deb" + (f"?{query}" if query else "")
    return CacheableRequest(
        cast(Services, services),
        RequestHead(method, b"/x.deb", 1, Headers(fields)),
        Target("https", Authority("some.thing", 443), "/x.deb", query or None),
        Name(path, digest, signature),
        Reach.NOTHING,
    )


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (a_request(), None),
        (a_request(method=b"HEAD"), Detail.HEAD),
        (a_request((b"Cache-Control", b"only-if-cached")), Detail.NO_STORE),
        (a_request((b"Cache-Control", b"no-store")), Detail.NO_STORE),
        (a_request((b"Cache-Control", b"no-store"), method=b"HEAD"), Detail.HEAD),
    ],
)
def test_some_requests_store_nothing(request_: CacheableRequest, why: Optional[Detail]) -> None:
    assert request_.why_no_fill is why


def test_a_grant_for_head_is_not_one_for_get() -> None:
    get, head = a_request(TOKEN), a_request(TOKEN, method=b"HEAD")
    assert get.credentials == head.credentials == get.grantee
    assert head.grantee not in (get.grantee, b"")


def test_a_client_without_credentials_has_no_identity() -> None:
    assert a_request().credentials == b""
    assert a_request(method=b"HEAD").grantee == b""


def test_a_signature_counts_as_credentials() -> None:
    signed = a_request(signature="sig=1")
    assert signed.credentials == b"sig=1"
    assert signed.signed and not a_request(TOKEN).signed
    assert signed.brings == ("signature",) and a_request(TOKEN).brings == ("fields",)


def test_a_record_distinguishes_queries_without_showing_them() -> None:
    one, other = a_request(query="key=secret").place, a_request(query="key=other").place
    assert one != other and "secret" not in one
    assert one.startswith(URL + "?")
    assert a_request().place == URL


def test_an_object_that_a_digest_names_may_come_from_another_url() -> None:
    elsewhere = Metadata("https://other.thing/x.deb", (), 0.0)
    assert a_request().is_of_this_url(elsewhere)  # without a digest, a name is one URL's
    assert not a_request(digest=DIGEST).is_of_this_url(elsewhere)
    assert a_request(digest=DIGEST).is_of_this_url(Metadata(URL, (), 0.0))
    assert not a_request(digest=DIGEST, signature="sig=1").is_of_this_url(Metadata(URL, (), 0.0))


@pytest.mark.parametrize(
    ("url", "restricted", "may"),
    [
        ("https://some.thing/y.deb", True, True),
        ("https://other.thing/x.deb", True, False),
        ("http://some.thing/x.deb", True, False),
        ("https://other.thing/x.deb", False, True),
    ],
)
def test_only_its_own_origin_opens_a_restricted_object(url: str, restricted: bool, may: bool) -> None:
    brought = Metadata(url, (), 0.0, restricted=restricted)
    assert may_confirm_alias(a_request(digest=DIGEST), brought) is may


def test_a_validation_that_decides_on_permission_needs_proof() -> None:
    open_, closed = Metadata(URL, (), 0.0), Metadata(URL, (), 0.0, restricted=True)
    assert not a_request().needs_proof(open_)
    assert a_request().needs_proof(closed)
    assert a_request(TOKEN).needs_proof(open_)
