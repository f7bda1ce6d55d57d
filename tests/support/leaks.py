"""Proof that a test left nothing behind: no thread, no socket, no file below its directory."""

from __future__ import annotations

import gc
import os
import threading
from typing import FrozenSet, List, Set

TIMEOUT = 30.0


def descriptors() -> FrozenSet[str]:
    """Open sockets and files of this process by what they are; pipes and devices are the runner's own."""
    found: Set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if link.startswith("socket:") or "pytest" in link or "/memfd:" in link:
            found.add(link)
    return frozenset(found)


class Watch:
    """Remembers what there was, and tells what is too much."""

    def __init__(self) -> None:
        self._threads = {thread.ident for thread in threading.enumerate()}
        self._descriptors = descriptors()

    def remains(self) -> List[str]:
        """Threads that do not end, and descriptors that stay open."""
        left = []
        for thread in threading.enumerate():
            if thread.ident not in self._threads and thread is not threading.current_thread():
                thread.join(TIMEOUT)
                if thread.is_alive():
                    left.append(f"thread {thread.name}")
        if descriptors() - self._descriptors:
            gc.collect()
        return left + sorted(descriptors() - self._descriptors)
