"""Hits of small objects for requests that are not plain: HEAD, one range, conditions, credentials with a grant.

Rules of this module:

* It gives exactly the bytes that `CachedFetch` would give, or nothing: its steps are those of `CachedFetch._hit`, and
  where one of them would ask the origin, wait, validate or relay, the request takes a thread.
* Nothing waits, and nothing is remembered: these requests differ too much.
"""

from __future__ import annotations

import time
from typing import Optional

from cache import Hit
from fetching import outcomes
from fetching.authorization import holds_grant, needs_permission
from fetching.cacheable_request import CacheableRequest, bare
from fetching.deliver import shown
from fetching.filler import Services
from fetching.small_hit import Answer, may_be_granted
from fetching.stored_metadata import as_stored_once, assess, scope
from net.addresses import may_reach
from net.response import head_fields
from protocol import http1, selection
from protocol.freshness import Assessment, Basis, Stored
from protocol.http1 import NO_BODY, BodyFraming, Framing
from protocol.selection import Selection
from storage.glance import read_without_waiting
from storage.record import Metadata


def answer(services: Services, request: CacheableRequest, hit: Hit) -> Optional[Answer]:
    """The response to a request that a hit answers at once; None where it takes a thread."""
    metadata = hit.metadata
    if metadata is None or not may_be_granted(hit) or not _is_for(services, request, metadata):
        return None
    now, stored = time.time(), as_stored_once(metadata)
    assessment = assess(request.head, request.name, hit.entry.record, stored, services.freshness, now, now)
    if not _is_fresh(services, request, metadata, assessment, now):
        return None
    chosen = selection.select(request.head, stored.fields, hit.entry.record.length)
    if chosen is None or len(chosen.parts) > 1:
        return None
    return _composed(services, request, hit, stored, assessment, chosen, now)


def _is_for(services: Services, request: CacheableRequest, metadata: Metadata) -> bool:
    """Whether the stored object is for this client and this request."""
    if not may_reach(request.reach, scope(metadata)) or request.varies(metadata):
        return False
    if metadata.redirect and request.head.method == b"HEAD":
        return False  # the origin answers it
    return not needs_permission(request, metadata) or holds_grant(services, request, metadata)


def _is_fresh(
    services: Services, request: CacheableRequest, metadata: Metadata, assessment: Assessment, now: float
) -> bool:
    """Whether it is sent without a validation, in the background or before."""
    if not assessment.usable or assessment.ttl <= 0 or assessment.basis is Basis.VOLATILE:
        return False
    if metadata.fetched_at > now:
        return False
    if assessment.basis is not Basis.HEURISTIC or metadata.restricted or request.signed:
        return True
    due = metadata.fetched_at + services.freshness.recheck
    return services.background.next_one(request.name.path, due) > now


def _composed(
    services: Services,
    request: CacheableRequest,
    hit: Hit,
    stored: Stored,
    assessment: Assessment,
    chosen: Selection,
    now: float,
) -> Optional[Answer]:
    """The response as `StoredAnswer` and `Reply` would send it."""
    answers_head = request.head.method == b"HEAD"
    length = chosen.length
    no_body = answers_head or chosen.status == 304
    body = bytearray()
    if not no_body and chosen.parts:
        part = chosen.parts[0]
        assert part.end is not None
        read = read_without_waiting(hit.entry.fileno(), part.end - part.start, part.start)
        if read is None:
            return None
        body = read
    age = (b"Age", b"%d" % int(stored.age(now)))
    fields = [*shown(stored.fields, chosen), *chosen.fields, (b"Accept-Ranges", b"bytes"), age]
    framing = NO_BODY if no_body else BodyFraming(Framing.LENGTH, length)
    note = outcomes.hit_note(assessment)
    head = http1.serialise_response(
        chosen.status, b"", head_fields(fields, chosen.status, framing, length, answers_head, services.via, note)
    )
    return Answer(
        head + body,
        len(body),
        bare(request.target),
        note,
        request.name.path,
        assessment.basis is Basis.HEURISTIC,
        request.head.method.decode(),
        chosen.status,
        continues=b"range" in request.head.headers,
    )
