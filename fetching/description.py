"""The metadata to store of an origin's response to one request: values in, a value out."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Optional, Tuple

from fetching import permission
from fetching.cacheable_request import CacheableRequest, bare, origin_of
from fetching.stored_metadata import stored_fields
from net.addresses import Scope
from protocol import freshness, validation
from storage.record import FieldText, Metadata
from upstream.exchange import Exchange

_REDIRECT_LIMIT = 512  # characters of a redirect's URL; of a longer one, only the origin is stored


def describe(request: CacheableRequest, exchange: Exchange, asked_at: float) -> Metadata:
    """The metadata of a response's head, and of the redirects that led to it."""
    now = time.time()
    heads = (exchange.head, *(hop.head for hop in exchange.hops))
    private = any(freshness.is_private(head, request.rules) for head in heads)
    brings = request.brings
    restricted_by = permission.reasons(permission.FIELDS in brings, permission.SIGNATURE in brings, private)
    age = freshness.initial_age(exchange.head, asked_at, now)
    return Metadata(
        url=request.place,
        fields=_limited(freshness.stored_fields(exchange.head, now), request, exchange, now, age),
        fetched_at=now,
        restricted=bool(restricted_by),
        restricted_by=restricted_by,
        vary=_vary(request, exchange),
        age=age,
        near=exchange.scope is Scope.LOCAL_ONLY,
        own=exchange.scope is Scope.OWN_ADDRESS,
        redirect=_redirect_of(exchange),
    )


def renewed(request: CacheableRequest, exchange: Exchange, stored: Metadata, asked_at: float) -> Metadata:
    """The metadata of a stored representation after a 304 (RFC 9111 §4.3.4): its fields, and its restrictions.

    Restrictions stay, unless nobody in particular has asked: permission for this request's credentials says nothing
    about other clients.
    """
    found = describe(request, exchange, asked_at)
    now = found.fetched_at
    fields = validation.updated_fields(stored_fields(stored), exchange.head, now)
    merged = permission.merged(stored, found)
    if stored.restricted and not request.brings:  # then it took a proof
        merged = permission.shown(merged, False, exchange.head, request.rules, request.names)
    return replace(
        merged,
        fields=_limited(fields, request, exchange, now, found.age),
        fetched_at=now,
        age=found.age,
        must_validate=False,
        vary=found.vary if b"vary" in exchange.head.headers else stored.vary,
        redirect=found.redirect,
    )


def authorized(request: CacheableRequest, exchange: Optional[Exchange], metadata: Metadata) -> Metadata:
    """The metadata once this client is authorized; without an exchange, a redirect for all clients did that."""
    if exchange is None:
        return replace(metadata, same_for_all=metadata.same_for_all or not metadata.restricted)
    return permission.shown(metadata, bool(request.brings), exchange.head, request.rules, request.names)


def _vary(request: CacheableRequest, exchange: Exchange) -> Tuple[FieldText, ...]:
    """The request fields that the response depended on, but for what its name says already."""
    fields = freshness.vary_fields(request.sent, exchange.head, request.names)
    return tuple(field for field in fields if field[0] != "accept") if request.name.of_accept else fields


def _redirect_of(exchange: Exchange) -> str:
    target = exchange.redirected_to
    redirect = "" if target is None else bare(target) + ("?" if "?" in str(target) else "")
    return redirect if len(redirect) <= _REDIRECT_LIMIT else "/".join(origin_of(redirect))


def _limited(
    fields: Tuple[FieldText, ...], request: CacheableRequest, exchange: Exchange, now: float, age: float
) -> Tuple[FieldText, ...]:
    """Fields of a response, fresh for no longer than the redirects that led to it."""
    holding = (freshness.redirect_lifetime(hop.head, request.rules, now) for hop in exchange.hops)
    limits = [seconds for seconds in holding if seconds is not None]
    return fields if request.lasts or not limits else freshness.limited(fields, min(limits) + age, request.rules, now)
