"""The filler: an origin's body on its way into a fill, in a thread of its own, whoever reads along or has gone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Callable

import validation
from body import BUFFER_SIZE, IncompleteBody, new_buffer
from cache import Cache
from fill import DigestMismatch, Fill, FillFailed
from freshness import FreshnessRules
from grants import Grants
from http1 import Headers
from metrics import Counter, Counters
from policy import Name
from redaction import reason_of
from request_fields import RequestFields
from store import Digest, Key, Lost, Unstorable
from upstream import Exchange, Origins, Request, UpstreamError

_log = logging.getLogger("dduct.fetch")

_PROVEN = 8 * 1024 * 1024  # octets, after which an object is large enough for
_LARGE_BUFFER = 1024 * 1024  # octets at once
_WORTH_WAITING = 60.0  # seconds that a transfer may take yet although nobody wants it
_PAUSES = (0.05, 0.25, 1.0, 2.0, 4.0)  # seconds before each attempt to resume a transfer that broke off


@dataclass(frozen=True)
class Services:
    """What fetching needs of the rest of the house. `spawn` starts a thread that shutdown will wait for."""

    cache: Cache
    origins: Origins
    freshness: FreshnessRules
    grants: Grants
    names: RequestFields
    counters: Counters
    via: bytes
    spawn: Callable[[str, Callable[[], None]], None]
    grown: Callable[[int], None]  # is told of the octets that the cache has gained

    def forget(self, name: Name) -> None:
        """What is stored under a name is outdated."""
        try:
            self.cache.remove(key_of(name))
        except Unstorable:
            pass  # then nothing is


def carry(fill: Fill, exchange: Exchange, request: Request, url: str, services: Services) -> None:
    """Carry an origin's body into a fill, to its end; the whole work of a filler thread. It closes both.

    Where the origin breaks off it is asked for the rest, a few times, and nobody who reads along notices.
    """
    _Filler(fill, exchange, request, url, services).run()


class _Unwanted(Exception):
    """Nobody reads along, and there is much to come yet."""


class _Filler:
    """One transfer."""

    def __init__(self, fill: Fill, exchange: Exchange, request: Request, url: str, services: Services) -> None:
        self._fill = fill
        self._exchange = exchange
        self._request = request
        self._url = url
        self._services = services
        self._pauses = iter(_PAUSES)
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
        except (IncompleteBody, FillFailed, Lost, UpstreamError) as error:
            counters.add(Counter.MISMATCHED if isinstance(error, DigestMismatch) else Counter.BROKEN)
            _log.warning("Not kept: %s: %s", self._url, error)
            fill.fail(UpstreamError(f"the transfer broke off: {error}"))
        else:
            counters.add(Counter.PUBLISHED if kept else Counter.UNKEPT)
            if kept:
                self._services.grown(fill.length or 0)
            self._exchange.close()
            self._settle()
        finally:
            self._exchange.close()
            fill.close()

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

        Only a strong validator shows that the rest belongs to the same representation (RFC 9110 §14.2, §13.1.5).
        """
        fill, services = self._fill, self._services
        etag = validation.strong_etag(self._exchange.head.headers)
        if etag is None or not fill.length or not fill.size:
            raise UpstreamError("the origin broke off, and nothing says that the rest would be of the same object")
        conditions = validation.rest_conditions(etag, fill.size)
        headers = Headers([*self._request.headers.without([b"range", b"if-range"]), *conditions])
        rest = replace(self._request, headers=headers, on_interim=lambda _: None)
        for pause in self._pauses:
            time.sleep(pause)
            if fill.unread:
                self._consider()
            try:
                exchange = services.origins.follow(rest)
            except UpstreamError as error:
                _log.info("Cannot be resumed yet: %s", error)
                continue
            if validation.is_rest(exchange.head, etag, fill.size, fill.length):
                services.counters.add(Counter.RESUMED)
                return exchange
            exchange.close()
            if exchange.head.status < 500:
                status = exchange.head.status
                raise UpstreamError(f"the origin broke off, and answers {status} when asked for the rest")
        raise UpstreamError("the origin broke off, again and again")

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
