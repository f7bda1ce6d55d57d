"""Hides secrets in URLs, paths and file names: in the log, and in the names of cached files.

* The log never shows a query, userinfo, or the value of a path parameter that looks secret.
* A file name never has a value that looks secret. It has a hash, which distinguishes objects as well.
"""

from __future__ import annotations

import hashlib
import re
from typing import List, Tuple
from urllib.parse import unquote_plus

# Names of parameters that carry secrets: whole words of a name, and parts that count anywhere in a name.
_SECRET_WORDS = frozenset(
    [
        *("access", "auth", "code", "cookie", "csrf", "hmac", "key", "keys", "login", "nonce", "otp", "pass", "pin"),
        *("private", "sas", "sid", "sig", "sign", "signed", "sso", "ticket", "user", "username", "xsrf"),
    ]
)
_SECRET_PARTS = (
    *("token", "secret", "passw", "passphrase", "pwd", "credential", "signature", "session", "jwt", "apikey", "oauth"),
    *("authoriz", "authoris", "bearer"),
)
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LONGEST_NAME = 64  # characters; a longer text is no parameter's name
_RANDOM = re.compile("[A-Za-z0-9+/_=-]{20,}")  # what may be a random value
_MIN_CHANGES = 6
_UUID = re.compile("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_INNER_PARAMETER = re.compile(r"([A-Za-z0-9_.\[\]-]{1,64})[\"']?[=:]")
_HASH_DIGITS = 32
_MARK = "~"  # before a hash that replaces a value
_AUTHORITY = re.compile(r"(//)[^/?#\s]*@")
_QUERY = re.compile(r"(?:\?|%3[Ff]).*", re.DOTALL)
_INNER_QUERY = re.compile(r"(?:\?|%3[Ff])[^\s'\"]+")
_MATRIX = re.compile(r";([^;=/]{1,64})=([^;/]*)")
_PLAIN = re.compile("[!$&-:<=>A-Z_a-z~-]*")  # no ? % @ ; and nothing unprintable: there is nothing to hide
_MAX_SHOWN = 2048  # characters


def words_of(name: str) -> List[str]:
    """The words of a parameter's name, in small letters: `accessToken` and `X-Auth` have two each."""
    return [word.lower() for word in _WORD.findall(name)]


def looks_secret(name: str, value: str) -> bool:
    """Whether a parameter (percent-encoded, as in a URL) may hold credentials."""
    return _is_secret_name(unquote_plus(name)) or _is_secret_value(unquote_plus(value))


def nameable(parameter: str) -> str:
    """A query parameter as part of a file name: a hash replaces what looks secret."""
    name, equals, value = parameter.partition("=")
    if not equals:
        return _hash_of(parameter) if _is_secret_value(unquote_plus(parameter)) else parameter
    if len(name) > _LONGEST_NAME or _is_secret_value(unquote_plus(name)):
        return _hash_of(parameter)
    return f"{name}={_hash_of(parameter)}" if value and looks_secret(name, value) else parameter


def nameable_path(path: str) -> str:
    """A path as part of a file name: the same for path parameters (`;jsessionid=…`)."""
    return _MATRIX.sub(_nameable_matrix, path) if ";" in path else path


def shown(text: str) -> str:
    """A URL or a path for the log, on one line and without secrets."""
    if len(text) <= _MAX_SHOWN and _PLAIN.fullmatch(text):
        return text
    text = _AUTHORITY.sub(r"\1", _QUERY.sub("", text[:_MAX_SHOWN]))
    if ";" in text:
        text = _MATRIX.sub(_shown_matrix, text)
    return printable(text)


def printable(text: str) -> str:
    """A text on one line: `?` for each character that moves the cursor or shows nothing."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def without_queries(text: str) -> str:
    """A traceback for the log, without queries and userinfo in its messages."""
    return _AUTHORITY.sub(r"\1", _INNER_QUERY.sub("?…", text))


def reason_of(error: Exception) -> object:
    """An exception's message for the log, without an OSError's file name, which may contain a query."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else error


def _hash_of(parameter: str) -> str:
    # Long enough that finding a second value is infeasible; the same in all processes and after a restart.
    return _MARK + hashlib.sha256(b"dduct parameter\0" + parameter.encode()).hexdigest()[:_HASH_DIGITS]


def _is_secret_name(name: str) -> bool:
    if len(name) > _LONGEST_NAME:
        return True
    words = words_of(name)
    joined = "".join(words)
    if joined.endswith("key") or any(part in joined for part in _SECRET_PARTS):
        return True
    return not _SECRET_WORDS.isdisjoint(words)


def _is_secret_value(value: str) -> bool:
    """Whether a value looks random, or has a secret parameter inside (`url=…?token=…`)."""
    if any(_is_secret_name(name) for name in _INNER_PARAMETER.findall(value[:_MAX_SHOWN])):
        return True
    return any(_is_random(piece) for piece in _RANDOM.findall(value))


def _is_random(piece: str) -> bool:
    """Whether a text is digits, a UUID, or often changes between capitals, small letters and digits."""
    if piece.isdigit() or _UUID.fullmatch(piece) is not None:
        return True
    kinds = [_kind(character) for character in piece]
    return sum(one != other and "" not in (one, other) for one, other in zip(kinds, kinds[1:])) >= _MIN_CHANGES


def _kind(character: str) -> str:
    if character.isdigit():
        return "digit"
    return "" if not character.isalpha() else "capital" if character.isupper() else "small"


def _nameable_matrix(match: re.Match[str]) -> str:
    parts: Tuple[str, str] = (match.group(1), match.group(2))
    if not parts[1] or not looks_secret(*parts):
        return match.group()
    return f";{parts[0]}={_hash_of('='.join(parts))}"


def _shown_matrix(match: re.Match[str]) -> str:
    name, value = match.group(1), match.group(2)
    return f";{name}=…" if value and looks_secret(name, value) else match.group()
