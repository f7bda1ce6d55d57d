"""Origins that refuse for a while: 429 Too Many Requests (RFC 6585 §4), and 503 with Retry-After (RFC 9110 §10.2.3).

Until then an origin is not asked, on behalf of the same credentials: a registry limits users, and addresses of those
that are nobody. What is stored is sent, and all else gets the origin's refusal at once. All workers know.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Callable, Optional

from protocol import field_values
from protocol.http1 import ResponseHead, Target
from storage.shared_table import SharedTable
from upstream.request import Request

_TOO_MANY, _UNAVAILABLE = 429, 503
_UNSAID = 10.0  # seconds after a 429 without Retry-After
_LONGEST = 600.0  # seconds; then one request finds out, whatever the origin has said
_TRIAL = 10.0  # seconds for which only that one is sent
_MAX_DIGITS = 9


class Refusals:
    """Refusals by origin and credentials."""

    def __init__(self, table: SharedTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock  # of all processes
        self._lock = threading.Lock()  # guards the choice of the request that finds out

    def lasts(self, request: Request) -> bool:
        """Whether its origin refused these credentials, and it is not known to do otherwise; nothing is tried."""
        key = _key(request.target, request.credentials)
        return key is not None and self._table.get(key) is not None

    def wait(self, request: Request) -> Optional[tuple[int, float]]:
        """The status that its origin gives these credentials, and for how many seconds; None where it is asked now."""
        key = _key(request.target, request.credentials)
        if key is None or self._table.get(key) is None:
            return None
        with self._lock:
            fact, now = self._table.get(key), self._clock()
            if fact is None:
                return None
            if now < fact.until:
                return fact.value, fact.until - now
            self._table.put(key, now + _TRIAL, fact.value)
            return None

    def note(self, request: Request, response: ResponseHead) -> float:
        """Note what a response says. Returns the seconds without requests if a refusal begins, else 0."""
        key = _key(request.target, request.credentials)
        if key is None:
            return 0.0
        seconds = _refused_for(response)
        if seconds is None:
            self._table.remove(key)
            return 0.0
        news = self._table.get(key) is None
        self._table.put(key, self._clock() + seconds, response.status)
        return seconds if news else 0.0


def _refused_for(response: ResponseHead) -> Optional[float]:
    """For how many seconds; None where it does not refuse."""
    value = response.headers.get(b"retry-after")
    if response.status not in (_TOO_MANY, _UNAVAILABLE) or (response.status == _UNAVAILABLE and value is None):
        return None
    return min(max(_seconds(value), 1.0), _LONGEST)


def _seconds(value: Optional[bytes]) -> float:
    """The value of Retry-After, in seconds from now."""
    if value is None:
        return _UNSAID
    if value.isdigit():
        return float(value[:_MAX_DIGITS])
    date = field_values.parse_date(value)
    return _UNSAID if date is None else date - time.time()


def _key(target: Target, credentials: Optional[bytes]) -> Optional[bytes]:
    """None where a refusal concerns no other request."""
    if credentials is None:
        return None
    origin = f"refusal\0{target.scheme}://{target.authority}\0".encode()
    return origin + (hashlib.sha256(credentials).digest() if credentials else b"")
