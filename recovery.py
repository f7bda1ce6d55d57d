"""Recovery: another way to the bytes of an answer that has begun, where its source is lost."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Callable, Optional, Tuple

import validation
from body import IncompleteBody
from cache import Cache, Follow, Hit
from deliver import Source
from fill import Fill, FillFailed
from follow import FillReader
from inquiry import Inquiry, stored_fields
from store import Entry, Key, Lost, Metadata, Unstorable
from upstream import Exchange, UpstreamError
from verify import Recheck

HEAD_TIMEOUT = 120.0  # seconds that a follower waits for the head of its leader's answer

# Gives an exchange to a filler: its reader and what is known of it, or None where nothing is kept.
Start = Callable[[Fill, Exchange, float, ExitStack], Optional[Tuple[FillReader, Metadata]]]


class Recovery:
    """How one request finds its object again."""

    def __init__(self, cache: Cache, key: Key, inquiry: Inquiry, start: Start) -> None:
        self._cache = cache
        self._key = key
        self._inquiry = inquiry
        self._start = start

    def elsewhere(self, sent: Metadata, length: Optional[int], cleanup: ExitStack, offset: int) -> Source:
        """Another source of the bytes from `offset` on of a representation that is being sent. Raises FillFailed.

        The leader may have died, or the disk: the object may be here by now, or be fetched again.
        """
        etag = validation.strong_etag(stored_fields(sent))
        if etag is None or length is None:
            raise FillFailed("there is no way to tell whether the rest is of the same object")
        try:
            found = self._claim_again(cleanup)
            if found is None:
                rest = _Rest(self._inquiry.rest(etag, offset, length), length, offset)
                source: Source = cleanup.enter_context(closing(rest))
                return source
        except UpstreamError as error:
            raise FillFailed(error) from error
        source, metadata = found
        if validation.strong_etag(stored_fields(metadata)) != etag or source.length != length:
            raise FillFailed("it is another object by now")
        return source

    def _claim_again(self, cleanup: ExitStack) -> Optional[Tuple[Source, Metadata]]:
        """The object from the cache, if it can be had there. Raises UpstreamError."""
        try:
            claim = self._cache.claim(self._key)
        except Unstorable:
            return None
        if isinstance(claim, Hit):
            cleanup.callback(claim.entry.close)
            return (checked(claim.entry), claim.metadata) if claim.metadata is not None else None
        if isinstance(claim, Follow):
            cleanup.callback(claim.reader.close)
            claim.reader.fill.wait_head(HEAD_TIMEOUT)
            metadata = claim.reader.fill.metadata
            return None if metadata is None else (claim.reader, metadata)
        with ExitStack() as leading:
            leading.callback(claim.fill.close)
            asked_at = time.time()
            exchange = self._inquiry.whole_or_rest(claim.fill.leftover)
            leading.callback(exchange.close)
            started = self._start(claim.fill, exchange, asked_at, leading)
        if started is not None:
            cleanup.callback(started[0].close)
        return started


class _Rest:
    """What an origin sends of an object from some offset on, as a source."""

    def __init__(self, exchange: Exchange, length: int, offset: int) -> None:
        self._exchange = exchange
        self._offset = offset  # of what comes next
        self.length: Optional[int] = length

    def ready(self, offset: int, whole: bool) -> bool:
        """It is on its way."""
        return False

    def read_at(self, view: memoryview, offset: int) -> int:
        """The next bytes. Raises Lost where others are wanted, FillFailed."""
        if offset != self._offset:
            raise Lost("the origin is sending what comes before")
        try:
            count = self._exchange.body.readinto(view)
        except IncompleteBody as error:
            raise FillFailed(error) from error
        self._offset += count
        return count

    def close(self) -> None:
        """Give the connection back."""
        self._exchange.close()


def checked(entry: Entry) -> Source:
    """An entry as a source that gives out nothing wrong."""
    return entry if entry.trusted else Recheck(entry)
