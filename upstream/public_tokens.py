"""Tokens that a token server gives to anybody: what one of them brings is anybody's.

A registry answers 401 with `WWW-Authenticate: Bearer realm="…"`, and its token server gives a token to a request
without credentials, too, where a repository is public. Only an intercepting proxy sees that. Rules of this module:

* A token counts as public for the origins that named its realm, and for nobody else: another origin's token server says
  nothing about them. A realm counts if it was named to nobody in particular: some servers make it of the request.
* The request for it had nothing that may identify its client: no field, no body, no parameter but those of the
  protocol, and no certificate of dduct's.
* Where a token server cannot be asked, its clients get a token of dduct's own, so that they go on to what is stored
  for anybody. Their origin does not know it, and refuses it.
* Workers share what is known. It ends with the token; a token is kept as a keyed hash only.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import zlib
from typing import Callable, Container, Dict, List, Optional
from urllib.parse import parse_qsl

from protocol import http1
from protocol.challenges import challenges
from protocol.headers import Field, Headers
from protocol.http1 import ProtocolError, RequestHead, ResponseHead, Target
from protocol.request_fields import FieldKind, RequestFields
from storage.shared_table import SharedTable

MAX_RESPONSE = 64 * 1024  # bytes of a token server's response, and of what it unpacks to
_DAY = 86400.0
_MOST_CHALLENGES = 8  # of one response
_MOST_PARAMETERS = 64
MAX_TOKEN = 16 * 1024  # bytes
_USUAL_LIFETIME = 60  # seconds of a token that does not say (the token protocol of registries)
# Parameters that name what a token is for. Any other one may name who asks.
_HARMLESS_PARAMETERS = frozenset(["service", "scope", "client_id", "offline_token"])
_VISIBLE = re.compile("[!-~]+")  # what a field can hold
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

    def note_challenge(self, target: Target, response: ResponseHead, asked: Headers, names: RequestFields) -> None:
        """Note where an origin sends its clients for a token, if the response to the fields `asked` says so."""
        realms = _realms(response)
        if realms and any(value and names.kind(name) is not FieldKind.HARMLESS for name, value in asked):
            return
        for realm in realms:
            url = _without_query(realm)
            safe = realm.scheme == "https" or target.scheme == "http"
            if safe and realm.authority.host not in self._identified:
                self._table.put(_realm_of(target, _mark(url)), self._clock() + _DAY)
                self._table.put(_realm(url), self._clock() + _DAY)

    def may_issue(self, target: Target, head: RequestHead, names: RequestFields) -> bool:
        """Whether a request asks a token server for a token, and says nothing of who asks."""
        if head.method != b"GET" or not self._holds(_realm(_without_query(target))):
            return False
        return not names.opening(head.headers) and _is_harmless(target.query or "")

    def note_issued(self, target: Target, response: ResponseHead, body: bytes) -> Optional[str]:
        """Note the tokens in the response to a request that `may_issue` one. Returns one of them; None without any."""
        values = token_values(response, body)
        until, found = self._clock() + lifetime_of(values), None
        for name in ("access_token", "token"):
            token = values.get(name)
            if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN and _VISIBLE.fullmatch(token):
                self._table.put(_token(token.encode()), until, _mark(_without_query(target)))
                found = token
        return found

    def issues(self, target: Target, head: RequestHead) -> bool:
        """Whether a request asks a token server for a token, for anybody or for somebody."""
        return head.method in (b"GET", b"POST") and self._holds(_realm(_without_query(target)))

    def stand_in(self, target: Target) -> bytes:
        """The body of a response in the place of a token server: a token of dduct's own."""
        token = f"dduct-{secrets.token_hex(16)}"
        until = self._clock() + _USUAL_LIFETIME
        self._table.put(_token(token.encode()), until, _mark(_without_query(target)))
        self._table.put(_made_here(token.encode()), until)
        return json.dumps({"token": token, "access_token": token, "expires_in": _USUAL_LIFETIME}).encode()

    def is_stand_in(self, headers: Headers) -> bool:
        """Whether a request has a token of dduct's own."""
        scheme, _, token = (headers.get(b"authorization") or b"").partition(b" ")
        return scheme.lower() == b"bearer" and self._holds(_made_here(token.strip(b" ")))

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


def _is_harmless(query: str) -> bool:
    """Whether a query says nothing of who asks. Some servers take a semicolon for an ampersand."""
    try:
        parameters = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        return False
    return ";" not in query and all(name in _HARMLESS_PARAMETERS for name, _ in parameters)


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


def _made_here(token: bytes) -> bytes:
    return b"own\0" + token


def _token(token: bytes) -> bytes:
    return b"token\0" + token
