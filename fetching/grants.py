"""Grants: an origin's permission for certain credentials to have an object, remembered for a short time.

A grant is for one `version`, because another client may bring another one under the same name.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from typing import Callable

_MAX_GRANTS = 65536


class Grants:
    """Grants that last `seconds`; 0 remembers none. Credentials are kept in memory only, as a keyed hash."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()  # guards _ends
        self._ends: OrderedDict[bytes, float] = OrderedDict()  # the first to end comes first

    def remember(self, credentials: bytes, name: str, version: str) -> None:
        """The origin has granted these credentials this version of the object called `name`."""
        if not self._seconds or not credentials:
            return
        grant = self._grant(credentials, name, version)
        now = self._clock()
        with self._lock:
            self._ends.pop(grant, None)
            self._ends[grant] = now + self._seconds
            while len(self._ends) > _MAX_GRANTS or next(iter(self._ends.values())) <= now:
                self._ends.popitem(last=False)

    def forget(self, credentials: bytes, name: str, version: str) -> None:
        """The origin has withdrawn its permission."""
        with self._lock:
            self._ends.pop(self._grant(credentials, name, version), None)

    def holds(self, credentials: bytes, name: str, version: str) -> bool:
        """Whether a grant is still valid. A client without credentials has none: its origin is asked every time."""
        if not credentials:
            return False
        with self._lock:
            return self._ends.get(self._grant(credentials, name, version), 0.0) > self._clock()

    def _grant(self, credentials: bytes, name: str, version: str) -> bytes:
        return hmac.new(
            self._secret, b"\0".join((credentials, name.encode(), version.encode())), hashlib.sha256
        ).digest()
