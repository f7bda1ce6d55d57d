"""How much the tests try: a part of all cases, or all of them with DDUCT_LONG=1."""

from __future__ import annotations

import os

LONG = os.environ.get("DDUCT_LONG") == "1"


def examples(count: int) -> int:
    """The number of examples for hypothesis; a fifth of `count` in a short run."""
    return count if LONG else count // 5
