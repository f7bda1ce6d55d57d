"""The durable mark of a record, set in its text: to decode a record and encode it again takes ten times as long.

`Record.encode` writes the state of the bytes last, in a fixed order and without white space; only such an end is
changed. No value in front of it can look like one, because JSON escapes quotation marks. All other texts, such as those
of other versions, are left to `Record`.
"""

from __future__ import annotations

import re
from typing import Optional

from storage import summary

_START = b'{"v":1,'
_FIRST = (b'{"v":1,"metadata":{', b'{"v":1,"quick":"')
# Verified, with a hash, or an alias; see `Record.state`.
_END = re.compile(
    rb'"length":\d{1,19},'
    rb'(?:"sha256":"[0-9a-f]{1,128}","alias":""|"sha256":"","alias":"[0-9a-z:]{1,255}"),'
    rb'"boot":"[0-9a-f-]{0,36}","durable":(false),"asking":false,"unhashed":false\}\Z'
)
_LONGEST_END = 512  # bytes


def durably(text: bytes) -> Optional[bytes]:
    """The text of a record once its file is synced; None where only the whole record can tell."""
    found = _END.search(text, max(0, len(text) - _LONGEST_END)) if text.startswith(_FIRST) else None
    if found is None:
        return None
    marked = text[: found.start(1)] + b"true" + text[found.end(1) :]
    if text.startswith(_FIRST[0]):
        return marked
    # Its summary counts only in front of exactly its text.
    return summary.durably(text, _START + marked[marked.index(b'",', len(_FIRST[1])) + 2 :])
