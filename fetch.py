"""The way of a request that may be answered from the cache: hit, lead or follow, and one send loop for all three.

A leader asks the origin; if the answer is to be kept, a filler thread owns connection and file from then on, and the
leader reads the growing file like everybody else. So no client, however slow or gone, is in the way of a fill.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Callable, List, Optional, Protocol

import policy
from body import BUFFER_SIZE, IncompleteBody
from cache import Cache, Follow, Hit, Lead
from fill import Fill, FillFailed, FillState
from http1 import Field, Headers, RequestHead, Target
from policy import Name
from relay import forward, outgoing
from reply import Reply
from store import Digest, Key, Metadata, Unstorable
from upstream import Exchange, Origins, Request, UpstreamError

_log = logging.getLogger("dduct.fetch")

_CLAIMS_AT_MOST = 8  # then it is relayed: some other process makes and breaks fills faster than we can join them
_PATIENCE = 120.0  # seconds a follower waits for the leader's answer from the origin
# What would make an origin send less, or something else, than the whole representation.
_CONDITIONS = (
    b"range",
    b"if-range",
    b"if-match",
    b"if-none-match",
    b"if-modified-since",
    b"if-unmodified-since",
    b"accept-encoding",
)


class Source(Protocol):
    """Octets by offset: an entry, or a reader on a fill."""

    @property
    def length(self) -> Optional[int]: ...

    def read_at(self, view: memoryview, offset: int) -> int: ...


@dataclass(frozen=True)
class Services:
    """What fetching needs of the rest of the house. `spawn` starts a thread that shutdown will wait for."""

    cache: Cache
    origins: Origins
    via: bytes
    spawn: Callable[[str, Callable[[], None]], threading.Thread]


class CachedFetch:
    """Answers one GET or HEAD whose target has a name in the cache."""

    def __init__(self, services: Services, reply: Reply, request: RequestHead, target: Target, name: Name) -> None:
        self._services = services
        self._cache = services.cache
        self._reply = reply
        self._request = request
        self._target = target
        self._key = Key(name.path, None if name.digest is None else Digest(*name.digest))
        self._url = str(target).partition("?")[0]

    def run(self) -> None:
        """Send the answer. Raises UpstreamError while none has begun, OSError when the client is gone."""
        try:
            for _ in range(_CLAIMS_AT_MOST):
                if self._answer():
                    return
        except Unstorable as error:
            _log.debug("Not kept: %s: %s", self._url, error)
        self._relay()

    def _answer(self) -> bool:
        """One attempt; False where the object has changed hands meanwhile and another attempt is due."""
        if self._request.method == b"HEAD":
            hit = self._cache.lookup(self._key)
            return hit is not None and self._hit(hit)
        claim = self._cache.claim(self._key)
        if isinstance(claim, Hit):
            return self._hit(claim)
        if isinstance(claim, Follow):
            return self._follow(claim)
        self._lead(claim)
        return True

    # Hit, follow, lead

    def _hit(self, hit: Hit) -> bool:
        try:
            metadata = hit.metadata or self._introduction(hit.entry)
            if metadata is None or not self._admitted(metadata, asked=hit.metadata is None):
                return True
            if hit.metadata is None:
                self._cache.introduce(self._key, metadata)
            self._reply.note = "hit"
            self._send(hit.entry, metadata)
            return True
        finally:
            hit.entry.close()

    def _follow(self, claim: Follow) -> bool:
        fill = claim.reader.fill
        try:
            state = fill.wait_head(_PATIENCE)
            if state is FillState.GONE:
                return False
            if state in (FillState.DECLINED, FillState.ASKING):
                self._relay()
                return True
            if fill.metadata is None:
                raise _as_upstream_error(fill.cause)
            if state is FillState.FAILED:
                return False  # nothing has been sent yet: a new fill may do better
            known = fill.metadata.url == self._url
            metadata = fill.metadata if known else self._introduction(claim.reader)
            if metadata is None or not self._admitted(metadata, asked=not known):
                return True
            self._reply.note = "fwd=uri-miss; collapsed"
            self._send(claim.reader, metadata)
            if not known and fill.state is FillState.PUBLISHED:
                self._cache.introduce(self._key, metadata)
            return True
        finally:
            claim.reader.close()

    def _lead(self, claim: Lead) -> None:
        fill = claim.fill
        with ExitStack() as owned:
            owned.callback(fill.close)
            try:
                exchange = self._services.origins.follow(self._whole())
            except UpstreamError as error:
                fill.fail(error)
                raise
            owned.callback(exchange.close)
            metadata = self._begin(fill, exchange)
            if metadata is None:
                self._pass_on(exchange)
                return
            reader = self._cache.reader(fill)
            owned.callback(reader.close)
            self._services.spawn("fill", partial(_fill, fill, exchange, self._url))
            # From here on the filler owns them, and this client is a reader like any other.
            owned.pop_all()
        self._reply.note = "fwd=uri-miss; stored"
        try:
            self._send(reader, metadata)
        finally:
            reader.close()

    def _begin(self, fill: Fill, exchange: Exchange) -> Optional[Metadata]:
        """Start the fill, or decline it and return None."""
        reason = policy.not_storable(self._request, exchange.head)
        if reason is None and not exchange.body.delimited and self._key.digest is None:
            reason = "nothing but the end of its connection says where it ends"
        metadata = self._describe(exchange)
        if reason is None and metadata.restricted and not self._cache.store.keeps_metadata:
            reason = "it needs authorisation, and the file system keeps no metadata to say so"
        if reason is None:
            try:
                fill.begin(metadata, exchange.body.length)
                return metadata
            except Unstorable as error:
                reason = str(error)
        _log.debug("Not kept: %s: %s", self._url, reason)
        fill.decline()
        return None

    # What the origin says

    def _introduction(self, source: Source) -> Optional[Metadata]:
        """Ask this URL's origin about octets that are known from elsewhere; its head decides, its body is not read.

        None where its answer went to the client instead.
        """
        exchange = self._services.origins.follow(self._whole())
        try:
            same_length = None in (exchange.body.length, source.length) or exchange.body.length == source.length
            if same_length and policy.not_storable(self._request, exchange.head) is None:
                return self._describe(exchange)
            self._pass_on(exchange)
            return None
        finally:
            exchange.close()

    def _admitted(self, metadata: Metadata, asked: bool) -> bool:
        """Whether this client may have the stored representation; if not, it has been answered otherwise.

        `asked` says that the origin has answered this very client already.
        """
        if policy.varies(self._request, metadata.vary):
            self._relay()
            return False
        if asked or not metadata.restricted:
            return True
        headers = [*outgoing(self._request, self._services.via).without(_CONDITIONS)]
        headers += [(b"If-None-Match", value) for name, value in _fields(metadata) if name.lower() == b"etag"]
        probe = Request(self._request.method, self._target, Headers(headers))
        exchange = self._services.origins.exchange(probe)
        try:
            if policy.lets_in(exchange.head.status):
                return True
            forward(self._reply, exchange)
            return False
        finally:
            exchange.close()

    def _describe(self, exchange: Exchange) -> Metadata:
        return Metadata(
            url=self._url,
            fields=policy.stored_fields(exchange.head),
            fetched_at=time.time(),
            restricted=policy.restricted(self._request, exchange.head),
            vary=policy.vary_fields(self._request, exchange.head),
        )

    def _whole(self) -> Request:
        """The request for the whole representation, as its origin stores it (never re-encoded)."""
        headers = outgoing(self._request, self._services.via).without(_CONDITIONS)
        return Request(b"GET", self._target, Headers([*headers, (b"Accept-Encoding", b"identity")]))

    # Answers

    def _relay(self) -> None:
        """Ask the origin for this client alone."""
        self._reply.note = "fwd=bypass"
        request = Request(self._request.method, self._target, outgoing(self._request, self._services.via))
        exchange = self._services.origins.exchange(request)
        try:
            forward(self._reply, exchange)
        finally:
            exchange.close()

    def _pass_on(self, exchange: Exchange) -> None:
        """Give the client the answer to the request for the whole, unless it had asked for something else."""
        if any(name in self._request.headers for name in _CONDITIONS if name != b"accept-encoding"):
            exchange.close()
            self._relay()
        else:
            self._reply.note = "fwd=uri-miss"
            forward(self._reply, exchange)

    def _send(self, source: Source, metadata: Metadata) -> None:
        fields = _fields(metadata)
        length = source.length
        part = policy.select(self._request, Headers(fields), length)
        end, extra = part.end, [(b"Accept-Ranges", b"bytes")]
        if self._reply.note == "hit":
            extra.append((b"Age", b"%d" % max(0, time.time() - metadata.fetched_at)))
        if part.status == 206:
            extra.append((b"Content-Range", b"bytes %d-%d/%d" % (part.start, (end or 0) - 1, length or 0)))
        elif part.status == 416:
            fields, extra = [], [(b"Content-Range", b"bytes */%d" % (length or 0))]
        size = None if end is None else end - part.start
        self._reply.begin(part.status, [*fields, *extra], size)
        if not self._reply.has_body:
            return
        try:
            complete = self._copy(source, part.start, end)
        except FillFailed as error:
            _log.info("Cut short: %s: %s", self._url, error)
            complete = False
        if complete:
            self._reply.finish()
        else:
            self._reply.cut()

    def _copy(self, source: Source, start: int, end: Optional[int]) -> bool:
        """Send the span; whether all of it was there. Raises FillFailed, OSError."""
        size = BUFFER_SIZE if end is None else min(BUFFER_SIZE, end - start)
        buffer = memoryview(bytearray(size))
        offset = start
        while end is None or offset < end:
            count = source.read_at(buffer if end is None else buffer[: end - offset], offset)
            if not count:
                return end is None
            self._reply.write(buffer[:count])
            offset += count
        return True


def _fill(fill: Fill, exchange: Exchange, url: str) -> None:
    """Carry an origin's body into a fill, to its end; the whole work of a filler thread."""
    try:
        for piece in exchange.body.chunks(memoryview(bytearray(BUFFER_SIZE))):
            fill.write(piece)
        fill.publish()
    except (IncompleteBody, FillFailed, OSError, Unstorable) as error:
        _log.warning("Not kept: %s: %s", url, error)
        fill.fail(UpstreamError(f"the transfer broke off: {error}"))
    else:
        exchange.close()
        _settle(fill, url)
    finally:
        exchange.close()
        fill.close()


def _settle(fill: Fill, url: str) -> None:
    try:
        fill.settle()
    except (OSError, Unstorable) as error:
        _log.warning("Kept, but perhaps not past a loss of power: %s: %s", url, error)


def _fields(metadata: Metadata) -> List[Field]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata.fields]


def _as_upstream_error(cause: object) -> UpstreamError:
    """What a follower tells its client when the leader got no answer."""
    return cause if isinstance(cause, UpstreamError) else UpstreamError(f"the transfer broke off: {cause}")
