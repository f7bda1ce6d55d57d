"""Where the secrets of `[[credentials]]` come from: files, and helpers that speak docker's protocol.

Rules of this module:

* A secret is read when it is needed, so that a changed one counts at once. It is in no error and in no `repr`.
* A helper is a program without a shell and without arguments of others. Its time and its output have a limit.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, List, Optional, Protocol, Tuple, Union

from monitoring.redaction import reason_of
from protocol.http1 import Target
from upstream.made_once import MadeOnce

_MOST_BYTES = 16 * 1024  # of a secret
_MOST_OUTPUT = 64 * 1024  # bytes of a helper's answer
_HELPER_TIME = 10.0  # seconds
_HELPER_KEPT = 300.0  # seconds for which its answer is used again,
_FAILURE_KEPT = 10.0  # or its failure
_JUST_MADE = 5.0  # seconds in which an answer that was refused is not asked for again
_MOST_HOSTS = 256  # of a helper
_IDENTITY_TOKEN = "<token>"  # noqa: S105 - the user name that docker gives such a token
# docker keeps the password of its own registry under this name.
_NAMES = {"registry-1.docker.io": "https://index.docker.io/v1/"}


class SecretError(Exception):
    """There is no secret; the message is one line without any part of one."""


@dataclass(frozen=True)
class Secret:
    """A user's password; without a `username`, a token."""

    value: str = field(repr=False)
    username: Optional[str] = None


class Source(Protocol):
    """Where a rule has its secrets from."""

    def get(self, target: Target) -> Secret:
        """The secret for a target's origin; this may take a while. Raises SecretError, ClientGone."""

    def known(self, target: Target) -> Optional[Secret]:
        """The same as far as it is known without waiting; None where it is not, or where there is none."""

    def refused(self, target: Target, secret: Secret) -> None:
        """An origin does not accept it."""


class SecretFile:
    """A file that holds a password or a token, and a line end or none."""

    def __init__(self, path: Path, username: Optional[str] = None) -> None:
        self._path = path
        self._username = username

    def get(self, target: Target) -> Secret:
        """See `Source`; the same for all targets."""
        return self.read()

    def known(self, target: Target) -> Optional[Secret]:
        """See `Source`."""
        with suppress(SecretError):
            return self.read()
        return None

    def refused(self, target: Target, secret: Secret) -> None:
        """Do nothing: the file is read each time."""

    def read(self) -> Secret:
        """What the file holds now. Raises SecretError."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise SecretError(f"{self._path} cannot be read: {reason_of(error)}") from None
        return Secret(_text(data, str(self._path), token=self._username is None), self._username)


class Helper:
    """A program `docker-credential-NAME`, which gets a host and gives a user's name and password."""

    def __init__(self, name: str, seconds: float = _HELPER_TIME) -> None:
        self._program = program_of(name)
        self._seconds = seconds
        self._answers: MadeOnce[str, Union[Secret, str]] = MadeOnce(_MOST_HOSTS)  # or why there is none

    def get(self, target: Target) -> Secret:
        """See `Source`. One run at a time for each host, whose answer all requests get."""
        host = _host_for(target)
        answer = self._answers.get(host, lambda: self._asked(host), 2 * self._seconds)
        if not isinstance(answer, Secret):
            raise SecretError(f"{self._program}: {answer or 'it has not answered in time'}")
        return answer

    def known(self, target: Target) -> Optional[Secret]:
        """See `Source`."""
        answer = self._answers.known(_host_for(target))
        return answer if isinstance(answer, Secret) else None

    def refused(self, target: Target, secret: Secret) -> None:
        """Ask again for the next request."""
        self._answers.forget(_host_for(target), secret, _JUST_MADE)

    def _asked(self, host: str) -> Tuple[Union[Secret, str], float]:
        try:
            return _read_answer(_run([self._program, "get"], host, self._seconds), self._program), _HELPER_KEPT
        except SecretError as error:
            return str(error), _FAILURE_KEPT


def program_of(name: str) -> str:
    """The program of a helper."""
    return f"docker-credential-{name}"


def _host_for(target: Target) -> str:
    """The name by which helpers know an origin."""
    return _NAMES.get(target.host_field, target.host_field)


def _run(command: List[str], request: str, seconds: float) -> bytes:
    """The output of a program that has succeeded. Raises SecretError."""
    deadline = time.monotonic() + seconds
    try:
        # A session of its own: what it has started ends with it.
        process = subprocess.Popen(  # noqa: S603 - the configuration names it
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise SecretError(f"it cannot be run: {reason_of(error)}") from None
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as to_it, process.stdout as from_it:
        try:
            with suppress(BrokenPipeError):
                to_it.write(request.encode())  # less than a pipe holds
            to_it.close()
            output = _output(from_it, deadline)
            status = process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise SecretError(f"it has not answered in {seconds:.0f} s") from None
        finally:
            _end(process)
    if status:
        raise SecretError(f"it ended with status {status}")
    return output


def _output(pipe: IO[bytes], deadline: float) -> bytes:
    """All that comes from a pipe. Raises SecretError, TimeoutExpired."""
    output = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            raise subprocess.TimeoutExpired("", 0)
        piece = os.read(pipe.fileno(), _MOST_OUTPUT)
        if not piece:
            return output
        output += piece
        if len(output) > _MOST_OUTPUT:
            raise SecretError(f"it answers more than {_MOST_OUTPUT} bytes")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program that has not ended by itself, and what it has started."""
    if process.returncode is None:  # it was not waited for: its number is still its own
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)  # one that waits for a disk is left to the kernel


def _read_answer(output: bytes, program: str) -> Secret:
    """The secret in a helper's JSON. Raises SecretError."""
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        raise SecretError("its answer is not JSON") from None
    values = answer if isinstance(answer, dict) else {}
    username, value = values.get("Username"), values.get("Secret")
    if not isinstance(username, str) or not isinstance(value, str):
        raise SecretError("its answer has no Username and Secret")
    if username == _IDENTITY_TOKEN:
        raise SecretError("it gives an identity token, which dduct cannot use; expected a user and a password")
    if not is_username(username):
        raise SecretError("its answer has an impossible Username")
    return Secret(_text(value.encode("utf-8", "replace"), "its answer", token=False), username)


def is_username(text: str) -> bool:
    """Whether a text can be the user of Basic authentication (RFC 7617 §2)."""
    return 0 < len(text) <= _MOST_BYTES and text.isprintable() and ":" not in text


def _text(data: bytes, where: str, token: bool) -> str:
    """The secret in some bytes. Raises SecretError."""
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretError(f"{where} is not UTF-8 text") from None
    if not text or len(data) > _MOST_BYTES:
        raise SecretError(f"{where} holds {'more than a secret' if text else 'nothing'}")
    if not text.isprintable() or (token and (" " in text or not text.isascii())):
        raise SecretError(f"{where} holds more than one line, or what no secret has")
    return text
