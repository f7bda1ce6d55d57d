"""Clients that run at once: each runs its commands one after the other, and no command outlives the others' failure."""

from __future__ import annotations

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

_TIMEOUT = 300.0  # seconds for a command


@dataclass(frozen=True)
class Command:
    """One command of a client, with all of its environment except PATH, HOME and LANG."""

    words: Tuple[str, ...]
    environment: Dict[str, str] = field(default_factory=dict)


def run_together(jobs: Sequence[Sequence[Command]], homes: Sequence[Path], timeout: float = _TIMEOUT) -> None:
    """Run each job in its own directory, all at once, until the last has ended.

    Raises SystemExit where a command fails or takes longer than `timeout` seconds, and ends all others then.
    """
    running = _Running(timeout)
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(running.run, commands, home) for commands, home in zip(jobs, homes)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            running.stop()
            raise


class _Running:
    """The commands that run now.

    They stay in this session: the kernel would share the processors among sessions first, and a network whose process
    waits for its share would be longer than it says. What apt starts ends with apt.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()  # guards the rest
        self._processes: List[subprocess.Popen[bytes]] = []
        self._stopped = False

    def stop(self) -> None:
        """End all commands, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()

    def run(self, commands: Sequence[Command], home: Path) -> None:
        """Run the commands of one client. Raises SystemExit."""
        for command in commands:
            log = home / "log"
            with log.open("ab") as output:
                process = self._start(command, home, output.fileno())
            status = self._wait(process)
            if status != 0:
                ended = f"took more than {self._timeout:g} s" if status is None else f"ended with {status}"
                said = log.read_text(errors="replace")[-3000:]
                raise SystemExit(f"{' '.join(command.words[:6])} {ended}:\n{said}")

    def _start(self, command: Command, home: Path, output: int) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": str(home), "LANG": "C.UTF-8"}
        with self._lock:
            if self._stopped:
                raise SystemExit("another client has failed")
            process = subprocess.Popen(
                command.words,
                env={**environment, **command.environment},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            self._processes.append(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> Optional[int]:
        """The status; None where the command has taken too long, and was ended."""
        try:
            return process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._processes.remove(process)
