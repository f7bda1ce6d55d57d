"""The cases that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

from servers import HOST, MANY, TUNNELLED


@dataclass(frozen=True)
class Case:
    """One case: `path` (`%d` runs through `objects`), the number of requests, of connections at a time, the unit.

    The unit `ms (p99)` is the 99th percentile of the time of a request, in milliseconds.
    """

    name: str
    path: str
    requests: int
    connections: int
    unit: str
    once: bool = False
    objects: int = 1
    miss: bool = False
    host: str = HOST

    @property
    def new_objects(self) -> bool:
        """Whether each round has objects of its own."""
        return "{round}" in self.path

    @property
    def lower_is_better(self) -> bool:
        """Whether its values are times."""
        return self.unit in ("s", "ms", "ms (p99)")

    @property
    def tedious(self) -> bool:
        """Whether it has many clients, for which Squid takes minutes."""
        return self.connections >= 100

    def value(self, figures: Dict[str, float]) -> float:
        """The case's figure, computed from the client's output."""
        if self.unit == "req/s":
            return figures["requests"] / figures["seconds"]
        if self.unit == "s":
            return figures["seconds"]
        if self.unit == "ms":
            return figures["first"]
        if self.unit == "ms (p99)":
            return figures["p99"]
        return figures["bytes"] / figures["seconds"] / 1e6


_EACH = "/miss/{round}/each/%d.deb"  # different objects, each asked for once

CASES = (
    Case("4,000 hits of 4 KiB, each once, 8 connections", _EACH, MANY, 8, "req/s", objects=MANY),
    Case("the same, 16 connections", _EACH, MANY, 16, "ms (p99)", objects=MANY),
    Case("4,000 misses of 4 KiB, each once, 8 connections", _EACH, MANY, 8, "req/s", objects=MANY, miss=True),
    Case("500 objects of 4 KiB, keep-alive, 16 connections", "/each/%d.deb", 10_000, 16, "req/s", objects=500),
    Case("4 KiB hits, keep-alive, 16 connections", "/small.deb", 30_000, 16, "req/s"),
    Case("4 KiB hits, a connection each", "/small.deb", 3_000, 16, "req/s", once=True),
    Case("1 MiB hits, 8 connections", "/middle.deb", 1_500, 8, "MB/s"),
    Case("256 MiB hits, 4 connections", "/large.deb", 8, 4, "MB/s"),
    Case("256 MiB miss, one client", "/miss/{round}/large.deb", 1, 1, "MB/s", miss=True),
    Case("32 MiB miss, 200 clients", "/crowd/{round}/crowd.deb", 200, 200, "s", miss=True),
    Case("32 MiB hit, 200 clients", "/crowd.deb", 200, 200, "s"),
    Case("first byte of a miss", "/slow/{round}-%d/middle.deb", 10, 1, "ms", objects=10, miss=True),
    # One connection per request: kept ones would share one or two of the origin's processes for a whole round.
    Case("blind tunnel, 256 MiB, 4 connections", "/large.deb", 16, 4, "MB/s", once=True, host=TUNNELLED),
)
