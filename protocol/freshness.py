"""RFC 9111 as decisions: which responses may be stored, and how long they are fresh. Values in, a value out.

Nothing here waits, logs, or touches a socket, a file or a clock; times are arguments, in seconds since the epoch.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from monitoring.details import Detail, NotKept
from protocol import field_values, media_types
from protocol.headers import Field, Headers, split_list
from protocol.http1 import RequestHead, ResponseHead
from protocol.remembering import remember_short
from protocol.request_fields import DEFAULT, RequestFields

FieldText = Tuple[str, str]

_DELTA_LIMIT = 2**31  # RFC 9111 §1.2.2
_IMMUTABLE = 365 * 86400.0  # RFC 8246 names no time; this one means "for ever"
_CLOCK_SLACK = 1.0  # seconds
_HEURISTIC_SHARE = 0.1


@dataclass(frozen=True)
class FreshnessRules:
    """The configured rules; times in seconds.

    Where the origin states no lifetime, it is a share of the time since the last modification, up to `heuristic_max`,
    or `fresh_for` without Last-Modified. A `heuristic_max` of 0 disables both. A response that is fresh by heuristic
    only is revalidated in the background once its last validation is `recheck` old.
    """

    fresh_for: float = 86400.0
    heuristic_max: float = 7 * 86400.0
    recheck: float = 600.0
    stale_if_error: bool = True
    obey_no_store: bool = True


@dataclass(frozen=True)
class Stored:
    """A stored response: its `fields`, the time it arrived or was last validated, and its age then, in seconds."""

    fields: Headers
    fetched_at: float
    initial_age: float = 0.0

    def age(self, now: float) -> float:
        """The current age (RFC 9111 §4.2.3)."""
        return self.initial_age + max(0.0, now - self.fetched_at)


# --- Cache-Control ------------------------------------------------------------------------------

_DIRECTIVE = re.compile(rb'([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)(?:[ \t]*=[ \t]*(?:"([^"]*)"|([^\s"]*)))?', re.DOTALL)
_SECONDS = re.compile(rb"[0-9]+")


def directives_of(headers: Headers) -> Directives:
    """The Cache-Control directives of a message."""
    return _directives(headers.get(b"cache-control"))


@remember_short(entries=256, length=256)
def _directives(value: Optional[bytes]) -> Directives:
    return Directives(split_list(value or b""))


class Directives:
    """The directives of Cache-Control fields (RFC 9111 §5.2); malformed ones are ignored."""

    def __init__(self, elements: Iterable[bytes]) -> None:
        self._arguments: Dict[bytes, List[Optional[bytes]]] = {}
        self._seconds: Dict[bytes, int] = {}
        for element in elements:
            match = _DIRECTIVE.fullmatch(element)
            if match is not None:
                name, quoted, plain = match.groups()
                self._arguments.setdefault(name.lower(), []).append(plain if quoted is None else quoted)
        for name, arguments in self._arguments.items():
            self._seconds[name] = min(_delta(argument) for argument in arguments)

    def __contains__(self, name: bytes) -> bool:
        return name in self._arguments

    def __bool__(self) -> bool:
        return bool(self._arguments)

    def seconds(self, name: bytes) -> Optional[int]:
        """The smallest of a directive's arguments; 0 for one that is not a number, None where it is absent.

        RFC 9111 §4.2.1: conflicting or invalid values count as stale.
        """
        return self._seconds.get(name)

    def bare(self, name: bytes) -> bool:
        """Whether the directive is there without an argument."""
        return None in self._arguments.get(name, [])


def _delta(argument: Optional[bytes]) -> int:
    if argument is None or _SECONDS.fullmatch(argument) is None:
        return 0
    return min(int(argument[:12]), _DELTA_LIMIT)


def wants_no_cache(headers: Headers) -> bool:
    """Whether a request requires validation (RFC 9111 §5.2.1.4; §5.4: Pragma only without Cache-Control)."""
    directives = directives_of(headers)
    if b"cache-control" in headers:
        return b"no-cache" in directives
    return b"no-cache" in headers.tokens(b"pragma")


def says_no_store(request: RequestHead) -> bool:
    """RFC 9111 §5.2.1.5: no part of this request, or of its response, may be stored."""
    return b"no-store" in directives_of(request.headers)


def only_if_cached(request: RequestHead) -> bool:
    """RFC 9111 §5.2.1.7: the client wants a stored response or a 504."""
    return b"only-if-cached" in directives_of(request.headers)


# --- storable responses -------------------------------------------------------------------------

# Fields of one transfer, one hop or one client, not of the representation.
NOT_STORED = frozenset(
    [
        b"accept-ranges",
        b"age",
        b"alt-svc",
        b"cache-status",
        b"content-length",
        b"set-cookie",
        b"set-cookie2",
        b"via",
        b"warning",
    ]
)
_FIELDS_BUDGET = 1600  # bytes; beyond it, the dispensable fields are dropped
# Fields that neither the body nor a client needs: they describe a server or a single transfer.
_DISPENSABLE = frozenset(
    [
        *(
            b"cf-cache-status",
            b"cf-ray",
            b"content-security-policy",
            b"content-security-policy-report-only",
            b"expect-ct",
        ),
        *(b"feature-policy", b"nel", b"p3p", b"permissions-policy", b"report-to", b"reporting-endpoints", b"server"),
        *(b"server-timing", b"traceparent", b"tracestate", b"x-amz-cf-id", b"x-amz-cf-pop", b"x-amz-id-2"),
        *(b"x-amz-request-id", b"x-cache", b"x-cache-hits", b"x-correlation-id", b"x-fastly-request-id"),
        *(b"x-github-request-id", b"x-guploader-uploadid", b"x-powered-by", b"x-request-id", b"x-runtime"),
        *(b"x-served-by", b"x-timer", b"x-trace-id", b"x-xss-protection"),
    ]
)


def not_storable(
    request: RequestHead, response: ResponseHead, rules: FreshnessRules, redirected: bool = False
) -> Optional[NotKept]:
    """Why a response must not be stored (RFC 9111 §3); None where it may be.

    `redirected`: it came from another URL than the requested one.
    """
    said = directives_of(response.headers)
    if response.status != 200 or b"content-range" in response.headers:
        return NotKept(Detail.STATUS, f"status {response.status}")
    if says_no_store(request):
        return NotKept(Detail.NO_STORE, "the client said no-store")
    # RFC 9111 §5.2.2.3: a cache that understands the status, as dduct does 200, may ignore a no-store beside it.
    if b"no-store" in said and b"must-understand" not in said and rules.obey_no_store:
        return NotKept(Detail.NO_STORE, "the origin said no-store")
    if b"*" in response.headers.tokens(b"vary"):
        return NotKept(Detail.VARY_STAR, "Vary: *")
    # No origin sends an archive as HTML; redirects to a login page end in HTML.
    if redirected and media_types.is_page(response.headers.get(b"content-type")):
        return NotKept(Detail.HTML, "a redirect to a page of HTML")
    return None


NEGATIVE = (301, 308, 404, 410)  # statuses of responses that may be kept for a short time (RFC 9110 §15.1)


def negative_lifetime(response: ResponseHead, asked_at: float, now: float) -> float:
    """The seconds for which a response without an object may be sent again, if it states that; 0 where it may not.

    No rule of the configuration extends it: what is not an object is never kept against its origin's word.
    """
    said = directives_of(response.headers)
    if response.status not in NEGATIVE or any(name in said for name in (b"no-store", b"private", b"no-cache")):
        return 0.0
    if b"set-cookie" in response.headers or b"content-range" in response.headers:
        return 0.0  # it is for one client, or makes no sense
    if b"*" in response.headers.tokens(b"vary"):
        return 0.0
    stated = b"s-maxage" in said or b"max-age" in said or b"expires" in response.headers
    lifetime = _explicit_lifetime(Stored(response.headers, now)) if stated else None
    return 0.0 if lifetime is None else max(0.0, lifetime - initial_age(response, asked_at, now))


def is_private(response: ResponseHead, rules: FreshnessRules) -> bool:
    """Whether a response, or a redirect on the way to it, is for one user (RFC 9111 §5.2.2.7)."""
    return b"private" in directives_of(response.headers) and rules.obey_no_store


def stored_fields(response: ResponseHead, now: float) -> Tuple[FieldText, ...]:
    """The fields stored with the representation; where they are many, without the dispensable ones."""
    fields = response.headers.end_to_end_fields(NOT_STORED)
    if b"date" not in response.headers:
        fields.append((b"Date", field_values.format_date(now)))  # RFC 9110 §6.6.1
    return without_dispensable(fields)


def initial_age(response: ResponseHead, asked_at: float, now: float) -> float:
    """The age of a response that arrives at `now`, after a request at `asked_at` (RFC 9111 §4.2.3)."""
    date = field_values.parse_date(response.headers.get(b"date") or b"")
    apparent = 0.0 if date is None else max(0.0, now - date)
    ages = response.headers.elements(b"age")
    # §5.1: the first member of a list counts, and a value that is not a number is ignored.
    said = _delta(ages[0]) if ages and _SECONDS.fullmatch(ages[0]) else None
    # A Date has whole seconds: an apparent age below one second means none.
    apparent = apparent if apparent >= 1 else 0.0
    return apparent if said is None else max(apparent, said + max(0.0, now - asked_at))


def vary_fields(request: RequestHead, response: ResponseHead, names: RequestFields = DEFAULT) -> Tuple[FieldText, ...]:
    """The request fields that the response depended on, for later requests to match (RFC 9111 §4.1).

    Accept-Encoding is not among them, as origins are always asked for `identity`. Credentials are never stored: where
    the request had any, `restricted` covers them; where it had none, later requests must match that.
    """
    if b"vary" not in response.headers:
        return ()
    known = bool(names.opening(request.headers))
    return tuple(
        (name.decode("latin-1"), _normal(request.headers.get(name)))
        for name in dict.fromkeys(response.headers.tokens(b"vary"))  # without repeats
        if name != b"accept-encoding" and not (known and names.opens(name))
    )


def varies(sent: Headers, vary: Iterable[FieldText]) -> bool:
    """Whether a stored response was selected for a request with other values of these fields."""
    return any(_normal(sent.get(name.encode("latin-1"))) != value for name, value in vary)


def without_dispensable(fields: List[Field]) -> Tuple[FieldText, ...]:
    """All fields or, where they are many, those not dispensable; the store decides whether they fit."""
    if not fits(fields):
        fields = [field for field in fields if field[0].lower() not in _DISPENSABLE]
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)


def fits(fields: Iterable[Field]) -> bool:
    """Whether these fields fit beside the rest of the metadata."""
    return sum(len(name) + len(value) + 8 for name, value in fields) <= _FIELDS_BUDGET


def _normal(value: Optional[bytes]) -> str:
    """A field's value with uniform white space around commas; absent and empty are the same."""
    return "" if value is None else ", ".join(part.strip(" \t") for part in value.decode("latin-1").split(","))


# --- freshness lifetime -------------------------------------------------------------------------


class Lifetime(NamedTuple):
    """What a response says of its freshness lifetime, in seconds, whatever the rules are.

    `stated`: explicitly (RFC 9111 §4.2.1); None where it does not. `guessed`: a share of the time since its last
    modification (§4.2.2); None where that is not known, or not needed.
    """

    stated: Optional[float]
    guessed: Optional[float]

    def under(self, rules: FreshnessRules) -> float:
        """The freshness lifetime by the configured rules, for a shared cache."""
        if self.stated is not None:
            return self.stated
        if self.guessed is None:
            return rules.fresh_for if rules.heuristic_max else 0.0
        return min(self.guessed, rules.heuristic_max)


def lifetime_of(stored: Stored) -> Lifetime:
    """What a stored response says of its lifetime."""
    stated = _explicit_lifetime(stored)
    if stated is not None:
        return Lifetime(stated, None)
    modified = field_values.parse_date(stored.fields.get(b"last-modified") or b"")
    return Lifetime(None, None if modified is None else max(0.0, _made_at(stored) - modified) * _HEURISTIC_SHARE)


def lifetime(stored: Stored, rules: FreshnessRules) -> float:
    """The freshness lifetime in seconds (RFC 9111 §4.2.1 and §4.2.2), for a shared cache."""
    return lifetime_of(stored).under(rules)


def _explicit_lifetime(stored: Stored) -> Optional[float]:
    """RFC 9111 §4.2.1; None where the origin states none."""
    said = directives_of(stored.fields)
    for name in (b"s-maxage", b"max-age"):
        seconds = said.seconds(name)
        if seconds is not None:
            return float(seconds)
    expires = stored.fields.get(b"expires")
    if expires is not None:
        when = field_values.parse_date(expires)
        return 0.0 if when is None else max(0.0, when - _made_at(stored))  # §5.3: an invalid date is in the past
    return _IMMUTABLE if b"immutable" in said else None


def _made_at(stored: Stored) -> float:
    date = field_values.parse_date(stored.fields.get(b"date") or b"")
    return stored.fetched_at if date is None else date


def age_at_end(stored: Stored, rules: FreshnessRules, now: float) -> float:
    """The initial age with which a response would be stale from `now` on."""
    return max(stored.initial_age, lifetime(stored, rules) - max(0.0, now - stored.fetched_at))


# --- redirects ----------------------------------------------------------------------------------

_PERMANENT = (301, 308)


def redirect_lifetime(response: ResponseHead, rules: FreshnessRules, now: float) -> Optional[float]:
    """The seconds for which a redirect just received holds; None for an unlimited time.

    RFC 9110 §15.4: a redirect that is not permanent may change, and holds no longer than it states.
    """
    said = directives_of(response.headers)
    if b"no-cache" in said or (b"no-store" in said and rules.obey_no_store):
        return 0.0
    explicit = _explicit_lifetime(Stored(response.headers, now))
    if explicit is None:
        return None if response.status in _PERMANENT else 0.0
    return max(0.0, explicit - initial_age(response, now, now))


def limited(fields: Tuple[FieldText, ...], seconds: float, rules: FreshnessRules, now: float) -> Tuple[FieldText, ...]:
    """The stored fields of a redirect's target, limited to `seconds` of freshness, also for caches behind dduct."""
    headers = Headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
    if lifetime(Stored(headers, now), rules) <= seconds:
        return fields
    said = directives_of(headers)
    own = said.seconds(b"max-age")
    kept = [one.decode("latin-1") for one in headers.elements(b"cache-control") if _name_of(one) not in _LIFETIMES]
    kept.append(f"max-age={int(seconds if own is None else min(own, seconds))}")
    if b"s-maxage" in said:
        kept.append(f"s-maxage={int(seconds)}")
    rest = (field for field in fields if field[0].lower() not in ("cache-control", "expires"))
    return (*rest, ("Cache-Control", ", ".join(kept)))


_LIFETIMES = (b"max-age", b"s-maxage", b"immutable")


def _name_of(directive: bytes) -> bytes:
    return directive.partition(b"=")[0].strip(b" \t").lower()


# --- use of a stored response -------------------------------------------------------------------


class Basis(enum.Enum):
    """The source of a stored response's freshness lifetime."""

    EXPLICIT = "its origin"
    HEURISTIC = "a guess"
    VOLATILE = "its name, or its origin: not at all"
    DIGEST = "its name: for ever"


@dataclass(frozen=True)
class Assessment:
    """Whether a stored response may be used at once, or at least where its origin cannot be reached.

    `ttl` is in seconds and negative for a stale response; a volatile one is revalidated at any `ttl`.
    """

    usable: bool
    usable_on_error: bool
    age: float
    ttl: float
    basis: Basis


def assess(
    request: RequestHead,
    stored: Stored,
    rules: FreshnessRules,
    now: float,
    asked_at: float,
    volatile: bool = False,
    unasked: Optional[float] = None,
) -> Assessment:
    """Decide whether a response may be used for a request that arrived at `asked_at` (RFC 9111 §4, §4.2.4, §5.2.1).

    One that arrived or was validated since then may always be used; of a `volatile` name, no other may. `unasked`: the
    longest time since, in seconds, for which it may be used; its origin may state a shorter one.
    """
    said, wanted = directives_of(stored.fields), directives_of(request.headers)
    age = stored.age(now)
    said_of_lifetime = lifetime_of(stored)
    ttl = said_of_lifetime.under(rules) - age
    if unasked is not None:
        rest = unasked - max(0.0, now - stored.fetched_at)
        ttl = rest if said_of_lifetime.stated is None else min(rest, ttl)
    no_cache = wants_no_cache(request.headers)
    binding = any(name in said for name in (b"must-revalidate", b"proxy-revalidate", b"s-maxage", b"no-cache"))
    # A time in the future comes from a wrong clock, and does not count.
    usable = now + _CLOCK_SLACK >= stored.fetched_at >= asked_at or (
        not no_cache
        and not volatile
        and b"no-cache" not in said
        and stored.fetched_at <= now + _CLOCK_SLACK
        and _within(wanted, age, ttl, binding)
    )
    grace = said.seconds(b"stale-if-error")  # RFC 5861 §4
    on_error = ttl > 0 or (not binding and (grace is None or -ttl <= grace))
    prefers_none = no_cache and unasked is None  # §5.2.1.4: a preference; without an index, its client can do nothing
    on_error = on_error and rules.stale_if_error and not prefers_none and b"no-cache" not in said
    guessed = said_of_lifetime.stated is None and unasked is None
    basis = Basis.HEURISTIC if guessed else Basis.EXPLICIT
    return Assessment(usable, on_error, age, ttl, Basis.VOLATILE if volatile or b"no-cache" in said else basis)


def _within(wanted: Directives, age: float, ttl: float, binding: bool) -> bool:
    """Whether a request's directives allow this age and remaining lifetime (RFC 9111 §5.2.1)."""
    if not wanted:
        return ttl > 0
    max_age = wanted.seconds(b"max-age")
    if max_age is not None and (age > max_age or max_age == 0):
        return False
    if ttl > 0:
        return ttl >= (wanted.seconds(b"min-fresh") or 0)
    if binding or b"max-stale" not in wanted or b"min-fresh" in wanted:
        return False
    return wanted.bare(b"max-stale") or -ttl <= (wanted.seconds(b"max-stale") or 0)
