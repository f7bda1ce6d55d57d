"""Which bytes of a growing object have come ahead of their turn, as spans of offsets: values, no files, no locks."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Iterator, List, Optional


@dataclass(eq=False)
class Span:
    """Bytes from `start` to `position` are here; while it is `running`, those up to `end` are to come.

    `changed` is for those that wait for them.
    """

    start: int
    position: int
    end: int
    changed: threading.Condition
    running: bool = True

    @property
    def reach(self) -> int:
        """The end of what is here or to come."""
        return self.end if self.running else self.position


class Spans:
    """Spans in the order of their offsets. No two overlap, and those that run no more are merged with their like."""

    def __init__(self) -> None:
        self._all: List[Span] = []

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Span]:
        return iter(self._all)

    @property
    def size(self) -> int:
        """The bytes that are here."""
        return sum(span.position - span.start for span in self._all)

    @property
    def running(self) -> int:
        """How many spans run."""
        return sum(span.running for span in self._all)

    def covering(self, offset: int) -> Optional[Span]:
        """The span that has the byte at `offset`, or will have it."""
        for span in self._all:
            if span.start > offset:
                return None
            if offset < span.reach:
                return span
        return None

    def following(self, offset: int) -> Optional[Span]:
        """The first span that begins behind `offset`."""
        return next((span for span in self._all if span.start > offset), None)

    def here_between(self, start: int, end: int) -> int:
        """How many bytes between two offsets are here."""
        return sum(max(0, min(span.position, end) - max(span.start, start)) for span in self._all)

    def add(self, start: int, end: int, changed: threading.Condition) -> Span:
        """A new span that runs. Where one runs there already, that one ends at `start`."""
        before = self.covering(start)
        if before is not None:
            assert before.running and before.position <= start
            before.end = start
        behind = self.following(start)
        span = Span(start, start, end if behind is None else min(end, behind.start), changed)
        self._all.append(span)
        self._all.sort(key=lambda one: one.start)
        return span

    def finish(self, span: Span) -> None:
        """A span runs no more: what is here of it stays. Idempotent."""
        span.running = False
        merged: List[Span] = []
        for one in self._all:
            last = merged[-1] if merged else None
            if last is not None and not last.running and not one.running and last.position == one.start:
                last.position = one.position
            elif one.running or one.position > one.start:
                merged.append(one)
        self._all = merged

    def drop_before(self, offset: int) -> None:
        """Forget the bytes before `offset`. Spans that it has overtaken run no more."""
        if not self._all or self._all[0].start >= offset:
            return
        kept = []
        for span in self._all:
            if offset > span.position or (offset == span.position and not span.running):
                span.running = False
            else:
                span.start = max(span.start, offset)
                kept.append(span)
        self._all = kept
