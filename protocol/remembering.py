"""Bounded memories: of pure functions' results for short arguments, and of recently used values.

A limit on entries is no bound where clients or origins choose the values: a thousand of 64 KiB are 64 MiB, and their
results are several times that.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import Any, Callable, Dict, Generic, Hashable, Optional, Tuple, TypeVar

_Argument = TypeVar("_Argument", bound=Hashable)
_Result = TypeVar("_Result")
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


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


class Generations(Generic[_Key, _Value]):
    """The most recently used values: a new generation, and the one before it.

    A generation is full with `entries` values, or with values of a total `weight`. The next one then begins, and what
    was not used since the last change of generations is dropped. So one pass over many values does not push out those
    in use, and a use costs no more than a lookup.

    It has no lock. Single operations on the dictionaries are atomic; threads that change a generation at once drop one
    too many, which costs time and nothing else.
    """

    def __init__(self, entries: int, weight: float = float("inf")) -> None:
        self._entries = entries
        self._limit = weight
        self._weight = 0
        self._new: Dict[_Key, Tuple[_Value, int]] = {}
        self._old: Dict[_Key, Tuple[_Value, int]] = {}

    def __len__(self) -> int:
        return len({**self._old, **self._new})

    @property
    def weight(self) -> int:
        """The total weight of all values."""
        return sum(weight for _, weight in {**self._old, **self._new}.values())

    def get(self, key: _Key) -> Optional[_Value]:
        """The value of a key, which is in use from now on; None where there is none."""
        found = self._new.get(key)
        if found is None:
            found = self._old.get(key)
            if found is None:
                return None
            self.put(key, *found)
        return found[0]

    def put(self, key: _Key, value: _Value, weight: int = 0) -> None:
        """Remember a value."""
        if len(self._new) >= self._entries or self._weight + weight > self._limit:
            self._old, self._new, self._weight = self._new, {}, 0
        self._new[key] = (value, weight)
        self._weight += weight

    def drop(self, key: _Key) -> None:
        """Forget a key."""
        self._new.pop(key, None)
        self._old.pop(key, None)


class Doorkeeper:
    """Lets a value into a memory when its key is asked for a second time within the last `slots` or so keys.

    Most objects are asked for once. To remember them would push out those in use, and each remembered value costs the
    garbage collector time for as long as it lives. A key that loses its slot to another one is new again. Like
    `Generations`, it has no lock: a lost mark costs one lookup.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._marks = [0] * slots

    def knows(self, key: Hashable) -> bool:
        """Whether the key was asked for before; from now on it was."""
        mark = hash(key)
        slot = mark % self._slots
        if self._marks[slot] == mark:
            return True
        self._marks[slot] = mark
        return False
