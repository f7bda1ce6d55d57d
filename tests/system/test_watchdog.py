"""A dduct with a frozen process: its worker is replaced, or the process ends."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Iterator

import pytest
from support.client import Client, wait_until
from support.process import Process, write


@pytest.fixture
def dduct(tmp_path: Path, certificates: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    shutil.copytree(certificates, tmp_path / "certs")
    process = Process(write(tmp_path, workers=request.param))
    yield process
    process.close()


@pytest.mark.parametrize("dduct", [2], indirect=True)
def test_frozen_workers_that_were_replaced_are_counted(dduct: Process) -> None:
    """By their parent: a worker's own counters end with it."""
    tcp, _ = dduct.ports()
    wait_until(lambda: len(dduct.children()) == 2)
    for number, worker in enumerate(sorted(dduct.children()), 1):
        os.kill(worker, signal.SIGVTALRM)
        dduct.wait_for("did not answer for 20 s of processor time", number)
    wait_until(lambda: len(dduct.children()) == 2)
    with Client(tcp) as client:
        assert "\ndduct_frozen_workers_total 2\n" in client.get("/metrics", "localhost").body.decode()
    dduct.signal(signal.SIGTERM)
    assert dduct.wait() == 0


@pytest.mark.parametrize("dduct", [1], indirect=True)
def test_a_frozen_dduct_of_one_process_ends_itself(dduct: Process) -> None:
    tcp, _ = dduct.ports()
    with Client(tcp) as client:
        assert client.get("/healthz", "localhost").status == 200
    dduct.signal(signal.SIGVTALRM)
    assert dduct.wait() == -signal.SIGVTALRM
    dduct.wait_for("(most recent call first)")
