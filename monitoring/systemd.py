"""Notifies a service manager (sd_notify(3)): a datagram for each change, and signs of life if it wants them."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Mapping, Optional


class ServiceManager:
    """The service manager that started this process; without one, methods do nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._stopped = threading.Event()
        self._interval: Optional[float] = None
        watchdog = environment.get("WATCHDOG_USEC", "")
        if watchdog.isdigit() and environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._interval = int(watchdog) / 1_000_000 / 2  # sd_watchdog_enabled(3) recommends half
        self._thread: Optional[threading.Thread] = None

    @property
    def interval(self) -> Optional[float]:
        """Seconds between two signs of life; None if the manager wants none."""
        return self._interval if self._address else None

    def ready(self) -> None:
        """Notify: dduct accepts connections, or has reloaded."""
        self._notify("READY=1")

    def reloading(self) -> None:
        """Notify: dduct is about to reload; `ready` follows."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """Send a sign of life."""
        self._notify("WATCHDOG=1")

    def watch(self) -> None:
        """Send signs of life from a thread, if wanted."""
        if self.interval is not None:
            self._thread = threading.Thread(target=self._live, name="watchdog", daemon=True)
            self._thread.start()

    def stopping(self) -> None:
        """Notify: dduct ends; stop the thread."""
        self._notify("STOPPING=1")
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _live(self) -> None:
        while not self._stopped.wait(self._interval):
            self.alive()

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(address)
                sock.send(state.encode())
        except OSError:
            pass  # the manager does not listen: no error of dduct
