"""The metadata of a stored object, as HTTP's values: its fields, its age, its version. Values in, a value out."""

from __future__ import annotations

from functools import lru_cache
from typing import List

from fetching.naming import Name
from net.addresses import Scope
from protocol import freshness, validation
from protocol.freshness import Assessment, Basis, FreshnessRules, Stored
from protocol.headers import Field, Headers
from protocol.http1 import RequestHead
from storage.record import Metadata, Record


@lru_cache(maxsize=1024)
def stored_fields(metadata: Metadata) -> Headers:
    """The stored fields as bytes; recent ones are remembered."""
    return _as_headers(metadata)


def as_stored(metadata: Metadata) -> Stored:
    """The stored response, as its freshness is assessed."""
    return Stored(stored_fields(metadata), metadata.fetched_at, metadata.age)


def as_stored_once(metadata: Metadata) -> Stored:
    """Like `as_stored`, for metadata that is not used again soon: to remember it would take longer."""
    return Stored(_as_headers(metadata), metadata.fetched_at, metadata.age)


def _as_headers(metadata: Metadata) -> Headers:
    return Headers(as_fields(metadata))


def as_fields(metadata: Metadata) -> List[Field]:
    """The stored fields as bytes."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata.fields]


def version(metadata: Metadata) -> str:
    """A mark of this representation among all that its URL has had or will have (RFC 9110 §8.8.1).

    A strong tag outlives a validation. Without one, every validation counts as a change.
    """
    etag = validation.strong_etag(stored_fields(metadata))
    return repr(metadata.fetched_at) if etag is None else etag.decode("latin-1")


def scope(metadata: Metadata) -> Scope:
    """The scope of what the stored object came from."""
    if metadata.near:
        return Scope.LOCAL_ONLY
    return Scope.OWN_ADDRESS if metadata.own else Scope.ALL


def assess(
    request: RequestHead,
    name: Name,
    record: Record,
    stored: Stored,
    rules: FreshnessRules,
    now: float,
    asked_at: float,
) -> Assessment:
    """Whether a stored response may be used for a request that came at `asked_at`."""
    if name.digest is not None and record.sha256:
        return Assessment(True, True, stored.age(now), float("inf"), Basis.DIGEST)  # its content never changes
    return freshness.assess(request, stored, rules, now, asked_at, name.volatile, name.unasked)
