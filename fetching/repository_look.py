"""Whether a repository of images is public: whether its registry gives it to anybody.

A request without credentials, or with a token for anybody, that its registry answers shows it. Where nothing has shown
it for a day, dduct asks by itself, without credentials: the challenge, a token, HEAD. What has changed is then noted in
the records of all that is stored of the repository, so that hits look nowhere else.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import closing
from dataclasses import replace
from typing import Optional
from urllib.parse import urlencode

from fetching import permission
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.repositories import Access, repository_of
from fetching.stored_metadata import stored_fields
from monitoring.metrics import Counter
from net.body import IncompleteBody
from protocol import http1
from protocol.challenges import Challenge, challenges
from protocol.headers import Field, Headers
from protocol.http1 import ProtocolError, Target
from storage.record import Digest, Metadata, Unstorable
from storage.store import Key
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.public_tokens import MAX_RESPONSE
from upstream.relay import outgoing
from upstream.request import Purpose, Request

_log = logging.getLogger("dduct.fetch")

_NAMED = re.compile("(sha256|sha512):([0-9a-f]{64,128})")
_FOUND, _REFUSED = (200, 304), (401, 403)  # 404 may mean either
_REDIRECTS = (302, 303, 307, 308)
_MOST = 20_000  # objects of a repository


def note_answer(services: Services, request: CacheableRequest, exchange: Exchange) -> None:
    """Note what a registry's answer to an ordinary request shows."""
    first = exchange.hops[0].head if exchange.hops else exchange.head
    if request.credentials or exchange.head.status not in (*_FOUND, 206) or not _is_of_registry(first.headers):
        return
    if repository_of(request.target) is not None:
        services.repositories.note(request.target, Access.PUBLIC)


def look(services: Services, request: CacheableRequest, metadata: Metadata) -> None:
    """Have the registry of a stored object asked in the background, where nothing has shown for a day who gets it."""
    target = request.target
    repository = repository_of(target)
    if repository is None or not services.ask_anonymously or request.only_if_cached:
        return
    if metadata.restricted and metadata.restricted_by != (permission.FIELDS,):
        return
    if not _is_of_registry(stored_fields(metadata)):
        return
    known = services.repositories.known(target)
    if known is None:
        name = f"{target.scheme}://{target.authority}/v2/{repository}"
        services.background.ask(name, 0.0, _Look(services, request).ask)
    elif known is Access.PUBLIC and metadata.restricted:
        _amend(services, request.key.name, known)


class _Look:
    """One question to a registry, on behalf of nobody."""

    def __init__(self, services: Services, request: CacheableRequest) -> None:
        self._services = services
        self._target = request.target
        self._reach = request.reach
        head = request.head
        anonymous = head.headers.without(name.lower() for name, _ in services.names.opening(head.headers))
        accept = anonymous.get(b"accept")
        self._fields = [] if accept is None else [(b"Accept", accept)]

    def ask(self) -> bool:
        """Ask, and note the answer. Returns whether there was one."""
        try:
            access = self._found_out()
        except (UpstreamError, IncompleteBody, ProtocolError) as error:
            _log.debug("Not known whether it is public: %s: %s", self._target.authority, error)
            return False
        if access is None:
            return False
        self._services.counters.add(Counter.LOOKS)
        self._services.repositories.note(self._target, access)
        _restrict(self._services, self._target, access)
        return True

    def _found_out(self) -> Optional[Access]:
        with closing(self._send(b"HEAD", self._target, self._fields)) as exchange:
            status = exchange.head.status
            challenge = _bearer(exchange)
            if status != 401 or challenge is None:
                return _meaning(exchange, False)
        token = self._token(challenge)
        if token is None:
            return Access.PRIVATE
        authorization = (b"Authorization", b"Bearer " + token.encode("latin-1", "replace"))
        with closing(self._send(b"HEAD", self._target, [*self._fields, authorization])) as exchange:
            return _meaning(exchange, True)

    def _token(self, challenge: Challenge) -> Optional[str]:
        """A token for anybody; None where the token server gives none. Raises UpstreamError where it is away."""
        realm = http1.parse_absolute(challenge.parameters.get(b"realm", b""))
        if realm.scheme != "https" and self._target.scheme == "https":
            raise UpstreamError("the token server is to be asked without TLS")
        named = {name: challenge.parameters.get(name.encode(), b"").decode("latin-1") for name in ("service", "scope")}
        named["scope"] = named["scope"] or f"repository:{repository_of(self._target)}:pull"
        query = "&".join(filter(None, [realm.query, urlencode({key: value for key, value in named.items() if value})]))
        realm = replace(realm, query=query)
        with closing(self._send(b"GET", realm, [])) as exchange:
            if exchange.unhelpful:
                raise UpstreamError(f"the token server answers {exchange.head.status}")
            body = _read(exchange)
            self._services.public_tokens.note_issued(realm, exchange.head, body)
            try:
                values = json.loads(body) if exchange.head.status == 200 else {}
            except (ValueError, RecursionError):
                return None
        token = (values.get("token") or values.get("access_token")) if isinstance(values, dict) else None
        return token if isinstance(token, str) and "\n" not in token and "\r" not in token else None

    def _send(self, method: bytes, target: Target, fields: list[Field]) -> Exchange:
        head = http1.RequestHead(method, target.path_query.encode(), 1, Headers([]))
        headers = Headers([*outgoing(head, self._services.via), *fields, (b"Accept-Encoding", b"identity")])
        names = self._services.names
        return self._services.origins.exchange(
            Request(method, target, headers, self._reach, Purpose.FILL, names=names, credentials=b"")
        )


def _meaning(exchange: Exchange, with_token: bool) -> Optional[Access]:
    """What the answer to HEAD says; a redirect says something only where a token was asked for before it."""
    status = exchange.head.status
    if (status in _FOUND and _is_of_registry(exchange.head.headers)) or (with_token and status in _REDIRECTS):
        return Access.PUBLIC
    return Access.PRIVATE if status in _REFUSED else None


def _is_of_registry(fields: Headers) -> bool:
    """Whether a response is one of a registry; other servers decide by other things than repositories."""
    return b"docker-content-digest" in fields or b"docker-distribution-api-version" in fields


def _restrict(services: Services, target: Target, access: Access) -> None:
    """Note in the records of all that is stored of a repository who gets it."""
    place = f"{target.scheme}/{target.host_field}/v2/{repository_of(target)}"
    changed = 0
    for folder in ("manifests", "blobs"):
        try:
            for name in services.cache.store.beginning(f"{place}/{folder}/", _MOST):
                changed += _amend(services, name, access)
        except Unstorable:
            continue
    if changed:
        _log.info("%s is %s: noted for %d stored objects", place, access.name.lower(), changed)


def _amend(services: Services, name: str, access: Access) -> bool:
    named = _NAMED.fullmatch(name.rpartition("/")[2])
    key = Key(name, None if named is None else Digest(named.group(1), named.group(2)))
    hit = services.cache.lookup(key)
    if hit is None:
        return False
    with closing(hit.entry):
        metadata = hit.metadata
        if metadata is None:
            return False
        if access is Access.PUBLIC and metadata.restricted_by == (permission.FIELDS,):
            amended = replace(metadata, restricted=False, restricted_by=())
        elif access is Access.PRIVATE and not metadata.restricted:
            amended = replace(metadata, restricted=True, restricted_by=(permission.FIELDS,), same_for_all=False)
        else:
            return False
        try:
            services.cache.amend(key, hit.entry, metadata, amended)
        except Unstorable as error:
            _log.warning("Not noted that it is %s: %s: %s", access.name.lower(), name, error)
            return False
    return True


def _bearer(exchange: Exchange) -> Optional[Challenge]:
    for value in exchange.head.headers.get_all(b"www-authenticate")[:8]:
        for challenge in challenges(value):
            if challenge.scheme == b"bearer" and b"realm" in challenge.parameters:
                return challenge
    return None


def _read(exchange: Exchange) -> bytes:
    body, buffer = bytearray(), memoryview(bytearray(MAX_RESPONSE))
    while len(body) <= MAX_RESPONSE:
        count = exchange.body.readinto(buffer)
        if not count:
            return bytes(body)
        body += buffer[:count]
    raise UpstreamError("the token server sends too much")
