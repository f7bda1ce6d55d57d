"""Compares an origin's response to one client with the stored object while it passes: equal bytes are a proof."""

from __future__ import annotations

from typing import Dict, Optional

from storage.record import Digest


class ByteComparison:
    """A response's body, compared with the object of this digest; None compares with nothing.

    The caller sets `complete` once it has seen the body to its end.
    """

    def __init__(self, digest: Optional[Digest]) -> None:
        self._digest = digest
        self._hash = None if digest is None else digest.hasher()
        self.complete = False

    @property
    def digests(self) -> Dict[str, str]:
        """The digest of the stored object, by its algorithm."""
        return {} if self._digest is None else {self._digest.algorithm: self._digest.hex}

    @property
    def equal(self) -> bool:
        """Whether the whole body was the same; a weak digest cannot show that."""
        if self._hash is None or self._digest is None or not self.complete or not self._digest.shared:
            return False
        return bool(self._hash.hexdigest() == self._digest.hex)

    def update(self, piece: memoryview) -> None:
        """The next bytes."""
        if self._hash is not None:
            self._hash.update(piece)
