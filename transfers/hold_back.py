"""The last bytes of an object, which its readers get only once it is verified and in its place.

So no reader of a digest-named object has a whole wrong one, and a reader that has everything finds it published.
"""

from __future__ import annotations

from typing import Optional

HOLD_BACK = 64 * 1024  # bytes, where a hash has to verify the whole


def releasable(size: int, length: Optional[int], verifies: bool) -> int:
    """How many of the first `size` bytes readers may have before the end; `verifies`: a hash decides about all."""
    if verifies:
        return max(0, size - HOLD_BACK)
    return size if length is None else max(0, min(size, length - 1))
