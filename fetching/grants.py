"""Grants: an origin's permission for certain credentials to have an object, remembered for a short time.

A grant is for one `version`, because another client may bring another one under the same name. All workers share them:
a client cannot choose its worker.
"""

from __future__ import annotations

import enum
import hashlib
import time
from typing import Callable

from storage.shared_table import SharedTable


class Kind(enum.Enum):
    """What a grant is for; the grants of one kind say nothing about another."""

    OBJECT = b"object"
    NAME = b"name"  # any version of an object


class Grants:
    """Grants of one kind that last `seconds`; 0 remembers none. The table keeps credentials as a keyed hash only."""

    def __init__(
        self, seconds: float, table: SharedTable, kind: Kind, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._table = table
        self._kind = kind.value
        self._clock = clock  # of all processes: it tells when a grant ends

    def remember(self, credentials: bytes, name: str, version: str) -> None:
        """The origin has granted these credentials this version of the object called `name`."""
        if self._seconds and credentials:
            self._table.put(self._key(credentials, name, version), self._clock() + self._seconds)

    def forget(self, credentials: bytes, name: str, version: str) -> None:
        """The origin has withdrawn its permission."""
        self._table.remove(self._key(credentials, name, version))

    def holds(self, credentials: bytes, name: str, version: str) -> bool:
        """Whether a grant is still valid. A client without credentials has none: its origin is asked every time."""
        if not self._seconds or not credentials:
            return False
        fact = self._table.get(self._key(credentials, name, version))
        # A reload may have shortened the time since.
        return fact is not None and 0 < fact.until - self._clock() <= self._seconds

    def _key(self, credentials: bytes, name: str, version: str) -> bytes:
        """Its parts cannot be confused: the credentials, which a client chooses, are of fixed length here."""
        fixed = hashlib.blake2b(credentials, digest_size=32).digest()
        return b"\0".join((b"grant", self._kind, fixed, name.encode(), version.encode()))
