#!/usr/bin/env python3
"""How long do real clients take through dduct and Squid, and straight? npm, pip, apt and skopeo, cold and warm.

    real_clients.py [--only KIND …] [--delay MS …] [--jobs N …] [--rounds N] [--quick]        as root; writes CLIENTS.md

All packages are made here, and the origins are nginx and docker-registry on this machine, as far away as `--delay` says
(delay.py). Each measurement starts proxies with empty caches: the first run is the cold one, the second the warm one.
With several jobs, so many clients run at once, each with directories of its own; the time ends with the last. A kind
whose client is missing is skipped. A run with other options than `--rounds` prints its table, and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator, List, Sequence

from client_report import Measured, Row, page, table
from distant import Place, hosts_file
from kinds import Kind, kinds
from programs import HERE, end_on_signals, scratch

_DELAYS = (25.0, 0.0)  # milliseconds of a round trip
_JOBS = (1, 6)
_QUICK_JOBS = (1, 3)
_ROUNDS = 3
_INSIDE = "DDUCT_BENCH_HOSTS"  # set once the names of the origins are known


def measure(place: Place, kind: Kind, delay: float, jobs: int, number: int) -> Iterator[Measured]:
    """One round of one kind: straight, and cold and warm through each proxy, whose caches begin empty."""
    name = f"{kind.name}-{delay:g}-{jobs}-{number}"
    yield "straight", place.run(kind, delay, jobs, f"{name}-straight", None)
    for who in ("dduct", "Squid"):
        with place.proxy(who, f"{name}-{who}") as proxy:
            if proxy is None:
                continue
            for state in ("cold", "warm"):
                yield f"{who} {state}", place.run(kind, delay, jobs, f"{name}-{who}-{state}", proxy)


def measure_all(
    place: Place, wanted: Sequence[Kind], delays: Sequence[float], all_jobs: Sequence[int], rounds: int
) -> List[Row]:
    """A row for each kind, delay and number of jobs; rounds are interleaved, as the machine's speed varies."""
    rows = [Row(kind.name, delay, jobs) for kind in wanted for delay in delays for jobs in all_jobs]
    by_name = {kind.name: kind for kind in wanted}
    for number in range(rounds):
        for row in rows:
            for which, took in measure(place, by_name[row.kind], row.delay, row.jobs, number):
                row.add(which, took)
                title = f"{row.kind}, {row.delay:g} ms, {row.jobs} at once"
                print(f"  {title:28} {which:12} {took.seconds:7.2f} s, proxy {took.cpu:6.2f} s", flush=True)
    return rows


def usable(only: Sequence[str], quick: bool) -> List[Kind]:
    """The kinds that are wanted and whose programs are here; a reason is printed for the others."""
    found = []
    for kind in kinds(quick):
        if only and kind.name not in only:
            continue
        missing = kind.missing()
        if missing:
            print(f"  {kind.name}: skipped, needs {', '.join(missing)}", flush=True)
        else:
            found.append(kind)
    return found


@contextlib.contextmanager
def started(wanted: Sequence[Kind], delays: Sequence[float]) -> Iterator[Place]:
    """The origins with all packages, running until the context ends; then nothing is left."""
    with scratch("dduct-clients-") as directory, ExitStack() as stack:
        yield Place(directory, stack, wanted, delays)


def with_names() -> None:
    """Run this script again where the origin's name is known; nothing outside sees that. Needs root.

    Clients send what is for a loopback address past their proxies: so the origin has a name.
    """
    if os.environ.get(_INSIDE):
        return
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        raise SystemExit("needs root and unshare")
    number, hosts = tempfile.mkstemp(prefix="dduct-hosts-")
    os.close(number)
    Path(hosts).write_text(hosts_file())
    os.chmod(hosts, 0o644)  # Squid is another user
    script = 'mount --bind "$1" /etc/hosts && rm "$1" && shift && exec "$@"'
    command = [unshare, "-m", "sh", "-c", script, "sh", hosts, sys.executable, *sys.argv]
    os.execve(unshare, command, {**os.environ, _INSIDE: "1"})


def parse() -> argparse.Namespace:
    names = [kind.name for kind in kinds(True)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], choices=names, metavar="KIND", help=", ".join(names))
    parser.add_argument("--delay", nargs="*", type=float, default=list(_DELAYS), help="milliseconds of a round trip")
    parser.add_argument("--jobs", nargs="*", type=int, default=None, help="clients at once")
    parser.add_argument("--rounds", type=int, default=None, help=f"{_ROUNDS}; the result is the median")
    parser.add_argument("--quick", action="store_true", help="one round with few packages, for CI")
    options = parser.parse_args()
    options.complete = not (options.only or options.quick or options.jobs or options.delay != list(_DELAYS))
    options.jobs = options.jobs or list(_QUICK_JOBS if options.quick else _JOBS)
    options.rounds = options.rounds or (1 if options.quick else _ROUNDS)
    return options


def main() -> None:
    options = parse()
    with_names()
    end_on_signals()
    wanted = usable(options.only, options.quick)
    with started(wanted, options.delay) as place:
        rows = measure_all(place, wanted, options.delay, options.jobs, options.rounds)
    print("\n" + table(rows))
    if options.complete:
        (HERE / "CLIENTS.md").write_text(page(rows, wanted, options.rounds))


if __name__ == "__main__":
    main()
