"""Counters of events since dduct started, and gauges of its present state."""

from __future__ import annotations

import enum
import mmap
import threading
from typing import Callable, Iterable, Tuple, Union


class Counter(enum.Enum):
    """A counted event: its Prometheus name and meaning. `column` is its index among all."""

    def __init__(self, name: str, meaning: str) -> None:
        self.column = len(type(self).__members__)

    HITS = ("hits", "Responses from the cache without asking the origin for the object")
    VALIDATED = ("validated", "Responses from the cache after the origin said they are still good")
    STALE = ("stale", "Stale responses, sent because the origin could not be asked")
    NEGATIVE = ("negative", "Responses 404, 410 or a permanent redirect from memory, without asking the origin")
    CONFIRMED = ("confirmed", "Objects validated in the background after a heuristic hit, and still good")
    OUTDATED = ("outdated", "Objects that a validation in the background found to be outdated")
    UNCONFIRMED = ("unconfirmed", "Validations in the background that got no answer")
    DOUBTED = ("doubted", "Objects validated because a client repeated its request")
    LOOKS = ("repository_looks", "Questions to registries without credentials, whether a repository is public")
    AHEAD = ("ahead", "Objects fetched for pipelined requests before their turn")
    COLLAPSED = ("collapsed", "Responses that shared another client's transfer")
    FAR_RANGES = (
        "far_ranges",
        "Ranges that came on a connection of their own, far ahead of their object's transfer",
    )
    FILLS = ("fills", "Transfers into the cache that started")
    PUBLISHED = ("published", "Objects that were stored")
    UNKEPT = ("unkept", "Objects that the disk did not accept, though their clients got them")
    RESUMED = ("resumed", "Transfers into the cache that broke off and were resumed")
    DROPPED = ("dropped", "Transfers into the cache that were stopped because no client read them any more")
    BROKEN = ("broken", "Transfers into the cache that broke off")
    MISMATCHED = ("digest_mismatches", "Objects that did not match the digest in their URL, and were not kept")
    DAMAGED = ("damaged", "Stored objects that the disk returned damaged, and that were fetched again")
    STORED_BYTES = ("stored_bytes", "Bytes that were stored")
    EVICTED = ("evicted", "Objects that were removed to free space")
    RELAYED = ("relayed", "Responses relayed without being kept")
    UNSTORABLE = (
        "unstorable",
        "Requests relayed because their object cannot be kept: its name, its metadata, or too little space",
    )
    TUNNELS = ("tunnels", "Connections that were tunnelled")
    INTERCEPTED = ("intercepted", "Connections that were intercepted")
    SLOW_DISK = ("slow_disk", "Times that the cache's disk took too long to answer")
    UNSYNCED = (
        "unsynced",
        "Stored files not synced because too many waited for it: after a loss of power, their bytes are verified first",
    )
    CLIENTS_GONE = ("clients_gone", "Requests that were given up because their client had hung up")
    NOT_TLS = ("not_tls", "Connections inside CONNECT to a listed host without TLS, which were tunnelled")
    STRANGERS = ("strangers", "Connections from addresses that are not in proxy.allow_clients")
    TURNED_AWAY = ("turned_away", "Connections that were refused because all places were taken")
    DISPLACED = ("displaced", "Silent connections that were ended for others, when all places were taken")
    BARRED = ("barred", "Connections that were ended because a reload no longer allows their client or user")
    WRONG_PROTOCOL = ("wrong_protocol", "Connections with a protocol that their port does not speak")
    WRONG_PASSWORDS = ("wrong_passwords", "Requests whose user or password was wrong")
    PASSWORDS_PUT_OFF = (
        "passwords_put_off",
        "Requests whose password was not checked because their address sent too many",
    )
    CREDENTIALS_USED = ("credentials_used", "Requests that were sent with credentials of `[[credentials]]`")
    CREDENTIALS_FAILED = (
        "credentials_failed",
        "Requests for which the credentials of `[[credentials]]` were of no use",
    )
    INTERIM_FLOODS = ("interim_floods", "Origins that sent endless interim responses (1xx), and were disconnected")
    OUTAGES = ("outages", "Origins and parents that did not answer, and were not tried for a while")
    REFUSALS = ("refusals", "Origins that answered 429, or 503 with Retry-After, and were not asked for a while")
    FAST_FAILURES = (
        "fast_failures",
        "Requests that did not ask their origin, because it had just not answered, or refuses requests for a while",
    )
    FROZEN = ("frozen_workers", "Workers that froze, were ended, and were started again")
    REFUSED = ("refused", "Requests that were malformed or not allowed")


class Gauge(enum.Enum):
    """A present value: its Prometheus name and meaning. `column` is its index, after all counters."""

    def __init__(self, name: str, meaning: str) -> None:
        self.column = len(Counter) + len(type(self).__members__)

    DISK_WAITING = ("disk_waiting", "Threads that have waited too long for the cache's disk")


class Counters:
    """A number for each Counter and Gauge, in memory that forked processes share: each writes its own row."""

    def __init__(self, rows: int = 1) -> None:
        self._rows = rows
        self._values = memoryview(mmap.mmap(-1, rows * _COLUMNS * _NUMBER)).cast("Q")
        self._row = 0
        self._lock = threading.Lock()  # guards counters in this process's row
        self.remaining: Callable[[], Iterable[Tuple[str, int]]] = lambda: ()  # requests that origins still answer

    def use(self, row: int) -> None:
        """Count in this row from now on. Gauges become 0: an earlier process may have left values."""
        self._row = row * _COLUMNS
        for gauge in Gauge:
            self.set(gauge, 0)

    def add(self, counter: Counter, amount: int = 1) -> None:
        """Add to a counter."""
        column = self._row + counter.column
        with self._lock:
            self._values[column] += amount

    def set(self, gauge: Gauge, value: int) -> None:
        """Set this process's value."""
        self._values[self._row + gauge.column] = value

    def value(self, number: Union[Counter, Gauge]) -> int:
        """The sum over all processes."""
        return sum(self._values[row * _COLUMNS + number.column] for row in range(self._rows))

    def render(self) -> str:
        """All values in Prometheus' text format."""
        lines = []
        for counter in Counter:
            name, meaning = counter.value
            lines += [f"# HELP dduct_{name}_total {meaning}.", f"# TYPE dduct_{name}_total counter"]
            lines.append(f"dduct_{name}_total {self.value(counter)}")
        for gauge in Gauge:
            name, meaning = gauge.value
            lines += [
                f"# HELP dduct_{name} {meaning}.",
                f"# TYPE dduct_{name} gauge",
                f"dduct_{name} {self.value(gauge)}",
            ]
        lines += [f"# HELP {_REMAINING} Requests that an origin says it still answers.", f"# TYPE {_REMAINING} gauge"]
        lines += [f'{_REMAINING}{{origin="{_label(origin)}"}} {value}' for origin, value in sorted(self.remaining())]
        return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    """A label's value as Prometheus' text format has it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


_REMAINING = "dduct_ratelimit_remaining"
_NUMBER = 8  # bytes of a number
_COLUMNS = len(Counter) + len(Gauge)  # of a row
