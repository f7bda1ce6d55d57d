"""What origins say of the requests that they still answer: `RateLimit-Remaining`, and fields like it.

Registries count each GET of a manifest. All workers share the numbers; `/metrics` shows them.
"""

from __future__ import annotations

import re
import time
from typing import Callable, Iterator, Optional, Tuple

from protocol.http1 import ResponseHead, Target
from storage.shared_table import SharedNumbers

_FIELDS = (b"ratelimit-remaining", b"x-ratelimit-remaining", b"x-rate-limit-remaining")
_COUNT = re.compile(rb"[ \t]*([0-9]{1,9})[ \t]*(?:$|;)")  # Docker's has a window behind it: 76;w=21600
_MEMBER = re.compile(rb"(?:^|[,; \t])(?:remaining|r)=([0-9]{1,9})(?=$|[,; \t])")  # of RateLimit, in both its drafts
_MAX_VALUE = 256  # bytes
_VALID = 6 * 3600.0  # seconds; the window of the largest registry


class RateLimits:
    """How many requests origins still answer. Below `floor`, an origin's number is low."""

    def __init__(self, numbers: SharedNumbers, floor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._numbers = numbers
        self._floor = floor
        self._clock = clock  # of all processes

    def note(self, target: Target, response: ResponseHead) -> None:
        """Note what a response says, if anything."""
        remaining = _remaining(response)
        if remaining is not None:
            self._numbers.set(_origin(target), remaining, self._clock() + _VALID)

    def is_low(self, target: Target) -> bool:
        """Whether an origin answers few more requests."""
        if not self._floor:
            return False
        remaining = self._numbers.get(_origin(target), self._clock())
        return remaining is not None and remaining < self._floor

    def all(self) -> Iterator[Tuple[str, int]]:
        """Origins, and how many requests they still answer."""
        return self._numbers.items(self._clock())


def _remaining(response: ResponseHead) -> Optional[int]:
    for name in _FIELDS:
        value = response.headers.get(name)
        if value is not None and len(value) <= _MAX_VALUE:
            count = _COUNT.match(value)
            return None if count is None else int(count.group(1))
    value = response.headers.get(b"ratelimit")
    if value is None or len(value) > _MAX_VALUE:
        return None
    member = _MEMBER.search(value)
    return None if member is None else int(member.group(1))


def _origin(target: Target) -> str:
    return f"{target.scheme}://{target.authority}"
