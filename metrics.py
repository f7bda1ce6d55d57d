"""Counters of what dduct has done since it was started."""

from __future__ import annotations

import enum
import threading
from typing import Dict


class Counter(enum.Enum):
    """What is counted: its name for Prometheus, and what it means."""

    HITS = ("hits", "Responses from the cache without asking the origin for the object")
    VALIDATED = ("validated", "Responses from the cache after the origin said they are still good")
    STALE = ("stale", "Stale responses, sent because the origin could not be asked")
    COLLAPSED = ("collapsed", "Responses that shared another client's transfer")
    FILLS = ("fills", "Objects whose transfer into the cache was begun")
    PUBLISHED = ("published", "Objects that were put into the cache")
    UNKEPT = ("unkept", "Objects that the disk would not have, though their clients got them")
    RESUMED = ("resumed", "Transfers into the cache that broke off and were taken up again")
    DROPPED = ("dropped", "Transfers into the cache that were given up because nobody wanted them any more")
    BROKEN = ("broken", "Transfers into the cache that broke off")
    MISMATCHED = ("digest_mismatches", "Objects that had not the digest which their URL promises, and were not kept")
    DAMAGED = ("damaged", "Stored objects that the disk did not give back as they were, and that were fetched anew")
    EVICTED = ("evicted", "Objects that were removed to make room")
    RELAYED = ("relayed", "Responses relayed without being kept")
    UNSTORABLE = ("unstorable", "Requests relayed because their object cannot have a name in the cache")
    TUNNELS = ("tunnels", "Connections carried blind")
    INTERCEPTED = ("intercepted", "Connections that were intercepted")
    REFUSED = ("refused", "Requests that were malformed or not allowed")


class Counters:
    """One number for each Counter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _values
        self._values: Dict[Counter, int] = dict.fromkeys(Counter, 0)

    def add(self, counter: Counter) -> None:
        """Count one more."""
        with self._lock:
            self._values[counter] += 1

    def value(self, counter: Counter) -> int:
        """How many so far."""
        with self._lock:
            return self._values[counter]

    def render(self) -> str:
        """All of them in Prometheus' text format."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for counter, value in values.items():
            name, meaning = counter.value
            lines += [f"# HELP dduct_{name}_total {meaning}.", f"# TYPE dduct_{name}_total counter"]
            lines.append(f"dduct_{name}_total {value}")
        return "\n".join(lines) + "\n"
