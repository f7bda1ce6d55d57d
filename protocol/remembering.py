"""A cache of pure functions' results: only for short arguments, so that its memory is bounded.

A limit on entries is no bound where clients or origins choose the values: a thousand of 64 KiB are 64 MiB, and their
results are several times that.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import Any, Callable, Hashable, TypeVar

_Argument = TypeVar("_Argument", bound=Hashable)
_Result = TypeVar("_Result")


def remember_short(
    entries: int, length: int
) -> Callable[[Callable[[_Argument], _Result]], Callable[[_Argument], _Result]]:
    """Cache `entries` results of a function of one value (bytes or text of at most `length`, or None)."""

    def decorate(function: Callable[[_Argument], _Result]) -> Callable[[_Argument], _Result]:
        remembered = lru_cache(entries)(function)

        @wraps(function)
        def call(value: Any) -> _Result:
            return remembered(value) if value is None or len(value) <= length else function(value)

        call.remembered = remembered  # type: ignore[attr-defined]
        remembered.longest = length  # type: ignore[attr-defined]
        return call

    return decorate
