"""Manifests of images, as registries give them: by a tag, which moves, and by the digest of their bytes.

A manifest is read whole before it is sent. Then it is known by its digest, too: clients ask for it so right after its
tag, and a registry counts each GET. One whose registry states another digest than it has is not used.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing
from dataclasses import replace
from typing import Optional

from fetching import proof
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.naming import VARIANT
from net.body import IncompleteBody
from protocol.http1 import Framing
from storage.record import Digest, Metadata, Unstorable
from storage.store import Key
from transfers.states import FillFailed
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange

_log = logging.getLogger("dduct.fetch")

_MAX_MANIFEST = 4 * 1024 * 1024  # bytes: the limit of registries


def is_whole(request: CacheableRequest, exchange: Exchange) -> bool:
    """Whether a response is a manifest that is read whole."""
    length = exchange.body.length if exchange.body.kind is Framing.LENGTH else None
    if not request.name.manifest or exchange.head.status != 200 or b"content-encoding" in exchange.head.headers:
        return False  # a digest is of the bytes without their coding
    return 0 < (length or 0) <= _MAX_MANIFEST


def read(exchange: Exchange) -> bytes:
    """The manifest in a response that `is_whole`. Raises UpstreamError where it breaks off, or has another digest."""
    body = bytearray(exchange.body.length or 0)
    view, size = memoryview(body), 0
    try:
        while size < len(body):
            size += exchange.body.readinto(view[size:])
    except IncompleteBody as error:
        raise UpstreamError(f"the manifest broke off: {error}") from error
    stated = proof.of_manifest(exchange.head.headers)
    if stated is not None:
        hasher = stated.hasher()
        hasher.update(body)
        if hasher.hexdigest() != stated.hex:
            raise UpstreamError(f"the registry states the digest {stated} for a manifest that has another one")
    return bytes(body)


def keep_by_digest(services: Services, request: CacheableRequest, metadata: Metadata, body: bytes) -> None:
    """Store the manifest of a tag by its digest, too. Where the disk refuses, nothing is lost."""
    digest = Digest("sha256", hashlib.sha256(body).hexdigest())
    place = _beside(request.name.path.partition(VARIANT)[0], digest)
    if request.lasts or place is None:
        return
    key = Key(place, digest)
    named = replace(metadata, url=_beside(request.url, digest) or "", vary=())
    try:
        hit = services.cache.lookup(key)
        if hit is not None:
            with closing(hit.entry):
                if hit.metadata is None or (hit.metadata.restricted and not metadata.restricted):
                    services.cache.confirm_alias(key, named)
            return
        fill = services.cache.lead(key)
        if fill is not None:
            with closing(fill):
                if fill.store_whole(named, body) and not fill.file.sync_soon():
                    services.cache.store.syncs.on_dropped(1)
    except (Unstorable, FillFailed) as error:
        _log.debug("Not kept by its digest: %s: %s", request.shown, error)


def _beside(place: str, digest: Digest) -> Optional[str]:
    """The name of the manifest with this digest in the repository of another one; None where a query belongs to it."""
    return None if "?" in place else f"{place.rpartition('/')[0]}/{digest.algorithm}:{digest.hex}"
