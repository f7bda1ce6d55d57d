#!/usr/bin/env python3
"""How fast is dduct? The same client through dduct and Squid, and straight to the nginx that is the origin of both.

    bench.py [--rounds N] [--only WORD …] [--objects N] [--quick]      as root (Squid and nginx want that)

Every round measures every case directly and through each proxy, one after the other (Squid's cases with many clients,
which take minutes, only once). The result is the median, and the ratio of medians of one run. Figures of different
runs, let alone of different machines, are not comparable. A run of all cases writes RESULTS.md.

`--quick` takes less than three minutes: two rounds without the crowds and without a million objects. It writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
from contextlib import ExitStack
from dataclasses import replace
from typing import Dict, Iterator, List, Optional, Sequence

from cases import CASES, Case
from figures import check_validation, figures, quick_figures
from programs import HERE, Program, end_on_signals, scratch
from report import Report
from servers import Bench, warm_memory

Found = Dict[str, Dict[str, List[float]]]
_ROUNDS = 5
_QUICK_ROUNDS = 2


def measure(bench: Bench, cases: Sequence[Case], rounds: int) -> Found:
    """All values, by case and by the proxy they were measured through."""
    found: Found = {case.name: {} for case in cases}
    for number in range(rounds):
        for place, case in enumerate(cases):
            for who, proxy in [("straight", None), *bench.proxies.items()]:
                if (who != "straight" and proxy is None) or (number and who == "Squid" and case.tedious):
                    continue
                # No two cases share the objects of a round: what is a miss in one would be a hit in the next.
                names = [f"{place}.{number}.{i}-{who}" for i in range(case.repeats)]
                warm = number == 0 or case.new_objects
                values = [measure_once(bench, case, proxy, name, warm) for name in names]
                found[case.name].setdefault(who, []).extend(values)
                print(f"  {case.name:55} {who:9} {sum(values) / len(values):10.1f} {case.unit}", flush=True)
    return found


def measure_once(bench: Bench, case: Case, proxy: Optional[Program], name: str, warm: bool) -> float:
    """One value; `name` tells the objects of this measurement from others', `warm` puts them into the cache first."""
    port = proxy.port if proxy is not None else None
    if case.miss:
        if not case.short:
            warm_memory(bench.directory)
    elif warm:
        bench.load(replace(case, requests=case.objects, once=False), port, name)
    return case.value(bench.load(case, port, name))


@contextlib.contextmanager
def started(only_dduct: bool = False) -> Iterator[Bench]:
    """All servers, or all but Squid, running until the context ends."""
    with scratch("dduct-bench-") as directory, ExitStack() as stack:
        yield Bench(directory, stack, only_dduct)


def wanted(only: Sequence[str], quick: bool) -> List[Case]:
    """The cases with one of these words in their names, or all; a quick run has shorter ones, and no tedious ones."""
    named = [case for case in CASES if not only or any(word in case.name for word in only)]
    return [case.shortened() for case in named if not case.tedious] if quick else named


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=None, help=f"{_ROUNDS}, or {_QUICK_ROUNDS} if it is to be quick")
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases that are wanted")
    parser.add_argument("--objects", type=int, default=1_000_000, help="in the cache, to see whether that matters")
    parser.add_argument("--quick", action="store_true", help="less than three minutes, for CI")
    options = parser.parse_args()
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    end_on_signals()
    cases = wanted(options.only, options.quick)
    with started() as bench:
        check_validation(bench)
        found = measure(bench, cases, rounds)
        made = quick_figures(bench) if options.quick else figures(bench, options.objects)
        extra = [] if options.only else list(made)
    report = Report(cases, found, extra, rounds)
    print("\n" + report.table() + "\n\n" + report.figures())
    if not options.only and not options.quick:
        (HERE / "RESULTS.md").write_text(report.page())
        (HERE / "results.svg").write_text(report.plot())


if __name__ == "__main__":
    main()
