"""The filler: an origin's body on its way into a fill, in a thread of its own, whoever reads along or has gone."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Callable, Iterator

from body import BUFFER_SIZE, IncompleteBody
from cache import Cache
from fill import DigestMismatch, Fill, FillFailed
from freshness import FreshnessRules
from grants import Grants
from http1 import Headers
from metrics import Counter, Counters
from policy import Name
from store import Digest, Key, Unstorable
from upstream import Exchange, Origins, Request, UpstreamError

_log = logging.getLogger("dduct.fetch")

_PAUSES = (0.05, 0.25, 1.0, 2.0, 4.0)  # seconds before each attempt to resume a transfer that broke off


@dataclass(frozen=True)
class Services:
    """What fetching needs of the rest of the house. `spawn` starts a thread that shutdown will wait for."""

    cache: Cache
    origins: Origins
    freshness: FreshnessRules
    grants: Grants
    counters: Counters
    via: bytes
    spawn: Callable[[str, Callable[[], None]], threading.Thread]
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
    counters = services.counters
    pauses = iter(_PAUSES)
    try:
        while True:
            try:
                for piece in exchange.body.chunks(memoryview(bytearray(BUFFER_SIZE))):
                    fill.write(piece)
                break
            except IncompleteBody as error:
                _log.info("Broken off after %d octets: %s: %s", fill.size, url, error)
                exchange.close()
                exchange = _resume(fill, exchange, request, services, pauses)
        kept = fill.publish()
    except (IncompleteBody, FillFailed, UpstreamError) as error:
        counters.add(Counter.MISMATCHED if isinstance(error, DigestMismatch) else Counter.BROKEN)
        _log.warning("Not kept: %s: %s", url, error)
        fill.fail(UpstreamError(f"the transfer broke off: {error}"))
    else:
        counters.add(Counter.PUBLISHED if kept else Counter.UNKEPT)
        if kept:
            services.grown(fill.length or 0)
        exchange.close()
        _settle(fill, url)
    finally:
        exchange.close()
        fill.close()


def _resume(fill: Fill, broken: Exchange, request: Request, services: Services, pauses: Iterator[float]) -> Exchange:
    """An exchange whose body begins where the fill ends. Raises UpstreamError where there is none to be had.

    Only a strong validator shows that the rest belongs to the same representation (RFC 9110 §14.2, §13.1.5).
    """
    etag = broken.head.headers.get(b"etag")
    if etag is None or not etag.startswith(b'"') or not fill.length or not fill.size:
        raise UpstreamError("the origin broke off, and nothing says that the rest would be of the same object")
    conditions = [(b"Range", b"bytes=%d-" % fill.size), (b"If-Range", etag)]
    rest = replace(request, headers=Headers([*request.headers, *conditions]), on_interim=lambda _: None)
    expected = b"bytes %d-%d/%d" % (fill.size, fill.length - 1, fill.length)
    for pause in pauses:
        time.sleep(pause)
        try:
            exchange = services.origins.follow(rest)
        except UpstreamError as error:
            _log.info("Cannot be resumed yet: %s", error)
            continue
        head = exchange.head
        if head.status == 206 and head.headers.get(b"content-range") == expected and head.headers.get(b"etag") == etag:
            services.counters.add(Counter.RESUMED)
            return exchange
        exchange.close()
        if head.status < 500:
            raise UpstreamError(f"the origin broke off, and answers {head.status} when asked for the rest")
    raise UpstreamError("the origin broke off, again and again")


def _settle(fill: Fill, url: str) -> None:
    try:
        fill.settle()
    except (OSError, Unstorable) as error:
        _log.warning("Kept, but perhaps not past a loss of power: %s: %s", url, error)


def key_of(name: Name) -> Key:
    """What the cache calls an object of this name."""
    return Key(name.path, None if name.digest is None else Digest(*name.digest))
