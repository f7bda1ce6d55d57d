"""Who has been let in: an origin's word on a client's credentials and an object, remembered for a little while.

It is about the `version` that was there, for another client may bring another one by the same name.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from typing import Callable

_AT_MOST = 65536


class Grants:
    """Grants that last `seconds`; 0 remembers nothing. Credentials are kept as a keyed hash, in memory alone."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()  # guards _ends
        self._ends: OrderedDict[bytes, float] = OrderedDict()  # in the order in which they end

    def remember(self, credentials: bytes, name: str, version: str) -> None:
        """The origin has let a client with these credentials have this object called `name`."""
        if not self._seconds or not credentials:
            return
        grant = self._grant(credentials, name, version)
        now = self._clock()
        with self._lock:
            self._ends.pop(grant, None)
            self._ends[grant] = now + self._seconds
            while len(self._ends) > _AT_MOST or next(iter(self._ends.values())) <= now:
                self._ends.popitem(last=False)

    def forget(self, credentials: bytes, name: str, version: str) -> None:
        """The origin has changed its mind."""
        with self._lock:
            self._ends.pop(self._grant(credentials, name, version), None)

    def holds(self, credentials: bytes, name: str, version: str) -> bool:
        """Whether the origin has said so not long ago. Without credentials it has to be asked every time."""
        if not credentials:
            return False
        with self._lock:
            return self._ends.get(self._grant(credentials, name, version), 0.0) > self._clock()

    def _grant(self, credentials: bytes, name: str, version: str) -> bytes:
        return hmac.new(
            self._secret, b"\0".join((credentials, name.encode(), version.encode())), hashlib.sha256
        ).digest()
