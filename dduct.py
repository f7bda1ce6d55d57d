#!/usr/bin/env python3
"""dduct, an HTTP(S) man-in-the-middle caching proxy: its command line."""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):  # noqa: UP036 - users of an older Python see this message
    sys.exit("dduct: Python 3.9 or newer is needed, and this is %d.%d" % sys.version_info[:2])  # noqa: UP031

import getpass
import os
import time
from functools import partial
from pathlib import Path
from typing import List, Optional

try:
    from certs import CertificateError
    from monitoring.log import start_log
    from monitoring.systemd import ServiceManager
    from proxy.access import AccessError, hash_password
    from server import arguments as command_line
    from server import config as configuration
    from server import config_checks, process
    from server.config import ConfigError
    from server.config_keys import Config
    from server.server import Server
    from server.wiring import StartError
    from storage import verify
except ImportError as error:
    _PACKAGES = {
        "cryptography": "apt install python3-cryptography, dnf install python3-cryptography, apk add py3-cryptography",
        "_cffi_backend": "apt install python3-cffi-backend, dnf install python3-cffi, apk add py3-cffi",
        "tomli": "apt install python3-tomli, dnf install python3-tomli, apk add py3-tomli",
    }
    _missing = (error.name or "").partition(".")[0]
    if _missing in _PACKAGES:
        sys.exit(
            f"dduct: the Python package {_missing} is missing or too old for {sys.executable}: {_PACKAGES[_missing]}, "
            f"or {sys.executable} -m pip install {'cffi' if _missing[0] == '_' else _missing}"
        )
    sys.exit(f"dduct: this copy of dduct, or the Python that runs it, is not whole: {error}")

VERSION = "0.1.0"


def home() -> Path:
    """The program's directory: that of `dduct.py`, or of the archive that holds it."""
    place = Path(__file__).resolve().parent
    return place.parent if place.is_file() else place


def _load(path: Optional[str]) -> Config:
    """The configuration at `path`, else beside the program, else the defaults. Raises ConfigError."""
    beside = home() / "dduct.toml"
    if path is not None:
        return configuration.load(Path(path), home())
    return configuration.load(beside, home()) if beside.exists() else configuration.defaults(home())


def _print_user(user: Optional[str]) -> int:
    """Run `passwd USER`; return the exit status."""
    if user is None:
        print("dduct: passwd: expected the name of a user", file=sys.stderr)
        return 2
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            print("dduct: passwd: the two differ", file=sys.stderr)
            return 2
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password:
        print("dduct: passwd: expected a password", file=sys.stderr)
        return 2
    try:
        print(hash_password(user, password))
    except AccessError as error:
        print(f"dduct: passwd: {error}", file=sys.stderr)
        return 2
    return 0


def _verify(root: Path, fix: bool) -> int:
    """Run `verify`; return the exit status: 1 if damaged objects remain, 2 without a cache."""
    try:
        os.listdir(root)
    except OSError as error:
        print(f'dduct: verify: there is no cache in "{root}": {error.strerror}', file=sys.stderr)
        return 2
    bar = _Bar(verify.total(root))
    findings = verify.verify(root, fix, bar.show, bar.tell)
    bar.clear()
    line = f"{findings.right} right, {findings.damaged} damaged ({findings.removed} removed)"
    print(f"{line}, {findings.foreign} without a hash; {findings.bytes_read / 1e6:.1f} MB")
    return 0 if findings.damaged == findings.removed else 1


def _check(config: Config) -> int:
    """Run `--check`; return the exit status. It refuses what a start would refuse, in the same words."""
    try:
        concerns = config_checks.rehearse(config)
    except (CertificateError, StartError) as error:
        print(f"dduct: {error}", file=sys.stderr)
        return 1
    for line in (*config_checks.warnings(config), *concerns):
        print(f"dduct: warning: {line}", file=sys.stderr)
    print(configuration.describe(config))
    return 0


class _Bar:
    """The progress bar of `verify`, shown on a terminal only."""

    def __init__(self, total: int) -> None:
        self._total = max(1, total)
        self._shown_at = 0.0
        self._visible = sys.stderr.isatty()

    def show(self, findings: verify.Findings) -> None:
        """Draw the bar, at most ten times a second."""
        now = time.monotonic()
        if not self._visible or now - self._shown_at < 0.1:
            return
        self._shown_at = now
        share = min(1.0, findings.bytes_read / self._total)
        bar = "#" * round(40 * share)
        done, total = findings.bytes_read / 1e6, self._total / 1e6
        print(f"\r[{bar:<40}] {share:4.0%}  {done:.0f} of {total:.0f} MB", end="", file=sys.stderr, flush=True)

    def tell(self, line: str) -> None:
        """Print one line about a finding."""
        self.clear()
        print(line, flush=True)

    def clear(self) -> None:
        """Erase the bar."""
        if self._visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command, or serve until a signal. Exit status: 0 success, 1 failure, 2 wrong usage."""
    options = command_line.parse(arguments, home(), VERSION)
    if options.command == "passwd":
        return _print_user(options.user)
    try:
        config = _load(options.cfg)
    except ConfigError as error:
        print(f"dduct: {error}", file=sys.stderr)
        return 2
    if options.command == "verify":
        return _verify(config.misc.file_dir, options.fix)
    if options.check:
        return _check(config)
    start_log(config.misc.log_level)
    process.prepare()
    try:
        server = Server(config)
    except (CertificateError, StartError) as error:
        print(f"dduct: {error}", file=sys.stderr)
        return 1
    return process.Program(server, partial(_load, options.cfg), ServiceManager()).run(config)


if __name__ == "__main__":
    sys.exit(main())
