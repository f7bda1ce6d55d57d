"""What a running dduct takes, seen from outside."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Set

from support.process import Process


class Dduct:
    """A running dduct: its processes, their memory, threads and descriptors."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = process.ports()[0]

    @property
    def processes(self) -> Set[int]:
        return {self.process.pid, *self.process.children()}

    def memory(self) -> int:
        """Bytes; what is shared counts once."""
        total = 0
        for pid in self.processes:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            assert found
            total += int(found[1]) * 1024
        return total

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes)

    def threads(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.processes)
