"""The cases that are measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict

from programs import HOST, TUNNELLED
from servers import MANY, MIX

_LEAST = 300  # objects of a case that is shortened, or as many as it has


@dataclass(frozen=True)
class Case:
    """One case: `path` (`%d` runs through `objects`), the number of requests, of connections at a time, the unit.

    The unit `ms (p99)` is the 99th percentile of the time of a request, in milliseconds. Each round
    measures a case `repeats` times. A `short` one shows that it runs, and not much more. One that is `tedious` has a
    crowd of clients: Squid takes minutes for it.
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
    repeats: int = 1
    tedious: bool = False
    short: bool = False

    @property
    def new_objects(self) -> bool:
        """Whether each round has objects of its own."""
        return "{round}" in self.path

    @property
    def lower_is_better(self) -> bool:
        """Whether its values are times."""
        return self.unit in ("s", "ms", "ms (p99)")

    def shortened(self) -> Case:
        """The same with an eighth of the requests and objects, as far as that is enough for all connections."""
        least = 3 if self.unit == "ms" else _LEAST
        objects = min(self.objects, max(least, self.objects // 8))
        requests = objects if self.requests == self.objects else max(objects, self.connections, self.requests // 8)
        return replace(self, objects=objects, requests=requests, repeats=1, short=True)

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
_KEPT = "/each/%d.deb"  # hot objects on kept connections
_MIX = "/miss/{round}/mix/%d.tgz"
_VALIDATED = "/validated/each/%d.deb"  # the origin says no-cache, and has an ETag

CASES = (
    Case("hits of 4 KiB, each once, 8 connections", _EACH, MANY, 8, "req/s", objects=MANY),
    Case("hits of 4 KiB, each once, 16 connections, slowest", _EACH, MANY, 16, "ms (p99)", objects=MANY),
    Case("misses of 4 KiB, each once, 8 connections", _EACH, MANY, 8, "req/s", objects=MANY, miss=True),
    Case("validated hits of 4 KiB, each once, 16 connections", _VALIDATED, MANY, 16, "req/s", objects=MANY),
    Case("npm's mix, 1 to 60 KiB, each once, 16 new connections", _MIX, MIX, 16, "req/s", objects=MIX, repeats=5),
    Case("4 KiB hits on 500 objects, 16 connections", _KEPT, 10_000, 16, "req/s", objects=500),
    Case("4 KiB hits on one object, 16 connections", "/small.deb", 30_000, 16, "req/s"),
    Case("4 KiB hits on 500 objects, 200 connections", _KEPT, 40_000, 200, "req/s", objects=500),
    Case("4 KiB hits on 500 objects, 200 connections, slowest", _KEPT, 40_000, 200, "ms (p99)", objects=500),
    Case("4 KiB hits, a connection each", "/small.deb", 3_000, 16, "req/s", once=True),
    Case("1 MiB hits, 8 connections", "/middle.deb", 1_500, 8, "MB/s"),
    Case("256 MiB hits, 4 connections", "/large.deb", 8, 4, "MB/s"),
    Case("256 MiB miss, one client", "/miss/{round}/large.deb", 1, 1, "MB/s", miss=True),
    Case("32 MiB miss, 200 clients", "/crowd/{round}/crowd.deb", 200, 200, "s", miss=True, tedious=True),
    Case("32 MiB hit, 200 clients", "/crowd.deb", 200, 200, "s", tedious=True),
    Case("first byte of a miss", "/slow/{round}-%d/middle.deb", 10, 1, "ms", objects=10, miss=True),
    # One connection per request: kept ones would share one or two of the origin's processes for a whole round.
    Case("blind tunnel, 256 MiB, 4 connections", "/large.deb", 16, 4, "MB/s", once=True, host=TUNNELLED),
)
