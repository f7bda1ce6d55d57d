"""The durable mark of a record, set in its text: to decode a record and encode it again takes ten times as long.

`Record.encode` writes the state of the bytes last, in a fixed order and without white space; only such an end is
changed. No value in front of it can look like one, because JSON escapes quotation marks. All other texts, such as those
of other versions, are left to `Record`.
"""

from __future__ import annotations

import re
from typing import Optional

_START = b'{"v":1,"metadata":{'
# Verified, with a hash, or an alias; see `Record.state`.
_END = re.compile(
    rb'"length":\d{1,19},'
    rb'(?:"sha256":"[0-9a-f]{1,128}","alias":""|"sha256":"","alias":"[0-9a-z:]{1,255}"),'
    rb'"boot":"[0-9a-f-]{0,36}","durable":(false),"asking":false,"unhashed":false\}\Z'
)
_LONGEST_END = 512  # bytes


def durably(text: bytes) -> Optional[bytes]:
    """The text of a record once its file is synced; None where only the whole record can tell."""
    if not text.startswith(_START):
        return None
    found = _END.search(text, max(0, len(text) - _LONGEST_END))
    return None if found is None else text[: found.start(1)] + b"true" + text[found.end(1) :]
