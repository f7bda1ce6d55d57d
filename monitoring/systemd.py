"""What a service manager is told (sd_notify(3)): a datagram for each change, and a sign of life where it wants one."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Mapping, Optional


class Manager:
    """The service manager that has started this process; without one nothing happens."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._stopped = threading.Event()
        self._interval: Optional[float] = None
        watchdog = environment.get("WATCHDOG_USEC", "")
        if watchdog.isdigit() and environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._interval = int(watchdog) / 1_000_000 / 2  # sd_watchdog_enabled(3): half of it is safe
        self._thread: Optional[threading.Thread] = None

    @property
    def interval(self) -> Optional[float]:
        """Seconds between two signs of life that it wants; None where it wants none."""
        return self._interval if self._address else None

    def ready(self) -> None:
        """dduct accepts connections, or has reloaded its configuration."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """dduct is about to reload its configuration; `ready` follows."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """A sign of life."""
        self._tell("WATCHDOG=1")

    def watch(self) -> None:
        """Send signs of life from a thread of its own."""
        if self.interval is not None:
            self._thread = threading.Thread(target=self._live, name="watchdog", daemon=True)
            self._thread.start()

    def stopping(self) -> None:
        """dduct is about to end."""
        self._tell("STOPPING=1")
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _live(self) -> None:
        while not self._stopped.wait(self._interval):
            self.alive()

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(address)
                sock.send(state.encode())
        except OSError:
            pass  # a manager that does not listen is its own trouble
