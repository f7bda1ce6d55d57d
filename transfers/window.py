"""What a fill has in memory where the disk takes no more."""

from __future__ import annotations

WINDOW_LIMIT = 4 * 1024 * 1024  # bytes of a fill without a disk; that much a reader may lag behind


class Window:
    """The latest octets of a fill that the disk no longer takes: those from `first` up to `end`."""

    def __init__(self, first: int) -> None:
        self.beginning = first  # what lies before is on the disk
        self.first = first
        self._octets = bytearray()

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self._octets)

    @property
    def end(self) -> int:
        """Where the next ones go."""
        return self.first + len(self._octets)

    def has_dropped(self, offset: int) -> bool:
        """Whether the octets at `offset` were here and are gone."""
        return self.beginning <= offset < self.first

    def append(self, data: memoryview) -> None:
        """Add the next ones."""
        self._octets += data

    def drop_before(self, offset: int) -> None:
        """Forget those that nobody needs any more."""
        surplus = min(max(0, offset - self.first), len(self._octets))
        del self._octets[:surplus]
        self.first += surplus

    def read(self, view: memoryview, offset: int) -> int:
        """Copy those from `offset` on; how many."""
        octets = memoryview(self._octets)[offset - self.first :][: len(view)]
        view[: len(octets)] = octets
        return len(octets)
