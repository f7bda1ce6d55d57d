"""Between dduct and the origin: what networks do to connections. Bodies are right, or visibly incomplete."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Callable, Iterator, List, Tuple

import pytest
from support.client import Answer
from support.origin import Asked, Connection
from support.running import HOST, RunningDduct
from support.trouble import Plan, Trouble

from monitoring.metrics import Counter

SIZE = 16_000_000
BODY = os.urandom(SIZE)


class Ranges:
    """An origin with a strong validator and ranges, that counts what it is asked for."""

    def __init__(self, body: bytes = BODY) -> None:
        self.body = body
        self.starts: List[int] = []

    def __call__(self, asked: Asked, connection: Connection) -> None:
        start = 0
        wanted = asked.get("range")
        fields = [("ETag", '"1"'), ("Cache-Control", "max-age=600")]
        if wanted is not None and asked.get("if-range") == '"1"':
            start = int(wanted[len("bytes=") : -1])
            fields.append(("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"))
        self.starts.append(start)
        connection.head(206 if start else 200, [*fields, ("Content-Length", str(len(self.body) - start))])
        connection.send_body(self.body[start:])


@pytest.fixture
def through(start_dduct: Callable[..., RunningDduct]) -> Iterator[Callable[..., Tuple[RunningDduct, Trouble]]]:
    """A dduct whose origin is behind trouble."""
    with ExitStack() as stack:

        def build(
            handler: Callable[[Asked, Connection], None], *plans: Plan, tls: bool = True
        ) -> Tuple[RunningDduct, Trouble]:
            dduct = start_dduct(upstream_timeout=2.0)
            ahead, lock = itertools.chain(plans, itertools.repeat(Plan())), threading.Lock()

            def plan() -> Plan:
                with lock:
                    return next(ahead)

            return dduct, stack.enter_context(Trouble(dduct.origin(handler, tls=tls).port, plan))

        yield build


def fetch(dduct: RunningDduct, trouble: Trouble, path: str = "/x.deb", tls: bool = True) -> Answer:
    host = f"{HOST}:{trouble.port}"
    with dduct.client() as client:
        if not tls:
            return client.get(f"http://{host}{path}", host)
        assert client.connect(host).status == 200
        client.start_tls(dduct.trust, HOST)
        return client.get(path, host)


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("quarter", [1, 2, 3, 4])
def test_a_cut_at_every_quarter_is_resumed_and_hardly_anything_crosses_twice(
    through: Callable[..., Tuple[RunningDduct, Trouble]], end: str, quarter: int
) -> None:
    origin = Ranges()
    cut = SIZE * quarter // 4 - (2000 if quarter == 4 else 0)
    dduct, trouble = through(origin, Plan(at=cut, end=end))
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(fetch, dduct, trouble) for _ in range(3)]
        assert all(answer.result(30).body == BODY for answer in answers)
    assert dduct.counted(Counter.RESUMED) == 1 and len(origin.starts) == 2
    twice = cut - origin.starts[1]  # TLS makes the bytes on the wire a little more than those of the object
    print(f"{twice} of {SIZE} bytes crossed twice")
    assert twice < SIZE / 100
    assert trouble.carried < 1.02 * SIZE
    assert fetch(dduct, trouble).body == BODY and len(origin.starts) == 2


def test_a_cut_at_each_of_many_places(through: Callable[..., Tuple[RunningDduct, Trouble]]) -> None:
    origin = Ranges()
    dduct, trouble = through(origin, *(Plan(at=3_000_000, end=end) for end in ("fin", "rst", "fin", "rst", "fin")))
    assert fetch(dduct, trouble).body == BODY
    assert len(origin.starts) == 6 and dduct.counted(Counter.PUBLISHED) == 1
    assert trouble.carried < 1.03 * SIZE


def test_a_silence_is_broken_by_asking_again(through: Callable[..., Tuple[RunningDduct, Trouble]]) -> None:
    origin = Ranges()
    dduct, trouble = through(origin, Plan(at=SIZE // 2, hang=True))
    assert fetch(dduct, trouble).body == BODY
    assert len(origin.starts) == 2 and SIZE // 2 - origin.starts[1] < SIZE / 100


@pytest.mark.parametrize("tls", [True, False])
def test_a_body_that_arrives_byte_by_byte_is_complete(
    through: Callable[..., Tuple[RunningDduct, Trouble]], tls: bool
) -> None:
    origin = Ranges(BODY[:20_000])
    dduct, trouble = through(origin, *[Plan(piece=1)] * 2, tls=tls)
    assert fetch(dduct, trouble, tls=tls).body == BODY[:20_000]
    assert fetch(dduct, trouble, tls=tls).body == BODY[:20_000]
    assert len(origin.starts) == 1


def test_high_latency_still_causes_one_transfer(through: Callable[..., Tuple[RunningDduct, Trouble]]) -> None:
    origin = Ranges(BODY[:500_000])
    dduct, trouble = through(origin, *[Plan(delay=0.05)] * 4)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(fetch, dduct, trouble) for _ in range(4)]
        assert all(answer.result(30).body == BODY[:500_000] for answer in answers)
    assert len(origin.starts) == 1


@pytest.mark.parametrize("at", [5, 3_000, SIZE // 2])
def test_a_flipped_bit_under_tls_ends_the_connection(
    through: Callable[..., Tuple[RunningDduct, Trouble]], at: int
) -> None:
    """In the handshake it is the origin that cannot be reached; later on the transfer is resumed."""
    origin = Ranges()
    dduct, trouble = through(origin, Plan(at=at, flip=True))
    answer = fetch(dduct, trouble)
    if at == SIZE // 2:
        assert answer.body == BODY and len(origin.starts) == 2
    else:
        assert answer.status == 502 or answer.body == BODY
        assert fetch(dduct, trouble).body == BODY


@pytest.mark.parametrize("at", [1_000, SIZE // 2, SIZE - 1_000])
def test_a_flipped_bit_in_a_digest_named_object_is_detected(
    through: Callable[..., Tuple[RunningDduct, Trouble]], at: int
) -> None:
    origin = Ranges()
    dduct, trouble = through(origin, Plan(at=at, flip=True), tls=False)
    path = f"/v2/some/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    answer = fetch(dduct, trouble, path, tls=False)
    assert not answer.whole and len(answer.body) <= SIZE - 65_536
    assert dduct.stored() == []
    assert fetch(dduct, trouble, path, tls=False).body == BODY
    assert dduct.counted(Counter.PUBLISHED) == 1
