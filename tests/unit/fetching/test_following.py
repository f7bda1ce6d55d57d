"""What a follower does, whatever becomes of its leader's fill: a real fill, a client and an origin in memory."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Callable, Iterator, Optional, Union

import pytest
from support.fetching import MINUTE, PATH, TOKEN, URL, Answer, Answering, Around, meta, ok, sha256_of

from cache import Follow
from fetching.cacheable_request import CacheableRequest
from fetching.following import Following
from fetching.leading import Leading
from fetching.negative import Negative
from fetching.outcomes import Outcome
from monitoring.details import Detail
from monitoring.metrics import Counter
from net.addresses import Scope
from protocol.freshness import Stored
from protocol.headers import Headers
from storage.record import Digest, Metadata
from transfers.fill import Fill
from transfers.follow import FillReader
from transfers.states import FillState
from upstream.dialling import Unanswered, UpstreamError

BODY = b"the body of an object"
STORED = meta(("ETag", '"1"'))
SAME = Answer(304, ((b"ETag", b'"1"'),))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each follower waits for as long as it may, at once."""
    monkeypatch.setattr("fetching.following._SLOW_HEAD", 0.0)
    monkeypatch.setattr("fetching.following.HEAD_TIMEOUT", 0.0)


class Pair:
    """A leader's fill, and a follower."""

    def __init__(
        self,
        directory: Path,
        *answers: Union[Answer, UpstreamError],
        request: Optional[Callable[[Around], CacheableRequest]] = None,
        digest: Optional[Digest] = None,
    ) -> None:
        self.around = Around(directory, *answers)
        leader = self.around.request(digest=digest, host="other.thing" if digest else "some.thing")
        self.fill: Fill = self.around.lead(leader)
        self.asker = self.fill.asking.lead(leader.question, self.fill.fail, self.fill.close)
        mine = request(self.around) if request else self.around.request(digest=digest)
        claim = self.around.claim(mine)
        assert isinstance(claim, Follow)
        self.reader: FillReader = claim.reader
        self.one = Answering(self.around, mine)
        one, services = self.one, self.around.services
        shared = (services, one.reply, mine)
        leading = Leading(*shared, one.query, one.relay, one.authorization, one.answer, one.negative)
        self._following = Following(*shared, one.relay, one.authorization, one.answer, one.negative, leading)

    def follow(self) -> Outcome:
        with closing(self.reader):
            return self._following.follow(self.reader, None)

    def complete(self, stored: Metadata = STORED) -> None:
        """The leader's origin has sent everything."""
        self.asker.answered()
        self.fill.start(stored, len(BODY))
        self.fill.write(memoryview(BODY))
        assert self.fill.publish()

    def close(self) -> None:
        self.asker.close()
        self.fill.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    made = []

    def make(*answers: Union[Answer, UpstreamError], **more: object) -> Pair:
        made.append(Pair(tmp_path, *answers, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def with_token(around: Around) -> CacheableRequest:
    return around.request(TOKEN)


def that_accepts_text(around: Around) -> CacheableRequest:
    return around.request((b"Accept", b"text/plain"))


def test_a_follower_gets_the_leader_s_bytes_and_asks_nobody(pair: Callable[..., Pair]) -> None:
    one = pair()
    one.complete()
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == BODY and one.one.client.cache_status == "fwd=uri-miss; collapsed"
    assert one.around.origins.asked == [] and one.around.count(Counter.COLLAPSED) == 1


def test_where_the_leader_gave_up_the_next_claim_decides(pair: Callable[..., Pair]) -> None:
    one = pair()
    one.fill.hand_on()
    assert one.follow() is Outcome.RETRY and not one.one.reply.started


def test_what_is_not_stored_each_client_gets_for_itself(pair: Callable[..., Pair]) -> None:
    one = pair(ok(b"mine"))
    one.fill.asking.declined_for = Detail.NO_STORE
    one.fill.decline()
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == b"mine"
    assert one.one.client.cache_status == "fwd=uri-miss; detail=no-store"


def test_a_leader_s_failure_is_that_of_a_follower_with_the_same_question(pair: Callable[..., Pair]) -> None:
    one = pair()
    one.asker.fail(Unanswered("hung up"))
    with pytest.raises(Unanswered, match="hung up"):
        one.follow()
    assert one.around.origins.asked == []


def test_another_question_may_fare_better(pair: Callable[..., Pair]) -> None:
    one = pair(request=lambda around: around.request((b"Accept", b"text/plain")))
    one.asker.fail(Unanswered("hung up"))
    assert one.follow() is Outcome.RETRY


def test_a_leader_that_waits_too_long_is_waited_for_no_more(pair: Callable[..., Pair]) -> None:
    one = pair(ok(b"mine"))
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == b"mine" and one.fill.state is FillState.ASKING


def test_another_question_is_asked_too_while_the_leader_waits(pair: Callable[..., Pair]) -> None:
    """The first answer fills the object for both."""
    one = pair(ok(BODY, (b"ETag", b'"1"')), request=lambda around: around.request((b"Accept", b"text/plain")))
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == BODY and one.one.client.cache_status == "fwd=uri-miss; stored"
    assert one.fill.state is FillState.PUBLISHED and not one.asker.answered()
    assert one.around.origins.fields(b"accept") == [(b"text/plain",)]


# --- whom the object is for -----------------------------------------------------------------------


def test_a_restricted_object_takes_permission(pair: Callable[..., Pair]) -> None:
    one = pair(SAME, request=with_token)
    one.complete(meta(("ETag", '"1"'), restricted=True, restricted_by=("fields",)))
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == BODY
    assert one.around.origins.fields(b"authorization", b"if-none-match") == [(TOKEN[1], b'"1"')]


def test_without_permission_the_client_gets_the_origin_s_answer(pair: Callable[..., Pair]) -> None:
    one = pair(Answer(403, (), b"no"), request=with_token)
    one.complete(meta(("ETag", '"1"'), restricted=True, restricted_by=("fields",)))
    assert one.follow() is Outcome.DONE
    assert (one.one.client.head.status, one.one.client.body) == (403, b"no")
    assert one.around.count(Counter.COLLAPSED) == 0


def test_what_was_selected_for_another_request_is_not_shared(pair: Callable[..., Pair]) -> None:
    one = pair(ok(b"mine"))
    one.complete(meta(("ETag", '"1"'), vary=(("accept-language", "de"),)))
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == b"mine" and one.one.client.cache_status == "fwd=vary-miss"


# --- bytes of a digest that another URL brings ----------------------------------------------------


def test_this_url_s_origin_confirms_what_another_url_brings(pair: Callable[..., Pair]) -> None:
    one = pair(ok(BODY), digest=sha256_of(BODY))
    one.complete(meta(url=f"https://other.thing{PATH}"))
    assert one.follow() is Outcome.DONE
    assert one.one.client.body == BODY and one.one.client.cache_status == "fwd=uri-miss; collapsed"
    hit = one.around.hit(one.one.request)
    hit.entry.close()
    assert hit.metadata is not None and hit.metadata.url == URL  # from now on it is known here, too


def test_where_it_has_other_bytes_the_client_gets_those(pair: Callable[..., Pair]) -> None:
    one = pair(Answer(404, (), b"none"), digest=sha256_of(BODY))
    one.complete(meta(url=f"https://other.thing{PATH}"))
    assert one.follow() is Outcome.DONE
    assert (one.one.client.head.status, one.one.client.body) == (404, b"none")
    hit = one.around.hit(one.one.request)
    hit.entry.close()
    assert hit.metadata is None


def keeps_a_negative_answer(around: Around, seconds_ago: float) -> None:
    """The leader's origin has given one."""
    leader, negatives, then = around.request(), around.services.negatives, time.time() - seconds_ago
    stored = Stored(Headers([(b"Cache-Control", b"max-age=60")]), then)
    answer = Negative(404, stored, b"gone", (), Scope.ALL, then + MINUTE)
    assert negatives.keep(leader.key.name, leader.sent.headers, answer, negatives.asking(leader.key.name))


def that_wants_a_new_answer(around: Around) -> CacheableRequest:
    return around.request((b"Cache-Control", b"no-cache"))


def test_a_negative_answer_that_the_leader_has_kept_is_the_follower_s_too(pair: Callable[..., Pair]) -> None:
    one = pair(request=that_wants_a_new_answer)
    keeps_a_negative_answer(one.around, 0)
    one.fill.decline()
    assert one.follow() is Outcome.DONE
    client = one.one.client
    assert (client.head.status, client.body) == (404, b"gone")
    assert client.cache_status == "fwd=uri-miss; collapsed; detail=negative" and one.around.origins.asked == []


@pytest.mark.parametrize(
    ("request_of", "seconds_ago"), [(that_wants_a_new_answer, 5), (with_token, 0), (that_accepts_text, 0)]
)
def test_one_that_is_older_or_for_others_is_not(
    pair: Callable[..., Pair], request_of: Callable[[Around], CacheableRequest], seconds_ago: float
) -> None:
    one = pair(ok(b"mine"), request=request_of)
    keeps_a_negative_answer(one.around, seconds_ago)
    one.fill.decline()
    assert one.follow() is Outcome.DONE and one.one.client.body == b"mine"
