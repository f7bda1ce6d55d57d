"""Whose password is hashed next."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Dict, List

import pytest
from support.client import wait_until

from proxy import password_queue
from proxy.password_queue import PasswordQueue, TooManyPasswords

TIMEOUT = 20.0


class Hashing:
    """Threads that hash as long as the test wants; `order` is in what order they could."""

    def __init__(self, queue: PasswordQueue, pool: ThreadPoolExecutor) -> None:
        self.queue, self.pool = queue, pool
        self.order: List[str] = []
        self.gates: Dict[str, threading.Event] = {}

    def send(self, name: str, address: str, user: str = "") -> Future[None]:
        """A password; it waits or hashes when this returns."""
        self.gates[name] = threading.Event()
        before = self.queued()
        future = self.pool.submit(self._hash, name, address, user)
        wait_until(lambda: name in self.order or self.queued() != before or future.done())
        return future

    def queued(self) -> List[int]:
        with self.queue._lock:
            return [id(one) for waiting in self.queue._waiting.values() for one in waiting]

    def _hash(self, name: str, address: str, user: str) -> None:
        with self.queue.admission(address, user):
            self.order.append(name)
            assert self.gates[name].wait(TIMEOUT)


def test_an_address_has_one_hash_at_a_time_and_the_next_address_comes_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        hashing = Hashing(PasswordQueue(), pool)
        all_of_them = [hashing.send(name, "guesser") for name in ("g1", "g2", "g3")]
        all_of_them.append(hashing.send("friend", "elsewhere"))
        wait_until(lambda: hashing.order == ["g1", "friend"])
        for gate in hashing.gates.values():
            gate.set()
        for future in all_of_them:
            future.result(TIMEOUT)
    assert hashing.order == ["g1", "friend", "g2", "g3"] and not hashing.queue._waiting


def test_an_address_that_guesses_comes_after_one_that_does_not() -> None:
    with ThreadPoolExecutor(8) as pool:
        hashing = Hashing(PasswordQueue(), pool)
        hashing.queue.note("guesser", right=False)
        futures = [hashing.send(name, name) for name in ("a", "b", "guesser", "friend")]
        hashing.gates["a"].set()
        wait_until(lambda: hashing.order == ["a", "b", "friend"])
        for gate in hashing.gates.values():
            gate.set()
        for future in futures:
            future.result(TIMEOUT)


def test_the_oldest_of_too_many_is_refused_at_once() -> None:
    """And not the newest, which may be the one that is right."""
    with ThreadPoolExecutor(8) as pool:
        hashing = Hashing(PasswordQueue(), pool)
        running = hashing.send("running", "guesser")
        waiting = [hashing.send(f"w{number}", "guesser") for number in range(password_queue._WAITING_PER_USER)]
        newest = hashing.send("newest", "guesser")
        with pytest.raises(TooManyPasswords):
            waiting[0].result(TIMEOUT)
        for gate in hashing.gates.values():
            gate.set()
        for future in [running, newest, *waiting[1:]]:
            future.result(TIMEOUT)
    assert "w0" not in hashing.order and hashing.order[-1] == "newest"


def test_many_users_may_share_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(password_queue, "_WAITING_PER_ADDRESS", 8)
    with ThreadPoolExecutor(12) as pool:
        hashing = Hashing(PasswordQueue(), pool)
        users = [hashing.send(f"user{number}", "nat", f"user{number}") for number in range(9)]  # one of them hashes
        assert not any(user.done() for user in users)
        newest = hashing.send("user9", "nat", "user9")
        with pytest.raises(TooManyPasswords):
            users[1].result(TIMEOUT)  # in all, there is a bound
        for gate in hashing.gates.values():
            gate.set()
        for future in [users[0], *users[2:], newest]:
            future.result(TIMEOUT)
    assert hashing.order == ["user0", *(f"user{number}" for number in range(2, 10))]


def test_no_password_check_waits_for_ever() -> None:
    queue = PasswordQueue(timeout=0.01)
    with queue.admission("a"):
        with pytest.raises(TooManyPasswords), queue.admission("a"):
            raise AssertionError
        assert not queue._waiting
    with queue.admission("a"):
        pass
    assert not queue._running


def test_the_number_of_remembered_guessers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(password_queue, "_GUESSERS_REMEMBERED", 2)
    queue = PasswordQueue()
    for address in ("a", "b", "c"):
        queue.note(address, right=False)
    queue.note("c", right=True)
    assert list(queue._guessers) == ["b"]
