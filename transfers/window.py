"""The bytes that a fill keeps in memory when the disk accepts no more."""

from __future__ import annotations

WINDOW_LIMIT = 4 * 1024 * 1024  # bytes of a fill without a disk; a reader may lag this far behind


class Window:
    """The latest bytes of a fill that the disk no longer accepts: from `first` up to `end`."""

    def __init__(self, first: int) -> None:
        self.beginning = first  # the bytes before it are on the disk
        self.first = first
        self._bytes = bytearray()

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._bytes)

    @property
    def end(self) -> int:
        """The offset of the next bytes."""
        return self.first + len(self._bytes)

    def has_dropped(self, offset: int) -> bool:
        """Whether the bytes at `offset` were here and are gone."""
        return self.beginning <= offset < self.first

    def append(self, data: memoryview) -> None:
        """Add the next bytes."""
        self._bytes += data

    def drop_before(self, offset: int) -> None:
        """Drop the bytes before `offset`."""
        surplus = min(max(0, offset - self.first), len(self._bytes))
        del self._bytes[:surplus]
        self.first += surplus

    def read(self, view: memoryview, offset: int) -> int:
        """Copy bytes from `offset` on into `view`; how many."""
        data = memoryview(self._bytes)[offset - self.first :][: len(view)]
        view[: len(data)] = data
        return len(data)
