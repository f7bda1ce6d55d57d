"""The results of real clients as a table and as a page: medians, their ratios, and which targets were missed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, DefaultDict, List, Optional, Sequence, Tuple

from report import machine

if TYPE_CHECKING:
    from distant import Took
    from kinds import Kind

Measured = Tuple[str, "Took"]  # straight, dduct cold, dduct warm, Squid cold, Squid warm

# The most that dduct may take, times as long as the other.
_COLD_FAR, _COLD_NEAR = 1.1, 1.4  # than straight
_WARM_NEAR = 1.15  # than straight
_WARM_SQUID = 0.9  # than Squid's warm cache, far from the origin


class Row:
    """One kind of downloads at one distance (milliseconds), with one number of clients at once."""

    def __init__(self, kind: str, delay: float, jobs: int) -> None:
        self.kind, self.delay, self.jobs = kind, delay, jobs
        self._took: DefaultDict[str, List[Took]] = defaultdict(list)

    def add(self, which: str, took: Took) -> None:
        self._took[which].append(took)

    def seconds(self, which: str) -> Optional[float]:
        """The median; None where it was not measured."""
        found = self._took.get(which)
        return statistics.median(one.seconds for one in found) if found else None

    def cpu(self, which: str) -> Optional[float]:
        """The median of the proxy's processor time, in seconds."""
        found = self._took.get(which)
        return statistics.median(one.cpu for one in found) if found else None

    def ratio(self, which: str, other: str) -> Optional[float]:
        """How many times as long `which` takes."""
        mine, its = self.seconds(which), self.seconds(other)
        return None if mine is None or its is None else mine / its

    def cells(self) -> List[str]:
        """All cells of the row; a ratio that misses its target is bold."""
        near = self.delay == 0
        cells = [self.kind, f"{self.delay:g} ms", str(self.jobs)]
        for which in ("straight", "Squid cold", "Squid warm", "dduct cold", "dduct warm"):
            cells.append(_number(self.seconds(which)))
        cells += [_number(self.cpu("dduct cold")), _number(self.cpu("dduct warm"))]
        cells.append(_judged(self.ratio("dduct cold", "straight"), _COLD_NEAR if near else _COLD_FAR))
        cells.append(_judged(self.ratio("dduct warm", "straight"), _WARM_NEAR if near else None))
        cells.append(_judged(self.ratio("dduct warm", "Squid warm"), None if near else _WARM_SQUID))
        return cells


def _number(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.2f}"


def _judged(ratio: Optional[float], most: Optional[float]) -> str:
    missed = ratio is not None and most is not None and ratio > most
    return f"**{_number(ratio)}**" if missed else _number(ratio)


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown; times in seconds."""
    heads = ["client", "away", "at once", "straight", "Squid cold", "Squid warm", "dduct cold", "dduct warm"]
    heads += ["dduct's CPU cold", "warm", "cold × straight", "warm × straight", "warm × Squid's"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(rows: Sequence[Row], kinds: Sequence[Kind], rounds: int) -> str:
    """The content of CLIENTS.md."""
    how = (
        f"Written by `make bench-clients`: medians of {rounds} rounds, in seconds until the last client has ended,\n"
        "all on one machine. Both proxies begin with an empty cache: cold is the first run, warm the second. The\n"
        "origin is as many milliseconds of a round trip away as stated. A ratio below 1 says that dduct is faster.\n"
        f"A bold ratio misses its target: far away, cold at most {_COLD_FAR} × straight, and warm at most\n"
        f"{_WARM_SQUID} × Squid's; at 0 ms, cold at most {_COLD_NEAR} × straight, and warm at most {_WARM_NEAR} ×\n"
        "straight. Compare ratios of one run, and nothing else."
    )
    what = "\n".join(f"- {kind.name}: {kind.describe()}" for kind in kinds)
    return "\n\n".join(["# Real clients", how, what, machine(), table(rows)]) + "\n"
