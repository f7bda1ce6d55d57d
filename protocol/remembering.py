"""Results of pure functions, remembered by what they were made of: only short values, so that the sum is bounded.

A number of entries is no bound where clients or origins choose the values: a thousand of 64 KiB are 64 MiB, and what
was made of them is a multiple of that.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import Any, Callable, Hashable, TypeVar

_Argument = TypeVar("_Argument", bound=Hashable)
_Result = TypeVar("_Result")


def remember_short(
    entries: int, length: int
) -> Callable[[Callable[[_Argument], _Result]], Callable[[_Argument], _Result]]:
    """Remember so many results of a function of one value (bytes or text, or None) of at most this length."""

    def decorate(function: Callable[[_Argument], _Result]) -> Callable[[_Argument], _Result]:
        remembered = lru_cache(entries)(function)

        @wraps(function)
        def call(value: Any) -> _Result:
            return remembered(value) if value is None or len(value) <= length else function(value)

        call.remembered = remembered  # type: ignore[attr-defined]
        remembered.longest = length  # type: ignore[attr-defined]
        return call

    return decorate
