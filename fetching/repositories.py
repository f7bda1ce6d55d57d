"""What is known of repositories of images: whether their registry gives them to anybody. All workers share it."""

from __future__ import annotations

import enum
import re
import time
from typing import Callable, Optional

from protocol.http1 import Target
from storage.shared_table import SharedTable

_DAY = 86400.0
_OBJECT = re.compile("/v2/(.+)/(?:manifests|blobs)/[^/]+")


class Access(enum.IntEnum):
    """Who gets a repository."""

    PUBLIC = 1
    PRIVATE = 2


class Repositories:
    """Who gets which repository, for a day after something has shown it."""

    def __init__(self, table: SharedTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock  # of all processes

    def known(self, target: Target) -> Optional[Access]:
        """Who gets the repository of an object; None where nothing has shown it for a day."""
        fact = self._table.get(_key(target))
        return None if fact is None or self._clock() >= fact.until else Access(fact.value)

    def note(self, target: Target, access: Access) -> None:
        """Note who gets it."""
        self._table.put(_key(target), self._clock() + _DAY, access)


def repository_of(target: Target) -> Optional[str]:
    """The name of the repository that a target is an object of; None where it is none."""
    match = _OBJECT.fullmatch(target.path) if target.path.startswith("/v2/") else None
    return None if match is None else match.group(1)


def _key(target: Target) -> bytes:
    return f"repository\0{target.scheme}://{target.authority}\0{repository_of(target)}".encode()
