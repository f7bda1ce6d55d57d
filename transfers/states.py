"""The states of a fill, and how it goes from one to another.

    ASKING ──► FILLING ──► PUBLISHED, UNKEPT
       │          │
       └──────────┴──────► FAILED, DECLINED, GONE

A fill ends once: a final state stays.
"""

from __future__ import annotations

import enum
from typing import Dict, FrozenSet


class FillState(enum.Enum):
    """The state of a fill. The last five are final."""

    ASKING = "the leader waits for the origin's answer"
    FILLING = "the head is known, bytes are arriving"
    PUBLISHED = "complete and in its place"
    UNKEPT = "complete and read to its end, but the disk did not accept it"
    FAILED = "broken off"
    DECLINED = "the origin's answer is not to be kept; every reader asks for itself"
    GONE = "over before it began, or given up in good order; claim again"

    @property
    def final(self) -> bool:
        """Whether the fill is over."""
        return self in _FINAL


COMPLETE = frozenset([FillState.PUBLISHED, FillState.UNKEPT])  # readers get every byte
_INCOMPLETE = frozenset([FillState.FAILED, FillState.DECLINED, FillState.GONE])
_FINAL = COMPLETE | _INCOMPLETE

TRANSITIONS: Dict[FillState, FrozenSet[FillState]] = {
    FillState.ASKING: _INCOMPLETE | {FillState.FILLING},
    FillState.FILLING: _FINAL,
    **dict.fromkeys(_FINAL, frozenset[FillState]()),
}


class FillFailed(Exception):
    """The fill broke off before the wanted bytes arrived; `cause` is the reason that its leader gave."""

    def __init__(self, cause: object) -> None:
        super().__init__(str(cause))
        self.cause = cause


class DigestMismatch(FillFailed):
    """The bytes do not match the digest in the object's name."""
