"""Addresses: parsing, membership in networks, and the addresses of this machine."""

from __future__ import annotations

import enum
import ipaddress
import socket
from functools import lru_cache
from typing import Iterable, Optional, Set, Tuple, Union

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# Cloud metadata services outside the link-local networks (AWS and Google over IPv6, Alibaba, Azure).
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")))
# A gateway or the kernel translates these to IPv4: NAT64 (RFC 6052), IPv4-compatible (RFC 4291 §2.5.5.1).
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))


def parse_address(text: str) -> Optional[IPAddress]:
    """An address in a socket's notation, without its zone; IPv4-mapped ones as IPv4. None for a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def unmapped(host: str) -> str:
    """An address as the kernel writes it, an IPv4-mapped one as IPv4: a socket for both families writes all so."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


@lru_cache(maxsize=4096)
def is_loopback(text: str) -> bool:
    """Whether `text` is a loopback address."""
    address = parse_address(text)
    return address is not None and address.is_loopback


def is_local_only(host: str) -> bool:
    """Whether only local clients may reach an address, or a name with a fixed address: loopback, link-local
    (cloud metadata), and "this host"."""
    address = parse_address(host) or _parse_number(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761 §6.3
    if address.is_loopback or address.is_link_local or address.is_unspecified or address in _METADATA:
        return True
    inner = _translated(address)
    return inner is not None and is_local_only(str(inner))


def _parse_number(host: str) -> Optional[IPAddress]:
    """An IPv4 address in notations that resolvers accept (inet_aton(3)): `127.1`, `0x7f.1`, `2130706433`."""
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _translated(address: IPAddress) -> Optional[ipaddress.IPv4Address]:
    """The IPv4 address inside an IPv6 address (NAT64, IPv4-compatible, 6to4), if any."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


class Reach(enum.Enum):
    """How far a client reaches into dduct's machine, by where the client is."""

    NOTHING = 0  # on another machine
    OWN_ADDRESSES = 1  # at a non-loopback address of this machine, as in rootless containers
    EVERYTHING = 2  # on loopback


class Scope(enum.IntEnum):
    """Which clients an origin's address is for; a larger scope is for fewer."""

    ALL = 0  # an address of another machine
    OWN_ADDRESS = 1  # a non-loopback address of this machine: for clients on it
    LOCAL_ONLY = 2  # loopback, link-local, a metadata service: for clients on loopback


_LARGEST_SCOPE = {Reach.NOTHING: Scope.ALL, Reach.OWN_ADDRESSES: Scope.OWN_ADDRESS, Reach.EVERYTHING: Scope.LOCAL_ONLY}


def may_reach(client: Reach, scope: Scope) -> bool:
    """Whether a client may have what comes from an address of this scope."""
    return scope <= _LARGEST_SCOPE[client]


def reach_of(client: str, local: str) -> Reach:
    """The reach of a client, by the two addresses of its connection."""
    if is_loopback(client):
        return Reach.EVERYTHING
    # The kernel drops packets from elsewhere that claim to come from an address of this machine.
    return Reach.OWN_ADDRESSES if client == local else Reach.NOTHING


def scope_of(address: str) -> Scope:
    """The scope of an address; it may change with this machine's addresses."""
    if is_local_only(address):
        return Scope.LOCAL_ONLY
    return Scope.OWN_ADDRESS if _is_own(address) else Scope.ALL


class OwnServices:
    """Services of this machine that all clients may reach: `host:port`, or `host` for all its ports.

    A name opens all its addresses, except link-local ones and metadata services: these need an entry by address.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._addresses: Set[Tuple[IPAddress, int]] = set()  # port 0: any
        self._names: Set[Tuple[str, int]] = set()
        for service in services:
            host, port = split_service(service)
            address = parse_address(host)
            if address is None:
                self._names.add((host.lower(), port))
            else:
                self._addresses.add((address, port))

    def opens(self, host: str, port: int, address: str) -> bool:
        """Whether all clients may connect to `address` of `host`, which may itself be the address."""
        parsed = parse_address(address) or _parse_number(address)
        if parsed is not None and not self._addresses.isdisjoint(((parsed, port), (parsed, 0))):
            return True
        if parsed is not None and is_local_only(address) and not parsed.is_loopback:
            return False
        return not self._names.isdisjoint(((host.lower(), port), (host.lower(), 0)))


def split_service(text: str) -> Tuple[str, int]:
    """Host and port of `host:port`, `[ipv6]:port`, or a host alone, with port 0."""
    if parse_address(text.strip("[]")) is not None:
        return text.strip("[]"), 0
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if colon else (text, 0)


def is_listener(host: str, port: int, own: Tuple[str, int]) -> bool:
    """Whether a connection to (host, port) would reach the listener `own`."""
    if port != own[1]:
        return False
    host, own_host = unmapped(host), unmapped(own[0])
    if own_host not in ("0.0.0.0", "::"):
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host) == own_host
    return host in ("0.0.0.0", "::") or _is_local(host)


def _is_own(text: str) -> bool:
    address = parse_address(text) or _parse_number(text)
    if address is None:
        return False
    inner = _translated(address)
    return _is_local(str(address)) or (inner is not None and _is_local(str(inner)))


def _is_local(host: str) -> bool:
    """Whether an address is this machine's: the kernel then chooses it as the source address. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return bool(probe.getsockname()[0] == host.partition("%")[0])
    except OSError:
        return False  # no route, or no such address family here


def is_network(text: str) -> bool:
    """Whether `text` is an address or a network, not a name."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


class Networks:
    """A set of addresses, as networks such as `10.0.0.0/8` and `::1`."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._holds = lru_cache(maxsize=4096)(self._look_up)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._holds(text)

    def _look_up(self, text: str) -> bool:
        address = parse_address(text) or _parse_number(text)
        return address is not None and any(address in network for network in self._networks)
