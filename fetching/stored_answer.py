"""The answer from stored bytes, or from bytes that still arrive; also a stale one, where the origin cannot be asked."""

from __future__ import annotations

import enum
import logging
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import Optional

from fetching import outcomes, variants
from fetching.cacheable_request import CacheableRequest
from fetching.deliver import FailoverSource, Source, checked, deliver, shown
from fetching.far_ranges import FarRanges, FarReader
from fetching.filler import Services
from fetching.origin_relay import OriginRelay
from fetching.outcomes import Outcome, Stale, as_upstream_error, missed
from fetching.recent import Client
from fetching.recovery import Recovery
from fetching.stored_metadata import as_stored, stored_fields
from monitoring.details import Detail, with_detail
from monitoring.metrics import Counter
from net.response import Reply
from protocol import selection
from protocol.selection import Selection
from storage.entry import Entry, Lost
from storage.record import Metadata
from transfers.follow import FillReader
from transfers.states import FillFailed
from upstream.credentials import FOR_ITS_CLIENT
from upstream.dialling import UpstreamError
from upstream.request import Purpose

_log = logging.getLogger("dduct.fetch")

_MAX_SETBACKS = 2  # failed fills; then the client gets the error


class _Readiness(enum.Enum):
    """Whether the first bytes of an answer are there."""

    HERE = "they can be sent together with the head"
    COMING = "the head goes first"
    LOST = "another attempt has to find them"


class StoredAnswer:
    """Answers one request from the cache. The head leaves only once the first bytes are there, or are on their way."""

    def __init__(
        self,
        services: Services,
        reply: Reply,
        request: CacheableRequest,
        relay: OriginRelay,
        recovery: Recovery,
        far: FarRanges,
        client: Client,
    ) -> None:
        self._services = services
        self._reply = reply
        self._request = request
        self._relay = relay
        self._recovery = recovery
        self._far = far
        self._client = client
        self._setbacks = 0  # fills that failed before this client got any bytes

    def send_hit(self, entry: Entry, metadata: Metadata, counter: Counter, note: str) -> Outcome:
        """Send a published object; `note` is its Cache-Status, `counter` counts it."""
        self._reply.note = note
        outcome = self._send(checked(entry), metadata)
        self._services.counters.add(counter if outcome is Outcome.DONE else Counter.DAMAGED)
        return outcome

    def send_growing(self, reader: FillReader, metadata: Metadata) -> Outcome:
        """Send a fill while it grows. The log then says what became of the object; the head could only promise it."""
        promises = self._reply.note.endswith(("; stored", "; collapsed"))
        try:
            return self._send(reader, metadata)
        finally:
            if promises:
                ended = outcomes.outcome_of(reader.fill)
                self._reply.outcome = f"{self._reply.note.replace('; stored', '')}; {ended}"

    # Where the origin cannot be asked

    def may_use(self, stale: Optional[Stale]) -> bool:
        """Whether a stale object may be sent although its origin cannot be asked."""
        if stale is None or self._request.only_if_cached or stale.metadata.restricted:
            return False
        return stale.assessment.usable_on_error

    def send_stale(self, stale: Stale, error: UpstreamError) -> Outcome:
        """Send a stale object that `may_use` allows."""
        _log.warning("Stale, but sent: %s: %s", self._request.shown, error)
        return self.send_hit(stale.entry, stale.metadata, Counter.STALE, outcomes.hit_note(stale.assessment))

    def send_stale_or_raise(self, stale: Optional[Stale], error: UpstreamError) -> Outcome:
        """Send the stale object if `may_use` allows it, or else what another Accept has brought. Raises the error if
        there is neither."""
        if stale is not None and self.may_use(stale):
            return self.send_stale(stale, error)
        outcome = self.send_variant(error) if stale is None else None
        if outcome is None:
            raise error
        return outcome

    def send_variant(self, error: UpstreamError) -> Optional[Outcome]:
        """Send a stored variant that this client accepts, because its own is not stored; None where there is none."""
        if self._request.only_if_cached:
            return None
        now = time.time()
        hit = variants.usable(self._services, self._request, now)
        if hit is None or hit.metadata is None:
            return None
        with closing(hit.entry):
            assessment = self._request.assess(hit.entry.record, hit.metadata, now, now)
            return self.send_stale(Stale(hit.entry, hit.metadata, assessment), error)

    def relay_or(self, stale: Optional[Stale], detail: Detail) -> Outcome:
        """Relay, or send the stale object if the origin cannot be asked."""
        note = with_detail(missed(stale), detail)
        try:
            self._relay.relay(note, Purpose.FILL if self.may_use(stale) else Purpose.RELAY)
        except UpstreamError as error:
            if self._reply.started:
                raise
            return self.send_stale_or_raise(stale, error)
        return Outcome.DONE

    # Sending

    def _send(self, source: Source, metadata: Metadata) -> Outcome:
        """Send it; RETRY where this source turns out, before anything is sent, not to have it."""
        head, fields, length = self._request.head, stored_fields(metadata), source.length
        chosen = selection.select(head, fields, length)
        if chosen is None:
            self._relay.relay(with_detail("fwd=request", Detail.CONDITION))  # the origin evaluates a precondition
            return Outcome.DONE
        if isinstance(source, FillReader) and chosen.status == 206:
            with closing(self._far.reader(source, metadata, chosen.parts)) as ahead:
                return self._send_chosen(ahead, metadata, chosen)
        return self._send_chosen(source, metadata, chosen)

    def _send_chosen(self, source: Source, metadata: Metadata, chosen: Selection) -> Outcome:
        head, fields, length = self._request.head, stored_fields(metadata), source.length
        readiness = _Readiness.HERE
        if chosen.parts and head.method != b"HEAD":
            readiness = self._readiness(source, chosen)
            if readiness is _Readiness.LOST:
                return Outcome.RETRY
            if isinstance(source, FarReader) and source.is_ahead:
                self._reply.note = with_detail(self._reply.note, Detail.FAR_RANGE)
        age = int(as_stored(metadata).age(time.time()))
        extra = [*chosen.fields, (b"Accept-Ranges", b"bytes")]
        if age or not self._reply.note.startswith("fwd=uri-miss"):
            extra.append((b"Age", b"%d" % age))
        if self._request.use is not None and (metadata.restricted or self._request.lent):
            extra.append(FOR_ITS_CLIENT)
        hold = readiness is _Readiness.HERE
        self._reply.send_head(chosen.status, [*shown(fields, chosen), *extra], chosen.length, hold=hold)
        if not self._reply.has_body:
            return Outcome.DONE
        with ExitStack() as cleanup:
            file = source.fileno() if isinstance(source, Entry) else None
            failover = FailoverSource(source, partial(self._recovery.elsewhere, metadata, length, cleanup), file)
            try:
                deliver(self._reply, failover, chosen)
            except FillFailed as error:
                _log.info("Cut short: %s: %s", self._request.shown, error)
                return Outcome.DONE
        if chosen.status == 200 and not self._request.lasts:
            self._services.deliveries.note(self._client, self._request.key.name)
        return Outcome.DONE

    def _readiness(self, source: Source, chosen: Selection) -> _Readiness:
        """Whether the first bytes are there already. Raises UpstreamError after repeated failures."""
        try:
            ready = source.ready(chosen.parts[0].start, chosen.status == 200)
            return _Readiness.HERE if ready else _Readiness.COMING
        except Lost as error:
            _log.info("Source lost, answered again: %s: %s", self._request.shown, error)
        except FillFailed as error:
            self._setbacks += 1
            if self._setbacks >= _MAX_SETBACKS:
                raise as_upstream_error(error.cause) from error
        return _Readiness.LOST
