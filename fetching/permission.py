"""Who may change what is kept of a restricted object, and what an origin has shown of it. Values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Tuple

from protocol import freshness, media_types
from protocol.freshness import FreshnessRules
from protocol.http1 import Headers, ResponseHead
from protocol.request_fields import RequestFields
from storage.store import Metadata

FIELDS, SIGNATURE, PRIVATE = "fields", "signature", "private"  # why an object is restricted, as its record says it
KNOWN_FOR = 86400.0  # seconds for which a client that was let in once may bring a new version
_FORGOTTEN_BY_ALL = 86400.0  # seconds without a validation, after which anybody may bring something else,
_FORGOTTEN = 3600.0  # or at least anybody with credentials of the same kind


def reasons(fields: bool, signature: bool, private: bool) -> Tuple[str, ...]:
    """Why an object is restricted; nothing where it is anybody's."""
    given = ((FIELDS, fields), (SIGNATURE, signature), (PRIVATE, private))
    return tuple(reason for reason, applies in given if applies)


def merged(one: Metadata, other: Metadata) -> Metadata:
    """The first, restricted by whatever restricts either."""
    both = dict.fromkeys((*one.restricted_by, *other.restricted_by))
    restricted = one.restricted or other.restricted
    return replace(
        one, restricted=restricted, restricted_by=tuple(both), same_for_all=one.same_for_all and not restricted
    )


def may_replace(
    stored: Metadata, brings: Collection[str], known: bool, response: ResponseHead, fields: Headers, now: float
) -> bool:
    """Whether an answer that is not what is stored may take its place.

    `brings`: the kinds of credentials of the request; `known`: they were let in at this name not long ago. A stranger's
    page to log in is 200, too: who is known may, or gets the same kind of thing with the same kind of credentials.
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
    """What is known once an origin has shown that it gives a request what is stored; the same where that is no more.

    What it gives to those with credentials and to those without is anybody's.
    """
    if not metadata.restricted:
        return replace(metadata, same_for_all=metadata.same_for_all or credentials)
    varies = any(names.opens(name) for name in _vary_of(metadata))
    private = PRIVATE in metadata.restricted_by or freshness.is_private(response, rules)
    if credentials or private or varies or not metadata.restricted_by:
        return metadata
    return replace(metadata, restricted=False, restricted_by=(), same_for_all=True)


def _vary_of(metadata: Metadata) -> Tuple[bytes, ...]:
    stored = Headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata.fields)
    return tuple(stored.tokens(b"vary"))
