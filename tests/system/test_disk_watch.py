"""A disk that hangs."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest
from support.client import wait_until
from support.origin import Files, Origin
from support.running import HOST, RunningDduct

from cache import Cache
from monitoring.metrics import Counter, Gauge
from server import server
from storage import disk_watch
from storage.disk_watch import DiskWatch, WaitBudget
from storage.record import Unstorable
from storage.run_delay import RunDelays, run_delay
from storage.store import Store
from transfers.growing_file import GrowingFile

BODY = b"0123456789" * 400
TIMEOUT = 20.0
STATISTICS = Path("/proc/thread-self/schedstat")

pytestmark = pytest.mark.one_process


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_slow_operation_marks_the_disk_as_slow_for_a_while() -> None:
    clock, told = Clock(), [0]
    disk = DiskWatch(clock)

    def tell() -> None:
        told[0] += 1

    disk.on_slow = tell
    for seconds, slow in ((0.05, False), (0.15, True), (0.15, True)):
        with disk.operation():
            clock.now += seconds
        assert disk.is_slow(clock.now) is slow
    assert told == [1]
    clock.now += 1.5
    assert not disk.is_slow(clock.now)


def test_an_operation_that_lasts_counts_before_it_ends() -> None:
    clock = Clock()
    disk = DiskWatch(clock)
    with disk.operation():
        assert not disk.is_slow(clock.now)
        clock.now += 5
        assert disk.is_slow(clock.now)
        clock.now += 5
        assert disk.is_slow(clock.now)
    clock.now += 1.5
    assert not disk.is_slow(clock.now)


def test_a_thread_that_hangs_counts_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    disk = DiskWatch(clock, "/var/cache/x")
    assert not disk.waiting() and not caplog.text
    disk.lost(1.0, clock.now - 0.6, 17)
    with disk.operation():
        clock.now += 0.01
        assert disk.is_slow(clock.now) and disk.waiting() == 1
    for _ in range(200):
        clock.now += 1
        assert disk.is_slow(clock.now) and disk.waiting() == 1
    disk.found(1.0, 17)
    assert not disk.waiting()
    clock.now += 1.5
    assert not disk.is_slow(clock.now)
    assert '"/var/cache/x" is slow: an operation has taken 0.6 s' in caplog.text


def test_an_operation_of_the_poller_is_seen_while_it_lasts() -> None:
    disk = DiskWatch()
    assert disk.poll(lambda: disk.polling) is not None
    assert disk.polling is None
    with pytest.raises(FileNotFoundError):
        disk.poll(lambda: os.stat("/nothing/here"))
    assert disk.polling is None


def test_a_thread_that_was_lost_uses_the_disk_like_any_other() -> None:
    """Its operations are not those of its successor, which would be replaced for them."""
    disk, me = DiskWatch(), threading.get_ident()

    def hang() -> Optional[float]:
        operation = disk.polling
        disk.lost(operation, time.monotonic() - 0.6, me)  # as the supervisor does
        disk.polling = 2.0  # the successor's
        return operation

    operation = disk.poll(hang)
    assert disk.polling == 2.0
    assert disk.poll(lambda: (disk.polling, len(disk._in_flight))) == (2.0, 2)
    disk.found(operation, me)
    disk.polling = None
    assert disk.poll(lambda: disk.polling) is not None


def test_one_hang_is_counted_once() -> None:
    clock, told = Clock(), [0]
    disk = DiskWatch(clock)

    def tell() -> None:
        told[0] += 1

    disk.on_slow = tell
    with disk.operation():
        for _ in range(100):
            clock.now += 0.5
            assert disk.waiting() == 1
    assert told == [1]


def test_the_number_of_threads_that_wait_for_a_hung_disk_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "_MAX_WAITING", 2)
    clock = Clock()
    disk = DiskWatch(clock)
    with ExitStack() as stack:
        for _ in range(3):  # as many as come while it is quick
            stack.enter_context(disk.operation())
        clock.now += 1
        with pytest.raises(Unstorable, match=r"misc\.file_dir"), disk.operation():
            raise AssertionError
    clock.now += 3
    with disk.operation():
        pass
    assert not disk._in_flight


def test_a_hung_disk_does_not_block_the_poller(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold request waits for it; hits wait in threads, and what needs no disk goes on."""
    origin = dduct.origin(Files({"/x.deb": BODY, "/y.deb": BODY, "/z.deb": BODY}), tls=False)
    hot = f"http://{HOST}:{origin.port}/x.deb"
    client = dduct.client()
    for _ in range(6):
        assert client.get(hot, f"{HOST}:{origin.port}").body == BODY
        dduct.wait_until_durable()
    gate, hung, real_stat = threading.Event(), [False], os.stat
    threads: List[str] = []
    real_open = Store.open_entry

    def stat(path: Any, *arguments: Any, **keys: Any) -> os.stat_result:
        if hung[0] and isinstance(path, str) and path.endswith("x.deb"):
            threads.append(threading.current_thread().name)
            assert gate.wait(TIMEOUT)
        return real_stat(path, *arguments, **keys)

    def open_entry(store: Store, place: str, *arguments: Any) -> Any:
        if hung[0]:
            assert gate.wait(TIMEOUT)
        return real_open(store, place, *arguments)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Store, "open_entry", open_entry)
    with ThreadPoolExecutor(2) as pool:
        try:
            hung[0] = True
            cold = dduct.client()
            asked = pool.submit(cold.get, f"http://{HOST}:{origin.port}/y.deb", f"{HOST}:{origin.port}")
            wait_until(lambda: dduct.server.cache.disk.is_slow(time.monotonic()))
            repeated = pool.submit(client.get, hot, f"{HOST}:{origin.port}")
            wait_until(lambda: bool(threads))
            for _ in range(2):
                assert dduct.client().get("/healthz", "localhost").status == 200
            relayed = dduct.client().get(f"http://{HOST}:{origin.port}/relayed", f"{HOST}:{origin.port}")
            assert relayed.status == 404
        finally:
            gate.set()
        assert repeated.result(TIMEOUT).body == asked.result(TIMEOUT).body == BODY
    assert "idle" not in threads
    assert dduct.counters.value(Counter.SLOW_DISK) >= 1


def serves_others(dduct: RunningDduct, origin: Origin) -> None:
    """The poller goes on, although one of its threads hangs."""
    for _ in range(2):
        assert dduct.client().get("/healthz", "localhost").status == 200
    assert dduct.client().get(f"http://{HOST}:{origin.port}/relayed", f"{HOST}:{origin.port}").status == 404


@pytest.mark.parametrize("step", ["glance", "look", "lead", "close"])
def test_a_poller_thread_that_hangs_in_a_small_miss_is_replaced(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever it hangs, and although it goes on to other operations later; nobody else loses a connection."""
    origin = dduct.origin(Files({"/slow.deb": BODY, "/x.deb": BODY, "/y.deb": BODY}), tls=False)
    name = f"{HOST}:{origin.port}"
    assert dduct.client().get(f"http://{name}/x.deb", name).body == BODY
    wait_until(lambda: dduct.server.runtime.services.origins.idle == 1)
    gate, hanging = threading.Event(), threading.Event()
    owner: Any = GrowingFile if step == "close" else Cache
    real = getattr(owner, step)

    def hang(one: Any, *arguments: Any) -> Any:
        is_slow = one.fd >= 0 and "slow" in one.place if step == "close" else "slow" in arguments[0].name
        if is_slow and threading.current_thread().name == "idle" and not hanging.is_set():
            hanging.set()
            assert gate.wait(TIMEOUT)
        return real(one, *arguments)

    monkeypatch.setattr(owner, step, hang)
    bystander = dduct.client()
    assert bystander.get("/healthz", "localhost").status == 200
    with ThreadPoolExecutor(1) as pool:
        try:
            slow = pool.submit(dduct.client().get, f"http://{name}/slow.deb", name)
            assert hanging.wait(TIMEOUT)
            serves_others(dduct, origin)
        finally:
            gate.set()
        assert slow.result(TIMEOUT).body == BODY
    serves_others(dduct, origin)
    assert bystander.get(f"http://{name}/y.deb", name).body == BODY
    assert origin.count("/slow.deb") == 1


def test_a_poller_thread_that_hangs_in_the_disk_is_replaced(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    hot, name = f"http://{HOST}:{origin.port}/x.deb", f"{HOST}:{origin.port}"
    client = dduct.client()
    for _ in range(6):
        assert client.get(hot, name).body == BODY
        dduct.wait_until_durable()
    gate, hanging, real_stat = threading.Event(), threading.Event(), os.stat
    threads: List[str] = []

    def stat(path: Any, *arguments: Any, **keys: Any) -> os.stat_result:
        if isinstance(path, str) and path.endswith("x.deb"):
            threads.append(threading.current_thread().name)
            hanging.set()
            assert gate.wait(TIMEOUT)
        return real_stat(path, *arguments, **keys)

    monkeypatch.setattr(os, "stat", stat)
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(client.get, hot, name)
            assert hanging.wait(TIMEOUT)
            assert threads == ["idle"]
            for _ in range(2):
                assert dduct.client().get("/healthz", "localhost").status == 200
            assert dduct.client().get(f"http://{name}/relayed", name).status == 404
            with dduct.client() as tunnel:
                assert tunnel.connect(f"localhost:{origin.port}").status == 200
                assert tunnel.get("/other", name).status == 404
            second = pool.submit(dduct.client().get, hot, name)
            wait_until(lambda: dduct.counters.value(Gauge.DISK_WAITING) >= 1)
            assert b"\ndduct_disk_waiting 0\n" not in dduct.client().get("/metrics", "localhost").body
        finally:
            gate.set()
        assert first.result(TIMEOUT).body == second.result(TIMEOUT).body == BODY
    assert threads.count("idle") == 1
    wait_until(lambda: dduct.counters.value(Gauge.DISK_WAITING) == 0)
    assert dduct.counters.value(Counter.SLOW_DISK) >= 1
    assert client.get(hot, name).body == BODY


def test_a_stop_while_the_disk_hangs_takes_bounded_time(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the hanging thread is not waited for."""
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    hot, name = f"http://{HOST}:{origin.port}/x.deb", f"{HOST}:{origin.port}"
    client, bystander = dduct.client(), dduct.client()
    for _ in range(6):
        assert client.get(hot, name).body == BODY
        dduct.wait_until_durable()
    gate, hanging, real_stat = threading.Event(), threading.Event(), os.stat

    def stat(path: Any, *arguments: Any, **keys: Any) -> os.stat_result:
        if threading.current_thread().name == "idle":
            hanging.set()
            assert gate.wait(TIMEOUT)
        return real_stat(path, *arguments, **keys)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(server, "_FORCED_END", 0.1)
    try:
        client.send(f"GET {hot} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        assert hanging.wait(TIMEOUT)
        dduct.server.stop(0.1)
        assert bystander.at_end()
    finally:
        gate.set()
    wait_until(lambda: not dduct.server.snapshot().threads and not dduct.server.snapshot().aside)


def test_requests_are_relayed_while_the_disk_hangs(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "_MAX_WAITING", 0)
    monkeypatch.setattr(DiskWatch, "is_slow", lambda *_: True)
    origin = dduct.origin(Files({"/x.deb": BODY}))
    for count in (1, 2):
        assert dduct.fetch(origin, "/x.deb").body == BODY
        assert origin.count("/x.deb") == count
    assert dduct.stored() == []


def test_a_thread_waits_for_a_tenth_of_its_time_at_most() -> None:
    budget = WaitBudget()
    assert not budget.exhausted(100.0)
    for _ in range(1000):
        budget.note(0.001)  # from memory
    assert not budget.exhausted(100.0)
    for _ in range(11):
        budget.note(0.02)
    assert budget.exhausted(100.0) and budget.exhausted(100.5)
    assert not budget.exhausted(101.5)
    budget.note(0.05)
    assert budget.exhausted(101.5)
    assert not budget.exhausted(200.0)


def test_a_thread_that_hung_for_minutes_works_again_soon() -> None:
    budget = WaitBudget()
    budget.exhausted(100.0)
    budget.note(300.0)
    assert budget.exhausted(100.0) and not budget.exhausted(110.0)


def test_a_wait_for_a_processor_is_no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, delay = Clock(), Clock()
    disk = DiskWatch(clock, run_delay=delay)
    monkeypatch.setattr("storage.disk_watch.time.monotonic", clock)

    def wait(seconds: float, without_processor: float) -> None:
        clock.now += seconds
        delay.now += without_processor

    for _ in range(100):
        disk.poll(lambda: wait(0.5, 0.4999))
        assert disk.may_poll(clock.now)
    disk.poll(lambda: wait(0.5, 0.3))
    assert not disk.may_poll(clock.now)


def test_the_delay_of_each_thread_is_its_own() -> None:
    delays = iter([1.0, 5.0, 5.5])
    measured = RunDelays(lambda: next(delays))
    measured.begin(100.0)
    measured.begin(100.004)  # it was read just now
    other = threading.Thread(target=measured.begin, args=(100.004,))
    other.start()
    other.join()
    assert measured.measured() == 0.5


@pytest.mark.parametrize("figures", [(None, 500.0), (500.0, None), (None, None)])
def test_a_delay_that_is_not_known_explains_nothing(figures: Tuple[Optional[float], Optional[float]]) -> None:
    """Without a descriptor for the kernel's figure, for instance."""
    figure = iter(figures)
    measured = RunDelays(lambda: next(figure))
    measured.begin(100.0)
    assert measured.measured() == 0.0


def test_without_a_descriptor_the_delay_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("storage.run_delay.os.open", fail)
    assert run_delay() is None


@pytest.mark.skipif(not STATISTICS.exists(), reason="a kernel that does not count it")
def test_the_kernel_counts_the_time_without_a_processor() -> None:
    before = int(STATISTICS.read_text().split()[1]) / 1e9
    delay = run_delay()
    assert delay is not None and delay >= before
