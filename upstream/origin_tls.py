"""TLS towards origins: which authorities dduct trusts, and which hosts see its client certificate."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Container, Optional, Tuple

from tls.openssl import prefer_aes_128, require_close_notify


class UnusableCertificate(Exception):
    """A configured file cannot be used; the message is one line with key and file."""


@dataclass(frozen=True)
class TlsSettings:
    """`ca` is a PEM file trusted in addition to the system's; certificates of `insecure` hosts are not verified.

    `client_certificate` (certificate, key) is shown only to `client_cert_hosts` that ask for one. It comes from a
    private authority, and an origin where it is optional refuses a certificate that it does not know.
    """

    ca: Optional[Path] = None
    insecure: Container[str] = ()
    client_certificate: Optional[Tuple[Path, Path]] = None
    client_cert_hosts: Optional[Container[str]] = None


class OriginTls:
    """One context for each kind of host. Raises UnusableCertificate."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._anonymous = {verify: self._make(verify, None) for verify in (True, False)}
        shown = settings.client_certificate if settings.client_cert_hosts is not None else None
        self._known = self._anonymous if shown is None else {v: self._make(v, shown) for v in (True, False)}

    def context(self, host: str) -> ssl.SSLContext:
        """The context for a connection to a host."""
        hosts = self._settings.client_cert_hosts
        contexts = self._known if hosts is not None and host in hosts else self._anonymous
        return contexts[host not in self._settings.insecure]

    def _make(self, verify: bool, shown: Optional[Tuple[Path, Path]]) -> ssl.SSLContext:
        context = require_close_notify(ssl.create_default_context())
        # Python 3.13 turned this on; private authorities often lack an extension that it requires.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        prefer_aes_128(context)
        if self._settings.ca is not None:
            try:
                context.load_verify_locations(self._settings.ca)
            except OSError as error:
                raise UnusableCertificate(f'proxy.upstream_ca "{self._settings.ca}" cannot be used: {error}') from error
        if shown is not None:
            try:
                context.load_cert_chain(*shown)
            except OSError as error:
                raise UnusableCertificate(f'proxy.client_cert_hosts: "{shown[0]}" cannot be used: {error}') from error
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
