"""Decisions, and nothing but: values in, a value out. What a request is for, what may be kept, what to answer from it.

Nothing here waits, logs, or touches a socket or a file; whoever calls does what the value says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Mapping, Optional, Tuple, Union

import http1
from http1 import Authority, Headers, RequestHead, ResponseHead, Target

FieldText = Tuple[str, str]


class Hosts:
    """A set of host names: exact ones, and `*.suffix` for every depth below a suffix, label by label."""

    def __init__(self, patterns: Iterable[str]) -> None:
        names = [pattern.lower() for pattern in patterns]
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._below = frozenset(name[2:] for name in names if name.startswith("*."))

    def __contains__(self, host: object) -> bool:
        if not isinstance(host, str):
            return False
        if host in self._exact:
            return True
        _, dot, parent = host.partition(".")
        while dot:
            if parent in self._below:
                return True
            _, dot, parent = parent.partition(".")
        return False


@dataclass(frozen=True)
class Rules:
    """The configured part of every decision. `own_names` are dduct's own, whatever port they are asked on."""

    intercept: Hosts
    own_names: Hosts
    filters: Tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class Where:
    """Where a request arrived: the address it was sent to, and what its connection has fixed already.

    `inside` is the authority of the CONNECT that is being intercepted; `server_name` is the SNI of a direct TLS
    connection, where the client sent one.
    """

    local: Authority
    encrypted: bool = False
    inside: Optional[Authority] = None
    server_name: Optional[str] = None


# --- what a request is for ----------------------------------------------------------------------


@dataclass(frozen=True)
class Tunnel:
    """Carry octets both ways and look at none of them."""

    authority: Authority


@dataclass(frozen=True)
class Intercept:
    """Answer in the host's name, and read the requests inside."""

    authority: Authority


@dataclass(frozen=True)
class Name:
    """What an object is called in the cache: a path, and the digest that its URL promises, as (algorithm, hex)."""

    path: str
    digest: Optional[Tuple[str, str]] = None


@dataclass(frozen=True)
class Fetch:
    """Get it from its origin; `name` says under which name it may be kept, None that it is only relayed."""

    target: Target
    name: Optional[Name]


@dataclass(frozen=True)
class Own:
    """A page of dduct's own."""

    path: str


@dataclass(frozen=True)
class Refuse:
    """Answer with an error; one line that says what is wrong and what helps."""

    status: int
    reason: str


Decision = Union[Tunnel, Intercept, Fetch, Own, Refuse]

OWN_PATHS = frozenset(["/ca.crt", "/healthz"])
_CACHED_METHODS = (b"GET", b"HEAD")


def decide(head: RequestHead, where: Where, rules: Rules) -> Decision:
    """What to do about a request. Raises ProtocolError on a target or Host that cannot be understood."""
    if where.inside is not None:
        return _decide_inside(head, where.inside, rules)
    if head.method == b"CONNECT":
        authority = http1.parse_authority(head.target, None)
        return Intercept(authority) if authority.host in rules.intercept else Tunnel(authority)
    if head.target.startswith(b"/") or head.target == b"*":
        return _decide_direct(head, where, rules)
    target = http1.parse_absolute(head.target)
    if (
        target.path in OWN_PATHS
        and target.authority.port == where.local.port
        and _names_us(target.authority, where, rules)
    ):
        return Own(target.path)
    return _fetch(head, target, rules)


def _decide_inside(head: RequestHead, authority: Authority, rules: Rules) -> Decision:
    if head.method == b"CONNECT":
        return Refuse(405, "CONNECT inside an intercepted connection")
    host = head.headers.get(b"host")
    if host is not None and http1.parse_authority(host, 443) != authority:
        return Refuse(421, f"Host names another host than the CONNECT to {authority}")
    if head.target == b"*":
        return Refuse(501, "OPTIONS * is not relayed")
    if head.target.startswith(b"/"):
        return _fetch(head, http1.parse_origin_form(head.target, "https", authority), rules)
    target = http1.parse_absolute(head.target)
    if target.scheme != "https" or target.authority != authority:
        return Refuse(421, f"the target is not at the CONNECT's {authority}")
    return _fetch(head, target, rules)


def _decide_direct(head: RequestHead, where: Where, rules: Rules) -> Decision:
    """A request in origin-form on a listener: for dduct itself, or for a host whose name points here."""
    scheme = "https" if where.encrypted else "http"
    host = head.headers.get(b"host")
    path = head.target.partition(b"?")[0].decode("latin-1")
    if not host or head.target == b"*":
        return Own(path)
    authority = http1.parse_authority(host, 443 if where.encrypted else 80)
    listed = authority.host in rules.intercept
    if _names_us(authority, where, rules):
        return Own(path)
    if not listed and (path in OWN_PATHS or authority.port == where.local.port):
        return Own(path)
    if where.encrypted and not listed:
        return Refuse(421, f"{authority.host} is not in certs.server_dns_sans or certs.server_ip_sans")
    if where.server_name is not None and where.server_name != authority.host:
        return Refuse(421, "Host names another host than the TLS handshake did")
    if authority.port == where.local.port:
        # The client reached us on a port of ours that stands for the usual one of the host it means.
        authority = Authority(authority.host, 443 if where.encrypted else 80)
    return _fetch(head, http1.parse_origin_form(head.target, scheme, authority), rules)


def _names_us(authority: Authority, where: Where, rules: Rules) -> bool:
    return authority.host in rules.own_names or authority.host == where.local.host


def _fetch(head: RequestHead, target: Target, rules: Rules) -> Fetch:
    if head.method not in _CACHED_METHODS:
        return Fetch(target, None)
    if target.scheme == "https" and target.authority.host not in rules.intercept:
        return Fetch(target, None)
    return Fetch(target, storage_name(target, rules.filters))


_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile("[A-Za-z0-9._~-]")


def storage_name(target: Target, filters: Iterable[re.Pattern[str]]) -> Optional[Name]:
    """The name under which a target may be kept; None where no filter matches its path.

    Percent-encoded unreserved characters are the same as plain ones (RFC 3986 §6.2.2.2): apt writes `%2b` and `%7e`
    where others do not. Whether a file can have the name is for the cache to say.
    """
    path = _ESCAPE.sub(_decode_unreserved, target.path)
    for pattern in filters:
        match = pattern.search(path)
        if match is not None:
            # A slash in a query must not make a directory.
            query = "" if target.query is None else "?" + target.query.replace("/", "%2F")
            return Name(f"{target.scheme}/{target.host_field}{path}{query}", _digest(match))
    return None


def _decode_unreserved(match: re.Match[str]) -> str:
    character = chr(int(match.group(1), 16))
    return character if _UNRESERVED.fullmatch(character) else match.group().upper()


def _digest(match: re.Match[str]) -> Optional[Tuple[str, str]]:
    for algorithm, value in match.groupdict().items():
        if value is not None:
            return algorithm, value.lower()
    return None


# --- what may be kept ---------------------------------------------------------------------------

# Fields that belong to one transfer or one hop and not to the representation.
_NOT_STORED = frozenset(
    [b"age", b"alt-svc", b"content-length", b"set-cookie", b"set-cookie2", b"via", b"accept-ranges"]
)
_FIELDS_BUDGET = 1600  # octets; the rest of the metadata has to fit beside them
_ESSENTIAL = frozenset(
    [
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-type",
        b"date",
        b"docker-content-digest",
        b"etag",
        b"expires",
        b"last-modified",
        b"vary",
    ]
)


def not_storable(request: RequestHead, response: ResponseHead) -> Optional[str]:
    """Why a response must not be kept (RFC 9111 §3); None where it may be."""
    if response.status != 200 or b"content-range" in response.headers:
        return f"status {response.status}"
    if b"no-store" in _directives(request.headers):
        return "the client said no-store"
    if b"no-store" in _directives(response.headers):
        return "the origin said no-store"
    if b"*" in response.headers.tokens(b"vary"):
        return "Vary: *"
    return None


def restricted(request: RequestHead, response: ResponseHead) -> bool:
    """Whether every other client has to be let in by the origin itself."""
    if any(name in request.headers for name in http1.CREDENTIALS):
        return True
    return b"private" in _directives(response.headers)


def stored_fields(response: ResponseHead) -> Tuple[FieldText, ...]:
    """The fields that are kept with the representation; what does not fit goes, the inessential first."""
    kept = []
    room = _FIELDS_BUDGET
    fields = list(response.headers.end_to_end().without(_NOT_STORED))
    for essential in (True, False):
        for position, (name, value) in enumerate(fields):
            if (name.lower() in _ESSENTIAL) is essential and len(name) + len(value) <= room:
                room -= len(name) + len(value) + 8
                kept.append((position, (name.decode("latin-1"), value.decode("latin-1"))))
    return tuple(field for _, field in sorted(kept))


def vary_fields(request: RequestHead, response: ResponseHead) -> Tuple[FieldText, ...]:
    """The request fields that the response depended on, to be matched by later requests (RFC 9111 §4.1).

    Accept-Encoding is not among them, for origins are always asked for `identity`; credentials are not, for they are
    never written down: `restricted` covers them.
    """
    ignored = (b"accept-encoding", *http1.CREDENTIALS)
    names = (name for name in response.headers.tokens(b"vary") if name not in ignored)
    return tuple((name.decode("latin-1"), _text(request.headers.get(name))) for name in names)


def varies(request: RequestHead, vary: Iterable[FieldText]) -> bool:
    """Whether a stored response was chosen for another kind of request than this one."""
    return any(_text(request.headers.get(name.encode("latin-1"))) != value for name, value in vary)


def lets_in(status: int) -> bool:
    """Whether an origin's answer to a client's own credentials grants that client the object."""
    return status in (200, 206, 301, 302, 303, 304, 307, 308)


def _directives(headers: Headers) -> Mapping[bytes, bytes]:
    pairs = (token.partition(b"=") for token in headers.tokens(b"cache-control"))
    return {name.strip(): value.strip(b' "') for name, _, value in pairs}


def _text(value: Optional[bytes]) -> str:
    return "" if value is None else value.decode("latin-1")


# --- what to answer from it ---------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Which part of a representation answers a request: the span [start, end), `end` None up to its unknown end."""

    status: int
    start: int = 0
    end: Optional[int] = None


def select(request: RequestHead, fields: Headers, length: Optional[int]) -> Selection:
    """Apply preconditions and Range to a representation of `length` octets, or of unknown length (RFC 9110 §13, §14).

    A status of 304 or 416 sends no octets.
    """
    if _unchanged(request, fields):
        return Selection(304, 0, 0)
    wanted = request.headers.get(b"range")
    parsed = None if wanted is None or request.method != b"GET" else http1.parse_range(wanted)
    if parsed is None or length is None or not _same_representation(request, fields):
        return Selection(200, 0, length)
    window = parsed.window(length)
    if window is None:
        return Selection(416, 0, 0)
    return Selection(206, *window)


def _unchanged(request: RequestHead, fields: Headers) -> bool:
    """RFC 9110 §13.2.2 steps 3 and 4."""
    none_match = request.headers.get(b"if-none-match")
    if none_match is not None:
        etag = fields.get(b"etag")
        listed = [_opaque(tag.strip(b" \t")) for tag in none_match.split(b",")]
        return none_match == b"*" or (etag is not None and _opaque(etag) in listed)
    since = request.headers.get(b"if-modified-since")
    modified = fields.get(b"last-modified")
    if since is None or modified is None:
        return False
    known, changed = http1.parse_date(since), http1.parse_date(modified)
    return known is not None and changed is not None and changed <= known


def _same_representation(request: RequestHead, fields: Headers) -> bool:
    """RFC 9110 §13.1.5: an If-Range must match strongly, an ETag or an exact date."""
    condition = request.headers.get(b"if-range")
    if condition is None:
        return True
    if condition.startswith(b'"'):
        return condition == fields.get(b"etag")
    return not condition.startswith(b"W/") and condition == fields.get(b"last-modified")


def _opaque(etag: bytes) -> bytes:
    return etag[2:] if etag.startswith(b"W/") else etag
