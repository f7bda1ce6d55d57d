"""Proof that a test left nothing behind: no thread, no socket, no file below its directory."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from typing import List, NamedTuple

TIMEOUT = 30.0


class Open(NamedTuple):
    """A descriptor, and the device and inode of what it leads to."""

    number: int
    device: int
    inode: int


def descriptors() -> List[Open]:
    """All that this process has open. It is listed twice in each test: what a link says is read only where needed."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            status = os.fstat(int(name))
            found.append(Open(int(name), status.st_dev, status.st_ino))
    return found


def name_of(descriptor: Open) -> str:
    """What a socket or a file of a test is called; empty for pipes and devices, which are the runner's own."""
    try:
        link = os.readlink(f"/proc/self/fd/{descriptor.number}")
    except OSError:
        return ""
    return link if link.startswith("socket:") or "pytest" in link or "/memfd:" in link else ""


class Watch:
    """Remembers what there was, and tells what is too much."""

    def __init__(self) -> None:
        self._threads = {thread.ident for thread in threading.enumerate()}
        self._files = {(one.device, one.inode) for one in descriptors()}

    def remains(self) -> List[str]:
        """Threads that do not end, and descriptors that stay open."""
        left = []
        for thread in threading.enumerate():
            if thread.ident not in self._threads and thread is not threading.current_thread():
                thread.join(TIMEOUT)
                if thread.is_alive():
                    left.append(f"thread {thread.name}")
        if self._new():
            gc.collect()
            left += self._new()
        return left

    def _new(self) -> List[str]:
        opened = [one for one in descriptors() if (one.device, one.inode) not in self._files]
        return sorted(filter(None, set(map(name_of, opened))))
