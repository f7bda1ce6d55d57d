"""Received bytes that were not read yet, and the heads and lines in them. Pure: no socket, no waiting."""

from __future__ import annotations

from typing import List, Optional

from protocol import http1


class ReadBuffer(bytearray):
    """A bytearray, which grows at its end with what is received; what is read is taken from its start.

    It is a bytearray, and does not hold one: its length and its bytes are asked for with every read.
    """

    __slots__ = ()

    def take_head(self, searched: int, limit: int) -> Optional[bytes]:
        """Remove and return the message head at the start, with its empty line; None while it is incomplete.

        `searched`: the length of the buffer at the last call, 0 at the first. Raises ProtocolError(431) beyond `limit`
        bytes.
        """
        while self.startswith(b"\r\n"):  # RFC 9112 §2.2: empty lines before a message are skipped
            del self[:2]
            searched = 0
        end = http1.head_end(self, searched)
        if 0 <= end <= limit:
            head = bytes(self[:end])
            del self[:end]
            return head
        if len(self) > limit:
            raise http1.ProtocolError("head is longer than 64 KiB", 431)
        return None

    def heads(self, most: int, limit: int) -> List[bytes]:
        """The complete message heads at the start, at most `most` of them within `limit` bytes; they stay."""
        found: List[bytes] = []
        start = 0
        while len(found) < most:
            end = http1.head_end(self, start)
            if not start < end <= limit:
                break
            found.append(bytes(self[start:end]))
            start = end
        return found

    def take_line(self, limit: int) -> Optional[bytes]:
        """Remove and return the line at the start, with its LF; None while it is incomplete.

        Raises ProtocolError beyond `limit` bytes.
        """
        end = self.find(b"\n") + 1
        if 0 < end <= limit:
            line = bytes(self[:end])
            del self[:end]
            return line
        if end or len(self) >= limit:
            raise http1.ProtocolError("over-long line in a chunked body")
        return None

    def move_into(self, view: memoryview) -> int:
        """Move bytes from the start to `view`; returns how many."""
        count = min(len(view), len(self))
        view[:count] = memoryview(self)[:count]
        del self[:count]
        return count
