"""Manifests of images, as registries give them: by a tag, which moves, and by the digest of their bytes.

A manifest is read whole before it is sent. Then it is known by its digest, too: clients ask for it so right after its
tag, and a registry counts each GET. One whose registry states another digest than it has is not used. One with a
Content-Encoding, which nobody has asked for, is only relayed: its digest is that of the content.
"""

from __future__ import annotations

import hashlib
import io
import logging
from contextlib import closing
from dataclasses import replace
from typing import cast

from fetching import proof
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.naming import VARIANT
from fetching.repositories import repository_of
from net.body import BUFFER_SIZE, BodyReader, IncompleteBody
from net.stream import Stream
from protocol.http1 import BodyFraming, Framing, ResponseHead
from storage.record import Digest, Metadata, Unstorable
from storage.store import Key
from transfers.states import FillFailed
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange

_log = logging.getLogger("dduct.fetch")

_MAX_MANIFEST = 4 * 1024 * 1024  # bytes: the limit of registries


def is_whole(request: CacheableRequest, exchange: Exchange) -> bool:
    """Whether a response is a manifest that is read whole."""
    if not request.name.manifest or exchange.head.status != 200 or is_coded(exchange.head):
        return False
    kind, length = exchange.body.kind, exchange.body.length or 0
    return kind is Framing.CHUNKED or (kind is Framing.LENGTH and 0 < length <= _MAX_MANIFEST)


def is_coded(head: ResponseHead) -> bool:
    """Whether a response has a Content-Encoding."""
    return (head.headers.get(b"content-encoding") or b"identity").strip().lower() != b"identity"


def read(exchange: Exchange) -> bytes:
    """The manifest in a response that `is_whole`. Raises UpstreamError where it breaks off, has another digest, or is
    larger than registries take."""
    body, buffer = bytearray(), memoryview(bytearray(BUFFER_SIZE))
    try:
        for piece in exchange.body.chunks(buffer):
            body += piece
            if len(body) > _MAX_MANIFEST:
                raise UpstreamError("the manifest is larger than 4 MiB")
    except IncompleteBody as error:
        raise UpstreamError(f"the manifest broke off: {error}") from error
    stated = proof.of_manifest(exchange.head.headers)
    if stated is not None:
        hasher = stated.hasher()
        hasher.update(body)
        if hasher.hexdigest() != stated.hex:
            raise UpstreamError(f"the registry states the digest {stated} for a manifest that has another one")
    return bytes(body)


def put_back(exchange: Exchange, body: bytes) -> None:
    """Make a manifest that was read the body of its response again, for a client that gets it uncached."""
    framing = BodyFraming(Framing.LENGTH, len(body))
    exchange.body = BodyReader(cast(Stream, io.BytesIO(body)), framing)


def keep_by_digest(services: Services, request: CacheableRequest, metadata: Metadata, body: bytes) -> None:
    """Store the manifest of a tag by its digest, too. Where the disk refuses, nothing is lost."""
    if request.lasts or repository_of(request.target) is None:
        return
    digest = Digest("sha256", hashlib.sha256(body).hexdigest())
    key = Key(_beside(request.name.path.partition(VARIANT)[0], digest), digest)
    named = replace(metadata, url=_beside(request.url, digest), vary=())
    try:
        hit = services.cache.lookup(key)
        if hit is not None:
            with closing(hit.entry):
                if hit.metadata is None or (hit.metadata.restricted and not metadata.restricted):
                    services.cache.confirm_alias(key, named)
            return
        fill = services.cache.lead(key)
        if fill is not None:
            with closing(fill), services.cache.disk.operation():
                services.cache.store_whole(fill, named, body)
    except (Unstorable, FillFailed) as error:
        _log.debug("Not kept by its digest: %s: %s", request.shown, error)


def _beside(place: str, digest: Digest) -> str:
    """The name of the manifest with this digest in the repository of another one."""
    return f"{place.rpartition('/')[0]}/{digest.algorithm}:{digest.hex}"
