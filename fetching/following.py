"""Following: reading along with a fill that another request leads."""

from __future__ import annotations

import logging
from typing import Optional

from fetching.authorization import Authorization
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.leading import Leading
from fetching.negative_answer import NegativeAnswer
from fetching.origin_relay import OriginRelay
from fetching.outcomes import Admission, Outcome, Stale, as_upstream_error, missed
from fetching.recovery import HEAD_TIMEOUT
from fetching.stored_answer import StoredAnswer
from monitoring.details import Detail, with_detail
from monitoring.metrics import Counter
from net.response import Reply
from storage.record import Metadata
from transfers.fill import Fill
from transfers.follow import FillReader
from transfers.states import FillState

_log = logging.getLogger("dduct.fetch")

_SLOW_HEAD = 3.0  # seconds without a response head; then a request that differs from the leader's is sent, too


class Following:
    """The fills that one request follows. With a stale object, the fill is its validation."""

    def __init__(
        self,
        services: Services,
        reply: Reply,
        request: CacheableRequest,
        relay: OriginRelay,
        authorization: Authorization,
        answer: StoredAnswer,
        negative: NegativeAnswer,
        leading: Leading,
    ) -> None:
        self._services = services
        self._reply = reply
        self._request = request
        self._relay = relay
        self._authorization = authorization
        self._answer = answer
        self._negative = negative
        self._leading = leading

    def follow(self, reader: FillReader, stale: Optional[Stale]) -> Outcome:
        """Wait for the response's head, and read along; or do what its absence asks for."""
        fill = reader.fill
        state = fill.wait_head(_SLOW_HEAD)
        if state is FillState.ASKING and isinstance(fill, Fill):
            asker = fill.asking.join(self._request.question, fill.fail, fill.close)
            if asker is not None:
                _log.info("Asked for once more, because the first request waits for long: %s", self._request.shown)
                return self._leading.ask(fill, asker, stale)
        if state is FillState.ASKING:
            state = fill.wait_head(HEAD_TIMEOUT)
        if state is FillState.GONE:
            return Outcome.RETRY
        if state in (FillState.DECLINED, FillState.ASKING):
            negative = self._negative.find()
            if negative is not None:  # it is newer than what this request has found stored
                self._negative.send(negative, with_detail(f"{missed(stale)}; collapsed", Detail.NEGATIVE))
                return Outcome.DONE
            return self._answer.relay_or(stale, fill.asking.declined_for if isinstance(fill, Fill) else Detail.NOT_KEPT)
        if fill.metadata is None:
            return self._leading.after_failure(fill, as_upstream_error(fill.cause), stale)
        return self._read_along(reader, fill.metadata, stale)

    def _read_along(self, reader: FillReader, brought: Metadata, stale: Optional[Stale]) -> Outcome:
        known = self._request.is_of_this_url(brought)
        metadata = brought if known else self._authorization.confirm_alias(reader, brought)
        if metadata is Admission.ANSWERED:
            return Outcome.DONE
        why = self._authorization.why_relayed(metadata)
        if why is not None:
            self._relay.relay(why)
            return Outcome.DONE
        if known and self._authorization.needs_permission(metadata):
            admission = self._authorization.admit(metadata, reader.length)
            if admission is Admission.CHANGED:
                self._relay.relay(with_detail("fwd=uri-miss", Detail.CREDENTIALS))
            if admission is not Admission.GRANTED:
                return Outcome.DONE
        self._services.counters.add(Counter.COLLAPSED)
        self._reply.note = f"{missed(stale)}; collapsed"
        outcome = self._answer.send_growing(reader, metadata)
        if not known and reader.fill.state is FillState.PUBLISHED:
            self._services.cache.confirm_alias(self._request.key, metadata)
        return outcome
