"""A request for an object that has a name in the cache, and what follows from it before its origin is asked."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import List, Optional, Tuple

from fetching import permission
from fetching.filler import Services, key_of
from fetching.naming import Name
from fetching.stored_metadata import as_stored, assess
from monitoring.details import Detail
from monitoring.redaction import shown
from net.addresses import Reach
from protocol import freshness
from protocol.freshness import Assessment, Basis, FreshnessRules
from protocol.headers import Field, Headers
from protocol.http1 import RequestHead, Target
from protocol.request_fields import RequestFields
from protocol.selection import CONDITIONS
from storage.record import Metadata, Record
from transfers.asking import Question
from upstream.credentials import Use
from upstream.relay import outgoing

_SPARED = 3600.0  # seconds for which a tag may be sent unasked, where its registry answers few more requests


class CacheableRequest:
    """A request and its facts; none of them changes.

    Signatures and secrets in the query count as credentials. `reach`: what of dduct's machine the client may reach.
    `sent`: the fields that the origin gets, if they were worked out before. `use`: credentials of dduct's own that it
    may have, or has.
    """

    def __init__(
        self,
        services: Services,
        head: RequestHead,
        target: Target,
        name: Name,
        reach: Reach,
        sent: Optional[Headers] = None,
        use: Optional[Use] = None,
    ) -> None:
        self.head = head
        self.target = target
        self.name = name
        self.reach = reach
        self.use = use
        self.key = key_of(name)
        self.only_if_cached = freshness.only_if_cached(head)
        keeps_nothing = self.only_if_cached or freshness.says_no_store(head)
        # Such a request brings no object into the cache, so it must not lead those that want one; None: it may.
        brings_nothing = head.method == b"HEAD" and not self.is_metadata
        self.why_no_fill = Detail.HEAD if brings_nothing else Detail.NO_STORE if keeps_nothing else None
        self.shown = shown(bare(target))  # its URL, for the log
        self._services = services
        self._sent = sent

    @property
    def names(self) -> RequestFields:
        """Which request fields may be credentials."""
        return self._services.names

    @property
    def rules(self) -> FreshnessRules:
        """The rules of freshness."""
        return self._services.freshness

    @property
    def is_metadata(self) -> bool:
        """Whether it is small, and clients ask for its head to learn what it is: then HEAD brings it, too."""
        return self.name.manifest or self.name.unasked is not None

    @property
    def lasts(self) -> bool:
        """Whether the object never changes, wherever it comes from."""
        return self.name.digest is not None

    @property
    def url(self) -> str:
        """The URL without its query, which may be signed."""
        return bare(self.target)

    @property
    def place(self) -> str:
        """The URL as a record names it: a hash tells different queries apart and does not show them."""
        return self.url + _mark_of(self.name)

    # Credentials

    @cached_property
    def credentials(self) -> bytes:
        """All credentials of this client; empty if it has none. A token that anybody gets is none."""
        if self.lent and self.use is not None:
            return self.use.grantee or b""
        fields = [b": ".join(field) for field in self._identifying(self.head.headers)]
        return b"\n".join([*fields, self.name.signature.encode(), self.name.secrets.encode()]).strip(b"\n")

    @property
    def grantee(self) -> bytes:
        """The credentials that a grant is for: an origin that answers HEAD need not permit the bytes.

        A registry permits both alike: for a manifest, HEAD is the question.
        """
        asks_for_head = self.credentials and self.head.method == b"HEAD" and not self.name.manifest
        return b"HEAD\n" + self.credentials if asks_for_head else self.credentials

    @property
    def signed(self) -> bool:
        """Whether its query has credentials."""
        return bool(self.name.signature or self.name.secrets)

    @cached_property
    def brings(self) -> Tuple[str, ...]:
        """The kinds of credentials that the origin gets with this request."""
        fields = self.lent or bool(self._identifying(self.sent_fields))
        return permission.reasons(fields, self.signed, private=False)

    @property
    def lent(self) -> bool:
        """Whether its credentials are dduct's own: what these bring is restricted, whatever they are."""
        return self.use is not None and self.use.sent is not None

    def _identifying(self, headers: Headers) -> List[Field]:
        return self._services.public_tokens.identifying(self.target, headers, self.names)

    # What the origin gets

    @property
    def sent_fields(self) -> Headers:
        """The fields that its origin gets for the cache; a response may depend on them."""
        if self._sent is None:
            self._sent = sent_for_all(self.head, self._services.via, self.names)
        return self._sent

    @property
    def sent(self) -> RequestHead:
        """The request as its origin gets it for the cache."""
        return replace(self.head, headers=self.sent_fields)

    @cached_property
    def question(self) -> Question:
        """All parts of a request for the whole that may differ between clients."""
        return self.reach, self.target.path_query, self.sent_fields.normal

    # Stored objects

    def varies(self, metadata: Metadata) -> bool:
        """Whether the stored response was selected for another kind of request."""
        return bool(metadata.vary) and freshness.varies(self.sent_fields, metadata.vary)

    def assess(self, record: Record, metadata: Metadata, now: float, asked_at: float) -> Assessment:
        """Whether the stored object may be used for this request, which came at `asked_at`, without asking."""
        name = self.name
        if name.manifest and name.unasked is not None and self._services.rate_limits.is_low(self.target):
            name = replace(name, unasked=max(name.unasked, _SPARED), volatile=False)
        assessment = assess(self.head, name, record, as_stored(metadata), self.rules, now, asked_at)
        if metadata.must_validate and assessment.basis is not Basis.DIGEST:
            return replace(assessment, usable=False, usable_on_error=False)
        return assessment

    def needs_proof(self, stored: Metadata) -> bool:
        """Whether a validation also decides whether this client may have the object: then it takes a proof."""
        return stored.restricted or bool(self.brings)

    def is_of_this_url(self, brought: Metadata) -> bool:
        """Whether the metadata is this URL's own; an object that a digest names may come from another URL."""
        return not self.lasts or (brought.url == self.place and not self.name.signature)


def may_confirm_alias(request: CacheableRequest, brought: Metadata) -> bool:
    """Whether this URL's origin may confirm that it has the object that another URL has `brought`.

    Any origin can say so without having it. So only its own origin opens a restricted object.
    """
    return not brought.restricted or origin_of(brought.url) == origin_of(request.url)


def sent_for_all(head: RequestHead, via: bytes, names: RequestFields) -> Headers:
    """The fields of a request on behalf of all clients."""
    return names.on_behalf_of_all(outgoing(head, via).without([*CONDITIONS, b"accept-encoding"]))


def bare(target: Target) -> str:
    """A URL without its query, which may be signed."""
    return str(target).partition("?")[0]


def origin_of(url: str) -> List[str]:
    """Scheme and authority."""
    return url.split("/", 3)[:3]


def _mark_of(name: Name) -> str:
    """A hash that tells URLs with different queries apart without showing these: they may hold secrets."""
    query = name.path.partition("?")[2]
    return "?" + hashlib.sha256(query.encode()).hexdigest()[:16] if query else ""
