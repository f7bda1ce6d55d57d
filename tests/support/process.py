"""dduct as a process: its configuration, its log, its workers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, List, Optional, Set

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 30.0


def write(directory: Path, **keys: Any) -> Path:
    """A configuration below `directory` with free ports; keyword arguments replace keys of [proxy]."""
    values = {"tcp_bind": "127.0.0.1:0", "tls_bind": "127.0.0.1:0", **keys}
    lines = [f"{key} = {value!r}" for key, value in values.items()]
    path = directory / "some.toml"
    path.write_text("[misc]\ncert_dir = 'certs'\nfile_dir = 'files'\n[proxy]\n" + "\n".join(lines) + "\n")
    with path.open("a") as file:
        file.write("[certs]\nrsa_key_bits = 2048\n")
    return path


class Process:
    """A running dduct and its log."""

    def __init__(self, configuration: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "dduct.py"), "--cfg", str(configuration)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.lines: List[str] = []
        self._changed = threading.Condition()  # guards lines
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        stream: Optional[IO[str]] = self._process.stderr
        assert stream is not None
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, count: int = 1) -> List[str]:
        """The log lines with `text` in them, once there are so many."""
        with self._changed:
            found = self._changed.wait_for(lambda: sum(text in line for line in self.lines) >= count, PATIENCE)
            assert found, "\n".join(self.lines)
            return [line for line in self.lines if text in line]

    def ports(self) -> List[int]:
        return [int(line.rpartition(":")[2]) for line in self.wait_for("Listening on", 2)]

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> Set[int]:
        """Its workers."""
        listing = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(child) for child in listing.split()}

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()
