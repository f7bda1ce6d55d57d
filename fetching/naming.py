"""An object's name in the cache, and whether it may be stored at all: values in, a value out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Container, Dict, Iterable, List, Optional, Tuple
from urllib.parse import unquote_plus

from monitoring.redaction import nameable, nameable_path, words_of
from protocol.http1 import Target
from storage.record import Digest

LONGEST_PATH = 2048  # bytes of a path that filters are searched in; `server/patterns` times filters up to this length


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
    """Patterns that are searched in paths: `filters` select the stored objects, `volatile` those of them that are
    validated every time. `ignored`: query parameters that do not change the object."""

    filters: Tuple[re.Pattern[str], ...]
    ignored: Parameters
    volatile: Tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True)
class Name:
    """An object's name in the cache: a path, and the digest that its URL promises.

    `signature`: the query parameters that are not part of the name; like a password, they may authorize this client.
    So may `secrets`, the parameters that look like passwords although they are part of the name.
    A `volatile` object is never served without asking its origin.
    """

    path: str
    digest: Optional[Digest] = None
    signature: str = field(default="", compare=False)
    volatile: bool = False
    secrets: str = field(default="", compare=False)


_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile("[A-Za-z0-9._~-]")


def storage_name(target: Target, naming: Naming) -> Optional[Name]:
    """The name under which a target may be kept; None where no filter matches its path.

    Percent-encoded unreserved characters are the same as plain ones (RFC 3986 §6.2.2.2): apt writes `%2b` and `%7e`
    where others do not. A name holds the hash of a parameter that looks like a secret, never its value. The store
    decides whether a file can have the name.
    """
    return name_below(f"{target.scheme}/{target.host_field}", target.path, target.query, naming)


def name_below(origin: str, path: str, query: Optional[str], naming: Naming) -> Optional[Name]:
    """Like `storage_name`, for a target at `origin`: its scheme, a slash, and the value of its Host field."""
    if "%" in path:
        path = _ESCAPE.sub(_decode_unreserved, path)
    if len(path) > LONGEST_PATH:
        return None  # the running time of filters is known only up to this length
    for pattern in naming.filters:
        match = pattern.search(path)
        if match is not None:
            digest = _digest(match) if match.re.groups else None
            volatile = digest is None and _is_volatile(path, naming)
            place = origin + nameable_path(path) if ";" in path else origin + path
            if query is None:
                return Name(place, digest, "", volatile)
            kept, signature, secrets = _split_query(query, naming.ignored)
            return Name(place + kept, digest, signature, volatile, secrets)
    return None


# A file name with a hash never gets other content, in any folder: 32 digits are an MD5.
_HASH = re.compile("(?<![0-9A-Fa-f])[0-9A-Fa-f]{32,}(?![0-9A-Fa-f])")


def _is_volatile(path: str, naming: Naming) -> bool:
    for pattern in naming.volatile:
        if pattern.search(path) is not None:
            return _HASH.search(path.rpartition("/")[2]) is None
    return False


def _split_query(query: str, ignored: Container[str]) -> Tuple[str, str, str]:
    """Split a query into the end of a file name, the ignored parameters, and other parameters with secrets."""
    kept: List[str] = []
    signing: List[str] = []
    secrets: List[str] = []
    for parameter in query.split("&"):
        name = unquote_plus(parameter.partition("=")[0])
        signs = name in ignored
        (signing if signs else kept).append(parameter if signs else nameable(parameter))
        if not signs and names_credential(name):
            secrets.append(parameter)
    # A slash in a query must not make a directory.
    path = "?" + "&".join(kept).replace("/", "%2F") if any(kept) else ""
    return path, "&".join(signing), "&".join(secrets)


# Fewer than `redaction` hides. Hiding too much harms nobody; an object that needs authorization costs each client a
# question to its origin.
_CREDENTIAL_WORDS = frozenset(
    [
        *("apikey", "auth", "authorization", "authorisation", "bearer", "credential", "credentials", "hmac", "jwt"),
        *("key", "otp", "pass", "passphrase", "passwd", "password", "pw", "pwd", "secret", "session", "sessionid"),
        *("sid", "sig", "sign", "signature", "ticket", "token", "tokens"),
    ]
)
_CREDENTIAL_ENDINGS = ("apikey", "accesskey", "authkey", "password", "secret", "sessionid", "signature", "token")


def names_credential(parameter: str) -> bool:
    """Whether a query parameter's name is usual for credentials: `api_key`, `accessToken`, `X-Auth`."""
    return not _CREDENTIAL_WORDS.isdisjoint(words_of(parameter)) or parameter.lower().endswith(_CREDENTIAL_ENDINGS)


def _decode_unreserved(match: re.Match[str]) -> str:
    character = chr(int(match.group(1), 16))
    return character if _UNRESERVED.fullmatch(character) else match.group().upper()


def hash_of(group: str) -> str:
    """The hash that a filter's group belongs to: `blake2b` and `blake2b_2` are parts of one digest."""
    return group.partition("_")[0]


def _digest(match: re.Match[str]) -> Optional[Digest]:
    """The digest in a path, joined from its parts in their order; None unless it is valid."""
    groups = sorted(match.re.groupindex.items(), key=lambda item: item[1])
    parts: Dict[str, List[str]] = {}
    for group, number in groups:
        parts.setdefault(hash_of(group), []).append(match.group(number) or "")
    for algorithm, texts in parts.items():
        digest = Digest(algorithm, "".join(texts).lower())
        if digest.valid:
            return digest
    return None
