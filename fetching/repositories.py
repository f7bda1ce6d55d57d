"""What is known of repositories of images: whether their registry gives them to anybody. All workers share it."""

from __future__ import annotations

import enum
import re
import time
from typing import Callable, Optional

from fetching.naming import canonical
from protocol.http1 import Target
from storage.shared_table import SharedTable

_DAY, _HOUR = 86400.0, 3600.0
# Names as registries give them, and nothing that an origin may take for another path: no dots alone, no escapes.
_PART = "[A-Za-z0-9_](?:[A-Za-z0-9._-]*)"
_OBJECT = re.compile(f"/v2/({_PART}(?:/{_PART})*)/(?:manifests|blobs)/(?:[a-z0-9]+:[0-9a-f]+|{_PART})")


class Access(enum.IntEnum):
    """Who gets a repository."""

    PUBLIC = 1
    PRIVATE = 2
    UNKNOWN = 3  # its registry has said neither


class Repositories:
    """Who gets which repository, for a day after something has shown it; for an hour, if it has shown neither."""

    def __init__(self, table: SharedTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock  # of all processes

    def known(self, target: Target) -> Optional[Access]:
        """Who gets the repository of an object; None where nothing has shown it for a day."""
        fact = self._table.get(_key(target))
        return None if fact is None or self._clock() >= fact.until else Access(fact.value)

    def note(self, target: Target, access: Access) -> None:
        """Note who gets it."""
        self._table.put(_key(target), self._clock() + (_HOUR if access is Access.UNKNOWN else _DAY), access)


def repository_of(target: Target) -> Optional[str]:
    """The name of the repository that a target is an object of; None where it is none.

    A query may choose another repository, or authorize its client: then nothing is said.
    """
    if target.query is not None or not target.path.startswith("/v2/"):
        return None
    match = _OBJECT.fullmatch(canonical(target.path))
    return None if match is None else match.group(1)


def _key(target: Target) -> bytes:
    return f"repository\0{target.scheme}://{target.authority}\0{repository_of(target)}".encode()
