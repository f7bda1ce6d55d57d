"""Routing decisions: a request, its arrival and the rules in, a `Decision` out.

The functions do not wait, log, or touch sockets or files; the caller carries the decision out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Dict, Iterable, List, Optional, Union

from fetching.naming import Name, Naming, name_by_fields, storage_name
from net.addresses import Networks, is_loopback, is_network
from net.arrival import Arrival
from pages.builtin import OWN_PATHS
from protocol import http1
from protocol.headers import Headers
from protocol.http1 import Authority, RequestHead, Target, forwards_left
from proxy import mirror
from proxy.mirror import NoRegistry, TokenScope


class Hosts:
    """A set of host names: exact names, `*.suffix` for all subdomains of a suffix at any depth, and names in which
    another `*` stands for one label: `*.a.*.b` holds `x.a.y.b`, and not `x.a.y.z.b`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        names = [pattern.lower() for pattern in patterns]
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._below = frozenset(name[2:] for name in names if name.startswith("*."))
        self._inner: Dict[str, List[List[str]]] = {}  # labels of the patterns with another `*`, by what follows it
        for name in names:
            if "*" in name[1:]:
                self._inner.setdefault(name.rpartition("*.")[2], []).append(name.split("."))

    def __contains__(self, host: object) -> bool:
        if not isinstance(host, str):
            return False
        if host in self._exact:
            return True
        _, dot, parent = host.partition(".")
        while dot:
            if parent in self._below:
                return True
            if parent in self._inner and any(_fits(host.split("."), labels) for labels in self._inner[parent]):
                return True
            _, dot, parent = parent.partition(".")
        return False


def _fits(host: List[str], pattern: List[str]) -> bool:
    """Whether the labels of a host fit those of a pattern; a first `*` stands for one label or more."""
    if pattern[0] == "*":
        pattern = pattern[1:]
        host = host[max(1, len(host) - len(pattern)) :]
    return len(host) == len(pattern) and all(one in ("*", label) for one, label in zip(pattern, host))


class HostList(Hosts):
    """`Hosts` plus addresses in any spelling, networks, and `*` for all hosts. Never resolves names."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        super().__init__(patterns)
        self._all = "*" in patterns
        self._networks = Networks(pattern for pattern in patterns if is_network(pattern))

    def __contains__(self, host: object) -> bool:
        return self._all or super().__contains__(host) or host in self._networks


@dataclass(frozen=True, eq=False)  # one instance at a time: identity is a cheap cache key
class Rules:
    """The configured part of every decision. `own_names` are dduct's own names, on any port."""

    intercept: Hosts
    own_names: Hosts
    naming: Naming


# --- decisions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tunnel:
    """Relay bytes both ways without reading them."""

    authority: Authority


@dataclass(frozen=True)
class Intercept:
    """Act as the host under TLS, and serve the requests inside."""

    authority: Authority


@dataclass(frozen=True)
class Fetch:
    """Fetch from the origin; `name` is the storage name, None for a relayed request. `mirrored`: the client has asked
    dduct as the mirror of a registry, the target's."""

    target: Target
    name: Optional[Name]
    mirrored: bool = False


@dataclass(frozen=True)
class MirrorToken:
    """Get a client of the mirror a token from the registry that it is for."""

    wanted: TokenScope


@dataclass(frozen=True)
class BuiltinPage:
    """Answer with one of dduct's own pages."""

    path: str


@dataclass(frozen=True)
class MaxForwardsReached:
    """Answer a TRACE or OPTIONS whose Max-Forwards is 0 in place of the origin (RFC 9110 §7.6.2)."""


@dataclass(frozen=True)
class Refuse:
    """Answer with an error; `reason` is one line with the problem and its remedy. `allow`: the methods to use instead
    (RFC 9110 §10.2.1)."""

    status: int
    reason: str
    allow: bytes = b""


Decision = Union[Tunnel, Intercept, Fetch, MirrorToken, BuiltinPage, MaxForwardsReached, Refuse]

_SLASHES_OF_AN_AUTHORITY = 2
_CACHED_METHODS = (b"GET", b"HEAD")
_MAX_REMEMBERED = (
    512  # bytes of target plus Host; targets with a query are not remembered: they may be signed, thus secret
)


def decide(head: RequestHead, arrival: Arrival, rules: Rules) -> Decision:
    """The decision on a request. Raises ProtocolError on an invalid target or Host."""
    host = head.headers.get(b"host")
    short = len(head.target) + len(host or b"") <= _MAX_REMEMBERED
    if head.method in _CACHED_METHODS and short and b"?" not in head.target:
        decision = _decide_get(head.method, head.target, host, arrival, rules)
    else:
        decision = _decide(head, arrival, rules)
    if isinstance(decision, Fetch) and head.method in _CACHED_METHODS:
        return _as_negotiated(decision, head, rules)
    return decision


def _as_negotiated(decision: Fetch, head: RequestHead, rules: Rules) -> Fetch:
    """The same, with a name that also says which representation this client accepts."""
    name = decision.name
    if name is None and rules.naming.by_field and _is_readable(decision.target, rules):
        name = name_by_fields(decision.target, head.headers, rules.naming)
    if name is None or not name.negotiated:
        return decision
    return replace(decision, name=name.for_accept(head.headers.get(b"accept")))


@lru_cache(maxsize=4096)
def _decide_get(method: bytes, target: bytes, host: Optional[bytes], arrival: Arrival, rules: Rules) -> Decision:
    """The decision on a GET or HEAD depends on these parameters alone, and the same requests repeat."""
    headers = Headers([] if host is None else [(b"Host", host)])
    return _decide(RequestHead(method, target, 1, headers), arrival, rules)


def _decide(head: RequestHead, arrival: Arrival, rules: Rules) -> Decision:
    host = head.headers.get(b"host")
    if host:
        http1.parse_authority(host, 80)  # RFC 9112 §3.2: an invalid Host is refused even where it is not used
    if arrival.connect_target is not None:
        return _decide_intercepted(head, arrival.connect_target, rules)
    if head.method == b"CONNECT":
        authority = http1.parse_authority(head.target, None)
        return Intercept(authority) if authority.host in rules.intercept else Tunnel(authority)
    if head.target.startswith(b"/") or head.target == b"*":
        return _decide_direct(head, arrival, rules)
    target = _absolute(head)
    if target.authority.port == arrival.local.port and _names_us(target.authority, arrival, rules):
        if target.path.startswith(mirror.BASE):  # its proxy and its mirror are both dduct
            return _decide_mirrored(head, target.path_query.encode(), rules)
        if target.path in OWN_PATHS:
            return BuiltinPage(target.path)
    return _fetch(head, target, rules)


def _decide_intercepted(head: RequestHead, authority: Authority, rules: Rules) -> Decision:
    if head.method == b"CONNECT":
        return Refuse(405, "CONNECT inside an intercepted connection")
    host = head.headers.get(b"host")
    # A Host without a port means the port of the CONNECT: the client has connected there.
    if host is not None and http1.parse_authority(host, authority.port) != authority:
        return Refuse(421, f"Host names another host than the CONNECT to {authority}")
    if head.target == b"*":
        return _fetch(head, Target("https", authority, "*"), rules)
    if head.target.startswith(b"/"):
        return _fetch(head, http1.parse_origin_form(head.target, "https", authority), rules)
    target = _absolute(head)
    if target.scheme != "https" or target.authority != authority:
        return Refuse(421, f"the target is not at the CONNECT's {authority}")
    return _fetch(head, target, rules)


def _decide_direct(head: RequestHead, arrival: Arrival, rules: Rules) -> Decision:
    """A request in origin-form on a listener: for dduct itself, or for a host whose name resolves to dduct."""
    scheme = "https" if arrival.encrypted else "http"
    host = head.headers.get(b"host")
    path = head.target.partition(b"?")[0].decode("latin-1")
    if head.target == b"*":
        return MaxForwardsReached() if head.method == b"OPTIONS" else Refuse(400, "only OPTIONS asks for *")
    if not host:
        return _decide_own(head, path, rules)
    authority = http1.parse_authority(host, 443 if arrival.encrypted else 80)
    listed = authority.host in rules.intercept
    if _names_us(authority, arrival, rules) or (not listed and authority.port == arrival.local.port):
        return _decide_own(head, path, rules)
    if path.startswith(mirror.BASE) and (not listed or is_loopback(authority.host)):
        # Perhaps dduct, behind a port that is mapped to its own (a node port). Nobody else is asked in such words.
        decision = _decide_mirrored(head, head.target, rules)
        if isinstance(decision, Fetch):
            return decision
    if not listed and path in OWN_PATHS:
        return BuiltinPage(path)
    if arrival.encrypted and not listed:
        return Refuse(421, f"{authority.host} is not in certs.server_dns_sans or certs.server_ip_sans")
    if arrival.server_name is not None and arrival.server_name != authority.host:
        return Refuse(421, "Host names another host than the TLS handshake did")
    if authority.port == arrival.local.port:
        # The listener's port stands for the scheme's default port of the host.
        authority = Authority(authority.host, 443 if arrival.encrypted else 80)
    return _fetch(head, http1.parse_origin_form(head.target, scheme, authority), rules)


def _decide_own(head: RequestHead, path: str, rules: Rules) -> Decision:
    """An origin-form request for dduct itself."""
    return _decide_mirrored(head, head.target, rules) if path.startswith(mirror.BASE) else BuiltinPage(path)


def _decide_mirrored(head: RequestHead, target: bytes, rules: Rules) -> Decision:
    """A request to dduct as a mirror; `target` is in origin-form, below `mirror.BASE`."""
    path, query = http1.split_origin_form(target)
    if head.method not in _CACHED_METHODS or (path == mirror.ISSUER and head.method == b"HEAD"):
        methods = b"GET" if path == mirror.ISSUER else b"GET, HEAD"
        return Refuse(405, f"this is a mirror of registries: only {methods.decode()}, no pushes", methods)
    if path == mirror.BASE and query is None:
        return BuiltinPage(path)
    try:
        if path == mirror.ISSUER:
            return MirrorToken(mirror.token_scope(query, rules.intercept))
        decision = _fetch(head, mirror.registry_target(target, rules.intercept), rules)
    except NoRegistry as error:
        return Refuse(error.status, str(error))
    return replace(decision, mirrored=True) if isinstance(decision, Fetch) else decision


def _names_us(authority: Authority, arrival: Arrival, rules: Rules) -> bool:
    return authority.host in rules.own_names or authority.host == arrival.local.host


def _absolute(head: RequestHead) -> Target:
    """An absolute-form target; OPTIONS without a path means the whole server (RFC 9112 §3.2.4)."""
    target = http1.parse_absolute(head.target)
    if head.method == b"OPTIONS" and head.target.count(b"/") == _SLASHES_OF_AN_AUTHORITY and target.query is None:
        return replace(target, path="*")
    return target


def _fetch(head: RequestHead, target: Target, rules: Rules) -> Union[Fetch, MaxForwardsReached, Refuse]:
    if forwards_left(head) == 0:
        return MaxForwardsReached()
    if target.path == "*" and head.method != b"OPTIONS":
        return Refuse(400, "only OPTIONS asks for *")
    if head.method not in _CACHED_METHODS:
        return Fetch(target, None)
    return Fetch(target, storage_name(target, rules.naming) if _is_readable(target, rules) else None)


def _is_readable(target: Target, rules: Rules) -> bool:
    """Whether dduct may keep what is there: https of hosts that are not listed passes unread."""
    return target.scheme != "https" or target.authority.host in rules.intercept
