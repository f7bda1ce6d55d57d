"""Warnings about a configuration, for `--check` and the log at start; and a start without its effects, for `--check`.

Rules of this module:

* The functions create and change nothing, and keep nothing open.
* `WARNINGS` is the table: each function takes a configuration and yields lines that name their key. A warning is
  about a value that is usable but hardly as intended; `config.py` raises errors about unusable values.
* `rehearse` raises what a start would raise, in the same words and order.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

import certs
from server.config import comparisons
from server.config_keys import Config
from server.config_values import Address
from server.credential_checks import warnings_of_credentials
from server.wiring import StartError, cannot_bind, cannot_use_files, open_access
from upstream.origin_tls import OriginTls, TlsSettings, UnusableCertificate

_LEAST_CACHE = 1024**2  # bytes; most artifacts are larger
_GO_COMPARISONS = 250_000  # names times constraints that Go's crypto/x509 and webpki accept
_UNEXPANDED = re.compile(r"\$\w|\$\{|(?:^|/)%[A-Za-z](?:/|$)|(?<=/)~")
_HOST_FIRST = re.compile(r"\^?(?://|(?:[A-Za-z0-9_*-]+\\?\.)+[A-Za-z]{2,}(?::[0-9]+)?/)")
_SCHEME = re.compile(r"https?\??:|\(\?:https?\|?[a-z]*\)\??:|://")
_NO_SLASH_FIRST = re.compile(r"\^[A-Za-z0-9_-]")


def warnings(config: Config) -> List[str]:
    """What works, but hardly as intended; one line each."""
    return [line for check in WARNINGS for line in check(config)]


def _filters(config: Config) -> Iterator[str]:
    if not config.proxy.filters:
        yield "proxy.filters = []: nothing is ever kept"
    for pattern in config.proxy.filters:
        text = pattern.pattern
        shown = f"proxy.filters has '{text[:100]}', which can never match: "
        if _SCHEME.search(text) or _HOST_FIRST.match(text):
            yield f"{shown}it names a scheme or a host, and filters are searched in paths, which begin with /"
        elif _needs_question_mark(text):
            yield f"{shown}it has a '?', and filters are searched in paths, which end before the query"
        elif _NO_SLASH_FIRST.match(text) and "|" not in text:
            yield f"{shown}it has no / after its ^, and every path begins with one"


def _needs_question_mark(text: str) -> bool:
    """Whether a pattern matches only texts with a `?`. One with alternatives is not examined."""
    if "|" in text:
        return False
    depth: List[bool] = [False]  # for each open group: whether it has a literal `?`
    position = 0
    while position < len(text):
        two, one = text[position : position + 2], text[position]
        literal = two == r"\?" or text[position : position + 3] == "[?]"
        position += 3 if literal and one == "[" else 2 if one == "\\" else 1
        optional = text[position : position + 1] in ("?", "*") or text[position : position + 2] in ("{0", "{,")
        if literal:
            depth[-1] = depth[-1] or not optional
        elif one == "(":
            depth.append(False)
        elif one == ")" and len(depth) > 1:
            inner = depth.pop()
            depth[-1] = depth[-1] or (inner and not optional)
    return depth[0]


def _sizes(config: Config) -> Iterator[str]:
    limits = config.cache
    if limits.max_size is not None and limits.max_size < _LEAST_CACHE:
        yield f"cache.max_size = {limits.max_size}: hardly anything fits into so few bytes; sizes are such as '20G'"
    try:
        status = os.statvfs(_existing(config.misc.file_dir))
    except OSError:
        return  # `rehearse` reports it
    total = status.f_blocks * status.f_frsize
    if limits.min_free is not None and limits.min_free >= total > 0:
        yield f"cache.min_free = {limits.min_free} is more than the whole disk ({total} bytes): nothing is ever kept"
    elif limits.max_size is not None and limits.max_size > total > 0 and not limits.min_free:
        yield f"cache.max_size = {limits.max_size} is more than the whole disk has ({total} bytes)"


def _clients(config: Config) -> Iterator[str]:
    proxy = config.proxy
    if not proxy.allow_clients:
        yield "proxy.allow_clients = []: no client may use dduct"
    if proxy.auth_file is not None:
        try:
            lines = proxy.auth_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return  # `rehearse` reports it
        if not any(line.strip() and not line.startswith("#") for line in lines):
            yield f"proxy.auth_file '{proxy.auth_file}' has no users: no client may use dduct"
    if proxy.require_client_cert and proxy.tls_bind is None:
        yield "proxy.require_client_cert has no effect: proxy.tls_bind is ''"


def _places(config: Config) -> Iterator[str]:
    for key, directory in (("cert_dir", config.misc.cert_dir), ("file_dir", config.misc.file_dir)):
        found = _UNEXPANDED.search(str(directory))
        if found is not None:
            yield f"misc.{key} = '{directory}': the '{found.group().strip('/')}' in it is not replaced by any value"


def _origins(config: Config) -> Iterator[str]:
    for host in config.proxy.upstream_insecure:
        if host == "*" or (host.startswith("*.") and host.count(".") == 1):
            yield f"proxy.upstream_insecure has '{host}': the certificates of all hosts there are taken unverified"
        elif "/" in host and ipaddress.ip_network(host).prefixlen == 0:
            yield f"proxy.upstream_insecure has '{host}': the certificates of all addresses are taken unverified"
    if "*" in config.cache.ignore_query:
        yield "cache.ignore_query has '*': URLs that differ only in their query are one object, for all clients"


def _constraints(config: Config) -> Iterator[str]:
    if config.certs.name_constraints and comparisons(config.certs) > _GO_COMPARISONS:
        yield (
            "certs.name_constraints = true with so many hosts: clients in Go (docker, containerd) and Rust refuse "
            f"server.crt beyond {_GO_COMPARISONS} pairs of name and constraint, which is about 500 hosts"
        )


WARNINGS: Tuple[Callable[[Config], Iterator[str]], ...] = (
    _filters,
    _sizes,
    _clients,
    _places,
    _origins,
    _constraints,
    warnings_of_credentials,
)


# --- a start, without its effects ---------------------------------------------------------------


def rehearse(config: Config) -> Tuple[str, ...]:
    """Check what a start would use; return its warnings. Raises CertificateError and StartError as a start would."""
    concerns = certs.inspect(config.misc.cert_dir)
    _check_cache(config.misc.file_dir)
    for key, address in (("tcp_bind", config.proxy.tcp_bind), ("tls_bind", config.proxy.tls_bind)):
        if address is not None:
            _check_address(key, address)
    try:
        OriginTls(TlsSettings(ca=config.proxy.upstream_ca))
    except UnusableCertificate as error:
        raise StartError(str(error)) from error
    open_access(config)
    return concerns


def _existing(path: Path) -> Path:
    """A path, or its nearest existing parent."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _check_cache(root: Path) -> None:
    reason: Optional[str] = None
    try:
        place = _existing(root)
        os.stat(place)
        if not place.is_dir():
            reason = "File exists" if place == root else "Not a directory"
        elif not os.access(place, os.W_OK | os.X_OK):
            reason = "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise cannot_use_files(root, reason)


def _check_address(key: str, address: Address) -> None:
    """Raise StartError if the address cannot be bound; that a running dduct uses it is no error."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(place)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise cannot_bind(key, address, error) from error
