"""What clients send, as the log shows it: on one line, in ASCII, without what may be secret."""

from __future__ import annotations

import re

from monitoring.redaction import shown

_URL = re.compile(
    rb"([A-Za-z]+://)?(?:[^/?#]*@)?((?:\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#]+)(?::[0-9]+)?(?:/[^?]*)?)(?:\?.*)?", re.DOTALL
)


def target_shown(target: bytes) -> str:
    """A target for the log: without its query, and without the userinfo that it must not have (RFC 9110 §4.2.4).

    What can be taken apart in other ways is not shown, for a password may have any character.
    """
    if target.startswith(b"/"):
        return shown(one_line(target))
    match = _URL.fullmatch(target)
    return "?" if match is None else shown(one_line((match.group(1) or b"") + match.group(2)))


def one_line(raw: bytes) -> str:
    """Octets of a request for the log; nothing in them can start a line of its own."""
    return raw[:2048].decode("latin-1").encode("ascii", "backslashreplace").decode()
