"""Many regular expressions as few: dozens of searches in a path take longer than all the rest of a hit."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Tuple

_FIRST = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.?", re.DOTALL)  # a character, or a set of characters


def joined(patterns: Iterable[re.Pattern[str]]) -> Tuple[re.Pattern[str], ...]:
    """Patterns that find something wherever one of `patterns` does.

    Those that begin with the same character, or the same set, become one: `re` then looks for that beginning first, and
    tries them only there. Two sets in one pattern would have it tried at each character. A pattern with groups or flags
    of its own stays alone: in another one, its numbers and flags would mean something else.
    """
    alike: Dict[str, List[str]] = {}
    alone = []
    for pattern in patterns:
        if pattern.groups or pattern.flags != re.UNICODE or "(?u" in pattern.pattern:
            alone.append(pattern)
        else:
            first = _FIRST.match(pattern.pattern)
            alike.setdefault(first.group() if first else "", []).append(pattern.pattern)
    return (*(re.compile("|".join(f"(?:{one})" for one in texts)) for texts in alike.values()), *alone)
