#!/usr/bin/env python3
"""How fast is dduct? The same client through dduct and Squid, and straight to the nginx that is the origin of both.

    bench.py [--rounds N] [--only WORD …] [--objects N]      as root (Squid and nginx want that); writes RESULTS.md

Every round measures every case directly and through each proxy, one after the other (Squid's cases with many clients,
which take minutes, only once). The result is the median, and the ratio of medians of one run. Figures of different
runs, let alone of different machines, are not comparable.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

from cases import CASES, Case
from figures import figures
from report import Report
from servers import HERE, Bench, warm_memory


def measure(bench: Bench, cases: Sequence[Case], rounds: int) -> Dict[str, Dict[str, List[float]]]:
    """All values, by case and by the proxy they were measured through."""
    found: Dict[str, Dict[str, List[float]]] = {case.name: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            for who, proxy in [("straight", None), *bench.proxies.items()]:
                if (who != "straight" and proxy is None) or (number and who == "Squid" and case.tedious):
                    continue
                port = proxy.port if proxy is not None else None
                here = f"{number}-{who}"
                if case.miss:
                    warm_memory(bench.directory)
                elif number == 0 or case.new_objects:
                    bench.load(replace(case, requests=case.objects, once=False), port, here)
                value = case.value(bench.load(case, port, here))
                found[case.name].setdefault(who, []).append(value)
                print(f"  {case.name:45} {who:9} {value:10.1f} {case.unit}", flush=True)
    return found


@contextlib.contextmanager
def started(only_dduct: bool = False) -> Iterator[Bench]:
    """All servers, or all but Squid, running until the context ends."""
    with (
        tempfile.TemporaryDirectory(prefix="dduct-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")) as directory,
        ExitStack() as stack,
    ):
        yield Bench(Path(directory), stack, only_dduct)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases that are wanted")
    parser.add_argument("--objects", type=int, default=1_000_000, help="in the cache, to see whether that matters")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.only or any(word in case.name for word in options.only)]
    with started() as bench:
        found = measure(bench, cases, options.rounds)
        extra = [] if options.only else list(figures(bench, options.objects))
    report = Report(cases, found, extra, options.rounds)
    print("\n" + report.table() + "\n\n" + report.figures())
    if not options.only:
        (HERE / "RESULTS.md").write_text(report.page())
        (HERE / "results.svg").write_text(report.plot())


if __name__ == "__main__":
    main()
