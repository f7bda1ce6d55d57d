"""The cases that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

from servers import HOST, TUNNELLED


@dataclass(frozen=True)
class Case:
    """One case: `path` (`%d` runs through `objects`), the number of requests, of connections at a time, the unit."""

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
        return figures["bytes"] / figures["seconds"] / 1e6


CASES = (
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
