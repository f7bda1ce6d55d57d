"""Recovery: another way to the bytes of an answer that has begun, where its source is lost."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Callable, Optional, Tuple

from cache import Cache, Follow, Hit
from fetching.deliver import Source
from fetching.origin_query import Inquiry, stored_fields
from net.body import IncompleteBody
from net.client_watch import when_gone
from protocol import validation
from storage.store import Entry, Key, Lost, Metadata, Unstorable
from transfers.fill import Fill, FillFailed, FillState
from transfers.follow import FillReader
from transfers.recheck import Recheck
from upstream.client import Exchange, UpstreamError

_MAX_CLAIMS = 8  # of one answer in a row
_OTHERS_FIRST = 0.2  # seconds that a request which the origin has refused gives others to lead
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
        named = self._key.digest is not None  # then every fill is of the same object, or comes to nothing
        if length is None or (etag is None and not named):
            raise FillFailed("there is no way to tell whether the rest is of the same object")
        try:
            found = self._find(cleanup)
            if found is None:
                if etag is None:
                    raise FillFailed("nothing would prove the rest")  # a digest does so for fills alone
                rest = _Rest(self._inquiry.rest(etag, offset, length), length, offset)
                source: Source = cleanup.enter_context(closing(rest))
                return source
        except UpstreamError as error:
            raise FillFailed(error) from error
        source, metadata = found
        if source.length != length or not (named or validation.strong_etag(stored_fields(metadata)) == etag):
            raise FillFailed("it is another object by now")
        return source

    def _find(self, cleanup: ExitStack) -> Optional[Tuple[Source, Metadata]]:
        """The object from the cache, if it can be had there. Raises UpstreamError.

        A fill that its leader hands over, because the origin refuses it, goes on with one of those who read along. Only
        once does this one offer to be that.
        """
        has_led = False
        for _ in range(_MAX_CLAIMS):
            try:
                claim = self._cache.claim(self._key)
            except Unstorable:
                return None
            if isinstance(claim, Hit):
                cleanup.callback(claim.entry.close)
                metadata = claim.metadata or claim.entry.record.metadata
                return checked(claim.entry), metadata
            if isinstance(claim, Follow):
                cleanup.callback(claim.reader.close)
                if claim.reader.fill.wait_head(HEAD_TIMEOUT) is FillState.GONE:
                    continue
                known = claim.reader.fill.metadata
                return None if known is None else (claim.reader, known)
            if has_led:
                with closing(claim.fill) as fill:
                    fill.hand_over()
                return None
            has_led = True
            started = self._lead(claim.fill, cleanup)
            if started is not None or claim.fill.state is not FillState.GONE:
                return started
            time.sleep(_OTHERS_FIRST)
        return None

    def _lead(self, fill: Fill, cleanup: ExitStack) -> Optional[Tuple[Source, Metadata]]:
        with ExitStack() as leading:
            leading.callback(fill.close)
            leading.push(when_gone(fill.hand_on))
            asked_at = time.time()
            exchange = self._inquiry.whole_or_rest(fill.leftover)
            leading.callback(exchange.close)
            started = self._start(fill, exchange, asked_at, leading)
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
