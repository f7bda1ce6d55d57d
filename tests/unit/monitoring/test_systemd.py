"""What a service manager hears."""

from __future__ import annotations

import socket
from pathlib import Path

from support.pairs import TIMEOUT, in_thread

from monitoring.systemd import ServiceManager


def test_the_manager_is_notified_of_start_watchdog_and_stop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000"})
        manager.ready()
        manager.watch()
        assert [listening.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        stopping = in_thread(manager.stopping)  # the socket holds ten datagrams; a sender of more waits
        heard = b""
        while heard != b"STOPPING=1":
            heard = listening.recv(100)
        stopping.result(TIMEOUT)


def test_the_manager_is_notified_of_a_reload(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.interval is None
        manager.reloading()
        manager.ready()
        assert listening.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=") and listening.recv(100) == b"READY=1"


def test_an_abstract_socket_is_supported() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(b"\0dduct-test-notify")
        listening.settimeout(20)
        ServiceManager({"NOTIFY_SOCKET": "@dduct-test-notify"}).ready()
        assert listening.recv(100) == b"READY=1"


def test_without_a_manager_nothing_is_sent(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9"}):
        manager = ServiceManager(environment)
        manager.ready()
        manager.stopping()


def test_the_watchdog_of_another_process_is_ignored() -> None:
    assert ServiceManager({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})._interval is None
