"""Many regular expressions as few: dozens of searches in a path take longer than all the rest of a hit."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Tuple


def joined(patterns: Iterable[re.Pattern[str]]) -> Tuple[re.Pattern[str], ...]:
    """Patterns that find something wherever one of `patterns` does.

    Those that begin alike become one: `re` then looks for that beginning first, and tries them only there. A pattern
    with groups or flags of its own stays alone: in another one, its numbers and flags would mean something else.
    """
    alike: Dict[str, List[str]] = {}
    alone = []
    for pattern in patterns:
        if pattern.groups or pattern.flags != re.UNICODE or "(?u" in pattern.pattern:
            alone.append(pattern)
        else:
            alike.setdefault(pattern.pattern[:1], []).append(pattern.pattern)
    return (*(re.compile("|".join(f"(?:{one})" for one in texts)) for texts in alike.values()), *alone)
