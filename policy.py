"""What a request is for, and what its object is called: values in, a value out.

Nothing here waits, logs, or touches a socket or a file; whoever calls does what the value says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Container, Dict, Iterable, List, Optional, Tuple, Union
from urllib.parse import unquote_plus

import http1
import patterns
from addresses import Networks, Reach, is_network, parse_address
from http1 import Authority, Headers, RequestHead, Target
from redaction import nameable, nameable_path


class Parameters:
    """A set of names of query parameters: exact ones, and `prefix*`; case does not matter."""

    def __init__(self, patterns: Iterable[str]) -> None:
        names = [pattern.lower() for pattern in patterns]
        self._exact = frozenset(name for name in names if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name.lower() in self._exact or name.lower().startswith(self._prefixes))


@dataclass(frozen=True)
class Naming:
    """What is kept, and what of it is `volatile`, by patterns that are searched in paths; and which query parameters
    make no difference."""

    filters: Tuple[re.Pattern[str], ...]
    ignored: Parameters
    volatile: Tuple[re.Pattern[str], ...] = ()


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


@dataclass(frozen=True)
class Where:
    """Where a request arrived: the address it was sent to, and what its connection has fixed already.

    `reach` is what of this machine the client may reach; `inside` is the authority of the CONNECT that is being
    intercepted; `server_name` is the SNI of a direct TLS connection, where the client sent one.
    """

    local: Authority
    reach: Reach
    encrypted: bool = False
    inside: Optional[Authority] = None
    server_name: Optional[str] = None

    @cached_property
    def kind(self) -> str:
        """Equal for two connections only if the same octets mean the same on both."""
        return repr(self)

    @cached_property
    def inside_address(self) -> bool:
        """Whether the CONNECT that is being intercepted was to an address, which may be that of many hosts."""
        return self.inside is not None and parse_address(self.inside.host) is not None


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
    """What an object is called in the cache: a path, and the digest that its URL promises, as (algorithm, hex).

    `signature` is what of the query does not belong to the name; like a password, it says that this client may have it.
    So do `secrets`, the parameters that look like passwords although they belong to the name.
    What is `volatile` is never served without asking its origin.
    """

    path: str
    digest: Optional[Tuple[str, str]] = None
    signature: str = field(default="", compare=False)
    volatile: bool = False
    secrets: str = field(default="", compare=False)


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

OWN_PATHS = frozenset(["/ca.crt", "/healthz", "/metrics", "/setup", "/setup/sh"])
_SLASHES_OF_AN_AUTHORITY = 2
_DIGITS_AT_MOST = 9
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


def forwards_left(head: RequestHead) -> Optional[int]:
    """How many more proxies may pass a TRACE or OPTIONS on; None where it does not matter (RFC 9110 §7.6.2)."""
    value = head.headers.get(b"max-forwards")
    if value is None or head.method not in (b"TRACE", b"OPTIONS"):
        return None
    if not value.isdigit() or len(value) > _DIGITS_AT_MOST:
        raise http1.ProtocolError("Max-Forwards is not a number")
    return int(value)


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


_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile("[A-Za-z0-9._~-]")


def storage_name(target: Target, naming: Naming) -> Optional[Name]:
    """The name under which a target may be kept; None where no filter matches its path.

    Percent-encoded unreserved characters are the same as plain ones (RFC 3986 §6.2.2.2): apt writes `%2b` and `%7e`
    where others do not. No name has the value of a parameter that looks like a secret, but its hash. Whether a file can
    have the name is for the cache to say.
    """
    path = _ESCAPE.sub(_decode_unreserved, target.path)
    if len(path) > patterns.LONGEST_PATH:
        return None  # what a filter takes for a path of this length has been tried
    for pattern in naming.filters:
        match = pattern.search(path)
        if match is not None:
            query, signature, secrets = _split_query(target.query, naming.ignored)
            place, digest = f"{target.scheme}/{target.host_field}{nameable_path(path)}{query}", _digest(match)
            return Name(place, digest, signature, digest is None and _is_volatile(path, naming), secrets)
    return None


# A name that holds a hash is not given to anything else, wherever it is: 32 digits are an MD5.
_HASH = re.compile("(?<![0-9A-Fa-f])[0-9A-Fa-f]{32,}(?![0-9A-Fa-f])")


def _is_volatile(path: str, naming: Naming) -> bool:
    if _HASH.search(path.rpartition("/")[2]):
        return False
    return any(pattern.search(path) for pattern in naming.volatile)


def _split_query(query: Optional[str], ignored: Container[str]) -> Tuple[str, str, str]:
    """What of a query makes another object, as the end of a file name; what only signs it; and what else is secret."""
    kept: List[str] = []
    signing: List[str] = []
    secrets: List[str] = []
    for parameter in (query or "").split("&"):
        name = unquote_plus(parameter.partition("=")[0])
        signs = name in ignored
        (signing if signs else kept).append(parameter if signs else nameable(parameter))
        if not signs and looks_secret(name):
            secrets.append(parameter)
    # A slash in a query must not make a directory.
    path = "?" + "&".join(kept).replace("/", "%2F") if any(kept) else ""
    return path, "&".join(signing), "&".join(secrets)


_WORDS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset(
    [
        *("apikey", "auth", "authorization", "authorisation", "bearer", "credential", "credentials", "hmac", "jwt"),
        *("key", "otp", "pass", "passphrase", "passwd", "password", "pw", "pwd", "secret", "session", "sessionid"),
        *("sid", "sig", "sign", "signature", "ticket", "token", "tokens"),
    ]
)
_SECRET_ENDINGS = ("apikey", "accesskey", "authkey", "password", "secret", "sessionid", "signature", "token")


def looks_secret(parameter: str) -> bool:
    """Whether a query parameter's name is one under which secrets are sent: `api_key`, `accessToken`, `X-Auth`."""
    words = {word.lower() for word in _WORDS.findall(parameter)}
    return not words.isdisjoint(_SECRET_WORDS) or parameter.lower().endswith(_SECRET_ENDINGS)


def _decode_unreserved(match: re.Match[str]) -> str:
    character = chr(int(match.group(1), 16))
    return character if _UNRESERVED.fullmatch(character) else match.group().upper()


_HEX_DIGITS = {"sha256": (64,), "sha512": (128,), "sha1": (40,), "md5": (32,), "blake2b": range(2, 129, 2)}
_HEX = re.compile("[0-9a-f]+")


def hash_of(group: str) -> str:
    """The hash that a filter's group is about: `blake2b` and `blake2b_2` are parts of one digest."""
    return group.partition("_")[0]


def _digest(match: re.Match[str]) -> Optional[Tuple[str, str]]:
    """The digest in a path, put together from its parts in their order; None unless it is one."""
    groups = sorted(match.re.groupindex.items(), key=lambda item: item[1])
    parts: Dict[str, List[str]] = {}
    for group, number in groups:
        parts.setdefault(hash_of(group), []).append(match.group(number) or "")
    for algorithm, texts in parts.items():
        value = "".join(texts).lower()
        if len(value) in _HEX_DIGITS[algorithm] and _HEX.fullmatch(value):
            return algorithm, value
    return None
