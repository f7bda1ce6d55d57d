"""The configuration: one table of keys, frozen values, and errors that name key, value and remedy.

Rules of this room:

* A key stands in `_SCHEMA` once: its section, its name, its default as one would write it, and its reader.
* Nothing is guessed. An unknown key, a wrong type and a wrong value are errors, each one line long.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import unquote

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HASHES = ("sha256", "sha512", "blake2b", "sha1", "md5")
LOG_LEVELS = ("off", "error", "warn", "info", "debug", "trace")


class ConfigError(Exception):
    """The configuration cannot be used; one line that says which file, key and value, and what is expected."""


@dataclass(frozen=True)
class Address:
    """Where to listen: a name, an IPv4 or an IPv6 address (without brackets), and a port (0: any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class ParentProxy:
    """Another proxy to go through: over TLS or not, and `user:password` where it asks for that."""

    tls: bool
    address: Address
    credentials: Optional[str] = None

    def __str__(self) -> str:
        return f"http{'s' if self.tls else ''}://{'********@' if self.credentials else ''}{self.address}"


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
    upstream_timeout: float
    upstream_ca: Optional[Path]
    upstream_insecure: Tuple[str, ...]
    upstream_proxy: Optional[ParentProxy]
    no_upstream_proxy: Tuple[str, ...]
    allow_clients: Tuple[str, ...]
    auth_file: Optional[Path]
    require_client_cert: bool
    ktls: bool
    max_connections: int
    workers: int


@dataclass(frozen=True)
class CacheSettings:
    """Section [cache]; times in seconds, sizes in octets."""

    max_size: Optional[int]
    min_free: Optional[int]
    fresh_for: float
    stale_if_error: bool
    obey_no_store: bool
    auth_grace: float
    ignore_query: Tuple[str, ...]


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
    """A whole configuration; `source` is the file it came from, None for the built-in defaults."""

    misc: Misc
    proxy: Proxy
    cache: CacheSettings
    certs: Certs
    source: Optional[Path]


_SHOWN_AT_MOST = 200  # characters of a value, or of what is wrong with it


class _Expected(Exception):
    """A value is not what its key wants; the message completes `expected …`."""


def _short(text: str) -> str:
    """Some text for an error: all of it on one line, if it is not too long."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _SHOWN_AT_MOST else text[:_SHOWN_AT_MOST] + "…"


def _brief(value: Any) -> str:
    """A value for an error."""
    try:
        return _short(repr(value))
    except ValueError:
        return "…"  # a number with more digits than Python writes


# --- readers: a TOML value and the directory for relative paths in, a value of the dataclass out ----


def _text(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _Expected("a string without control characters")
    return value


def _common_name(value: Any, base: Path) -> str:
    name = _text(value, base)
    if not 0 < len(name.encode()) <= 64:  # RFC 5280, ub-common-name: of characters, but cryptography counts octets
        raise _Expected("a name of 1 to 64 octets")
    return name


def _log_level(value: Any, base: Path) -> str:
    level = _text(value, base).lower()
    if level not in LOG_LEVELS:
        raise _Expected("one of " + ", ".join(LOG_LEVELS))
    return level


def _directory(value: Any, base: Path) -> Path:
    text = _text(value, base)
    if not text:
        raise _Expected("the path of a directory")
    return _path(text, base)


def _readable(what: str) -> Callable[[Any, Path], Optional[Path]]:
    def read(value: Any, base: Path) -> Optional[Path]:
        text = _text(value, base)
        if not text:
            return None
        path = _path(text, base)
        try:
            # Not `is_file()`, which raises some of the errors that are met on the way, and hides others.
            if stat.S_ISREG(path.stat().st_mode):
                path.open("rb").close()
                return path
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _Expected(f"{what} that can be read ({error.strerror}: {path})") from None
        raise _Expected(f"{what}, and there is none at {path}")

    return read


def _path(text: str, base: Path) -> Path:
    try:
        return base / Path(text).expanduser()
    except RuntimeError:
        raise _Expected("a path whose ~ can be resolved") from None


_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+)):([0-9]{1,5})")


def _address(value: Any, base: Path) -> Optional[Address]:
    text = _text(value, base)
    if not text:
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match.group(3)) > 65535:
        raise _Expected("'host:port', '[ipv6]:port', or '' to switch it off")
    literal, name, port = match.groups()
    try:
        if literal is not None:
            return Address(str(ipaddress.IPv6Address(literal)), int(port))
        name.encode("idna")  # as it will be when it is looked up
    except UnicodeError as error:
        raise _Expected(f"a host name that can be looked up ({error})") from None
    except ValueError:
        raise _Expected("an IPv6 address within the brackets") from None
    return Address(name, int(port))


_PROXY_URL = re.compile(r"(https?)://(?:([^@/\s]*:[^@/\s]*)@)?([^@/\s]+)/?")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)")


def _written(value: Any, *kinds: type) -> str:
    """A text, or a number as one writes it; nothing for what is of none of these kinds."""
    try:
        return str(value) if isinstance(value, kinds) and not isinstance(value, bool) else ""
    except ValueError:
        return ""  # more digits than Python writes


def _seconds(value: Any, _: Path) -> float:
    match = _DURATION.fullmatch(_written(value, str, int, float))
    if match is None:
        raise _Expected("a time such as '30s', '5m', '2h' or '1d'")
    seconds = float(match.group(1)) * _UNITS[match.group(2)]
    if not 0.001 <= seconds <= 30 * 86400:
        raise _Expected("a time from a millisecond to 30 days")
    return seconds


_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def _size(value: Any, _: Path) -> Optional[int]:
    if value == "":
        return None
    match = _SIZE.fullmatch(_written(value, str, int))
    if match is None:
        raise _Expected("a size such as '500M', '20G' or '1T', or '' for none")
    octets = float(match.group(1)) * _SIZES[match.group(2).upper()]
    if octets >= 2**63:
        raise _Expected("a size below 8388608T")
    return int(octets)


def _seconds_or_none(value: Any, base: Path) -> float:
    if re.fullmatch("0[smhd]?", _written(value, str, int)):
        return 0.0
    return _seconds(value, base)


def _whole(lowest: int, highest: int) -> Callable[[Any, Path], int]:
    def read(value: Any, _: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise _Expected(f"a whole number from {lowest} to {highest}")
        return int(value)

    return read


def _list_of(read: Callable[[Any, Path], Any]) -> Callable[[Any, Path], Tuple[Any, ...]]:
    def read_list(value: Any, base: Path) -> Tuple[Any, ...]:
        if not isinstance(value, list):
            raise _Expected("a list such as ['…', '…']")
        values = []
        for position, item in enumerate(value, 1):
            try:
                values.append(read(item, base))
            except _Expected as error:
                raise _Expected(f"{error} as item {position}, which is {_brief(item)}") from None
        return tuple(values)

    return read_list


_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def _host_pattern(value: Any, base: Path) -> str:
    name = _text(value, base).lower().rstrip(".")
    plain = name[2:] if name.startswith("*.") else name
    if not plain or len(plain) > 253 or not all(map(_LABEL.fullmatch, plain.split("."))):
        raise _Expected("a host name or '*.name', without scheme, port and path")
    return name


def _ip(value: Any, base: Path) -> str:
    text = _text(value, base).strip("[]")
    try:
        if "%" not in text:  # a zone means something to this machine alone
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    raise _Expected("an IP address")


def _network(value: Any, base: Path) -> str:
    try:
        return str(ipaddress.ip_network(_text(value, base)))
    except ValueError as error:
        raise _Expected(f"an address or a network such as '10.0.0.0/8' ({error})") from None


def _host_or_ip(value: Any, base: Path) -> str:
    try:
        return _ip(value, base)
    except _Expected:
        return _host_pattern(value, base)


def _filter(value: Any, base: Path) -> re.Pattern[str]:
    text = _text(value, base)
    try:
        pattern = re.compile(text)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise _Expected(f"a regular expression ({error})") from None
    hashes = {group.partition("_")[0] for group in pattern.groupindex}
    if len(hashes) > 1 or not hashes.issubset(HASHES):
        raise _Expected(
            f"no named groups but those of one hash ({', '.join(HASHES)}; further parts of it: sha256_2, …)"
        )
    return pattern


def _boolean(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise _Expected("true or false")
    return value


def _parameter(value: Any, base: Path) -> str:
    name = _text(value, base)
    if not name or set(name) & set("=&?#/") or "*" in name[:-1]:
        raise _Expected("the name of a query parameter, or its beginning and a '*'")
    return name


def _proxy_url(value: Any, base: Path) -> Optional[ParentProxy]:
    text = _text(value, base)
    if not text:
        return None
    match = _PROXY_URL.fullmatch(text)
    expected = _Expected("'http://host:port' or 'https://host:port', perhaps with user:password@ before the host")
    if match is None:
        raise expected
    scheme, credentials, place = match.groups()
    address = _address(place, base)
    if address is None or not address.port:
        raise expected
    user = None if credentials is None else unquote(credentials)
    return ParentProxy(scheme == "https", address, user)


# --- the keys -----------------------------------------------------------------------------------


class _Key(NamedTuple):
    section: str
    name: str
    default: Any
    read: Callable[[Any, Path], Any]


_SCHEMA = (
    _Key("misc", "log_level", "info", _log_level),
    _Key("misc", "cert_dir", "certs/", _directory),
    _Key("misc", "file_dir", "files/", _directory),
    _Key("proxy", "tcp_bind", "127.0.0.1:8000", _address),
    _Key("proxy", "tls_bind", "0.0.0.0:4430", _address),
    _Key(
        "proxy",
        "filters",
        [
            r"^/v2/.*/blobs/sha256:(?P<sha256>[0-9a-f]{64})$",
            r"/by-hash/SHA256/(?P<sha256>[0-9a-f]{64})$",
            r"/by-hash/SHA512/(?P<sha512>[0-9a-f]{128})$",
            r"^/packages/(?P<blake2b>[0-9a-f]{2})/(?P<blake2b_2>[0-9a-f]{2})/(?P<blake2b_3>[0-9a-f]{60})"
            r"/[^/]+\.(?:whl|tar\.gz|zip|tar\.bz2|egg)$",
            r"^/.*\.(?:apk|deb|rpm)$",
            r"^/.*\.(?:whl|crate)$",
            r"^/.*\.(?:tar|tbz|tgz|txz)$",
            r"^/.*\.(?:7z|bz2|gz|xz|zip|zst)$",
        ],
        _list_of(_filter),
    ),
    _Key("proxy", "idle_timeout", "60s", _seconds),
    _Key("proxy", "upstream_timeout", "30s", _seconds),
    _Key("proxy", "upstream_ca", "", _readable("a PEM file")),
    _Key("proxy", "upstream_insecure", [], _list_of(_host_or_ip)),
    _Key("proxy", "upstream_proxy", "", _proxy_url),
    _Key("proxy", "no_upstream_proxy", [], _list_of(_host_or_ip)),
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
        _list_of(_network),
    ),
    _Key("proxy", "auth_file", "", _readable("a file")),
    _Key("proxy", "require_client_cert", False, _boolean),
    _Key("proxy", "ktls", True, _boolean),
    _Key("proxy", "max_connections", 4096, _whole(1, 1_000_000)),
    _Key("proxy", "workers", 0, _whole(0, 64)),
    _Key("cache", "max_size", "", _size),
    _Key("cache", "min_free", "1G", _size),
    _Key("cache", "fresh_for", "1d", _seconds),
    _Key("cache", "stale_if_error", True, _boolean),
    _Key("cache", "obey_no_store", True, _boolean),
    _Key("cache", "auth_grace", "60s", _seconds_or_none),
    _Key(
        "cache",
        "ignore_query",
        [
            *("X-Amz-*", "X-Goog-*", "AWSAccessKeyId", "GoogleAccessId"),
            *("Signature", "Expires", "Policy", "Key-Pair-Id"),
            *("se", "sp", "spr", "sv", "sr", "sig", "st", "sks", "skoid", "sktid", "ske", "skt", "skv"),
            *("hmac", "verify", "token", "jwt"),
        ],
        _list_of(_parameter),
    ),
    _Key("certs", "rsa_key_bits", 3072, _whole(2048, 8192)),
    _Key("certs", "days_from_now", 3072, _whole(1, 36500)),
    _Key("certs", "ca_cn", "dduct", _common_name),
    _Key("certs", "server_cn", "*.dduct.rs", _common_name),
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
        _list_of(_host_pattern),
    ),
    _Key("certs", "server_ip_sans", ["127.0.0.1"], _list_of(_ip)),
    _Key("certs", "client_cn", "client.dduct.rs", _common_name),
    _Key("certs", "p12_pass", "dduct", _text),
    _Key("certs", "leaf_days", 199, _whole(1, 825)),
    _Key("certs", "name_constraints", False, _boolean),
)
_SECRET = ("certs.p12_pass",)
_SECTIONS = ("misc", "proxy", "cache", "certs")


def defaults(home: Path) -> Config:
    """The built-in configuration; directories lie in `home`, where the program is."""
    return _build({}, home, home, None)


def load(path: Path, home: Path) -> Config:
    """Read a configuration file. Raises ConfigError.

    Relative paths in it are relative to its own directory; what it leaves out is as in `defaults(home)`.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error
    except (ValueError, RecursionError) as error:  # numbers may be too long, and lists too deep
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return _build(document, path.resolve().parent, home, path)


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
        except _Expected as error:
            raise ConfigError(
                f"{where}{key.section}.{key.name} = {_shown(key, value)}: expected {_short(str(error))}"
            ) from None
    config = Config(
        Misc(**values["misc"]),
        Proxy(**values["proxy"]),
        CacheSettings(**values["cache"]),
        Certs(**values["certs"]),
        source,
    )
    for problem in _misfits(config):
        raise ConfigError(where + problem)
    return config


def _strangers(document: Mapping[str, Any]) -> Iterator[str]:
    """What the document holds that no key in the schema stands for, one line each."""
    keys = [f"{key.section}.{key.name}" for key in _SCHEMA]
    for section, content in document.items():
        if section not in _SECTIONS:
            known = [*_SECTIONS, *(key.name for key in _SCHEMA)]
            yield f"unknown section or key {_brief(section)}{_nearest(section, known)}"
        elif not isinstance(content, dict):
            yield f"{section} = {_brief(content)}: expected a section, written [{section}]"
        else:
            for name in content:
                if f"{section}.{name}" not in keys:
                    yield f"unknown key {_short(f'{section}.{name}')}{_nearest(f'{section}.{name}', keys)}"


def _misfits(config: Config) -> Iterator[str]:
    """What is wrong beside the rest, one line each."""
    if config.proxy.tcp_bind is None and config.proxy.tls_bind is None:
        yield "proxy.tcp_bind and proxy.tls_bind are both '': expected at least one address"
    certs = config.certs
    listed = ("server_cn", "client_cn") if certs.name_constraints else ()
    alone = () if certs.server_dns_sans or certs.server_ip_sans else ("server_cn",)
    for name in (*listed, *alone):
        value = getattr(certs, name)
        try:
            _host_or_ip(value, Path())
        except _Expected:
            yield f"certs.{name} = {_brief(value)}: expected a host name (certs.name_constraints, or no SANs)"


def _nearest(name: str, known: List[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(key: _Key, value: Any) -> str:
    # A value with an @ is a URL that may hold a password.
    secret = f"{key.section}.{key.name}" in _SECRET or (isinstance(value, str) and "@" in value)
    return "…" if secret else _brief(value)


def describe(config: Config) -> str:
    """The effective configuration as `--check` prints it: TOML, secrets left out."""
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
