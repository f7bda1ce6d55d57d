"""dduct as a process: its configuration, its log, its workers."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, Dict, List, Optional, Sequence, Set

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0
_F_SETPIPE_SZ = 1031


def write(
    directory: Path, cache: Optional[Dict[str, Any]] = None, certs: Optional[Dict[str, Any]] = None, **proxy: Any
) -> Path:
    """A configuration below `directory` with free ports; keyword arguments are keys of [proxy]."""
    sections: Dict[str, Dict[str, Any]] = {
        "misc": {"cert_dir": "certs", "file_dir": "files"},
        "proxy": {"tcp_bind": "127.0.0.1:0", "tls_bind": "127.0.0.1:0", **proxy},
        "cache": cache or {},
        "certs": {"rsa_key_bits": 2048, **(certs or {})},
    }
    path = directory / "some.toml"
    with path.open("w") as file:
        for section, keys in sections.items():
            file.write(f"[{section}]\n")
            file.writelines(f"{key} = {_toml(value)}\n" for key, value in keys.items())
    return path


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


class Running:
    """A running program and what it says on standard error."""

    def __init__(self, command: Sequence[str], directory: Optional[Path] = None) -> None:
        self._process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=directory,
        )
        assert self._process.stderr is not None
        fcntl.fcntl(self._process.stderr, _F_SETPIPE_SZ, 1024 * 1024)  # what there is no room for would be lost
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
            found = self._changed.wait_for(lambda: sum(text in line for line in self.lines) >= count, TIMEOUT)
            assert found, "\n".join(self.lines)
            return [line for line in self.lines if text in line]

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
        return self._process.wait(TIMEOUT)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join(TIMEOUT)
        assert self._process.stderr is not None
        self._process.stderr.close()


class Process(Running):
    """A running dduct and its log."""

    def __init__(self, configuration: Path) -> None:
        self.command = [sys.executable, str(ROOT / "dduct.py")]
        super().__init__([*self.command, "--cfg", str(configuration)])

    def ports(self) -> List[int]:
        return [int(line.rpartition(":")[2]) for line in self.wait_for("Listening on", 2)]
