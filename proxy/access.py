"""Access control of clients: networks, and users with passwords."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, NamedTuple, Optional

from net.addresses import Networks
from proxy.password_queue import PasswordQueue, TooManyPasswords

_COST = 14  # scrypt's N is 2**_COST: a hash takes about 50 ms and 16 MiB
_MIN_COST, _MAX_COST = 10, 19  # above 19, scrypt's memory limit does not fit OpenSSL's parameter
_BLOCK, _PARALLEL, _SALT = 8, 1, 16
_MAX_REMEMBERED = 4096
_USER_SHOWN = 64  # bytes of a user name in the log
_MAX_SAME = 15.0  # seconds to wait for another thread's check of the same credentials


class AccessError(Exception):
    """The auth_file cannot be used; the message is one line with the place and the reason."""


# --- users --------------------------------------------------------------------------------------


class _Hash(NamedTuple):
    cost: int
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        try:
            return hmac.compare_digest(_scrypt(password, self.cost, self.salt), self.digest)
        except (ValueError, MemoryError):
            return False  # memory is short: an unchecked password is a wrong one


_LINE = re.compile(r"([^:\s#]+):\$scrypt\$ln=([0-9]{1,2})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")
_BASIC = re.compile(rb"basic +([A-Za-z0-9+/]+=*)", re.IGNORECASE)


def hash_password(user: str, password: str) -> str:
    """The line of an auth_file for `user` with `password`. Raises AccessError where the name is not allowed."""
    salt = os.urandom(_SALT)
    digest = _scrypt(password.encode(), _COST, salt)
    line = f"{user}:$scrypt$ln={_COST}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
    if _LINE.fullmatch(line) is None:
        raise AccessError(f"{user!r} is no name for a user: no colon, no blank, no #")
    return line


class UserLine(NamedTuple):
    """A user's entry in the auth_file at the time of their authentication."""

    name: str
    hashed: _Hash


class _Check:
    """One hash in progress; the thread that hashes sets `right`, then `done`."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.right: Optional[bool] = None  # None too where it was refused

    def outcome(self, seconds: float) -> bool:
        """Whether the password is right, within so many seconds. Raises TooManyPasswords where nobody knows."""
        self.done.wait(seconds)
        if self.right is None:
            raise TooManyPasswords
        return self.right


class Users:
    """The users of an auth_file. Raises AccessError."""

    def __init__(self, path: Path) -> None:
        self._hashes: Dict[str, _Hash] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f'proxy.auth_file "{path}" cannot be read: {error}') from error
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                self._add(line.strip(), f'proxy.auth_file "{path}", line {number}')
        self._secret = secrets.token_bytes(32)
        self._queue = PasswordQueue()
        self._lock = threading.Lock()  # guards _known and _hashing
        self._known: Dict[bytes, str] = {}  # keyed hash of right credentials -> user name
        self._hashing: Dict[bytes, _Check] = {}  # by credentials

    def check(self, field: Optional[bytes], address: str = "") -> Optional[str]:
        """The user that a Proxy-Authorization field (RFC 7617) authenticates, or None.

        Raises TooManyPasswords if `address` sends too many passwords. Remembered credentials never wait.
        """
        match = None if field is None else _BASIC.fullmatch(field)
        if match is None:
            return None
        try:
            user, colon, password = base64.b64decode(match.group(1)).partition(b":")
            name = user.decode()
        except ValueError:
            return None
        if not colon:
            return None
        proof = self._proof(match)
        with self._lock:
            if proof in self._known:
                return name
            same = self._hashing.get(proof)
            if same is None:
                mine = self._hashing[proof] = _Check()
        if same is not None:  # one hash for a client's simultaneous connections
            return name if same.outcome(_MAX_SAME) else None
        try:
            mine.right = self._hash(name, password, proof, address)
            return name if mine.right else None
        finally:
            with self._lock:
                del self._hashing[proof]
            mine.done.set()

    def line_of(self, name: str) -> Optional[UserLine]:
        """A user's current entry: equal to an earlier one if the password is unchanged."""
        hashed = self._hashes.get(name)
        return None if hashed is None else UserLine(name, hashed)

    def recognise(self, field: Optional[bytes]) -> Optional[UserLine]:
        """The user of a remembered Proxy-Authorization field, None for all others. Hashes nothing."""
        match = None if field is None else _BASIC.fullmatch(field)
        if match is None:
            return None
        with self._lock:
            name = self._known.get(self._proof(match))
        return None if name is None else self.line_of(name)

    def holds(self, line: UserLine) -> bool:
        """Whether the file still has this user with the same password."""
        return self._hashes.get(line.name) == line.hashed

    def _hash(self, name: str, password: bytes, proof: bytes, address: str) -> bool:
        """Whether a password is right; remembers it if so. Raises TooManyPasswords."""
        with self._queue.admission(address, name):
            right = (self._hashes.get(name) or self._decoy(name)).matches(password) and name in self._hashes
        self._queue.note(address, right)
        if right:
            with self._lock:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[proof] = name
        return right

    def _decoy(self, name: str) -> _Hash:
        """What an unknown user's password is compared with, at the cost of one of the users: the time must not tell
        which users exist. The same name always takes the same time."""
        costs = [one.cost for one in self._hashes.values()] or [_COST]
        chosen = int.from_bytes(hmac.new(self._secret, name.encode(), hashlib.sha256).digest()[:8], "big")
        return _Hash(costs[chosen % len(costs)], bytes(_SALT), bytes(32))

    def _proof(self, match: re.Match[bytes]) -> bytes:
        return hmac.new(self._secret, match.group(1), hashlib.sha256).digest()

    def _add(self, line: str, where: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise AccessError(f"{where}: expected user:hash, as `dduct.py passwd USER` prints it")
        user, cost, salt, digest = match.groups()
        if user in self._hashes:
            raise AccessError(f"{where}: {user} is there twice")
        try:
            self._hashes[user] = _Hash(int(cost), base64.b64decode(salt), base64.b64decode(digest))
        except ValueError:
            raise AccessError(f"{where}: expected base64 after the $") from None
        if not _MIN_COST <= int(cost) <= _MAX_COST:
            raise AccessError(f"{where}: expected a cost (ln) from {_MIN_COST} to {_MAX_COST}")


def claimed_user(field: bytes) -> bytes:
    """The user named by a Proxy-Authorization field, authenticated or not; never the password."""
    match = _BASIC.fullmatch(field)
    try:
        user, colon, _ = base64.b64decode(b"" if match is None else match.group(1)).partition(b":")
    except ValueError:
        return b"?"
    return user[:_USER_SHOWN] if colon else b"?"


def _scrypt(password: bytes, cost: int, salt: bytes) -> bytes:
    memory = 256 * _BLOCK * 2**cost
    return hashlib.scrypt(password, salt=salt, n=2**cost, r=_BLOCK, p=_PARALLEL, maxmem=memory, dklen=32)


# --- both ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """The access rules. `users` None: no password needed. `certificates`: tls_bind requires a client certificate."""

    clients: Networks
    users: Optional[Users] = None
    certificates: bool = False
