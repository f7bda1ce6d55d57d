"""An object's name in the cache, and whether it may be stored at all: values in, a value out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Container, Dict, Iterable, List, NamedTuple, Optional, Tuple
from urllib.parse import unquote_plus

from monitoring.redaction import nameable, nameable_path, words_of
from protocol.headers import Headers, split_list
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


class MetadataRule(NamedTuple):
    """Indexes, manifests and the like: what `pattern` finds may be sent for `unasked` seconds without a question.

    A pattern that begins with `//` or `^//` is searched in `//host/path`, one that begins as `^Accept: ` does in the
    request's field of that name, any other one in the path.
    """

    pattern: re.Pattern[str]
    unasked: float


_FIELD = re.compile(r"\^([A-Za-z][A-Za-z-]*): ")


@dataclass(frozen=True)
class Naming:
    """Patterns that are searched in paths: `filters` select the stored objects, `volatile` those of them that are
    validated every time; `metadata` selects further ones. `ignored`: query parameters that do not change the object.
    `tag_check`: seconds for which an image's tag may be sent without a question."""

    filters: Tuple[re.Pattern[str], ...]
    ignored: Parameters
    volatile: Tuple[re.Pattern[str], ...] = ()
    metadata: Tuple[MetadataRule, ...] = ()
    tag_check: float = 0.0

    @cached_property
    def by_field(self) -> Tuple[Tuple[bytes, str, MetadataRule], ...]:
        """The rules about request fields, each with the name of its field: in lower case, and as the rule has it."""
        found = ((_FIELD.match(rule.pattern.pattern), rule) for rule in self.metadata)
        return tuple((match[1].lower().encode(), match[1], rule) for match, rule in found if match is not None)

    @cached_property
    def by_place(self) -> Tuple[MetadataRule, ...]:
        """The rules about host and path."""
        return tuple(rule for rule in self.metadata if _FIELD.match(rule.pattern.pattern) is None)


@dataclass(frozen=True)
class Name:
    """An object's name in the cache: a path, and the digest that its URL promises.

    `signature`: the query parameters that are not part of the name; like a password, they may authorize this client.
    So may `secrets`, the parameters that look like passwords although they are part of the name.
    A `volatile` object is never served without asking its origin. `unasked`: metadata, which is sent for so many
    seconds without that. `negotiated`: its Accept belongs to the name, and is not part of it yet. `manifest`: of an
    image; its origin is asked by HEAD, since registries count each GET.
    """

    path: str
    digest: Optional[Digest] = None
    signature: str = field(default="", compare=False)
    volatile: bool = False
    secrets: str = field(default="", compare=False)
    unasked: Optional[float] = None
    negotiated: bool = False
    manifest: bool = False

    @property
    def of_accept(self) -> bool:
        """Whether it names what one Accept selects."""
        return VARIANT in self.path

    def for_accept(self, accept: Optional[bytes]) -> Name:
        """The name of the representation that such an Accept selects (RFC 9110 §12.5.1)."""
        return replace(self, path=f"{self.path}{VARIANT}{_variant(accept)}", negotiated=False)


_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile("[A-Za-z0-9._~-]")


def storage_name(target: Target, naming: Naming) -> Optional[Name]:
    """The name under which a target may be kept; None where no filter matches its path.

    Percent-encoded unreserved characters are the same as plain ones (RFC 3986 §6.2.2.2): apt writes `%2b` and `%7e`
    where others do not. A name holds the hash of a parameter that looks like a secret, never its value. The store
    decides whether a file can have the name.
    """
    return name_below(f"{target.scheme}/{target.host_field}", target.path, target.query, naming)


def canonical(path: str) -> str:
    """A path without escapes that say the same as plain characters."""
    return _ESCAPE.sub(_decode_unreserved, path) if "%" in path else path


def name_below(origin: str, path: str, query: Optional[str], naming: Naming) -> Optional[Name]:
    """Like `storage_name`, for a target at `origin`: its scheme, a slash, and the value of its Host field."""
    path = canonical(path)
    if len(path) > LONGEST_PATH:
        return None  # the running time of filters is known only up to this length
    for pattern in naming.filters:
        match = pattern.search(path)
        if match is not None:
            digest = _digest(match) if match.re.groups else None
            if digest is None and path.startswith(_REGISTRY) and _TAG.fullmatch(path):
                return _metadata_name(_place(origin, path, query, naming), naming.tag_check, manifest=True)
            volatile = digest is None and _is_volatile(path, naming)
            manifest = digest is not None and path.startswith(_REGISTRY) and _MANIFEST.fullmatch(path) is not None
            place = origin + nameable_path(path) if ";" in path else origin + path
            if query is None:
                return Name(place, digest, "", volatile, manifest=manifest)
            kept, signature, secrets = _split_query(query, naming.ignored)
            return Name(place + kept, digest, signature, volatile, secrets, manifest=manifest)
    return _name_of_metadata(origin, path, query, naming)


# What is kept of negotiated objects has a name with this in it. No URL's path or query has one (RFC 3986 §3.5).
VARIANT = "#"
_REGISTRY = "/v2/"
_TAG = re.compile("/v2/.+/manifests/[^/:]+")
_MANIFEST = re.compile("/v2/.+/manifests/[^/]+")
_MAX_HOST = 255


def _name_of_metadata(origin: str, path: str, query: Optional[str], naming: Naming) -> Optional[Name]:
    """The name of a repository's metadata; None where no rule is about it."""
    host = origin.partition("/")[2][:_MAX_HOST]
    for pattern, unasked in naming.by_place:
        of_host = pattern.pattern.startswith(("//", "^//"))
        match = pattern.search(f"//{host}{path}" if of_host else path)
        if match is None:
            continue
        place, manifest = _place(origin, path, query, naming), _MANIFEST.fullmatch(path) is not None
        digest = _digest(match) if match.re.groups else None
        if digest is not None:
            return replace(place, digest=digest, manifest=manifest)
        is_tag = manifest and _TAG.fullmatch(path) is not None
        return _metadata_name(place, naming.tag_check if is_tag else unasked, manifest)
    return None


def name_by_fields(target: Target, headers: Headers, naming: Naming) -> Optional[Name]:
    """The name of metadata that a client asks for by its fields, where the URL says nothing; None without a rule."""
    for key, field_name, (pattern, unasked) in naming.by_field:
        value = headers.get(key)
        if value is None or len(value) > LONGEST_PATH or len(target.path) > LONGEST_PATH:
            continue
        if pattern.search(f"{field_name}: {value.decode('latin-1')}") is not None:
            path = _ESCAPE.sub(_decode_unreserved, target.path)
            return _metadata_name(_place(f"{target.scheme}/{target.host_field}", path, target.query, naming), unasked)
    return None


def _metadata_name(place: Name, unasked: float, manifest: bool = False) -> Name:
    return replace(place, volatile=not unasked, unasked=unasked, negotiated=True, manifest=manifest)


def _place(origin: str, path: str, query: Optional[str], naming: Naming) -> Name:
    """The name as far as the URL alone makes it."""
    place = origin + nameable_path(path) if ";" in path else origin + path
    if query is None:
        return Name(place)
    kept, signature, secrets = _split_query(query, naming.ignored)
    return Name(place + kept, None, signature, secrets=secrets)


def _variant(accept: Optional[bytes]) -> str:
    """A mark of the media types that are accepted; empty where all are alike. Their order says nothing."""
    kinds = {b"".join(kind.lower().split()) for kind in split_list(accept or b"")}
    return hashlib.sha256(b",".join(sorted(kinds))).hexdigest()[:16] if kinds - {b"*/*"} else ""


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
