"""Clients' data as the log shows it: in ASCII, without secrets."""

from __future__ import annotations

import re

from monitoring.redaction import shown

_URL = re.compile(
    rb"([A-Za-z]+://)?(?:[^/?#]*@)?((?:\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#]+)(?::[0-9]+)?(?:/[^?]*)?)(?:\?.*)?", re.DOTALL
)


def target_shown(target: bytes) -> str:
    """A target for the log, without its query and the forbidden userinfo (RFC 9110 §4.2.4).

    A target that `_URL` does not match is shown as `?`, because a password may have any character.
    """
    if target.startswith(b"/"):
        return shown(one_line(target))
    match = _URL.fullmatch(target)
    return "?" if match is None else shown(one_line((match.group(1) or b"") + match.group(2)))


def one_line(raw: bytes) -> str:
    """Up to 2048 bytes of a request in ASCII; the log replaces control characters."""
    return raw[:2048].decode("latin-1").encode("ascii", "backslashreplace").decode()
