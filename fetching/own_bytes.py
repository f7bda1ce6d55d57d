"""What an origin sends to one client, compared with what is stored while it passes: equal bytes are a proof, too."""

from __future__ import annotations

from typing import Dict, Optional

from storage.store import Digest
from transfers.hashing import hasher


class OwnBytes:
    """The body of an answer, to be compared with what has this digest; None compares with nothing.

    `complete` is set by whoever has seen the body to its end.
    """

    def __init__(self, digest: Optional[Digest]) -> None:
        self._digest = digest
        self._hash = None if digest is None else hasher(digest)
        self.complete = False

    @property
    def digests(self) -> Dict[str, str]:
        """The digests of what is stored, by their algorithms."""
        return {} if self._digest is None else {self._digest.algorithm: self._digest.hex}

    @property
    def equal(self) -> bool:
        """Whether it was the same, to the last byte."""
        if self._hash is None or self._digest is None or not self.complete or not self._digest.shared:
            return False
        return bool(self._hash.hexdigest() == self._digest.hex)

    def update(self, piece: memoryview) -> None:
        """The next bytes."""
        if self._hash is not None:
            self._hash.update(piece)
