"""Which requests may change a restricted object's record, and what a response shows of it. Values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Tuple

from fetching.stored_metadata import stored_fields
from protocol import freshness, media_types
from protocol.freshness import FreshnessRules
from protocol.headers import Headers
from protocol.http1 import ResponseHead
from protocol.request_fields import RequestFields
from storage.record import Metadata

FIELDS, SIGNATURE, PRIVATE = "fields", "signature", "private"  # why an object is restricted, as its record says it
KNOWN_FOR = 86400.0  # seconds for which a client that was authorized once may bring a new version
_FORGOTTEN_BY_ALL = 86400.0  # seconds without a validation, after which any client may bring something else,
_FORGOTTEN = 3600.0  # or any client with credentials of the same kind


def reasons(fields: bool, signature: bool, private: bool) -> Tuple[str, ...]:
    """Why an object is restricted; empty where it is not."""
    given = ((FIELDS, fields), (SIGNATURE, signature), (PRIVATE, private))
    return tuple(reason for reason, applies in given if applies)


def merged(one: Metadata, other: Metadata) -> Metadata:
    """The first, with the restrictions of both: by credentials, and by the reach that a client needs."""
    both = dict.fromkeys((*one.restricted_by, *other.restricted_by))
    restricted = one.restricted or other.restricted
    return replace(
        one,
        restricted=restricted,
        restricted_by=tuple(both),
        same_for_all=one.same_for_all and not restricted,
        near=one.near or other.near,
        own=one.own or other.own,
    )


def may_replace(
    stored: Metadata, brings: Collection[str], known: bool, response: ResponseHead, fields: Headers, now: float
) -> bool:
    """Whether another response may replace the stored one.

    `brings`: the kinds of credentials of the request; `known`: they were authorized at this name not long ago. A
    login page is a 200, too: an unknown client needs the same kinds of credentials, and content of the same kind.
    """
    if not stored.restricted or stored.restricted_by == (PRIVATE,) or known:
        return True
    forgotten = now - stored.fetched_at
    if forgotten > _FORGOTTEN_BY_ALL:
        return True
    needed = [reason for reason in stored.restricted_by if reason != PRIVATE]
    if not all(reason in brings for reason in needed) or not brings:
        return False
    kind = response.headers.get(b"content-type")
    same_kind = media_types.essence(kind) == media_types.essence(fields.get(b"content-type"))
    return forgotten > _FORGOTTEN or (same_kind and not media_types.is_textual(kind))


def shown(
    metadata: Metadata, credentials: bool, response: ResponseHead, rules: FreshnessRules, names: RequestFields
) -> Metadata:
    """The metadata once an origin has given a request the stored object; the same where this shows nothing new.

    An object that the origin gives with credentials and without is unrestricted.
    """
    if not metadata.restricted:
        return replace(metadata, same_for_all=metadata.same_for_all or credentials)
    varies = any(names.opens(name) for name in stored_fields(metadata).tokens(b"vary"))
    private = PRIVATE in metadata.restricted_by or freshness.is_private(response, rules)
    if credentials or private or varies or not metadata.restricted_by:
        return metadata
    return replace(metadata, restricted=False, restricted_by=(), same_for_all=True)
