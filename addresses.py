"""Addresses: what they are written like, which networks and hosts they belong to, and which are this machine's own."""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from typing import Iterable, Optional, Tuple, Union

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# Cloud metadata services outside the link-local networks (AWS and Google over IPv6, Alibaba, Azure).
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")))
# What a gateway, or the kernel, makes an IPv4 address of: NAT64 (RFC 6052), IPv4-compatible (RFC 4291 §2.5.5.1).
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))


def parse_address(text: str) -> Optional[IPAddress]:
    """An address as sockets write it, without its zone, IPv4 out of IPv6; None for a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


@lru_cache(maxsize=4096)
def is_loopback(text: str) -> bool:
    """Whether a peer is on this machine."""
    address = parse_address(text)
    return address is not None and address.is_loopback


def is_private_affair(host: str) -> bool:
    """Whether an address, or a name that always means one, is for clients on this machine alone: loopback,
    link-local (cloud metadata), and "this host"."""
    address = parse_address(host) or _parse_number(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761 §6.3
    if address.is_loopback or address.is_link_local or address.is_unspecified or address in _METADATA:
        return True
    inner = _translated(address)
    return inner is not None and is_private_affair(str(inner))


def _parse_number(host: str) -> Optional[IPAddress]:
    """What resolvers, too, take for an IPv4 address (inet_aton(3)): `127.1`, `0x7f.1`, `2130706433`."""
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _translated(address: IPAddress) -> Optional[ipaddress.IPv4Address]:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def is_listener(host: str, port: int, own: Tuple[str, int]) -> bool:
    """Whether a connection to (host, port) would arrive at the listener `own`."""
    if port != own[1]:
        return False
    host, own_host = _plain(host), _plain(own[0])
    if own_host not in ("0.0.0.0", "::"):
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host) == own_host
    return _is_local(host)


def _plain(host: str) -> str:
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def _is_local(host: str) -> bool:
    """Whether an address is this machine's: the kernel then takes that very address as the source."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return False
        return host in ("0.0.0.0", "::") or probe.getsockname()[0] == host.partition("%")[0]


def is_network(text: str) -> bool:
    """Whether it is an address or a network, and no name."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


class Networks:
    """A set of addresses, given as networks such as `10.0.0.0/8` and `::1`."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._holds = lru_cache(maxsize=4096)(self._look_up)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._holds(text)

    def _look_up(self, text: str) -> bool:
        address = parse_address(text) or _parse_number(text)
        return address is not None and any(address in network for network in self._networks)
