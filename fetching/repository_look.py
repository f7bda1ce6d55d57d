"""Whether a repository of images is public: whether its registry gives it to anybody.

A request without credentials, or with a token for anybody, that its registry answers shows it. Where nothing has shown
it for a day, dduct asks by itself, without credentials: the challenge, a token, HEAD. What has changed is then noted in
the records of all that is stored of the repository, so that hits look nowhere else.
"""

from __future__ import annotations

import logging
import re
from contextlib import closing
from dataclasses import replace
from typing import Dict, Optional

from fetching import permission
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.repositories import Access, repository_of
from fetching.stored_metadata import stored_fields
from monitoring.metrics import Counter
from net.body import IncompleteBody
from protocol import http1, media_types
from protocol.challenges import bearer
from protocol.headers import Field, Headers
from protocol.http1 import ProtocolError, ResponseHead, Target
from storage.record import Digest, Metadata, Unstorable
from storage.store import Key
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.relay import outgoing
from upstream.request import Purpose, Request
from upstream.token_server import TokenRequest, read_answer

_log = logging.getLogger("dduct.fetch")

_NAMED = re.compile("(sha256|sha512):([0-9a-f]{64,128})")
_OF_REGISTRY = (b"docker-content-digest", b"docker-distribution-api-version")  # fields of a registry's responses
_FOUND, _REFUSED = (200, 304), (401, 403)  # 404 may mean either
_REDIRECTS = (302, 303, 307, 308)


def note_answer(services: Services, request: CacheableRequest, exchange: Exchange) -> None:
    """Note what a registry's answer to an ordinary request shows."""
    first = exchange.hops[0].head if exchange.hops else exchange.head
    if request.credentials or exchange.head.status not in (*_FOUND, 206) or not _is_of_registry(request.target, first):
        return
    if repository_of(request.target) is not None:
        services.repositories.note(request.target, Access.PUBLIC)


def look(services: Services, request: CacheableRequest, metadata: Metadata) -> Metadata:
    """Have the registry of a stored object asked in the background, where nothing has shown for a day who gets it.

    Returns the metadata of the object, unrestricted where its repository is known to be public.
    """
    target = request.target
    repository = repository_of(target)
    if repository is None or not services.ask_anonymously or request.only_if_cached:
        return metadata
    if metadata.restricted and metadata.restricted_by != (permission.FIELDS,):
        return metadata
    known = services.repositories.known(target)
    if known is Access.PUBLIC and metadata.restricted:
        _amend(services, request.key.name, known)
        return _amended(metadata, known) or metadata
    # What another server has sent, such as the storage behind a registry, says nothing.
    if known is None and any(name in stored_fields(metadata) for name in _OF_REGISTRY):
        name = f"{target.scheme}://{target.authority}/v2/{repository}"
        services.background.ask(name, 0.0, _Look(services, request).ask)
    return metadata


class _Look:
    """One question to a registry, on behalf of nobody."""

    def __init__(self, services: Services, request: CacheableRequest) -> None:
        self._services = services
        self._target = request.target
        self._reach = request.reach
        asked = request.head.headers
        # Some servers refuse programs that do not say their name.
        self._program = [field for field in asked if field[0].lower() == b"user-agent"]
        self._fields = [*self._program, *(field for field in asked if field[0].lower() == b"accept")]

    def ask(self) -> bool:
        """Ask, and note the answer. Returns whether there was one."""
        try:
            access = self._found_out()
        except (UpstreamError, IncompleteBody, ProtocolError) as error:
            _log.debug("Not known whether it is public: %s: %s", self._target.authority, error)
            return False
        self._services.counters.add(Counter.LOOKS)
        self._services.repositories.note(self._target, access)
        if access is not Access.UNKNOWN:
            _restrict(self._services, self._target, access)
        return True

    def _found_out(self) -> Access:
        with closing(self._send(b"HEAD", self._target, self._fields)) as exchange:
            challenge = bearer(exchange.head.headers)
            if exchange.head.status != 401 or challenge is None:
                return _meaning(exchange, False)
        token = self._token(challenge)
        if token is None:
            return Access.PRIVATE
        authorization = (b"Authorization", b"Bearer " + token.encode("latin-1", "replace"))
        with closing(self._send(b"HEAD", self._target, [*self._fields, authorization])) as exchange:
            return _meaning(exchange, True)

    def _token(self, challenge: Dict[bytes, bytes]) -> Optional[str]:
        """A token for anybody; None where the token server gives none. Raises UpstreamError where it is away."""
        realm = http1.parse_absolute(challenge[b"realm"])
        if realm.scheme != "https" and self._target.scheme == "https":
            raise UpstreamError("the token server is to be asked without TLS")
        scope = challenge.get(b"scope") or f"repository:{repository_of(self._target)}:pull".encode()
        target = TokenRequest(realm, challenge.get(b"service", b""), scope).target
        with closing(self._send(b"GET", target, self._program)) as exchange:
            head = exchange.head
            redirects, page = 300 <= head.status < 400, media_types.is_page(head.headers.get(b"content-type"))
            if redirects or (head.status == 200 and page):
                raise UpstreamError(f"the token server answers {head.status}, and no token")
            return self._services.public_tokens.note_issued(target, head, read_answer(exchange))

    def _send(self, method: bytes, target: Target, fields: list[Field]) -> Exchange:
        head = http1.RequestHead(method, target.path_query.encode(), 1, Headers([]))
        headers = Headers([*outgoing(head, self._services.via), *fields, (b"Accept-Encoding", b"identity")])
        names = self._services.names
        exchange = self._services.origins.exchange(
            Request(method, target, headers, self._reach, Purpose.FILL, names=names, credentials=b"")
        )
        if exchange.unhelpful:
            exchange.close()
            raise exchange.failure()
        return exchange


def _meaning(exchange: Exchange, with_token: bool) -> Access:
    """What the answer to HEAD says; a redirect says something only where a token was asked for before it."""
    status = exchange.head.status
    found = status in _FOUND or (with_token and status in _REDIRECTS)
    if found and _is_of_registry(exchange.target, exchange.head):
        return Access.PUBLIC
    return Access.PRIVATE if status in _REFUSED else Access.UNKNOWN


def _is_of_registry(target: Target, head: ResponseHead) -> bool:
    """Whether a response is one of a registry; other servers decide by other things than repositories.

    A proxy in front of one may add its fields to pages of its own: those for logging in are 200, too.
    """
    if head.status == 200 and media_types.is_page(head.headers.get(b"content-type")):
        return False
    stated = (head.headers.get(b"docker-content-digest") or b"").decode("latin-1")
    if stated and _NAMED.fullmatch(target.path.rpartition("/")[2]):
        return target.path.endswith(f"/{stated}")
    return any(name in head.headers for name in _OF_REGISTRY)


def _restrict(services: Services, target: Target, access: Access) -> None:
    """Note in the records of all that is stored of a repository who gets it."""
    place = f"{target.scheme}/{target.host_field}/v2/{repository_of(target)}"
    changed = 0
    for folder in ("manifests", "blobs"):
        try:
            for name in services.cache.store.names_in(f"{place}/{folder}"):
                changed += _amend(services, name, access)
        except Unstorable:
            continue  # no folder has such a name
    if changed:
        _log.info("%s is %s: noted for %d stored objects", place, access.name.lower(), changed)


def _amend(services: Services, name: str, access: Access) -> bool:
    """Note it in the record of one object. Returns whether it is news."""
    named = _NAMED.fullmatch(name.rpartition("/")[2])
    key = Key(name, None if named is None else Digest(named.group(1), named.group(2)))
    try:
        hit = services.cache.lookup(key)
        if hit is None:
            return False
        with closing(hit.entry):
            amended = None if hit.metadata is None else _amended(hit.metadata, access)
            if hit.metadata is None or amended is None:
                return False
            services.cache.amend(key, hit.entry, hit.metadata, amended)
            brought = hit.entry.record.metadata
            if named is not None and access is Access.PRIVATE and brought.url == hit.metadata.url:
                hit.entry.amend(brought, _amended(brought, access) or brought)  # or another origin could open it
    except Unstorable as error:
        _log.warning("Not noted that it is %s: %s: %s", access.name.lower(), name, error)
        return False
    return True


def _amended(metadata: Metadata, access: Access) -> Optional[Metadata]:
    """The metadata of an object once it is known who gets it; None where they say so already."""
    if access is Access.PUBLIC and metadata.restricted_by == (permission.FIELDS,):
        return replace(metadata, restricted=False, restricted_by=())
    if access is Access.PRIVATE and not metadata.restricted:
        return replace(metadata, restricted=True, restricted_by=(permission.FIELDS,), same_for_all=False)
    return None
