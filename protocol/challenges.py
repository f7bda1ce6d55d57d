"""Challenges of WWW-Authenticate (RFC 9110 §11.3, §11.6.1). Pure: values in, values out."""

from __future__ import annotations

import re
from typing import Dict, Iterator, NamedTuple, Optional

from protocol.headers import Headers, split_list

_MOST_FIELDS = 8  # of one response
_MAX_VALUE = 4096  # bytes of a field; a longer one is not read
_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_BEGIN = re.compile(rb"(" + _NAME + rb")(?:[ \t]+(.*))?", re.DOTALL)  # a scheme, and what follows it
_PARAMETER = re.compile(rb"(" + _NAME + rb')[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s",=][^\s",]*))', re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)


class Challenge(NamedTuple):
    """One challenge: its scheme and the names of its parameters in lower case."""

    scheme: bytes
    parameters: Dict[bytes, bytes]


def challenges(value: bytes) -> Iterator[Challenge]:
    """The challenges of a field, in their order; what cannot be read is left out."""
    if len(value) > _MAX_VALUE:
        return
    scheme = b""
    parameters: Dict[bytes, bytes] = {}
    for piece in split_list(value):
        parameter = _PARAMETER.fullmatch(piece)
        if parameter is None:
            begin = _BEGIN.fullmatch(piece)
            if begin is None:
                continue
            if scheme:
                yield Challenge(scheme, parameters)
            scheme, parameters = begin.group(1).lower(), {}
            parameter = _PARAMETER.fullmatch(begin.group(2) or b"")
        if parameter is not None:
            name, quoted, token = parameter.groups()
            parameters.setdefault(name.lower(), token if quoted is None else _QUOTED_PAIR.sub(rb"\1", quoted))
    if scheme:
        yield Challenge(scheme, parameters)


def bearer(headers: Headers) -> Optional[Dict[bytes, bytes]]:
    """The parameters of the first Bearer challenge (RFC 6750 §3) that names a realm; None without one."""
    for value in headers.get_all(b"www-authenticate")[:_MOST_FIELDS]:
        for challenge in challenges(value):
            if challenge.scheme == b"bearer" and b"realm" in challenge.parameters:
                return challenge.parameters
    return None
