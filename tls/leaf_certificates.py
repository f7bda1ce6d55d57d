"""A certificate for every intercepted host, minted on first use; its key never touches the disk."""

from __future__ import annotations

import logging
import secrets
import ssl
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Callable, List, Optional, Set

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from monitoring.log import RateLimitedLog
from tls.authority import CertificateAuthority, not_after, not_before
from tls.openssl import let_kernel_encrypt, server_context, share_tickets

_log = logging.getLogger("dduct.leaves")

_MAX_MINTING = 10.0  # seconds until a thread that waits for a leaf checks again


@dataclass(frozen=True)
class LeafSettings:
    """How leaves are made. They last `days`. `verifying`: the connections ask clients for certificates. `ktls`: the
    kernel may encrypt."""

    days: int
    verifying: bool = False
    ktls: bool = False


@dataclass(frozen=True)
class _Leaf:
    certificate: x509.Certificate
    context: ssl.SSLContext
    usable_from: float
    renew_at: float

    def is_good(self, now: float) -> bool:
        """Whether clients may get it. A leaf minted while the clock was ahead is not valid yet."""
        return self.usable_from <= now < self.renew_at


class LeafCertificateCache:
    """Leaf certificates by host: minted on first use, kept, and renewed before they expire, or if the clock was
    ahead when they were minted.

    At most `capacity` are kept, and the least recently used goes first. Caches with the same `ticket_secret` resume
    each other's sessions with the same host.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        settings: LeafSettings,
        ticket_secret: Optional[bytes] = None,
        capacity: int = 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._mint = _Mint(authority, settings, ticket_secret or secrets.token_bytes(32), clock)
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()  # guards _leaves and _minting; not held to mint
        self._minted = threading.Condition(self._lock)
        self._leaves: OrderedDict[str, _Leaf] = OrderedDict()
        self._minting: Set[str] = set()

    def __repr__(self) -> str:
        return f"<LeafCertificateCache: {len(self._leaves)} of {self._capacity}, {len(self._minting)} being minted>"

    def context(self, host: str) -> ssl.SSLContext:
        """The TLS server context for a lower-case host name or an IP address without brackets."""
        return self._leaf(host).context

    def get_cached(self, host: str) -> Optional[ssl.SSLContext]:
        """The same if it is cached, else None."""
        with self._lock:
            leaf = self._leaves.get(host)
            if leaf is None or not leaf.is_good(self._clock()):
                return None
            self._leaves.move_to_end(host)
            return leaf.context

    def certificate(self, host: str) -> x509.Certificate:
        """The certificate in that context."""
        return self._leaf(host).certificate

    @property
    def hosts(self) -> List[str]:
        """The hosts whose leaves are cached, the least recently used first."""
        with self._lock:
            return list(self._leaves)

    def _leaf(self, host: str) -> _Leaf:
        with self._lock:
            while True:
                leaf = self._leaves.get(host)
                if leaf is not None and leaf.is_good(self._clock()):
                    self._leaves.move_to_end(host)
                    return leaf
                if host not in self._minting:
                    self._minting.add(host)
                    break
                self._minted.wait(_MAX_MINTING)
        leaf = None
        try:
            leaf = self._mint.leaf(host)
        finally:
            with self._lock:
                self._minting.discard(host)
                if leaf is not None:
                    self._leaves[host] = leaf
                    self._leaves.move_to_end(host)
                    while len(self._leaves) > self._capacity:
                        self._leaves.popitem(last=False)
                self._minted.notify_all()
        return leaf


class _Mint:
    """Makes leaves, all with one key. Several threads may use it at once."""

    def __init__(
        self, authority: CertificateAuthority, settings: LeafSettings, ticket_secret: bytes, clock: Callable[[], float]
    ) -> None:
        self._authority = authority
        self._settings = settings
        self._ticket_secret = ticket_secret
        self._clock = clock
        self._trouble = RateLimitedLog(_log)
        self._key = ec.generate_private_key(ec.SECP256R1())  # RSA-3072 would cost 90 times as much per handshake

    def leaf(self, host: str) -> _Leaf:
        """A new leaf for a host, with its context."""
        now = self._clock()
        self._look_at_clock(now)
        pair = self._authority.issue_leaf(self._key, host, self._settings.days, now)
        begin, end = not_before(pair.certificate).timestamp(), not_after(pair.certificate).timestamp()
        context = server_context(pair.certificate_pem + self._authority.chain_pem + pair.key_pem)
        share_tickets(context, self._ticket_secret + host.encode())
        if self._settings.ktls:
            let_kernel_encrypt(context)
        if self._settings.verifying:
            # The context chosen by SNI verifies the client. Elsewhere a loaded authority would only make OpenSSL
            # verify our own leaf, and send the root, in each handshake.
            context.load_verify_locations(cadata=self._authority.pem.decode())
        # If the clock was ahead, half of a leaf's backdating stays as a margin for clients' own clocks.
        return _Leaf(pair.certificate, context, (begin + now) / 2, now + (end - now) * 3 / 4)

    def _look_at_clock(self, now: float) -> None:
        begin = not_before(self._authority.certificate)
        if now < begin.timestamp():
            self._trouble.warning(
                "Clients cannot trust ca.crt before %s: the clock was ahead when it was made, or is behind now",
                f"{begin:%Y-%m-%d %H:%M} UTC",
            )
