"""The filler: an origin's body on its way into a fill, in a thread of its own, whoever reads along or has gone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Callable, Optional

from cache import Cache
from fetching.grants import Grants
from fetching.naming import Name, Naming, storage_name
from fetching.recent import Background, Deliveries
from monitoring.metrics import Counter, Counters
from monitoring.redaction import reason_of
from net.body import BUFFER_SIZE, IncompleteBody, new_buffer
from net.client_watch import Regularly, working_for
from protocol import http1, validation
from protocol.freshness import FreshnessRules
from protocol.http1 import Headers, ResponseHead, Target
from protocol.request_fields import RequestFields
from storage.store import Digest, Key, Lost, Unstorable
from transfers.fill import DigestMismatch, Fill, FillFailed
from upstream.client import Exchange, Origins, Request, UpstreamError

_log = logging.getLogger("dduct.fetch")

_PROVEN = 8 * 1024 * 1024  # octets, after which an object is large enough for
_LARGE_BUFFER = 1024 * 1024  # octets at once
_WORTH_WAITING = 60.0  # seconds that a transfer may take yet although nobody wants it
_PAUSES = (0.05, 0.25, 1.0, 2.0, 4.0)  # seconds before each attempt to resume, in a row without progress
_PROGRESS = 16 * 1024  # bytes that one attempt has to bring to count as one
# An origin that breaks off all the time may do so this often, and once more for so many bytes.
_RESUMPTIONS, _BYTES_PER_RESUMPTION = 100, 256 * 1024
MAX_SKIPPED = 64 * 1024 * 1024  # bytes worth receiving twice where an origin knows no ranges
# An origin refuses a request with these, and perhaps no other one for the same object: GitHub hides what is private.
REFUSALS = (301, 302, 303, 307, 308, 401, 403, 404)
_PASSING = (408, 425, 429)  # and so does a 5xx say that another attempt may do


@dataclass(frozen=True)
class Services:
    """What fetching needs of the rest of the house. `spawn` starts a thread that shutdown will wait for."""

    cache: Cache
    origins: Origins
    freshness: FreshnessRules
    grants: Grants
    known: Grants  # who was let in at a name, whatever was there then
    names: RequestFields
    counters: Counters
    via: bytes
    spawn: Callable[[str, Callable[[], None]], None]
    deliveries: Deliveries
    background: Background
    grown: Callable[[int], None]  # is told of the octets that the cache has gained

    def forget(self, name: Name) -> None:
        """What is stored under a name is outdated."""
        try:
            self.cache.invalidate(key_of(name))
        except Unstorable:
            pass  # then nothing is

    def invalidate(self, target: Target, answer: ResponseHead, naming: Naming) -> None:
        """RFC 9111 §4.4: the target is not what it was, nor what the answer names of the same origin."""
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
    """Carry an origin's body into a fill, to its end; the whole work of a filler thread. It closes both.

    Where the origin breaks off it is asked for the rest, a few times, and nobody who reads along notices.
    """
    filler = _Filler(fill, exchange, request, url, services)
    with working_for(Regularly(filler.look)):
        filler.run()


class _Unwanted(Exception):
    """Nobody reads along, and there is much to come yet."""


class _Refused(UpstreamError):
    """The origin refuses this request the rest: a token expires, or a signature."""


class _Filler:
    """One transfer."""

    def __init__(self, fill: Fill, exchange: Exchange, request: Request, url: str, services: Services) -> None:
        self._fill = fill
        self._exchange = exchange
        self._request = request
        self._url = url
        self._services = services
        self._etag = None if fill.verifies else validation.strong_etag(exchange.head.headers)
        self._pauses = iter(_PAUSES)
        self._broke_off_at = fill.size  # the last time
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
            _log.info("Given up, for nobody wants it: %s: after %d octets", self._url, fill.size)
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
            self._exchange.close()
            self._settle()
        finally:
            self._exchange.close()
            fill.close()

    def _fail(self, error: Exception) -> None:
        self._services.counters.add(Counter.MISMATCHED if isinstance(error, DigestMismatch) else Counter.BROKEN)
        _log.warning("Not kept: %s: %s", self._url, error)
        self._fill.fail(UpstreamError(f"the transfer broke off: {error}"))

    def _fetch(self) -> None:
        """All octets that are missing. Raises FillFailed, UpstreamError, _Unwanted."""
        size = BUFFER_SIZE
        while True:
            buffers = (new_buffer(size), new_buffer(size))  # one is filled while the other is hashed
            try:
                for piece in self._exchange.body.chunks(*buffers, much=True):
                    self._fill.write(piece)
                    if self._fill.unread:
                        self._consider()
                    if size < _LARGE_BUFFER and self._fill.size >= _PROVEN:
                        size = _LARGE_BUFFER
                        break
                else:
                    return
            except IncompleteBody as error:
                _log.info("Broken off after %d octets: %s: %s", self._fill.size, self._url, error)
                self._exchange.close()
                self._exchange = self._resumed()

    def look(self) -> None:
        """While the origin says nothing. Raises _Unwanted."""
        if self._fill.unread and not self._fill.state.final:
            self._consider()

    def _consider(self) -> None:
        """Whether to go on although nobody reads along. Raises _Unwanted."""
        fill, elapsed = self._fill, time.monotonic() - self._began_at
        if fill.length is None:
            going_on = elapsed < _WORTH_WAITING
        else:
            fetched, missing = fill.size - self._began_with, fill.length - fill.size
            going_on = missing <= fill.size or missing * elapsed <= fetched * _WORTH_WAITING
        if not going_on and fill.abandon():
            raise _Unwanted

    def _resumed(self) -> Exchange:
        """An exchange whose body begins where the fill ends. Raises UpstreamError where there is none to be had.

        Only a strong validator shows that the rest belongs to the same representation (RFC 9110 §14.2, §13.1.5), or the
        digest that the name promises. It is asked for at the first URL: what redirects signed may have expired.
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
        """Whether another resumption is worth it. Raises UpstreamError."""
        size = self._fill.size
        if size - self._broke_off_at >= _PROGRESS:
            self._pauses = iter(_PAUSES)
        self._broke_off_at = size
        self._resumptions += 1
        if self._resumptions > _RESUMPTIONS + (size - self._began_with) // _BYTES_PER_RESUMPTION:
            raise UpstreamError("the origin breaks off too often for what it sends")

    def _rest(self) -> Optional[Exchange]:
        """One attempt; None where another may do. Raises UpstreamError."""
        fill = self._fill
        conditions = validation.rest_conditions(self._etag, fill.size)
        headers = Headers([*self._request.headers.without([b"range", b"if-range"]), *conditions])
        rest = replace(self._request, headers=headers, on_interim=lambda _: None)
        try:
            exchange = self._services.origins.follow(rest)
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

    def _skip(self, exchange: Exchange) -> bool:
        """Pass over what is here already; whether the origin got so far. Raises UpstreamError."""
        self._skipped += self._fill.size
        try:
            if self._skipped <= MAX_SKIPPED:
                exchange.body.skip(self._fill.size)
                return True
        except IncompleteBody as error:
            _log.info("Broken off again: %s: %s", self._url, error)
        exchange.discard()
        if self._skipped > MAX_SKIPPED:
            raise UpstreamError("the origin broke off, and would send too much again")
        return False

    def _settle(self) -> None:
        try:
            self._fill.settle()
        except (FillFailed, Lost) as error:
            _log.warning("Not kept: %s: %s", self._url, error)
        except (OSError, Unstorable) as error:
            _log.warning("Kept, but perhaps not past a loss of power: %s: %s", self._url, reason_of(error))


def key_of(name: Name) -> Key:
    """What the cache calls an object of this name."""
    return Key(name.path, None if name.digest is None else Digest(*name.digest))
