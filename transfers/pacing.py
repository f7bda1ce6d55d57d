"""How a reader that has caught up waits for more bytes: among many readers, for many bytes at once."""

from __future__ import annotations

import threading
import time
from typing import Callable

from net import client_watch

_BACKOFF_SHORTEST, _BACKOFF_LONGEST = 0.005, 0.1  # seconds between two polls
PIECE = 8 * 1024 * 1024  # bytes that a reader waits for during its backoff, when there are many readers
_BACKOFF = 2.0  # seconds; the longest backoff
POLL_INTERVAL = 1 / 8  # of the backoff, between two polls


def backoff_seconds(caught_up_at: float) -> float:
    """The seconds a reader may wait for many bytes, if it had read all there was at that (monotonic) time.

    Four times as long as sending those bytes has taken. That is nearly 0 for a single reader. When there are too many
    readers for the processor, steps become fewer and larger, and the filler can get ahead.
    """
    return min(_BACKOFF, 4 * (time.monotonic() - caught_up_at))


def wait_for_bytes(
    changed: threading.Condition,
    arrived: Callable[[int], bool],
    crowded: Callable[[], bool],
    timeout: float,
    backoff: float,
) -> bool:
    """Wait until bytes have arrived or never will; False after `timeout` seconds. Raises ClientGone.

    Callers hold `changed`.

    Many readers are not woken for every few bytes, and wait for larger steps: each step delays the filler.
    """
    began = time.monotonic()
    pause = max(_BACKOFF_SHORTEST, backoff * POLL_INTERVAL)
    while True:
        waited, has_many_readers = time.monotonic() - began, crowded()
        if arrived(PIECE if has_many_readers and waited < backoff else 1):
            return True
        if waited >= timeout:
            return arrived(1)
        client_watch.wait(changed, min(pause, timeout - waited) if has_many_readers else timeout - waited)
        pause = max(pause, min(2 * pause, _BACKOFF_LONGEST))
