"""Files without names that hold parts of an object at its offsets, until the parts' turn in the growing file comes.

A process that dies leaves nothing of them, and the growing file beside them never has a hole: its size tells other
processes, and the next leader, what is there. Each file holds one cell of the object, and goes when the cell is
dropped, so that no more than about one cell is on the disk twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional

from storage.entry import read_bytes
from storage.store import Store

_LEAST_CELL = 16 * 1024 * 1024  # bytes
_MAX_CELLS = 64
_LOOK_EVERY = 1024 * 1024  # bytes between two looks at the limits of the disk


@dataclass
class _Cell:
    fd: int
    users: int = 1  # itself, and those that read or write at the moment


class Cells:
    """The cells of one object of `length` bytes, on the disk of `place`. For any number of threads."""

    def __init__(self, store: Store, place: str, length: int) -> None:
        self._store = store
        self._place = place
        self._size = max(_LEAST_CELL, -(-length // _MAX_CELLS))
        self._lock = threading.Lock()  # guards all below
        self._cells: Dict[int, _Cell] = {}
        self._first = 0  # cells before this one are dropped
        self._unlooked = 0  # bytes since the last look at the limits

    def __bool__(self) -> bool:
        """Whether there are any; without the lock."""
        return bool(self._cells)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at their offset, unless their cell is dropped.

        Raises OSError, Unstorable where the disk, or the cache's limits, do not accept them.
        """
        self._check_limits(len(data))
        done = 0
        while done < len(data):
            index, within = divmod(offset + done, self._size)
            with self._borrowed(index, make=True) as fd:
                if fd < 0:
                    return
                done += os.pwrite(fd, data[done : done + self._size - within], within)

    def read(self, view: memoryview, offset: int) -> int:
        """Read bytes that were written at `offset`; 0 where their cell is dropped. Raises Lost."""
        index, within = divmod(offset, self._size)
        with self._borrowed(index, make=False) as fd:
            return read_bytes(fd, view[: self._size - within], within) if fd >= 0 else 0

    def drop_before(self, offset: int) -> None:
        """Drop the cells that end at `offset` or before."""
        first = offset // self._size
        if first == self._first:
            return
        with self._lock:
            self._first = max(first, self._first)
            gone = [self._cells.pop(index) for index in list(self._cells) if index < first]
        self._release(gone)

    def close(self) -> None:
        """Drop all; idempotent."""
        self.drop_before(self._size << _MAX_CELLS)

    @contextlib.contextmanager
    def _borrowed(self, index: int, make: bool) -> Iterator[int]:
        """The descriptor of a cell, which stays open meanwhile; -1 where there is none. Raises Unstorable."""
        cell = self._use(index)
        if cell is None and make and index >= self._first:
            cell = self._made(index)
        try:
            yield -1 if cell is None else cell.fd
        finally:
            self._release([] if cell is None else [cell])

    def _use(self, index: int) -> Optional[_Cell]:
        with self._lock:
            cell = self._cells.get(index)
            if cell is not None:
                cell.users += 1
            return cell

    def _made(self, index: int) -> Optional[_Cell]:
        """A cell in use: a new one, unless another thread has just made it. Raises Unstorable."""
        new = _Cell(self._store.tree.open_unnamed(self._place))
        with self._lock:
            if index >= self._first and index not in self._cells:
                self._cells[index] = new
                new.users += 1
                return new
        self._release([new])
        return self._use(index)

    def _release(self, cells: List[_Cell]) -> None:
        unused = []
        with self._lock:
            for cell in cells:
                cell.users -= 1
                if not cell.users:
                    unused.append(cell.fd)
        for fd in unused:
            os.close(fd)

    def _check_limits(self, count: int) -> None:
        """Raises OSError where the limits of the cache leave no space. The growing file counts these bytes, too."""
        with self._lock:
            self._unlooked += count
            due = self._unlooked >= _LOOK_EVERY
            if due:
                self._unlooked = 0
        if due:
            now = self._store.space.recent_situation()
            reason = now.objection_to_growth(known=True, mine=now.known)
            if reason:
                raise OSError(errno.ENOSPC, reason)
