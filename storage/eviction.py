"""Eviction: removes the least recently used objects over the limits, and, at once, remains of a crash.

Everything happens in one background thread of one process per cache directory; no request waits for it. The reader of
an evicted object can read to its end, because the inode stays. `space` decides how much has to go.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Tuple

from monitoring.log import RateLimitedLog
from storage.locks import try_lock
from storage.own_files import GROWING_SUFFIX, is_reached_directly, prune
from storage.records import boot_id
from storage.space import Need, SpaceLimits
from storage.survey import MAX_LEFT, Candidate, Left, look_at_partial_download, no_survey, survey

_log = logging.getLogger("dduct.evict")

_LOOK = 0.5  # seconds between two checks of other processes' growth and the free space
_LOOK_GROWING = 0.1  # seconds, while objects grow
_PERIOD = 60.0  # seconds between two sweeps if nothing was added
_FOUND_FOR = 600.0  # seconds for which a sweep's result is used to remove more
_WISH_INTERVAL = 60.0  # seconds between two wishes for space that are granted
_LOG_INTERVAL = 600.0  # seconds between two log lines about the same trouble


class Evictor:
    """Keeps the directory of a `space` within its limits. `evicted` is called for every removed object."""

    def __init__(self, space: SpaceLimits, evicted: Callable[[], None] = lambda: None) -> None:
        self.space = space
        self._root = space.root
        self._evicted = evicted
        self._boot = boot_id()
        self._survey = no_survey()  # the last one; its candidates that are still here
        self._wished_at = float("-inf")
        self._trouble = {
            reason: RateLimitedLog(_log, _LOG_INTERVAL) for reason in ("cache.min_free", "inodes", "in vain")
        }
        self._in_vain_until = float("-inf")  # removal freed nothing: more of it would not help
        self._changed = threading.Condition()  # guards the three attributes below; `_stopping` is read without it
        self._stopping = False
        self._poked = False
        self._woken_at = float("-inf")

    def __repr__(self) -> str:
        survey_age = time.monotonic() - self._survey.began_at
        return f"<Evictor: {len(self._survey.candidates)} candidates, found {survey_age:.0f} s ago>"

    def run(self) -> None:
        """Evict until `stop`; the target of the background thread."""
        self.sweep()  # a crash may have left files
        while not self._wait():
            since = time.monotonic() - self._survey.began_at
            if since > MAX_LEFT:
                self.sweep()
            elif self._need():
                if self._survey.candidates and (since < _FOUND_FOR or not self._is_for_size()):
                    self.relieve()
                elif self.space.grown > self._survey.grown_before or since > _PERIOD:
                    self.sweep()

    def stop(self) -> None:
        """End `run` soon."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def look(self) -> None:
        """Have the evictor look: an object was added, or could not be.

        It is woken ten times a second at most: each time takes the interpreter from the thread that adds objects.
        """
        now = time.monotonic()
        with self._changed:
            self._poked = True
            if now - self._woken_at >= _LOOK_GROWING:
                self._woken_at = now
                self._changed.notify_all()

    def sweep(self) -> None:
        """Visit all files once, and remove remains of a crash and everything over the limits.

        Returns at once where another process is sweeping.
        """
        with self._alone() as alone:
            while alone:
                found = survey(self.space, self._boot, lambda: self._stopping)
                if found is None:
                    return
                self._survey = found
                if self._remove(self._need()) or self._stopping:
                    return

    def relieve(self) -> None:
        """Remove the excess over the limits, as far as the last sweep's list allows."""
        with self._alone() as alone:
            if alone:
                self._remove(self._need())

    # Internals

    def _wait(self) -> bool:
        """Wait for an addition here, or one polling interval; whether to stop."""
        with self._changed:
            is_growing = self.space.is_growing or time.monotonic() - self._woken_at < _LOOK
            seconds = _LOOK_GROWING if is_growing else _LOOK
            self._changed.wait_for(lambda: self._stopping or self._poked, seconds)
            self._poked = False
            return self._stopping

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield whether no other process sweeps this directory; the lock keeps others out."""
        try:
            fd = os.open(f"{self._root}/.evictor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            yield False  # no directory, nothing to sweep
            return
        try:
            yield try_lock(fd)
        finally:
            os.close(fd)

    def _is_for_size(self) -> bool:
        """Whether max_size is exceeded, by an estimate that may be too high where files were deleted."""
        now = self.space.situation()
        return now.limits.max_size is not None and (now.used or 0) + now.known > now.limits.max_size

    def _need(self) -> Need:
        """The bytes and inodes that have to go now."""
        now = time.monotonic()
        wish = 0
        if now - self._wished_at >= _WISH_INTERVAL:
            wish = self.space.take_wish()
            self._wished_at = now if wish else self._wished_at
        need = self.space.situation().need(wish)
        if need.unreachable:
            self._trouble[need.unreachable].warning(
                'Too little is free in "%s" (%s), and removing all objects would not be enough: none is removed, and '
                "nothing new is kept, until other files there are removed",
                self._root,
                need.unreachable,
            )
        if now < self._in_vain_until and not self._is_for_size():
            return Need()
        return need

    def _remove(self, need: Need) -> bool:
        """Remove candidates, the oldest first, until it is enough; False where another sweep may find more."""
        before = self.space.situation()
        size = files = removed = 0
        candidates = self._survey.candidates
        while need and candidates and (size < need.size or files < need.files) and not self._stopping:
            freed = self._remove_one(candidates.popleft())
            if freed is not None:
                removed, size, files = removed + 1, size + freed[0], files + freed[1]
                self.space.note_freed(*freed)
        if removed:
            _log.info("Removed %d MB of the least recently used objects", size // 1_000_000)
            now = self.space.situation()
            growth = now.known + now.unknown - before.known - before.unknown
            if now.free + growth < before.free + size // 2 and now.free < now.limits.min_free:
                self._in_vain_until = time.monotonic() + _PERIOD
                self._trouble["in vain"].warning(
                    'Removed %d MB in "%s", and hardly any of it has become free (snapshots? other writers?)',
                    size // 1_000_000,
                    self._root,
                )
        return not removed or (size >= need.size and files >= need.files)

    def _remove_one(self, candidate: Candidate) -> Optional[Tuple[int, int]]:
        """Remove an object unless it was used since the sweep; the bytes and inodes that it took."""
        path = candidate.path
        try:
            if max(os.lstat(path).st_atime, candidate.last_used) > candidate.last_used:
                return None  # used since
            if not is_reached_directly(self._root, path):
                return None  # a folder was replaced by a link
            if not path.endswith(GROWING_SUFFIX):
                os.unlink(path)
            elif look_at_partial_download(path, self._boot, float("inf")) is not Left.REMOVED:
                return None  # it is growing
        except OSError:
            return None
        self._evicted()
        folders, taken = prune(os.path.dirname(path), self._root)
        return candidate.size + taken, 1 + folders
