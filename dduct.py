#!/usr/bin/env python3
"""dduct, an HTTP(S) man-in-the-middle caching proxy: its command line, log and signals."""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):  # noqa: UP036 - users of an older Python see this message
    sys.exit("dduct: Python 3.9 or newer is needed, and this is %d.%d" % sys.version_info[:2])  # noqa: UP031

import fcntl
import getpass
import logging
import os
import resource
import select
import signal
import stat
import termios
import threading
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import List, Optional

try:
    from certs import CertificateError
    from monitoring.metrics import Counter
    from monitoring.redaction import without_queries
    from monitoring.systemd import ServiceManager
    from proxy.access import AccessError, hash_password
    from server import arguments as command_line
    from server import config as configuration
    from server import config_checks, watchdog
    from server.config import Config, ConfigError
    from server.server import Server, StartError, worker_count
    from server.workers import SIGNALS, STOP, Duties, Workers, follow_parent, wait_for_signal
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

_log = logging.getLogger("dduct")

_STACK = 1024 * 1024  # bytes of a thread's stack; nothing here recurses deeply
_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.NOTSET + 1,
}
_STDERR = 2
_LONGEST_END = 20.0  # seconds; Server.stop takes 16 if no connection ends by itself
_F_GETPIPE_SZ = 1032  # fcntl(2); the fcntl module names it since Python 3.10
_LEVEL_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}
_MILLISECONDS = tuple(f".{number:03}Z" for number in range(1000))  # each line has one


@lru_cache(maxsize=2)
def _moment(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=256)
def _origin(level: int, name: str) -> str:
    return f" {_LEVEL_NAMES.get(level, logging.getLevelName(level)):<5} {name}] "


class _Formatter(logging.Formatter):
    """`[2026-01-01T12:34:56.789Z INFO  dduct.certs] Write "/…/ca.key"`, one line, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        when = _moment(int(record.created)) + _MILLISECONDS[int(record.msecs)]
        message = record.getMessage()
        if not message.isprintable():
            message = "".join(c if c.isprintable() else "?" for c in message)
        line = f"[{when}{_origin(record.levelno, record.name)}{message}"
        return line if not record.exc_info else f"{line}\n{without_queries(self.formatException(record.exc_info))}"


class _Handler(logging.Handler):
    """Writes each line to standard error with one system call, which keeps lines whole without a lock.

    A slow reader delays no thread: lines that do not fit are lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pipe_size = 0  # bytes; 0: no pipe
        try:
            if stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
                self._pipe_size = fcntl.fcntl(_STDERR, _F_GETPIPE_SZ)
        except OSError:
            pass  # closed

    def createLock(self) -> None:  # noqa: N802 - logging's name for it
        """Create no lock."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit without the lock, which logging's own method always takes since Python 3.13."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; it is lost if it does not fit."""
        data = memoryview((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        try:
            while data and self._has_space():
                data = data[os.write(_STDERR, data) :]
        except OSError:
            pass

    def _has_space(self) -> bool:
        """Whether a line can be written without waiting, even if other threads write now."""
        if self._pipe_size:
            held = int.from_bytes(fcntl.ioctl(_STDERR, termios.FIONREAD, bytes(4)), sys.byteorder)
            return held < self._pipe_size // 2
        return bool(select.select((), (_STDERR,), (), 0)[1])


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


def _warn(config: Config) -> None:
    for line in config_checks.warnings(config):
        _log.warning("%s", line)


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


def _prepare_for_many_readers() -> None:
    """Allow thousands of connections: each takes a thread and one or two descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(_STACK)


def _start_log(level: str) -> None:
    # Our lines use nothing that these switches collect (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = _Handler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("dduct")
    log.addHandler(handler)
    log.setLevel(_LEVELS[level])
    log.propagate = False


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
    _start_log(config.misc.log_level)
    os.umask(0o077)  # other users of this machine must not read restricted objects
    _prepare_for_many_readers()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        server = Server(config)
    except (CertificateError, StartError) as error:
        print(f"dduct: {error}", file=sys.stderr)
        return 1
    _warn(config)
    for address in server.addresses:
        _log.info("Listening on %s", address)
    return _Program(server, options.cfg, ServiceManager()).run(worker_count(config))


class _Program:
    """Runs a server in one or several processes, and handles signals."""

    def __init__(self, server: Server, path: Optional[str], manager: ServiceManager) -> None:
        self._server = server
        self._path = path
        self._manager = manager
        self._is_one_of_several = False

    def run(self, count: int) -> int:
        """Serve until a signal; return the exit status."""
        if count > 1 or os.getpid() == 1:  # the watchdog's signal does not end process 1
            return self._run_workers(count)
        watchdog.start()
        self._server.start()
        self._manager.ready()
        self._manager.watch()
        self._serve()
        return 0

    def _run_workers(self, count: int) -> int:
        manager, counters = self._manager, self._server.counters
        manager.ready()
        counters.use(count)  # the row after the workers' rows
        frozen = partial(counters.add, Counter.FROZEN)
        duties = Duties(self._reload, self._close, frozen, manager.alive, manager.interval)
        return Workers(count, self._work, duties).run()

    def _work(self, number: int, lifeline: int) -> int:
        """Run one worker process; return its exit status."""
        follow_parent(lifeline)
        self._is_one_of_several = True
        self._manager = ServiceManager({})  # only the parent notifies
        self._server.start(number)
        self._serve()
        return 0

    def _serve(self) -> None:
        while not self._is_end(number := wait_for_signal()):
            if number == signal.SIGHUP:
                self._reload()
        watchdog.end_within(_LONGEST_END)
        threading.Thread(target=self._end_at_once, name="second signal", daemon=True).start()
        self._manager.stopping()
        self._server.stop()

    def _reload(self) -> bool:
        """Load the configuration again; return whether it is in use."""
        self._manager.reloading()
        try:
            config = _load(self._path)
            self._server.reload(config, announce=not self._is_one_of_several)
        except (ConfigError, StartError, CertificateError) as error:
            _log.error("Not reloaded, and everything stays as it was: %s", error)
            return False
        except Exception:  # noqa: BLE001 - a failed reload must not end the running process
            _log.exception("A bug in dduct: not reloaded, and everything stays as it was")
            return False
        finally:
            self._manager.ready()
        logging.getLogger("dduct").setLevel(_LEVELS[config.misc.log_level])
        if not self._is_one_of_several:
            _warn(config)
            _log.info("Reloaded the configuration")
        return True

    def _close(self) -> None:
        self._manager.stopping()
        self._server.close_all()

    def _is_end(self, number: Optional[int]) -> bool:
        if self._is_one_of_several:
            return number == signal.SIGTERM  # a terminal sends SIGINT to all; the parent passes on SIGTERM
        return number in STOP

    def _end_at_once(self) -> None:
        """At the second stop signal, end the process and break off transfers."""
        while not self._is_end(wait_for_signal()):
            pass
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
