#!/usr/bin/env python3
"""Where does dduct spend its time? Each case under load, seen by py-spy: the functions that were running.

profiling.py [--seconds N] [--only WORD …]
"""

from __future__ import annotations

import argparse
import collections
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Counter, Iterator, Tuple

from cases import CASES, Case
from programs import Program
from servers import Bench

from bench import started

_RATE = 500  # samples per second
_LINES = 14
# Functions in which threads only wait, which py-spy cannot always tell from work.
_WAITING = ("select (", "wait (", "sigwait (", "watch (", "_watch_all (")


def profile(bench: Bench, dduct: Program, case: Case, seconds: int) -> Counter[str]:
    """How often each function was running while `case` was repeated."""
    done = threading.Event()

    def keep_busy() -> None:
        number = 0
        while not done.is_set():
            bench.load(case, dduct.port, f"profile-{number}")
            number += 1

    load = threading.Thread(target=keep_busy)
    load.start()
    try:
        with tempfile.NamedTemporaryFile() as raw:
            command = ["py-spy", "record", "--subprocesses", "--format", "raw", "--output", raw.name]
            command += ["--rate", str(_RATE), "--duration", str(seconds), "--pid", str(dduct.process.pid)]
            command[0] = shutil.which(command[0]) or str(Path(sys.executable).with_name(command[0]))
            subprocess.run(command, check=True, capture_output=True)
            return _count(Path(raw.name).read_text())
    finally:
        done.set()
        load.join()


def _count(raw: str) -> Counter[str]:
    found: Counter[str] = collections.Counter()
    for stack, count in _samples(raw):
        leaf = stack.rpartition(";")[2].partition(":")[0] + ")"
        if not any(place in leaf for place in _WAITING):
            found[leaf] += count
    return found


def _samples(raw: str) -> Iterator[Tuple[str, int]]:
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        yield stack, int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases that are wanted")
    options = parser.parse_args()
    with started(only_dduct=True) as bench:
        dduct = bench.proxies["dduct"]
        assert dduct is not None
        for case in CASES:
            if options.only and not any(word in case.name for word in options.only):
                continue
            if not case.miss:
                bench.load(case, dduct.port, "warm")
            found = profile(bench, dduct, case, options.seconds)
            print(f"\n{case.name}")
            for name, count in found.most_common(_LINES):
                print(f"  {100 * count / max(1, found.total()):5.1f} %  {name}")


if __name__ == "__main__":
    main()
