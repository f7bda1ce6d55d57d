"""The process of a dduct: its limits, its signals, reloads, and its end."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from functools import partial
from typing import Callable, Optional

from certs import CertificateError
from monitoring.log import set_level
from monitoring.metrics import Counter
from monitoring.systemd import ServiceManager
from server import config_checks, watchdog
from server.config import ConfigError
from server.config_keys import Config
from server.server import LONGEST_STOP, Server
from server.wiring import StartError, worker_count
from server.workers import SIGNALS, STOP, Duties, Workers, follow_parent, wait_for_signal

_log = logging.getLogger("dduct")

_STACK = 1024 * 1024  # bytes of a thread's stack; nothing here recurses deeply
_LONGEST_END = LONGEST_STOP + 2.0  # seconds


def prepare() -> None:
    """Set the limits, the file mode and the signals of this process, before it has threads.

    Thousands of connections are possible: each takes a thread and one or two descriptors.
    """
    os.umask(0o077)  # other users of this machine must not read restricted objects
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(_STACK)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Program:
    """Runs a server in one or several processes, and handles signals. `load` reads the configuration for a reload."""

    def __init__(self, server: Server, load: Callable[[], Config], manager: ServiceManager) -> None:
        self._server = server
        self._load = load
        self._manager = manager
        self._is_one_of_several = False

    def run(self, config: Config) -> int:
        """Serve until a signal; return the exit status."""
        _warn(config)
        for address in self._server.addresses:
            _log.info("Listening on %s", address)
        count = worker_count(config)
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
            config = self._load()
            self._server.reload(config, announce=not self._is_one_of_several)
        except (ConfigError, StartError, CertificateError) as error:
            _log.error("Not reloaded, and everything stays as it was: %s", error)
            return False
        except Exception:  # noqa: BLE001 - a failed reload must not end the running process
            _log.exception("A bug in dduct: not reloaded, and everything stays as it was")
            return False
        finally:
            self._manager.ready()
        set_level(config.misc.log_level)
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


def _warn(config: Config) -> None:
    for line in config_checks.warnings(config):
        _log.warning("%s", line)
