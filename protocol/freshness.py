"""RFC 9111 as decisions: what may be kept, and how long it is fresh. Values in, a value out.

Nothing here waits, logs, or touches a socket, a file or a clock; times are given, in seconds since the epoch.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Tuple

from monitoring.details import Detail, NotKept
from protocol import field_values, media_types
from protocol.http1 import Field, Headers, RequestHead, ResponseHead, split_list
from protocol.remembering import remember_short
from protocol.request_fields import DEFAULT, RequestFields

FieldText = Tuple[str, str]

_DELTA_LIMIT = 2**31  # RFC 9111 §1.2.2
_IMMUTABLE = 365 * 86400.0  # RFC 8246 names no time; this one stands for ever
_CLOCK_SLACK = 1.0  # seconds
_HEURISTIC_SHARE = 0.1


@dataclass(frozen=True)
class FreshnessRules:
    """The configured part. Where the origin says nothing, `fresh_for` counts, or a share of the time since the last
    modification, up to `heuristic_max`; both are in seconds, and a `heuristic_max` of 0 allows no guess at all. What is
    fresh by a guess alone is asked about in the background once it was validated `recheck` seconds ago."""

    fresh_for: float = 86400.0
    heuristic_max: float = 7 * 86400.0
    recheck: float = 600.0
    stale_if_error: bool = True
    obey_no_store: bool = True


@dataclass(frozen=True)
class Stored:
    """A stored response: its `fields`, when it came or was validated last, and how old it was then, in seconds."""

    fields: Headers
    fetched_at: float
    initial_age: float = 0.0

    def age(self, now: float) -> float:
        """RFC 9111 §4.2.3, the current age."""
        return self.initial_age + max(0.0, now - self.fetched_at)


# --- Cache-Control ------------------------------------------------------------------------------

_DIRECTIVE = re.compile(rb'([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)(?:[ \t]*=[ \t]*(?:"([^"]*)"|([^\s"]*)))?', re.DOTALL)
_SECONDS = re.compile(rb"[0-9]+")


def directives_of(headers: Headers) -> Directives:
    """What Cache-Control says in a message."""
    return _directives(headers.get(b"cache-control"))


@remember_short(entries=256, length=256)
def _directives(value: Optional[bytes]) -> Directives:
    return Directives(split_list(value or b""))


class Directives:
    """The directives of Cache-Control fields (RFC 9111 §5.2); what is malformed is as if it were not there."""

    def __init__(self, elements: Iterable[bytes]) -> None:
        self._arguments: Dict[bytes, List[Optional[bytes]]] = {}
        for element in elements:
            match = _DIRECTIVE.fullmatch(element)
            if match is not None:
                name, quoted, plain = match.groups()
                self._arguments.setdefault(name.lower(), []).append(plain if quoted is None else quoted)

    def __contains__(self, name: bytes) -> bool:
        return name in self._arguments

    def __bool__(self) -> bool:
        return bool(self._arguments)

    def seconds(self, name: bytes) -> Optional[int]:
        """The smallest of a directive's arguments; 0 for one that is no number, None where it is absent.

        RFC 9111 §4.2.1: what is in conflict or invalid counts as stale.
        """
        if name not in self._arguments:
            return None
        return min(_delta(argument) for argument in self._arguments[name])

    def bare(self, name: bytes) -> bool:
        """Whether it stands there without an argument."""
        return None in self._arguments.get(name, [])


def _delta(argument: Optional[bytes]) -> int:
    if argument is None or _SECONDS.fullmatch(argument) is None:
        return 0
    return min(int(argument[:12]), _DELTA_LIMIT)


def wants_no_cache(headers: Headers) -> bool:
    """Whether a request insists on validation (RFC 9111 §5.2.1.4; §5.4: Pragma only without Cache-Control)."""
    directives = directives_of(headers)
    if b"cache-control" in headers:
        return b"no-cache" in directives
    return b"no-cache" in headers.tokens(b"pragma")


def says_no_store(request: RequestHead) -> bool:
    """RFC 9111 §5.2.1.5: nothing of this request, or of an answer to it, may be kept."""
    return b"no-store" in directives_of(request.headers)


def only_if_cached(request: RequestHead) -> bool:
    """RFC 9111 §5.2.1.7: the client wants a stored response or a 504."""
    return b"only-if-cached" in directives_of(request.headers)


# --- what may be kept ---------------------------------------------------------------------------

# Fields that belong to one transfer, one hop or one client and not to the representation.
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
_FIELDS_BUDGET = 1600  # bytes; what is more has to do without the dispensable ones
# Fields that neither a body nor a client needs: what servers say of themselves, and of single transfers.
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
    """Why a response must not be kept (RFC 9111 §3); None where it may be.

    `redirected`: it was found at another URL than the one that was asked for.
    """
    said = directives_of(response.headers)
    if response.status != 200 or b"content-range" in response.headers:
        return NotKept(Detail.STATUS, f"status {response.status}")
    if says_no_store(request):
        return NotKept(Detail.NO_STORE, "the client said no-store")
    # RFC 9111 §5.2.2.3: whoever understands the status, as we do 200, may disregard a no-store beside it.
    if b"no-store" in said and b"must-understand" not in said and rules.obey_no_store:
        return NotKept(Detail.NO_STORE, "the origin said no-store")
    if b"*" in response.headers.tokens(b"vary"):
        return NotKept(Detail.VARY_STAR, "Vary: *")
    # No origin sends an archive as HTML; one that sends clients away to log in ends up there.
    if redirected and media_types.is_page(response.headers.get(b"content-type")):
        return NotKept(Detail.HTML, "a redirect to a page of HTML")
    return None


def is_private(response: ResponseHead, rules: FreshnessRules) -> bool:
    """Whether a response, or a redirect on the way to it, is for one user (RFC 9111 §5.2.2.7)."""
    return b"private" in directives_of(response.headers) and rules.obey_no_store


def stored_fields(response: ResponseHead, now: float) -> Tuple[FieldText, ...]:
    """The fields that are kept with the representation: all but those that nothing depends on, where there are many."""
    fields = list(response.headers.end_to_end().without(NOT_STORED))
    if b"date" not in response.headers:
        fields.append((b"Date", field_values.format_date(now)))  # RFC 9110 §6.6.1
    return without_dispensable(fields)


def initial_age(response: ResponseHead, asked_at: float, now: float) -> float:
    """How old a response is when it arrives, at `now`, after a request at `asked_at` (RFC 9111 §4.2.3)."""
    date = field_values.parse_date(response.headers.get(b"date") or b"")
    apparent = 0.0 if date is None else max(0.0, now - date)
    ages = response.headers.elements(b"age")
    # §5.1: a list is taken by its first member, and what is no number is ignored.
    said = _delta(ages[0]) if ages and _SECONDS.fullmatch(ages[0]) else None
    # A Date has whole seconds: one that seems to be of the second before is of now.
    apparent = apparent if apparent >= 1 else 0.0
    return apparent if said is None else max(apparent, said + max(0.0, now - asked_at))


def vary_fields(request: RequestHead, response: ResponseHead, names: RequestFields = DEFAULT) -> Tuple[FieldText, ...]:
    """The request fields that the response depended on, to be matched by later requests (RFC 9111 §4.1).

    Accept-Encoding is not among them, for origins are always asked for `identity`. Credentials are never written down:
    where there were any, `restricted` covers them; where there were none, that is what is to be matched.
    """
    known = bool(names.opening(request.headers))
    return tuple(
        (name.decode("latin-1"), _normal(request.headers.get(name)))
        for name in dict.fromkeys(response.headers.tokens(b"vary"))  # each once, however often it is named
        if name != b"accept-encoding" and not (known and names.opens(name))
    )


def varies(request: RequestHead, vary: Iterable[FieldText]) -> bool:
    """Whether a stored response was chosen for another kind of request than this one."""
    return any(_normal(request.headers.get(name.encode("latin-1"))) != value for name, value in vary)


def without_dispensable(fields: List[Field]) -> Tuple[FieldText, ...]:
    """All fields or, where they are many, those that something depends on; whether they fit is for the store to say."""
    if not fits(fields):
        fields = [field for field in fields if field[0].lower() not in _DISPENSABLE]
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)


def fits(fields: Iterable[Field]) -> bool:
    """Whether there is room for the rest of the metadata beside these fields."""
    return sum(len(name) + len(value) + 8 for name, value in fields) <= _FIELDS_BUDGET


def _normal(value: Optional[bytes]) -> str:
    """A field's value where white space around commas makes no difference; absent and empty are the same."""
    return "" if value is None else ", ".join(part.strip(" \t") for part in value.decode("latin-1").split(","))


# --- how long it is fresh -----------------------------------------------------------------------


def lifetime(stored: Stored, rules: FreshnessRules) -> float:
    """The freshness lifetime in seconds (RFC 9111 §4.2.1 and §4.2.2), for a shared cache."""
    explicit = _explicit_lifetime(stored)
    if explicit is not None:
        return explicit
    modified = field_values.parse_date(stored.fields.get(b"last-modified") or b"")
    if modified is None:
        return rules.fresh_for if rules.heuristic_max else 0.0
    return min(max(0.0, _made_at(stored) - modified) * _HEURISTIC_SHARE, rules.heuristic_max)


def _explicit_lifetime(stored: Stored) -> Optional[float]:
    """RFC 9111 §4.2.1; None where the origin says nothing."""
    said = directives_of(stored.fields)
    for name in (b"s-maxage", b"max-age"):
        seconds = said.seconds(name)
        if seconds is not None:
            return float(seconds)
    expires = stored.fields.get(b"expires")
    if expires is not None:
        when = field_values.parse_date(expires)
        return 0.0 if when is None else max(0.0, when - _made_at(stored))  # §5.3: an invalid date is one in the past
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
    """For how many seconds a redirect that has just come holds; None where it is for good, or nearly.

    RFC 9110 §15.4: one that is not permanent may be changed on occasion, and is what it was for no longer than it says.
    """
    said = directives_of(response.headers)
    if b"no-cache" in said or (b"no-store" in said and rules.obey_no_store):
        return 0.0
    explicit = _explicit_lifetime(Stored(response.headers, now))
    if explicit is None:
        return None if response.status in _PERMANENT else 0.0
    return max(0.0, explicit - initial_age(response, now, now))


def limited(fields: Tuple[FieldText, ...], seconds: float, rules: FreshnessRules, now: float) -> Tuple[FieldText, ...]:
    """Stored fields of what redirects have led to, which is fresh for `seconds` at most; caches behind us are told."""
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


# --- may it be used -----------------------------------------------------------------------------


class Basis(enum.Enum):
    """What says for how long a stored response is fresh."""

    EXPLICIT = "its origin"
    HEURISTIC = "a guess"
    VOLATILE = "its name, or its origin: not at all"
    DIGEST = "its name: for ever"


@dataclass(frozen=True)
class Assessment:
    """Whether a stored response may be used: as it is, or at least where its origin cannot be asked.

    `ttl` is in seconds and negative for a stale one; what is volatile is asked about however long it has left.
    """

    usable: bool
    usable_on_error: bool
    age: float
    ttl: float
    basis: Basis


def assess(
    request: RequestHead, stored: Stored, rules: FreshnessRules, now: float, asked_at: float, volatile: bool = False
) -> Assessment:
    """RFC 9111 §4, §4.2.4, §5.2.1: may a response be used for a request that arrived at `asked_at`?

    One that came or was validated since then may be, whatever else is said; of a `volatile` name nothing else may.
    """
    said, wanted = directives_of(stored.fields), directives_of(request.headers)
    age = stored.age(now)
    ttl = lifetime(stored, rules) - age
    no_cache = wants_no_cache(request.headers)
    binding = any(name in said for name in (b"must-revalidate", b"proxy-revalidate", b"s-maxage", b"no-cache"))
    # A time in the future is one of a clock that was wrong, and says nothing.
    usable = now + _CLOCK_SLACK >= stored.fetched_at >= asked_at or (
        not no_cache
        and not volatile
        and b"no-cache" not in said
        and stored.fetched_at <= now + _CLOCK_SLACK
        and _within(wanted, age, ttl, binding)
    )
    grace = said.seconds(b"stale-if-error")  # RFC 5861 §4
    on_error = ttl > 0 or (not binding and (grace is None or -ttl <= grace))
    on_error = on_error and rules.stale_if_error and not no_cache and b"no-cache" not in said
    return Assessment(usable, on_error, age, ttl, _basis(stored, volatile or b"no-cache" in said))


def _basis(stored: Stored, volatile: bool) -> Basis:
    if volatile:
        return Basis.VOLATILE
    return Basis.HEURISTIC if _explicit_lifetime(stored) is None else Basis.EXPLICIT


def _within(wanted: Directives, age: float, ttl: float, binding: bool) -> bool:
    """Whether age and remaining lifetime are what a request's directives allow (RFC 9111 §5.2.1)."""
    max_age = wanted.seconds(b"max-age")
    if max_age is not None and (age > max_age or max_age == 0):
        return False
    if ttl > 0:
        return ttl >= (wanted.seconds(b"min-fresh") or 0)
    if binding or b"max-stale" not in wanted or b"min-fresh" in wanted:
        return False
    return wanted.bare(b"max-stale") or -ttl <= (wanted.seconds(b"max-stale") or 0)
