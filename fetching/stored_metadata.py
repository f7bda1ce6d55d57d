"""The metadata of a stored object, as HTTP's values: its fields, its age, its version. Values in, a value out."""

from __future__ import annotations

from functools import lru_cache

from net.addresses import Scope
from protocol import validation
from protocol.freshness import Stored
from protocol.headers import Headers
from storage.record import Metadata


@lru_cache(maxsize=1024)
def stored_fields(metadata: Metadata) -> Headers:
    """The stored fields as bytes."""
    return Headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata.fields)


def as_stored(metadata: Metadata) -> Stored:
    """The stored response, as its freshness is assessed."""
    return Stored(stored_fields(metadata), metadata.fetched_at, metadata.age)


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
