"""A cacheable request's queries to its origin. What the responses mean: `fetching/meaning`."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Callable, Iterable, Optional

from fetching import meaning, permission, proof
from fetching.cacheable_request import CacheableRequest
from fetching.filler import MAX_SKIPPED, Services
from fetching.stored_metadata import stored_fields
from net.body import IncompleteBody
from protocol import validation
from protocol.headers import Field, Headers
from protocol.http1 import ResponseHead, Target
from storage.record import Metadata
from transfers.acquiring import PartialDownload
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.relay import outgoing
from upstream.request import Purpose, Request

_log = logging.getLogger("dduct.fetch")

_NO_HEAD = (405, 501)  # of an origin that knows GET alone


class OriginQuery:
    """The queries of one request. Each raises UpstreamError, also where the client forbids one (only-if-cached)."""

    def __init__(
        self, services: Services, request: CacheableRequest, on_interim: Callable[[ResponseHead], None]
    ) -> None:
        self.services = services
        self._request = request
        self._on_interim = on_interim

    def pass_through(self, purpose: Purpose = Purpose.RELAY) -> Exchange:
        """Send the client's own request."""
        self._check_permission()
        head = self._request.head
        headers = outgoing(head, self.services.via)
        return self.services.origins.exchange(self._made_of(head.method, headers, purpose))

    def whole_request(self, conditions: Iterable[Field] = ()) -> Request:
        """The request for the whole representation, as its origin stores it (never re-encoded)."""
        return self._request_for(b"GET", [*conditions, (b"Accept-Encoding", b"identity")])

    def get_full(self, conditions: Iterable[Field] = ()) -> Exchange:
        """Ask for the whole representation, through redirects."""
        self._check_permission()
        return self.services.origins.follow(self.whole_request(conditions))

    def validation_request(self, metadata: Metadata) -> Request:
        """The request for the whole, unless the stored object is still good: then the origin answers 304."""
        fields, strict = stored_fields(metadata), self._request.needs_proof(metadata)
        question = self.whole_request(proof.question(fields) if strict else validation.validators(fields))
        confirms = partial(proof.names if strict else validation.confirms, fields=fields)
        return replace(question, confirms=confirms, expects_redirect=bool(metadata.redirect))

    def revalidate(self, metadata: Metadata, length: Optional[int], begun: Optional[Exchange] = None) -> Exchange:
        """Ask for the whole, unless the stored object is still good; `begun` is a response that has come already.

        About a manifest, HEAD asks first: registries count each GET, whatever its conditions are.
        """
        self._check_permission()
        if self._request.name.manifest:
            exchange = self.services.origins.follow(self._question_about_tag(metadata))
            status = exchange.head.status
            if status not in _NO_HEAD and (
                status != 200 or meaning.still_good(self._request, exchange, metadata, length)
            ):
                return exchange
            exchange.close()
            if status not in _NO_HEAD:
                return self.get_full()
        exchange = self.services.origins.follow(self.validation_request(metadata), begun)
        if exchange.head.status != 304 or meaning.still_good(self._request, exchange, metadata, length):
            return exchange
        exchange.close()  # the 304 is about another representation
        return self.get_full()

    def _question_about_tag(self, metadata: Metadata) -> Request:
        question = self._request_for(b"HEAD", [])
        if self._request.needs_proof(metadata):
            return question  # stricter than a validation: another request's response must not authorize this client
        confirms = partial(meaning.repeats_digest, fields=stored_fields(metadata))
        return replace(question, confirms=confirms, confirming_status=200, expects_redirect=bool(metadata.redirect))

    def whole_or_rest(self, partial_download: Optional[PartialDownload]) -> Exchange:
        """Ask for the whole, or for what a partial download lacks of it: a 206 is exactly that."""
        if partial_download is None or not meaning.resumes(self._request, partial_download):
            return self.get_full()
        etag = meaning.etag_of(self._request, partial_download)
        exchange = self.get_full(validation.rest_conditions(etag, partial_download.size))
        rest = meaning.is_rest(self._request, exchange, partial_download)
        if rest or exchange.head.status not in (206, 416):
            return exchange
        exchange.close()  # it is another part than the one asked for
        return self.get_full()

    def get_range(self, etag: bytes, offset: int, length: int) -> Exchange:
        """Ask for the bytes from `offset` on, of the representation with this strong validator and length."""
        exchange = self.get_full(validation.rest_conditions(etag, offset))
        if validation.is_rest(exchange.head, etag, offset, length):
            return exchange
        with ExitStack() as cleanup:
            cleanup.callback(exchange.discard)  # also where the client leaves while bytes are skipped
            try:
                if offset <= MAX_SKIPPED and validation.is_whole_again(exchange.head, etag, length):
                    exchange.body.consume(offset)
                    cleanup.pop_all()
                    return exchange
            except IncompleteBody as error:
                _log.debug("Broken off again: %s: %s", self._request.url, error)
        raise UpstreamError("the origin does not send the rest")

    def permission(self, metadata: Metadata) -> Optional[Exchange]:
        """Ask whether this client may have the stored object, with its own method: CDNs refuse HEAD.

        None where the origin redirects it to where the object came from, and no credentials counted there: that is
        permission.
        """
        self._check_permission()
        fields = stored_fields(metadata)
        identity = (b"Accept-Encoding", b"identity")
        method = b"HEAD" if self._request.name.manifest else self._request.head.method
        probe = self._request_for(method, [*proof.question(fields), identity])
        # Stricter than a validation: another request's response must not authorize this client.
        probe = replace(probe, confirms=partial(proof.names, fields=fields))
        exchange = self.services.origins.exchange(probe)
        target = exchange.redirect()
        if target is None:
            return exchange
        if self._leads_everybody_there(target, metadata):
            exchange.close()
            return None
        # An origin may redirect a stranger to a login page, or redirect all clients before it checks credentials. So
        # the response at the end of the redirects decides.
        return self.services.origins.follow(probe, begun=exchange)

    def _leads_everybody_there(self, target: Target, metadata: Metadata) -> bool:
        """Whether a redirect leads where any client may have the stored object: it came from there without credentials.

        A query may carry the client's credentials along, and a signature may have opened the redirect itself.
        """
        why_is_known = bool(metadata.restricted_by) or not metadata.restricted
        here = (self._request.target.scheme, self._request.target.authority)
        same = "?" not in str(target) and str(target) == metadata.redirect
        moved = (target.scheme, target.authority) != here
        return same and moved and why_is_known and permission.SIGNATURE not in metadata.restricted_by

    def _request_for(self, method: bytes, fields: Iterable[Field]) -> Request:
        return self._made_of(method, Headers([*self._request.sent_fields, *fields]), Purpose.FILL)

    def _made_of(self, method: bytes, headers: Headers, purpose: Purpose) -> Request:
        target, reach, names = self._request.target, self._request.reach, self._request.names
        return Request(
            method,
            target,
            headers,
            reach,
            purpose,
            on_interim=self._on_interim,
            names=names,
            lent=self._request.lent,
            credentials=self._request.credentials,
        )

    def _check_permission(self) -> None:
        if self._request.only_if_cached:
            raise UpstreamError("only-if-cached, and there is no response in the cache that may be used", 504)
