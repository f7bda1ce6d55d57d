"""Readers of configuration values: each turns a TOML value into the value that the program uses, or raises.

Rules of this module:

* A reader takes a value and the directory for relative paths. It returns the value to use, or raises `Expected`.
* Readers know no keys. The message of `Expected` is one line that completes `expected …`.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Tuple, TypeVar
from urllib.parse import unquote

from fetching.naming import MetadataRule
from protocol.request_fields import covers_credentials
from server import patterns
from server.moving_names import METADATA, VOLATILE
from storage.record import ALGORITHMS
from upstream.dialling import Parent
from upstream.secret_sources import is_username

T = TypeVar("T")

FILTERS = (
    r"^/v2/.*/blobs/sha256:(?P<sha256>[0-9a-f]{64})$",
    r"^/v2/.*/blobs/sha512:(?P<sha512>[0-9a-f]{128})$",
    r"/by-hash/SHA256/(?P<sha256>[0-9a-f]{64})$",
    r"/by-hash/SHA512/(?P<sha512>[0-9a-f]{128})$",
    r"^/packages/(?P<blake2b>[0-9a-f]{2})/(?P<blake2b_2>[0-9a-f]{2})/(?P<blake2b_3>[0-9a-f]{60})"
    r"/[^/]+\.(?:whl|tar\.gz|zip|tar\.bz2|egg)$",
    r"^/.*\.(?:apk|deb|rpm)$",
    r"^/.*\.(?:whl|crate)$",
    r"/crates/[^/]+/[^/]+/download$",
    r"^/.*\.(?:tar|tbz|tgz|txz)$",
    r"^/.*\.(?:7z|bz2|gz|xz|zip|zst)$",
)
# The tests try these patterns: trying them at each start would take two seconds.
_KNOWN_AS_QUICK = frozenset((*VOLATILE, *METADATA, *FILTERS))
LOG_LEVELS = ("off", "error", "warn", "info", "debug", "trace")


@dataclass(frozen=True)
class Address:
    """Where to listen: a name, an IPv4 or an IPv6 address (without brackets), and a port (0: any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_MAX_SHOWN = 200  # characters of a text in an error


class Expected(Exception):
    """A value does not fit its key; the message completes `expected …`."""


def short(text: str) -> str:
    """A text for an error, on one line, cut after _MAX_SHOWN characters."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def brief(value: Any) -> str:
    """A value for an error, as in `short`."""
    try:
        return short(repr(value))
    except ValueError:
        return "…"  # a number with more digits than Python converts


# --- readers: a TOML value and the directory for relative paths in, a value of the dataclass out ----


def string(value: Any, _: Path) -> str:
    """Any printable text."""
    if not isinstance(value, str):
        raise Expected("a string, in quotes")
    if not value.isprintable():
        raise Expected("a string without control characters")
    return value


def common_name(value: Any, base: Path) -> str:
    """A subject's common name."""
    name = string(value, base)
    if not 0 < len(name.encode()) <= 64:  # RFC 5280, ub-common-name, in characters; cryptography counts bytes
        raise Expected("a name of 1 to 64 bytes")
    return name


def log_level(value: Any, base: Path) -> str:
    """One of LOG_LEVELS."""
    level = string(value, base).lower()
    if level not in LOG_LEVELS:
        raise Expected("one of " + ", ".join(LOG_LEVELS))
    return level


def directory(value: Any, base: Path) -> Path:
    """A directory, which need not exist."""
    text = string(value, base)
    if not text:
        raise Expected("the path of a directory")
    return _path(text, base)


def readable(what: str) -> Callable[[Any, Path], Optional[Path]]:
    """A readable file, or '' for none; errors call it `what`."""

    def read(value: Any, base: Path) -> Optional[Path]:
        text = string(value, base)
        if not text:
            return None
        path = _path(text, base)
        try:
            # `is_file()` would raise some errors on the path, and hide others.
            if stat.S_ISREG(path.stat().st_mode):
                path.open("rb").close()
                return path
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Expected(f"{what} that can be read ({error.strerror}: {path})") from None
        raise Expected(f"{what}, and there is none at {path}")

    return read


def _path(text: str, base: Path) -> Path:
    try:
        return base / Path(text).expanduser()
    except RuntimeError:
        raise Expected("a path whose ~ can be resolved") from None


_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+)):([0-9]{1,5})")


def address(value: Any, base: Path) -> Optional[Address]:
    """Where to listen, or '' for none."""
    if not isinstance(value, str):
        raise Expected("'host:port' in quotes, such as '127.0.0.1:8000', or '' to switch it off")
    text = string(value, base)
    if not text:
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match.group(3)) > 65535:
        raise Expected("'host:port' such as '127.0.0.1:8000', '[ipv6]:port', or '' to switch it off")
    literal, name, port = match.groups()
    try:
        if literal is not None:
            return Address(str(ipaddress.IPv6Address(literal)), int(port))
        name.encode("idna")  # as the lookup will encode it
    except UnicodeError as error:
        raise Expected(f"a host name that can be looked up ({error})") from None
    except ValueError:
        raise Expected("an IPv6 address within the brackets") from None
    return Address(name, int(port))


_PROXY_URL = re.compile(r"(https?)://(?:([^@/\s]*:[^@/\s]*)@)?([^@/\s]+)/?")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST, _LONGEST = 0.001, 30 * 86400.0  # seconds
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)")


def _written(value: Any, *kinds: type) -> str:
    """A text, or a number's digits; empty if the value is of none of these types."""
    try:
        return str(value) if isinstance(value, kinds) and not isinstance(value, bool) else ""
    except ValueError:
        return ""  # more digits than Python converts


def seconds(value: Any, _: Path) -> float:
    """A time in seconds, above 0."""
    found = _duration(value)
    if found is None or found < _SHORTEST:
        raise Expected("a time such as '30s', '5m', '2h' or '1d' (units are s, m, h, d), above 0 and up to 30 days")
    return found


def _duration(value: Any) -> Optional[float]:
    """A time in seconds; None if invalid or too long."""
    match = _DURATION.fullmatch(_written(value, str, int, float))
    if match is None:
        return None
    found = float(match.group(1)) * _UNITS[match.group(2)]
    return found if found <= _LONGEST else None


_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def size(value: Any, _: Path) -> Optional[int]:
    """A size in bytes, or '' for none."""
    if value == "":
        return None
    match = _SIZE.fullmatch(_written(value, str, int))
    if match is None:
        share = ", and no share of the disk (%)" if isinstance(value, str) and "%" in value else ""
        raise Expected(f"a size such as '500M', '20G' or '1T', or '' for none{share}")
    size = float(match.group(1)) * _SIZES[match.group(2).upper()]
    if size >= 2**63:
        raise Expected("a size below 8388608T")
    return int(size)


def seconds_or_none(value: Any, _: Path) -> float:
    """A time in seconds, or 0."""
    found = _duration(value)
    if found is None or 0 < found < _SHORTEST:
        raise Expected("a time such as '30s', '5m', '2h' or '1d' (units are s, m, h, d), up to 30 days, or 0")
    return found


def whole(lowest: int, highest: int) -> Callable[[Any, Path], int]:
    """A whole number within the bounds."""

    def read(value: Any, _: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise Expected(f"a whole number from {lowest} to {highest}")
        return int(value)

    return read


def list_of(read: Callable[[Any, Path], T]) -> Callable[[Any, Path], Tuple[T, ...]]:
    """A list of items that `read` accepts."""

    def read_list(value: Any, base: Path) -> Tuple[T, ...]:
        if not isinstance(value, list):
            raise Expected("a list such as ['…', '…']")
        values = []
        for position, item in enumerate(value, 1):
            try:
                values.append(read(item, base))
            except Expected as error:
                raise Expected(f"{error} as item {position}, which is {brief(item)}") from None
        return tuple(values)

    return read_list


_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def host_pattern(value: Any, base: Path) -> str:
    """A lower-case host name, or `*.name` for all hosts below it; a further `*` in it stands for one label."""
    name = string(value, base).lower().rstrip(".")
    plain = name[2:] if name.startswith("*.") else name
    labels = plain.split(".")
    # Only between other labels, and never for the name under which others register theirs.
    inner = [place for place, label in enumerate(labels) if label == "*"]
    apart = all(0 < place < len(labels) - 2 and labels[place - 1] != "*" for place in inner)
    if len(plain) > 253 or not apart or not all(label == "*" or _LABEL.fullmatch(label) for label in labels):
        raise Expected(f"a host name or '*.name', without scheme, port and path{_hint(name)}")
    return name


def _hint(name: str) -> str:
    """A suggestion for a wrong host name, or empty."""
    if name in ("*", "*.*"):
        return "; all hosts at once cannot be listed"
    if not name.isascii():
        try:
            return f"; in its ASCII form: '{name.encode('idna').decode()}'"
        except UnicodeError:
            return ", in its ASCII form (xn--…)"
    host = re.sub(r"^[a-z][a-z0-9+.-]*://|[/?#].*|:[0-9]*$", "", re.sub(r"(?<=[^/:])[/?#].*", "", name))
    if "*" in host[1:]:
        return "; a '*' stands for everything before a name, or for one label of it, as in '*.dkr.ecr.*.amazonaws.com'"
    return f"; did you mean '{host}'?" if _LABEL.fullmatch(host.replace("*.", "", 1).partition(".")[0]) else ""


def ip(value: Any, base: Path) -> str:
    """An IP address."""
    text = string(value, base).strip("[]")
    try:
        if "%" not in text:  # a zone has a meaning on this machine only
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    raise Expected("an IP address")


def network(value: Any, base: Path) -> str:
    """An address or a network."""
    try:
        return str(ipaddress.ip_network(string(value, base)))
    except ValueError as error:
        raise Expected(f"an address or a network such as '10.0.0.0/8' ({error})") from None


def host_or_ip(value: Any, base: Path) -> str:
    """A host name or an address."""
    try:
        return ip(value, base)
    except Expected:
        return host_pattern(value, base)


def host_or_network(value: Any, base: Path) -> str:
    """A name, `*.name` (`.name` is the same), an address or a network."""
    text = string(value, base)
    if "/" in text:
        return network(value, base)
    try:
        return ip(value, base)
    except Expected:
        pass
    try:
        return host_pattern(f"*{text}" if text.startswith(".") else text, base)
    except Expected:
        raise Expected("a host name, '*.name', an address or a network, without scheme, port and path") from None


def host_or_network_or_all(value: Any, base: Path) -> str:
    """As `host_or_network`, or `*` for every host."""
    return "*" if value == "*" else host_or_network(value, base)


def own_service(value: Any, base: Path) -> str:
    """`host:port`, `[ipv6]:port`, or a host alone; as `split_service` reads it."""
    text = string(value, base)
    try:
        return ip(text, base)
    except Expected:
        pass
    match = _ADDRESS.fullmatch(text)
    host, port = (text, 0) if match is None else (match.group(1) or match.group(2), int(match.group(3)))
    try:
        host = host_or_ip(host, base)
    except Expected:
        host = "*"
    if "*" in host or port > 65535 or (match is not None and not port):
        raise Expected("'host:port', '[ipv6]:port', or a host alone for all its ports")
    return str(Address(host, port)) if port else host


def path_pattern(value: Any, base: Path) -> re.Pattern[str]:
    """A regular expression to search in paths; a slow one is refused."""
    text = string(value, base)
    if text.startswith(".*"):
        text = "^" + text  # equivalent in one line, but not retried from each character
    try:
        pattern = re.compile(text)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise Expected(f"a regular expression ({error})") from None
    slow = None if value in _KNOWN_AS_QUICK else patterns.too_slow(text)
    if slow is not None:
        raise Expected(
            f"a regular expression that is quick on any path, not one that would stop dduct on {short(slow)!r}: "
            "begin it with ^, and let no two repetitions take the same characters, as in (?:[a-z]+)+ or .*.*"
        )
    return pattern


def filter_pattern(value: Any, base: Path) -> re.Pattern[str]:
    """A path pattern whose named groups are parts of one hash."""
    pattern = path_pattern(value, base)
    hashes = {group.partition("_")[0] for group in pattern.groupindex}
    if len(hashes) > 1 or not hashes.issubset(ALGORITHMS):
        raise Expected(
            f"no named groups but those of one hash ({', '.join(ALGORITHMS)}; further parts of it: sha256_2, …)"
        )
    return pattern


def metadata_rules(value: Any, base: Path) -> Tuple[MetadataRule, ...]:
    """Filter patterns, each with the time for which its objects may be sent without asking: pairs, or a table."""
    pairs = list(map(list, value.items())) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise Expected("a list of pairs such as [['^/simple/', '0s'], …]")
    rules = []
    for position, pair in enumerate(pairs, 1):
        try:
            if not isinstance(pair, list) or len(pair) != 2:
                raise Expected("a pattern and a time, such as ['^/simple/', '0s'],")
            rules.append(MetadataRule(filter_pattern(pair[0], base), seconds_or_none(pair[1], base)))
        except Expected as error:
            raise Expected(f"{error} as item {position}, which is {brief(pair)}") from None
    return tuple(rules)


def boolean(value: Any, _: Path) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Expected("true or false")
    return value


def credential_host(value: Any, base: Path) -> str:
    """A host name, `*.name`, or an address; with a port or without one."""
    text = string(value, base)
    match = _ADDRESS.fullmatch(text)
    host, port = (text, 0) if match is None else (match.group(1) or match.group(2), int(match.group(3)))
    try:
        host = host_or_ip(host, base)
    except Expected as error:
        raise Expected(f"'host', '*.name', 'host:port' or an address ({error})") from None
    if port > 65535 or (match is not None and not port):
        raise Expected("a port from 1 to 65535")
    return str(Address(host, port)) if port else host


def username(value: Any, base: Path) -> str:
    """A user's name for Basic authentication, or ''."""
    text = string(value, base)
    if text and not is_username(text):
        raise Expected("a name without a colon")
    return text


_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def helper(value: Any, base: Path) -> str:
    """The name of a credential helper, or ''."""
    text = string(value, base)
    if text and _HELPER.fullmatch(text) is None:
        raise Expected("the NAME of a program docker-credential-NAME, such as 'pass'")
    return text


_FIELD_NAMES = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+\*?")


def harmless_field(value: Any, base: Path) -> str:
    """The name of a request field that is no credential, or a prefix and `*`."""
    name = string(value, base)
    if not _FIELD_NAMES.fullmatch(name):
        raise Expected("the name of a request field, or its beginning and a '*'")
    if covers_credentials(name):
        raise Expected("the name of a request field that is never a credential, as authorization and cookie always are")
    return name


def parameter(value: Any, base: Path) -> str:
    """A query parameter's name, or a prefix and `*`."""
    name = string(value, base)
    if not name or set(name) & set("=&?#/") or "*" in name[:-1]:
        raise Expected("the name of a query parameter, or its beginning and a '*'")
    return name


def proxy_url(value: Any, base: Path) -> Optional[Parent]:
    """A parent proxy, or '' for none."""
    text = string(value, base)
    if not text:
        return None
    match = _PROXY_URL.fullmatch(text)
    expected = Expected("'http://host:port' or 'https://host:port', perhaps with user:password@ before the host")
    if match is None:
        raise expected
    scheme, credentials, place = match.groups()
    at = address(place, base)
    if at is None or not at.port:
        raise expected
    user = None if credentials is None else unquote(credentials)
    return Parent(at.host, at.port, scheme == "https", user)
