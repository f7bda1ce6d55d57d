"""What a leader does with an answer without an object, and what others find of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import List, Optional

import pytest
from support.fetching import TOKEN, Answer, Answering, Around

from fetching.cacheable_request import CacheableRequest
from fetching.filling import Filling, Started
from fetching.negative import MAX_BODY, Negative
from fetching.negative_answer import answer_plain
from fetching.small_hit import PlainRequest
from monitoring.details import Detail, NotKept
from monitoring.metrics import Counter
from net.addresses import Reach, Scope
from protocol.headers import Field
from storage.record import Unstorable
from storage.store import Key
from transfers.fill import Fill
from transfers.states import FillState

GOOD_FOR: Field = (b"Cache-Control", b"max-age=60")
GONE = Answer(404, (GOOD_FOR,), b"gone")


def lead(around: Around, *fields: Field) -> object:
    """Lead a fill with the next answer of the origin, to its end."""
    one = Answering(around, around.request(*fields))
    fill = around.lead(one.request)
    asked = one.negative.asking()
    with ExitStack() as cleanup:
        cleanup.callback(fill.close)
        exchange = one.query.get_full()
        cleanup.callback(exchange.close)
        filling = Filling(around.services, one.request, one.query, lambda _: None)
        started = filling.start(fill, exchange, asked, cleanup)
    if isinstance(started, Started):
        started.reader.close()
    return started


def plain(request: CacheableRequest, reach: Reach = Reach.NOTHING) -> PlainRequest:
    head = request.head
    sent = request.sent.headers
    return PlainRequest(head.target, request.target, head.headers, request.name, request.url, sent, reach)


def test_it_is_kept_before_those_that_wait_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    around = Around(tmp_path, GONE)
    seen: List[Optional[Negative]] = []
    real = Fill.decline

    def decline(fill: Fill) -> None:
        seen.append(Answering(around, around.request()).negative.find())
        real(fill)
        assert fill.state is FillState.DECLINED

    monkeypatch.setattr(Fill, "decline", decline)
    kept = lead(around)
    assert isinstance(kept, Negative) and kept.body == b"gone"
    (found,) = seen
    assert found is not None and found.body == b"gone"


def test_it_is_sent_by_both_threads_alike(tmp_path: Path) -> None:
    around = Around(tmp_path, GONE)
    lead(around)
    one = Answering(around, around.request())
    assert one.negative.send_known()
    answer = answer_plain(around.services, plain(one.request))
    assert answer is not None and (answer.status, answer.length, answer.counter) == (404, 4, Counter.NEGATIVE)
    assert answer.data == one.client.head.serialise(one.client.head.headers) + one.client.body
    assert around.count(Counter.NEGATIVE) == 1  # the poller's is counted where it is sent
    assert len(around.origins.asked) == 1


@pytest.mark.parametrize(
    ("scope", "reach"), [(Scope.LOCAL_ONLY, Reach.OWN_ADDRESSES), (Scope.OWN_ADDRESS, Reach.NOTHING)]
)
def test_it_is_for_clients_that_reach_what_it_came_from(tmp_path: Path, scope: Scope, reach: Reach) -> None:
    around = Around(tmp_path, Answer(404, (GOOD_FOR,), b"gone", scope=scope))
    lead(around)
    for client, found in ((reach, False), (Reach.EVERYTHING, True)):
        one = Answering(around, around.request(reach=client))
        assert one.negative.send_known() is found
        assert (answer_plain(around.services, plain(one.request, client)) is not None) is found


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, (), b"gone"),
        Answer(403, (GOOD_FOR,), b"gone"),
        Answer(404, (GOOD_FOR,), bytes(MAX_BODY + 1)),
        Answer(404, (GOOD_FOR,), b"half", length=5),
        Answer(404, (GOOD_FOR,), b"gone", length=None),
    ],
)
def test_any_other_is_not_kept(tmp_path: Path, answer: Answer) -> None:
    around = Around(tmp_path, answer)
    assert isinstance(lead(around), NotKept)
    assert not Answering(around, around.request()).negative.send_known()


def test_credentials_bring_none_and_find_none(tmp_path: Path) -> None:
    around = Around(tmp_path, GONE, GONE)
    assert isinstance(lead(around, TOKEN), NotKept)
    assert isinstance(lead(around), Negative)
    assert Answering(around, around.request(TOKEN)).negative.find() is None
    assert Answering(around, around.request(signature="sig=1")).negative.find() is None
    assert Answering(around, around.request()).negative.find() is not None


def test_where_the_disk_fails_the_claim_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    around = Around(tmp_path, GONE)
    lead(around)
    one = Answering(around, around.request())

    def lookup(_: Key) -> None:
        raise Unstorable("it fails", Detail.DISK)

    monkeypatch.setattr(around.cache, "lookup", lookup)
    assert not one.negative.send_known() and not one.reply.started
