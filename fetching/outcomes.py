"""What a cached fetch learns on its way, as values: outcomes, admissions, stale objects, notes on hits."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional

from protocol.freshness import Assessment
from storage.entry import Entry
from storage.record import Metadata
from transfers.follow import AnyFill
from transfers.states import FillState
from upstream.dialling import UpstreamError


class Outcome(enum.Enum):
    """How one attempt at an answer has ended."""

    DONE = "the client has been answered"
    RETRY = "the object has changed hands, or its bytes are lost: the next claim decides again"


class Admission(enum.Enum):
    """An origin's decision on a client that wants an object which another client's credentials have brought."""

    GRANTED = "the client may have it"
    ANSWERED = "the client has been given the origin's own answer"
    CHANGED = "it may have it, but it is something else by now"


class Polled(enum.Enum):
    """Which requests the poller's thread could probably have answered by itself, as far as the object shows."""

    NONE = "none: the object is too large, or takes a decision"
    QUICK = "those that are quick or plain: it was a hit"
    PLAIN = "plain ones: its origin was asked"


@dataclass(frozen=True)
class Stale:
    """A stored object that has to be validated before it may be used."""

    entry: Entry
    metadata: Metadata
    assessment: Assessment


def outcome_of(fill: AnyFill) -> str:
    """What became of a fill, for the log."""
    if fill.state is FillState.PUBLISHED:
        return "stored"
    if fill.cause is None and not fill.state.final:
        return "still being fetched"
    return f"not stored: {fill.cause or 'given up'}"


def missed(stale: Optional[Stale]) -> str:
    """Cache-Status of a request whose object is not in the cache, or not fresh (RFC 9211 §2.2)."""
    return "fwd=uri-miss" if stale is None else "fwd=stale"


def hit_note(assessment: Assessment) -> str:
    """Cache-Status of a hit (RFC 9211 §2); the ttl of a stale one is negative."""
    return "hit" if assessment.ttl == float("inf") else f"hit; ttl={int(assessment.ttl)}"


def as_upstream_error(cause: object) -> UpstreamError:
    """The error for a follower's client when the leader got no response."""
    return cause if isinstance(cause, UpstreamError) else UpstreamError(f"the transfer broke off: {cause}")
