"""What a request is for, and what its object is called: values in, a value out.

Nothing here waits, logs, or touches a socket or a file; whoever calls does what the value says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Iterable, Optional, Union

from fetching.naming import Name, Naming, storage_name
from net.addresses import Networks, is_network
from net.arrival import Where
from pages.builtin import OWN_PATHS
from protocol import http1
from protocol.http1 import Authority, Headers, RequestHead, Target, forwards_left


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


class HostList(Hosts):
    """The same with addresses in any spelling, networks, and `*` for every host. No name is looked up."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        super().__init__(patterns)
        self._all = "*" in patterns
        self._networks = Networks(pattern for pattern in patterns if is_network(pattern))

    def __contains__(self, host: object) -> bool:
        return self._all or super().__contains__(host) or host in self._networks


@dataclass(frozen=True, eq=False)  # there is one at a time, and it is looked up by identity
class Rules:
    """The configured part of every decision. `own_names` are dduct's own, whatever port they are asked on."""

    intercept: Hosts
    own_names: Hosts
    naming: Naming


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
class Fetch:
    """Get it from its origin; `name` says under which name it may be kept, None that it is only relayed."""

    target: Target
    name: Optional[Name]


@dataclass(frozen=True)
class Own:
    """A page of dduct's own."""

    path: str


@dataclass(frozen=True)
class LastStop:
    """A TRACE or OPTIONS that may go no further: dduct answers it in the origin's stead (RFC 9110 §7.6.2)."""


@dataclass(frozen=True)
class Refuse:
    """Answer with an error; one line that says what is wrong and what helps."""

    status: int
    reason: str


Decision = Union[Tunnel, Intercept, Fetch, Own, LastStop, Refuse]

_SLASHES_OF_AN_AUTHORITY = 2
_CACHED_METHODS = (b"GET", b"HEAD")
_REMEMBERED_AT_MOST = (
    512  # bytes of a target and a Host; what has a query may be signed, and is not kept for longer than needed
)


def decide(head: RequestHead, where: Where, rules: Rules) -> Decision:
    """What to do about a request. Raises ProtocolError on a target or Host that cannot be understood."""
    host = head.headers.get(b"host")
    short = len(head.target) + len(host or b"") <= _REMEMBERED_AT_MOST
    if head.method in _CACHED_METHODS and short and b"?" not in head.target:
        return _decide_get(head.method, head.target, host, where, rules)
    return _decide(head, where, rules)


@lru_cache(maxsize=4096)
def _decide_get(method: bytes, target: bytes, host: Optional[bytes], where: Where, rules: Rules) -> Decision:
    """Of a GET or HEAD nothing else counts, and the same ones come again and again."""
    headers = Headers([] if host is None else [(b"Host", host)])
    return _decide(RequestHead(method, target, 1, headers), where, rules)


def _decide(head: RequestHead, where: Where, rules: Rules) -> Decision:
    host = head.headers.get(b"host")
    if host:
        http1.parse_authority(host, 80)  # RFC 9112 §3.2: an invalid Host is refused even where it does not count
    if where.inside is not None:
        return _decide_inside(head, where.inside, rules)
    if head.method == b"CONNECT":
        authority = http1.parse_authority(head.target, None)
        return Intercept(authority) if authority.host in rules.intercept else Tunnel(authority)
    if head.target.startswith(b"/") or head.target == b"*":
        return _decide_direct(head, where, rules)
    target = _absolute(head)
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
    # A Host without a port can mean no other port than the CONNECT's: that is where the client is.
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


def _decide_direct(head: RequestHead, where: Where, rules: Rules) -> Decision:
    """A request in origin-form on a listener: for dduct itself, or for a host whose name points here."""
    scheme = "https" if where.encrypted else "http"
    host = head.headers.get(b"host")
    path = head.target.partition(b"?")[0].decode("latin-1")
    if head.target == b"*":
        return LastStop() if head.method == b"OPTIONS" else Refuse(400, "only OPTIONS asks for *")
    if not host:
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


def _absolute(head: RequestHead) -> Target:
    """An absolute-form target; of OPTIONS, one without a path is about the whole server (RFC 9112 §3.2.4)."""
    target = http1.parse_absolute(head.target)
    if head.method == b"OPTIONS" and head.target.count(b"/") == _SLASHES_OF_AN_AUTHORITY and target.query is None:
        return replace(target, path="*")
    return target


def _fetch(head: RequestHead, target: Target, rules: Rules) -> Union[Fetch, LastStop, Refuse]:
    if forwards_left(head) == 0:
        return LastStop()
    if target.path == "*" and head.method != b"OPTIONS":
        return Refuse(400, "only OPTIONS asks for *")
    if head.method not in _CACHED_METHODS:
        return Fetch(target, None)
    if target.scheme == "https" and target.authority.host not in rules.intercept:
        return Fetch(target, None)
    return Fetch(target, storage_name(target, rules.naming))
