"""What an origin's response to one request means for the cache: values in, a value out.

Where a validation also decides whether the client may have the object, `fetching/proof` says what counts.
"""

from __future__ import annotations

import time
from typing import Optional

from fetching import permission, proof
from fetching.cacheable_request import CacheableRequest, origin_of
from fetching.proof import Verdict
from fetching.stored_metadata import scope, stored_fields
from monitoring.details import Detail, NotKept
from protocol import freshness, media_types, validation
from storage.record import Metadata
from transfers.acquiring import PartialDownload
from upstream.exchange import Exchange


def not_storable(request: CacheableRequest, exchange: Exchange) -> Optional[NotKept]:
    """Why a response may not be stored; None where it may."""
    redirected = exchange.redirected_to is not None
    reason = freshness.not_storable(request.head, exchange.head, request.rules, redirected)
    kind = exchange.head.headers.get(b"content-type")
    if reason is None and media_types.contradicts(request.name.path.partition("?")[0], request.lasts, kind):
        found = media_types.essence(kind).decode("latin-1")
        return NotKept(Detail.HTML, f"{found} under the name of an archive or a digest")
    return reason


def may_replace(request: CacheableRequest, exchange: Exchange, stored: Metadata, known: bool) -> bool:
    """Whether a response may replace the stored one; `known`: its client was authorized before."""
    if not_storable(request, exchange) is not None:
        return False
    fields = stored_fields(stored)
    return permission.may_replace(stored, request.brings, known, exchange.head, fields, time.time())


def still_good(request: CacheableRequest, exchange: Exchange, stored: Metadata, length: Optional[int]) -> bool:
    """Whether the response to a validation confirms the stored object."""
    if request.name.manifest and exchange.head.status == 200:
        stated, known = proof.of_manifest(exchange.head.headers), proof.of_manifest(stored_fields(stored))
        if stated is not None and known is not None:  # what is stored has the digest that was stated for it
            return stated == known and not_storable(request, exchange) is None
    if request.needs_proof(stored):
        same = proof.judge(exchange.head, stored_fields(stored), length, {}) is Verdict.SAME
        return same and (exchange.head.status == 304 or not_storable(request, exchange) is None)
    if exchange.head.status == 304:
        return validation.selects(exchange.head, stored_fields(stored))
    target = exchange.redirected_to
    elsewhere = target is not None and bool(stored.redirect) and origin_of(str(target)) != origin_of(stored.redirect)
    repeated = validation.repeats(exchange.head, stored_fields(stored), length, elsewhere)
    return repeated and not_storable(request, exchange) is None


def has(request: CacheableRequest, exchange: Exchange, brought: Metadata, length: Optional[int]) -> bool:
    """Whether a response is the object of the request's digest, which another URL has brought.

    Only a response from dduct's own machine opens an object from there.
    """
    if not_storable(request, exchange) is not None or scope(brought) > exchange.scope:
        return False
    if brought.restricted:
        digest = request.key.digest
        return digest is not None and proof.states(exchange.head, digest.algorithm, digest.hex)
    return None in (exchange.body.length, length) or exchange.body.length == length


def is_rest(request: CacheableRequest, exchange: Exchange, partial_download: Optional[PartialDownload]) -> bool:
    """Whether a response is exactly what a partial download lacks, of the same representation."""
    if partial_download is None or not resumes(request, partial_download):
        return False
    etag = etag_of(request, partial_download)
    return validation.is_rest(exchange.head, etag, partial_download.size, partial_download.length)


def resumes(request: CacheableRequest, partial_download: PartialDownload) -> bool:
    """Whether a request fits a partial download, and something will show that the rest belongs to it."""
    if partial_download.metadata.url != request.place or request.varies(partial_download.metadata):
        return False
    return request.lasts or etag_of(request, partial_download) is not None


def etag_of(request: CacheableRequest, partial_download: PartialDownload) -> Optional[bytes]:
    """A partial download's strong validator, if any; None where its digest proves it."""
    return None if request.lasts else validation.strong_etag(stored_fields(partial_download.metadata))
