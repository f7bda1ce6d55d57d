"""Tokens that a token server gives to anybody: what one of them brings is anybody's.

A registry answers 401 with `WWW-Authenticate: Bearer realm="…"`, and its token server gives a token to a request
without credentials, too, where a repository is public. Only an intercepting proxy sees that. Rules of this module:

* A token counts as public for the origins that named its realm, and for nobody else: another origin's token server says
  nothing about them.
* The request for it had nothing that may identify its client: no field, no parameter but those of the protocol, and no
  certificate of dduct's.
* Workers share what is known. It ends with the token; a token is kept as a keyed hash only.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from typing import Callable, Container, Dict, List, Optional
from urllib.parse import parse_qsl

from protocol import http1
from protocol.challenges import challenges
from protocol.headers import Field, Headers
from protocol.http1 import ProtocolError, RequestHead, ResponseHead, Target
from protocol.request_fields import RequestFields
from storage.shared_table import SharedTable

MAX_RESPONSE = 64 * 1024  # bytes of a token server's response, and of what it unpacks to
_DAY = 86400.0
_MOST_CHALLENGES = 8  # of one response
MAX_TOKEN = 16 * 1024  # bytes
_USUAL_LIFETIME = 60  # seconds of a token that does not say (the token protocol of registries)
# Parameters that name what a token is for. Any other one may name who asks.
_HARMLESS_PARAMETERS = frozenset(["service", "scope", "client_id", "offline_token"])
_GZIP = 16 + zlib.MAX_WBITS
_WINDOW = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": zlib.MAX_WBITS}


class PublicTokens:
    """What is known of token servers. `identified`: hosts that dduct shows its own certificate to."""

    def __init__(
        self, table: SharedTable, identified: Container[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = table
        self._identified = identified
        self._clock = clock

    def note_challenge(self, target: Target, response: ResponseHead) -> None:
        """Note where an origin sends its clients for a token, if the response says so."""
        for realm in _realms(response):
            url = _without_query(realm)
            safe = realm.scheme == "https" or target.scheme == "http"
            if safe and realm.authority.host not in self._identified:
                self._table.put(_realm_of(target, _mark(url)), self._clock() + _DAY)
                self._table.put(_realm(url), self._clock() + _DAY)

    def may_issue(self, target: Target, head: RequestHead, names: RequestFields) -> bool:
        """Whether a request asks a token server for a token, and says nothing of who asks."""
        if head.method != b"GET" or not self._holds(_realm(_without_query(target))):
            return False
        parameters = parse_qsl(target.query or "", keep_blank_values=True, max_num_fields=64)
        return not names.opening(head.headers) and all(name in _HARMLESS_PARAMETERS for name, _ in parameters)

    def note_issued(self, target: Target, response: ResponseHead, body: bytes) -> None:
        """Note the tokens in the response to a request that `may_issue` one."""
        values = token_values(response, body)
        seconds = lifetime_of(values)
        for name in ("token", "access_token"):
            token = values.get(name)
            if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN:
                until = self._clock() + seconds
                self._table.put(_token(token.encode()), until, _mark(_without_query(target)))

    def is_public(self, target: Target, authorization: bytes) -> bool:
        """Whether an Authorization field has a token that anybody gets for this target's origin."""
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        fact = self._table.get(_token(token.strip(b" ")))
        return fact is not None and self._clock() < fact.until and self._holds(_realm_of(target, fact.value))

    def identifying(self, target: Target, headers: Headers, names: RequestFields) -> List[Field]:
        """The fields of a request that may authorize its client: `names.opening` without a public token."""
        fields = names.opening(headers)
        if not fields:
            return fields
        tokens = [field for field in fields if field[0].lower() == b"authorization"]
        if len(tokens) == 1 and self.is_public(target, tokens[0][1]):
            fields.remove(tokens[0])
        return fields

    def _holds(self, key: bytes) -> bool:
        fact = self._table.get(key)
        return fact is not None and self._clock() < fact.until


def _realms(response: ResponseHead) -> List[Target]:
    """The URLs that a 401 sends its client to for a token."""
    realms: List[Target] = []
    if response.status != 401:
        return realms
    for value in response.headers.get_all(b"www-authenticate")[:_MOST_CHALLENGES]:
        for challenge in challenges(value):
            realm = challenge.parameters.get(b"realm", b"")
            if challenge.scheme == b"bearer" and len(realms) < _MOST_CHALLENGES:
                try:
                    realms.append(http1.parse_absolute(realm))
                except ProtocolError:
                    continue  # a name, as in Basic, or nothing that can be asked
    return realms


def token_values(response: ResponseHead, body: bytes) -> Dict[str, object]:
    """The JSON object of a token server's response; empty where it is none."""
    if response.status != 200:
        return {}
    plain = _decoded(response.headers.get(b"content-encoding"), body)
    try:
        values = {} if plain is None else json.loads(plain)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def lifetime_of(values: Dict[str, object]) -> float:
    """For how many seconds a token server's token holds."""
    lifetime = values.get("expires_in")
    return min(lifetime if isinstance(lifetime, (int, float)) and lifetime > 0 else _USUAL_LIFETIME, _DAY)


def _decoded(coding: Optional[bytes], body: bytes) -> Optional[bytes]:
    """The content of a body; None where it is coded in a way that clients of token servers do not use, or large."""
    if coding is None or coding.strip().lower() == b"identity":
        return body
    window = _WINDOW.get(coding.strip().lower())
    if window is None:
        return None
    decoder = zlib.decompressobj(window)
    try:
        content = decoder.decompress(body, MAX_RESPONSE)
    except zlib.error:
        return None
    return content if decoder.eof else None


def _without_query(target: Target) -> str:
    return str(target).partition("?")[0]


def _mark(url: str) -> int:
    return int.from_bytes(hashlib.sha256(url.encode()).digest()[:8], "big")


def _realm(url: str) -> bytes:
    return b"realm\0" + url.encode()


def _realm_of(target: Target, mark: int) -> bytes:
    return f"challenge\0{target.scheme}://{target.authority}\0{mark}".encode()


def _token(token: bytes) -> bytes:
    return b"token\0" + token
