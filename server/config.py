"""The configuration: one table of keys, frozen values, and errors that name key, value and remedy.

Rules of this module:

* `_SCHEMA` declares each key once: section, name, default as written in TOML, and reader (`config_values.py`).
* An unknown key, a wrong type and a wrong value are errors, each one line long. No value is guessed.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from server import config_values as read
from server.config_paths import misplaced
from server.config_values import FILTERS, Address, ParentProxy
from server.moving_names import VOLATILE


class ConfigError(Exception):
    """The configuration is unusable; the message is one line: file, key, value and what is expected."""


@dataclass(frozen=True)
class Misc:
    """Section [misc]."""

    log_level: str
    cert_dir: Path
    file_dir: Path


@dataclass(frozen=True)
class Proxy:
    """Section [proxy]; times in seconds."""

    tcp_bind: Optional[Address]
    tls_bind: Optional[Address]
    filters: Tuple[re.Pattern[str], ...]
    idle_timeout: float
    connect_timeout: float
    upstream_timeout: float
    relay_timeout: float
    upstream_ca: Optional[Path]
    upstream_insecure: Tuple[str, ...]
    client_cert_hosts: Tuple[str, ...]
    upstream_proxy: Optional[ParentProxy]
    no_upstream_proxy: Tuple[str, ...]
    allow_clients: Tuple[str, ...]
    allow_own: Tuple[str, ...]
    auth_file: Optional[Path]
    require_client_cert: bool
    ktls: bool
    max_connections: int
    max_silent_per_client: int
    workers: int


@dataclass(frozen=True)
class CacheSettings:
    """Section [cache]; times in seconds, sizes in bytes."""

    max_size: Optional[int]
    min_free: Optional[int]
    fresh_for: float
    heuristic_max: float
    recheck: float
    retry_window: float
    volatile: Tuple[re.Pattern[str], ...]
    stale_if_error: bool
    obey_no_store: bool
    auth_grace: float
    ignore_query: Tuple[str, ...]
    harmless_fields: Tuple[str, ...]


@dataclass(frozen=True)
class Certs:
    """Section [certs]."""

    rsa_key_bits: int
    days_from_now: int
    ca_cn: str
    server_cn: str
    server_dns_sans: Tuple[str, ...]
    server_ip_sans: Tuple[str, ...]
    client_cn: str
    p12_pass: str
    leaf_days: int
    name_constraints: bool


@dataclass(frozen=True)
class Config:
    """A complete configuration; `source` is its file, None for the built-in defaults."""

    misc: Misc
    proxy: Proxy
    cache: CacheSettings
    certs: Certs
    source: Optional[Path]


# --- the keys -----------------------------------------------------------------------------------


class _Key(NamedTuple):
    section: str
    name: str
    default: Any
    read: Callable[[Any, Path], Any]


_SCHEMA = (
    _Key("misc", "log_level", "info", read.log_level),
    _Key("misc", "cert_dir", "certs/", read.directory),
    _Key("misc", "file_dir", "files/", read.directory),
    _Key("proxy", "tcp_bind", "127.0.0.1:8000", read.address),
    _Key("proxy", "tls_bind", "0.0.0.0:4430", read.address),
    _Key(
        "proxy",
        "filters",
        list(FILTERS),
        read.list_of(read.filter_pattern),
    ),
    _Key("proxy", "idle_timeout", "60s", read.seconds),
    _Key("proxy", "connect_timeout", "10s", read.seconds),
    _Key("proxy", "upstream_timeout", "30s", read.seconds),
    _Key("proxy", "relay_timeout", "5m", read.seconds),
    _Key("proxy", "upstream_ca", "", read.readable("a PEM file")),
    _Key("proxy", "upstream_insecure", [], read.list_of(read.host_or_network)),
    _Key("proxy", "client_cert_hosts", [], read.list_of(read.host_or_network_or_all)),
    _Key("proxy", "upstream_proxy", "", read.proxy_url),
    _Key("proxy", "no_upstream_proxy", [], read.list_of(read.host_or_network)),
    _Key(
        "proxy",
        "allow_clients",
        [
            "127.0.0.0/8",
            "::1",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
            "fe80::/10",
        ],
        read.list_of(read.network),
    ),
    _Key("proxy", "allow_own", [], read.list_of(read.own_service)),
    _Key("proxy", "auth_file", "", read.readable("a file")),
    _Key("proxy", "require_client_cert", False, read.boolean),
    _Key("proxy", "ktls", True, read.boolean),
    _Key("proxy", "max_connections", 4096, read.whole(1, 1_000_000)),
    _Key("proxy", "max_silent_per_client", 0, read.whole(0, 1_000_000)),
    _Key("proxy", "workers", 0, read.whole(0, 64)),
    _Key("cache", "max_size", "", read.size),
    _Key("cache", "min_free", "1G", read.size),
    _Key("cache", "fresh_for", "1d", read.seconds_or_none),
    _Key("cache", "heuristic_max", "7d", read.seconds_or_none),
    _Key("cache", "recheck", "10m", read.seconds_or_none),
    _Key("cache", "retry_window", "2m", read.seconds_or_none),
    _Key("cache", "volatile", list(VOLATILE), read.list_of(read.path_pattern)),
    _Key("cache", "stale_if_error", True, read.boolean),
    _Key("cache", "obey_no_store", True, read.boolean),
    _Key("cache", "auth_grace", "60s", read.seconds_or_none),
    _Key(
        "cache",
        "ignore_query",
        [
            *("X-Amz-*", "X-Goog-*", "AWSAccessKeyId", "GoogleAccessId"),
            *("Signature", "Expires", "Policy", "Key-Pair-Id"),
            *("se", "sp", "spr", "sv", "sr", "sig", "st", "sks", "skoid", "sktid", "ske", "skt", "skv"),
            *("hmac", "verify", "token", "jwt"),
        ],
        read.list_of(read.parameter),
    ),
    _Key("cache", "harmless_fields", [], read.list_of(read.harmless_field)),
    _Key("certs", "rsa_key_bits", 3072, read.whole(2048, 8192)),
    _Key("certs", "days_from_now", 3072, read.whole(1, 36500)),
    _Key("certs", "ca_cn", "dduct", read.common_name),
    _Key("certs", "server_cn", "*.dduct.rs", read.common_name),
    _Key(
        "certs",
        "server_dns_sans",
        [
            "*.dduct.rs",
            "*.docker.io",
            "*.gcr.io",
            "*.githubusercontent.com",
            "*.k8s.io",
            "*.quay.io",
            "ghcr.io",
            "quay.io",
        ],
        read.list_of(read.host_pattern),
    ),
    _Key("certs", "server_ip_sans", ["127.0.0.1"], read.list_of(read.ip)),
    _Key("certs", "client_cn", "client.dduct.rs", read.common_name),
    _Key("certs", "p12_pass", "dduct", read.string),
    _Key("certs", "leaf_days", 199, read.whole(1, 825)),
    _Key("certs", "name_constraints", False, read.boolean),
)
# OpenSSL's NAME_CHECK_MAX: names of a certificate times constraints of its authority.
_MAX_COMPARISONS = 2**20
_MAX_CONSTRAINED_HOSTS = 1020
_SECRET = ("certs.p12_pass",)
_SECTIONS = ("misc", "proxy", "cache", "certs")


def defaults(home: Path) -> Config:
    """The built-in configuration, with directories in `home`. Raises ConfigError."""
    return _build({}, home, home, None)


def load(path: Path, home: Path) -> Config:
    """Read a configuration file. Raises ConfigError.

    Relative paths are relative to the file's directory; missing keys are as in `defaults(home)`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors on Windows write a byte order mark
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number too long, or a list too deep
        raise ConfigError(f"{path}: not TOML: {error}{_key_at(text, str(error))}") from error
    return _build(document, path.resolve().parent, home, path)


def _key_at(text: str, error: str) -> str:
    """The key in the line of a TOML error; its value may be a password and is not shown."""
    match = re.search(r"at line ([0-9]+)", error)
    lines = text.splitlines()
    if match is None or not 0 < int(match.group(1)) <= len(lines):
        return ""
    key = re.match(r"\s*([A-Za-z0-9_.-]+)\s*=", lines[int(match.group(1)) - 1])
    if key is None:
        return ""
    twice = "; is it there twice?" if "overwrite" in error or "twice" in error else ""
    return f", in the line of {read.short(key.group(1))}{twice}"


def _build(document: Mapping[str, Any], base: Path, home: Path, source: Optional[Path]) -> Config:
    where = f"{source}: " if source else ""
    for problem in _strangers(document):
        raise ConfigError(where + problem)
    values: Dict[str, Dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key in _SCHEMA:
        given = key.name in document.get(key.section, {})
        value = document[key.section][key.name] if given else key.default
        try:
            values[key.section][key.name] = key.read(value, base if given else home)
        except read.Expected as error:
            raise ConfigError(
                f"{where}{key.section}.{key.name} = {_shown(key, value)}: expected {read.short(str(error))}"
            ) from None
    config = Config(
        Misc(**values["misc"]),
        Proxy(**values["proxy"]),
        CacheSettings(**values["cache"]),
        Certs(**values["certs"]),
        source,
    )
    for problem in _misfits(config, home):
        raise ConfigError(where + problem)
    return config


def _strangers(document: Mapping[str, Any]) -> Iterator[str]:
    """Errors about entries that are not in `_SCHEMA`, one line each."""
    keys = [f"{key.section}.{key.name}" for key in _SCHEMA]
    for section, content in document.items():
        homes = [key.section for key in _SCHEMA if key.name == section]
        if homes and section not in _SECTIONS:
            yield f"{section} stands outside of all sections: expected below [{homes[0]}]"
        elif section not in _SECTIONS:
            known = [*_SECTIONS, *(key.name for key in _SCHEMA)]
            yield f"unknown section or key {read.brief(section)}{_nearest(section, known)}"
        elif not isinstance(content, dict):
            yield f"{section} = {read.brief(content)}: expected a section, written [{section}]"
        else:
            for name in content:
                if f"{section}.{name}" not in keys:
                    yield f"unknown key {read.short(f'{section}.{name}')}{_nearest(f'{section}.{name}', keys)}"


def _misfits(config: Config, home: Path) -> Iterator[str]:
    """Errors about keys in conflict, one line each."""
    files = {
        "proxy.auth_file": config.proxy.auth_file,
        "proxy.upstream_ca": config.proxy.upstream_ca,
        "this file": config.source,
    }
    yield from misplaced(config.misc.cert_dir, config.misc.file_dir, home, files)
    if _collide(config.proxy.tcp_bind, config.proxy.tls_bind):
        yield (
            f"proxy.tcp_bind = '{config.proxy.tcp_bind}' and proxy.tls_bind = '{config.proxy.tls_bind}' are the same: "
            "expected two ports, or '' for one of them"
        )
    if config.proxy.tcp_bind is None and config.proxy.tls_bind is None:
        yield "proxy.tcp_bind and proxy.tls_bind are both '': expected at least one address"
    certs = config.certs
    listed = ("server_cn", "client_cn") if certs.name_constraints else ()
    alone = () if certs.server_dns_sans or certs.server_ip_sans else ("server_cn",)
    for name in (*listed, *alone):
        value = getattr(certs, name)
        try:
            read.host_or_ip(value, Path())
        except read.Expected:
            yield f"certs.{name} = {read.brief(value)}: expected a host name (certs.name_constraints, or no SANs)"
    if certs.name_constraints:
        yield from _too_many_constraints(certs)


def _collide(one: Optional[Address], other: Optional[Address]) -> bool:
    if one is None or other is None or one.port != other.port or not one.port:
        return False
    return one.host == other.host or "0.0.0.0" in (one.host, other.host)


def comparisons(certs: Certs) -> int:
    """How many pairs of name and constraint a client compares to verify server.crt, as configured."""
    hosts = (*certs.server_dns_sans, *certs.server_ip_sans)
    constraints = {host.replace("*.", "", 1) for host in (*hosts, certs.server_cn, certs.client_cn)}
    return (len(hosts or (certs.server_cn,)) + 1) * (len(constraints) + (0 if certs.server_ip_sans else 2))


def _too_many_constraints(certs: Certs) -> Iterator[str]:
    if comparisons(certs) > _MAX_COMPARISONS:
        count = len(certs.server_dns_sans) + len(certs.server_ip_sans)
        yield (
            f"certs.name_constraints = true with {count} hosts: expected at most about {_MAX_CONSTRAINED_HOSTS}; "
            f"OpenSSL compares {_MAX_COMPARISONS} pairs of name and constraint, and refuses server.crt beyond; "
            "list '*.' names instead, or set it to false"
        )


def _nearest(name: str, known: List[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(key: _Key, value: Any) -> str:
    # A value with an @ may be a URL with a password.
    secret = f"{key.section}.{key.name}" in _SECRET or (isinstance(value, str) and "@" in value)
    return "…" if secret else read.brief(value)


def describe(config: Config) -> str:
    """The effective configuration in TOML, without secrets, for `--check`."""
    lines = [f"# from {config.source or 'the built-in defaults'}"]
    for section in _SECTIONS:
        lines += ["", f"[{section}]"]
        for key in _SCHEMA:
            if key.section == section:
                value = getattr(getattr(config, section), key.name)
                lines.append(f"{key.name} = {_toml(key, value)}")
    return "\n".join(lines)


def _toml(key: _Key, value: Any) -> str:
    if f"{key.section}.{key.name}" in _SECRET:
        return "'********'"
    if isinstance(value, tuple):
        items = "".join(f"\n  {_toml(key, item)}," for item in value)
        return f"[{items}\n]" if items else "[]"
    if isinstance(value, float):
        return f"'{int(value) if value.is_integer() else value!r}s'"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if value is None:
        return "''"
    text = value.pattern if isinstance(value, re.Pattern) else str(value)
    return f"'{text}'" if "'" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
