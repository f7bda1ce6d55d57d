"""The variants of a negotiated object: what its origin gave to clients that accept different media types.

Each is an object of its own, whose name ends in `VARIANT` and a mark of the accepted types.
"""

from __future__ import annotations

from typing import Optional

from cache import Hit
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.naming import VARIANT
from fetching.stored_metadata import scope, stored_fields
from net.addresses import may_reach
from protocol import freshness, media_types
from storage.record import Unstorable
from storage.store import Key

_MOST = 64  # variants of one object


def usable(services: Services, request: CacheableRequest, now: float) -> Optional[Hit]:
    """A variant that this client accepts, for where the origin cannot be asked; the caller closes it."""
    if VARIANT not in request.name.path:
        return None
    try:
        with services.cache.disk.operation():
            names = services.cache.store.beginning(request.name.path.partition(VARIANT)[0] + VARIANT, _MOST)
        for name in names:
            hit = services.cache.lookup(Key(name))
            if hit is None:
                continue
            if _suits(services, request, hit, now):
                return hit
            hit.entry.close()
    except Unstorable:
        return None
    return None


def _suits(services: Services, request: CacheableRequest, hit: Hit, now: float) -> bool:
    metadata = hit.metadata
    if metadata is None or metadata.restricted or not may_reach(request.reach, scope(metadata)):
        return False
    kind = stored_fields(metadata).get(b"content-type")
    if not media_types.accepts(request.head.headers.get(b"accept"), kind):
        return False
    others = tuple(field for field in metadata.vary if field[0].lower() != "accept")
    if others and freshness.varies(request.sent_fields, others):
        return False
    return request.assess(hit.entry.record, metadata, now, now).usable_on_error
