"""The filler: a thread that carries an origin's body into a fill, whether or not clients read along."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from threading import BoundedSemaphore
from typing import Callable, List, Optional

from cache import Cache
from fetching.grants import Grants
from fetching.missing_bytes import MissingBytes
from fetching.naming import VARIANT, Name, Naming, storage_name
from fetching.negative import NegativeAnswers
from fetching.recent import Background, Deliveries
from fetching.repositories import Repositories
from monitoring.details import Detail
from monitoring.log import RateLimitedLog
from monitoring.metrics import Counter, Counters
from monitoring.redaction import reason_of, shown
from net.body import BUFFER_SIZE, IncompleteBody, new_buffer
from net.client_watch import Regularly, working_for
from protocol import http1, validation
from protocol.freshness import FreshnessRules
from protocol.headers import Headers
from protocol.http1 import ResponseHead, Target
from protocol.request_fields import RequestFields
from storage.entry import Lost
from storage.record import Unstorable
from storage.store import Key
from transfers.fill import Fill
from transfers.states import DigestMismatch, FillFailed
from upstream.client import Origins
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.public_tokens import PublicTokens
from upstream.rate_limits import RateLimits
from upstream.request import Request

_log = logging.getLogger("dduct.fetch")

_PROVEN = 8 * 1024 * 1024  # bytes; a fill that is this large gets the large buffer
_LARGE_BUFFER = 1024 * 1024  # bytes
_WORTH_WAITING = 60.0  # seconds that a transfer without readers may still take
_PAUSES = (0.05, 0.25, 1.0, 2.0, 4.0)  # seconds before each attempt to resume; after progress, from the first one again
_PROGRESS = 16 * 1024  # bytes that one attempt has to bring to count as progress
# Breaks that a transfer may have, and the bytes that allow one more.
_RESUMPTIONS, _BYTES_PER_RESUMPTION = 100, 256 * 1024
MAX_SKIPPED = 64 * 1024 * 1024  # bytes received twice, at most, where an origin knows no ranges
MAX_FAR_RANGES = 64  # in a process, at the same time
# An origin may refuse one request with these, and accept another for the same object: GitHub hides private ones.
_MOST_VARIANTS = 1000  # of an object, that are invalidated
REFUSALS = (301, 302, 303, 307, 308, 401, 403, 404)
_PASSING = (408, 425, 429)  # like a 5xx: another attempt may succeed


@dataclass(frozen=True)
class Services:
    """What fetching needs of the other modules. `spawn` starts a thread that shutdown waits for."""

    cache: Cache
    origins: Origins
    freshness: FreshnessRules
    grants: Grants
    known: Grants  # clients that were authorized at a name, for any version
    names: RequestFields
    public_tokens: PublicTokens
    repositories: Repositories
    rate_limits: RateLimits
    ask_anonymously: bool  # whether a repository is public
    counters: Counters
    via: bytes
    spawn: Callable[[str, Callable[[], None]], None]
    deliveries: Deliveries
    background: Background
    negatives: NegativeAnswers
    grown: Callable[[int], None]  # called with the bytes that the cache has gained
    # For far ranges: each has a thread and a connection to an origin.
    far_places: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MAX_FAR_RANGES))
    trouble: RateLimitedLog = field(default_factory=lambda: RateLimitedLog(_log))  # with invalidations

    def forget(self, name: Name) -> None:
        """Invalidate the object of a name, and what says that there is none."""
        self.negatives.forget(name.path)
        try:
            for key in self._keys_of(name):
                self.cache.invalidate(key)
        except Unstorable as error:
            if error.detail is not Detail.PATH:  # then no file has such a name
                self.trouble.warning("Not invalidated, and perhaps outdated: %s: %s", shown(name.path), error)

    def _keys_of(self, name: Name) -> List[Key]:
        """The key of a name, or those of all its variants. Raises Unstorable."""
        if not name.negotiated:
            return [key_of(name)]
        return [Key(one) for one in self.cache.store.beginning(name.path + VARIANT, _MOST_VARIANTS)]

    def invalidate(self, target: Target, answer: ResponseHead, naming: Naming) -> None:
        """Invalidate the target, and the URLs of the same origin that the response names (RFC 9111 §4.4)."""
        targets = [target]
        for mention in (b"location", b"content-location"):
            other = http1.resolve(target, answer.headers.get(mention) or b"")
            if other is not None and (other.scheme, other.authority) == (target.scheme, target.authority):
                targets.append(other)
        for one in targets:
            name = storage_name(one, naming)
            if name is not None:
                self.forget(name)


def carry(fill: Fill, exchange: Exchange, request: Request, url: str, services: Services) -> None:
    """Carry an origin's body into a fill, to its end: all the work of a filler thread. Closes both.

    Where the origin breaks off, it is asked for the rest, a few times; readers do not notice.
    """
    filler = _Filler(fill, exchange, request, url, services)
    with working_for(Regularly(filler.look)):
        filler.run()


class _Unwanted(Exception):
    """No client reads along, and much is still missing."""


class _Refused(UpstreamError):
    """The origin refuses the rest to this request: its token or signature may have expired."""


class _Filler:
    """One transfer."""

    def __init__(self, fill: Fill, exchange: Exchange, request: Request, url: str, services: Services) -> None:
        self._fill = fill
        self._missing = MissingBytes(fill, exchange, self._part)
        self._request = request
        self._url = url
        self._services = services
        self._etag = None if fill.verifies else validation.strong_etag(exchange.head.headers)
        self._pauses = iter(_PAUSES)
        self._broke_off_at = fill.size  # the size at the last break
        self._resumptions = 0
        self._skipped = 0
        self._began_at = time.monotonic()
        self._began_with = fill.size

    def run(self) -> None:
        """See `carry`."""
        fill, counters = self._fill, self._services.counters
        try:
            fill.catch_up()
            self._fetch()
            kept = fill.publish()
        except _Unwanted:
            counters.add(Counter.DROPPED)
            _log.info("Given up, no client wants it any more: %s: after %d bytes", self._url, fill.size)
        except _Refused as error:
            if fill.hand_over():
                counters.add(Counter.DROPPED)
                _log.info("Handed over to the next request: %s: after %d bytes: %s", self._url, fill.size, error)
            else:
                self._fail(error)
        except (IncompleteBody, FillFailed, Lost, UpstreamError) as error:
            self._fail(error)
        else:
            counters.add(Counter.PUBLISHED if kept else Counter.UNKEPT)
            if kept:
                self._services.grown(fill.length or 0)
            self._missing.close()
            self._make_durable()
        finally:
            self._missing.close()
            fill.close()

    def _fail(self, error: Exception) -> None:
        self._services.counters.add(Counter.MISMATCHED if isinstance(error, DigestMismatch) else Counter.BROKEN)
        _log.warning("Not kept: %s: %s", self._url, error)
        self._fill.fail(UpstreamError(f"the transfer broke off: {error}"))

    def _fetch(self) -> None:
        """Fetch all missing bytes. Raises FillFailed, UpstreamError, _Unwanted."""
        size = BUFFER_SIZE
        while True:
            buffers = (new_buffer(size), new_buffer(size))  # one is filled while the other is hashed
            try:
                for piece in self._missing.pieces(*buffers):
                    self._fill.write(piece)
                    if self._fill.unread:
                        self._consider()
                    if size < _LARGE_BUFFER and self._fill.size >= _PROVEN:
                        size = _LARGE_BUFFER
                        break
                else:
                    return
            except IncompleteBody as error:
                _log.info("Broken off after %d bytes: %s: %s", self._fill.size, self._url, error)
                self._missing.close()
                if not self._missing.skip_ahead():
                    self._missing.continue_with(self._resumed())

    def look(self) -> None:
        """Called while the origin sends nothing. Raises _Unwanted, and what makes `_missing` go on elsewhere."""
        self._missing.look()
        if self._fill.unread and not self._fill.state.final:
            self._consider()

    def _consider(self) -> None:
        """Give a transfer without readers up unless it ends soon. Raises _Unwanted."""
        fill, elapsed = self._fill, time.monotonic() - self._began_at
        if fill.length is None:
            going_on = elapsed < _WORTH_WAITING
        else:
            fetched, missing = fill.size - self._began_with, fill.length - fill.size
            going_on = missing <= fill.size or missing * elapsed <= fetched * _WORTH_WAITING
        if not going_on and fill.abandon():
            raise _Unwanted

    def _resumed(self) -> Exchange:
        """An exchange whose body begins where the fill ends. Raises UpstreamError where there is none.

        Only a strong validator (RFC 9110 §14.2, §13.1.5) or the digest in the name shows that the rest belongs to the
        same representation. The first URL is asked: a signature that a redirect added may have expired.
        """
        fill = self._fill
        if not fill.size or not (fill.verifies or (self._etag is not None and fill.length)):
            raise UpstreamError("the origin broke off, and nothing says that the rest would be of the same object")
        self._account()
        for pause in self._pauses:
            time.sleep(pause)
            if fill.unread:
                self._consider()
            exchange = self._rest()
            if exchange is not None:
                self._services.counters.add(Counter.RESUMED)
                return exchange
        raise UpstreamError("the origin broke off, again and again")

    def _account(self) -> None:
        """Count a resumption. Raises UpstreamError where the transfer has had too many."""
        size = self._fill.size
        if size - self._broke_off_at >= _PROGRESS:
            self._pauses = iter(_PAUSES)
        self._broke_off_at = size
        self._resumptions += 1
        if self._resumptions > _RESUMPTIONS + (size - self._began_with) // _BYTES_PER_RESUMPTION:
            raise UpstreamError("the origin breaks off too often for what it sends")

    def _rest(self) -> Optional[Exchange]:
        """One attempt; None where another one may succeed. Raises UpstreamError."""
        fill = self._fill
        try:
            exchange = self._ask(fill.size)
        except UpstreamError as error:
            _log.info("Cannot be resumed yet: %s", error)
            return None
        if validation.is_rest(exchange.head, self._etag, fill.size, fill.length):
            return exchange
        if validation.is_whole_again(exchange.head, self._etag, fill.length):
            return exchange if self._skip(exchange) else None
        exchange.close()
        status = exchange.head.status
        if status in REFUSALS:
            raise _Refused(f"the origin broke off, and answers {status} when asked for the rest")
        if status < 500 and status not in _PASSING:
            raise UpstreamError(f"the origin broke off, and answers {status} when asked for the rest")
        return None

    def _part(self, start: int, end: int) -> Optional[Exchange]:
        """An exchange that brings exactly these bytes; None where the origin does not give them."""
        try:
            exchange = self._ask(start, end)
        except UpstreamError as error:
            _log.info("Nothing is skipped: %s: %s", self._url, error)
            return None
        if validation.is_part(exchange.head, self._etag, start, end, self._fill.length or 0):
            return exchange
        _log.info("Nothing is skipped: %s: the origin answers %d", self._url, exchange.head.status)
        exchange.close()
        return None

    def _ask(self, start: int, end: Optional[int] = None) -> Exchange:
        """Ask for the bytes from one offset on, up to another or to the end. Raises UpstreamError."""
        conditions = validation.rest_conditions(self._etag, start, end)
        headers = Headers([*self._request.headers.without([b"range", b"if-range"]), *conditions])
        return self._services.origins.follow(replace(self._request, headers=headers, on_interim=lambda _: None))

    def _skip(self, exchange: Exchange) -> bool:
        """Skip the bytes that the fill has; False where the origin broke off before. Raises UpstreamError."""
        self._skipped += self._fill.size
        with ExitStack() as cleanup:
            cleanup.callback(exchange.discard)  # also where the last reader leaves while bytes are skipped
            if self._skipped > MAX_SKIPPED:
                raise UpstreamError("the origin broke off, and would send too much again")
            try:
                exchange.body.consume(self._fill.size)
                cleanup.pop_all()
                return True
            except IncompleteBody as error:
                _log.info("Broken off again: %s: %s", self._url, error)
        return False

    def _make_durable(self) -> None:
        try:
            self._fill.make_durable()
        except (FillFailed, Lost) as error:
            _log.warning("Not kept: %s: %s", self._url, error)
        except (OSError, Unstorable) as error:
            _log.warning("Kept, but perhaps not past a loss of power: %s: %s", self._url, reason_of(error))


def key_of(name: Name) -> Key:
    """The cache's key for an object of this name."""
    return Key(name.path, name.digest)
