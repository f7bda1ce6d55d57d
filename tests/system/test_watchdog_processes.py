"""A process that holds the interpreter's lock is ended; dduct goes on, or ends when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest
from support.process import ROOT, TIMEOUT, Running

PREAMBLE = """
import logging, os, re, signal, sys, threading, time
from server import watchdog
from server.workers import SIGNALS, Duties, Limits, Workers, follow_parent, wait_for_signal
logging.basicConfig(format="%(message)s", level=logging.INFO)
say = logging.getLogger().info

def freeze():
    re.match("(a+)+$", "a" * 60 + "b")

def be_busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""

# What a worker does at a signal: SIGHUP: freeze; SIGINT: be busy; SIGCHLD: answer; SIGTERM: end, unless it is deaf.
WORKERS = """
silence, end, deaf = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "deaf"

def work(number, lifeline):
    follow_parent(lifeline)
    say(f"worker {number} runs as {os.getpid()}")
    while True:
        received = wait_for_signal()
        if received == signal.SIGHUP:
            threading.Thread(target=freeze, daemon=True).start()
        elif received == signal.SIGINT:
            threads = [threading.Thread(target=be_busy, args=(4 * silence,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            say(f"worker {number} has worked")
        elif received == signal.SIGCHLD:
            say(f"worker {number} answers as {os.getpid()}")
        elif not deaf:
            return 0

signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
sys.exit(Workers(
    2, work, Duties(lambda: True, lambda: say("all are told to end"), lambda: say("one was frozen")),
    Limits(silence, end),
).run())
"""

LONG = 60.0
Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program of Python that can import dduct's modules."""
    with ExitStack() as stack:

        def begin(program: str, *arguments: object) -> Running:
            command = [sys.executable, "-c", PREAMBLE + program, *map(str, arguments)]
            running = Running(command, ROOT)
            stack.callback(running.close)
            return running

        yield begin


def workers(running: Running) -> Dict[int, int]:
    """The process of each of the two, as started first."""
    found = [re.findall(r"\d+", line) for line in running.wait_for(" runs as ", 2)[:2]]
    return {int(number): int(process) for number, process in found}


# --- several ----------------------------------------------------------------------------------------


def test_a_frozen_worker_is_replaced(start: Start) -> None:
    running = start(WORKERS, 0.3, LONG, "")
    first = workers(running)
    os.kill(first[0], signal.SIGHUP)
    (line,) = running.wait_for("did not answer for 0.3 s of processor time")
    assert f"Worker 0 (process {first[0]}) " in line and "proxy.filters" in line and "cache.volatile" in line
    running.wait_for("worker 0 runs as ", 2)
    assert len(running.wait_for("one was frozen")) == 1
    assert any(re.search(r"line \d+ in freeze$", said) for said in running.lines)  # the stack says where
    assert first[1] in running.children()
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


@pytest.mark.parametrize("trouble", ["frozen", "deaf", "stopped"])
def test_a_worker_that_cannot_end_is_killed(start: Start, trouble: str) -> None:
    running = start(WORKERS, LONG, 0.3, trouble)
    processes = workers(running)
    if trouble == "frozen":
        os.kill(processes[0], signal.SIGHUP)
    elif trouble == "stopped":
        os.kill(processes[0], signal.SIGSTOP)
    running.signal(signal.SIGTERM)
    running.wait_for(f"Worker 0 (process {processes[0]}) has not ended when it was told to, and is killed")
    assert running.wait() == 1
    assert not any(Path(f"/proc/{process}").exists() for process in processes.values())


def test_a_frozen_worker_ends_at_a_stop(start: Start) -> None:
    running = start(WORKERS, 0.3, LONG, "")
    os.kill(workers(running)[0], signal.SIGHUP)
    running.signal(signal.SIGTERM)
    assert running.wait() in (0, 1)  # whether it was frozen before it heard of the end
    assert len(running.wait_for(" runs as ")) == 2


def test_a_stopped_worker_is_not_mistaken_for_a_frozen_one(start: Start) -> None:
    running = start(WORKERS, 0.3, LONG, "")
    processes = workers(running)
    os.kill(processes[0], signal.SIGSTOP)
    os.kill(processes[1], signal.SIGHUP)
    running.wait_for(f"Worker 1 (process {processes[1]}) did not answer")  # the other one has had as long
    os.kill(processes[0], signal.SIGCONT)
    os.kill(processes[0], signal.SIGCHLD)
    running.wait_for(f"worker 0 answers as {processes[0]}")
    assert processes[0] in running.children()


def test_a_busy_worker_is_not_mistaken_for_a_frozen_one(start: Start) -> None:
    running = start(WORKERS, 0.3, LONG, "")
    processes = workers(running)
    os.kill(processes[0], signal.SIGINT)
    running.wait_for("worker 0 has worked")
    assert not any("did not answer" in line for line in running.lines)


# --- one --------------------------------------------------------------------------------------------

ALONE = "watchdog.start(0.3)\nfreeze()\n"
INHERITED = "signal.signal(signal.SIGVTALRM, signal.SIG_IGN)\n"
INHERITED += "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGVTALRM})\n"


@pytest.mark.parametrize("before", ["", INHERITED], ids=["usual", "ignored and blocked by who started it"])
def test_a_frozen_process_ends(start: Start, before: str) -> None:
    running = start(before + ALONE)
    assert running.wait() == -signal.SIGVTALRM
    running.wait_for(" in freeze")


FULL = """
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"full" * 1024)
except BlockingIOError:
    os.set_blocking(2, True)
"""


def test_a_full_pipe_does_not_block_the_stack_dump() -> None:
    """The pipe is full: a write that waits for room would wait for ever, and the process would not end."""
    command = [sys.executable, "-c", PREAMBLE + FULL + ALONE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.wait(TIMEOUT) == -signal.SIGVTALRM


def test_a_process_that_does_not_end_in_time_is_ended(start: Start) -> None:
    running = start("watchdog.end_within(0.3)\ntry:\n    time.sleep(1000)\nfinally:\n    say('went on')\n")
    assert running.wait() == 1
    running.wait_for(" in <module>")
    assert "went on" not in running.lines
