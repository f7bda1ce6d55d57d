"""What a leader does with its fill, whatever its origin does; the origin and the client are fakes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, List, Optional, cast

import pytest

from cache import Cache, Follow, Lead
from fetching.leading import Leading
from fetching.negative import Asked
from fetching.outcomes import Outcome, Stale
from monitoring.details import Detail
from net.client_watch import ClientGone
from storage.store import Key
from transfers.fill import Fill
from transfers.states import FillState
from upstream.dialling import Unanswered, UpstreamError

KEY = Key("https/some.thing/x.deb")


class Client:
    """Notes what it is sent, in place of StoredAnswer and OriginRelay."""

    def __init__(self) -> None:
        self.got: List[str] = []

    def send_stale_or_raise(self, stale: Optional[Stale], error: UpstreamError) -> Outcome:
        if stale is None:
            raise error
        self.got.append("stale")
        return Outcome.DONE

    def pass_on(self, exchange: object, note: str) -> None:
        self.got.append(note)


class Origin:
    """Answers with what `response` returns or raises."""

    def __init__(self, response: Callable[[], Any]) -> None:
        self.response = response

    def whole_or_rest(self, _: object) -> Any:
        return self.response()


def a_leading(cache: Cache, client: Client, response: Callable[[], Any], question: str = "mine") -> Leading:
    services: Any = SimpleNamespace(cache=cache)
    request: Any = SimpleNamespace(question=question, key=KEY, shown="x.deb")
    authorization: Any = SimpleNamespace(grant=lambda _: None)
    query = cast(Any, Origin(response))
    negative: Any = SimpleNamespace(asking=lambda: Asked(1000.0, (0, 0)))
    reply: Any = SimpleNamespace()
    stored = cast(Any, client)
    return Leading(services, reply, request, query, cast(Any, client), authorization, stored, negative)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files", timeout=lambda: 20)


@pytest.fixture
def fill(cache: Cache) -> Fill:
    claim = cache.claim(KEY)
    assert isinstance(claim, Lead)
    return claim.fill


def fails(error: Exception) -> Callable[[], Any]:
    def response() -> Any:
        raise error

    return response


def an_exchange() -> Any:
    return SimpleNamespace(close=lambda: None)


def leads_now(cache: Cache) -> bool:
    """Whether the next claim leads: then nothing is left of an earlier fill."""
    claim = cache.claim(KEY)
    if isinstance(claim, Lead):
        claim.fill.close()
        return True
    assert isinstance(claim, Follow)
    claim.reader.close()
    return False


def test_a_failure_ends_the_fill_and_reaches_the_client(cache: Cache, fill: Fill) -> None:
    leading = a_leading(cache, Client(), fails(UpstreamError("no route")))
    with pytest.raises(UpstreamError, match="no route"):
        leading.lead(fill, None)
    assert fill.state is FillState.FAILED and leads_now(cache)


def test_a_client_that_hangs_up_leaves_no_fill_behind(cache: Cache, fill: Fill) -> None:
    with pytest.raises(ClientGone):
        a_leading(cache, Client(), fails(ClientGone("gone"))).lead(fill, None)
    assert fill.state is FillState.GONE and leads_now(cache)


def test_the_second_request_follows(cache: Cache, fill: Fill) -> None:
    other = fill.asking.lead("another", fill.fail, fill.close)
    mine = fill.asking.join("mine", fill.fail, fill.close)
    assert mine is not None and other.answered()
    client = Client()
    assert a_leading(cache, client, an_exchange).ask(fill, mine, None) is Outcome.RETRY
    assert client.got == []
    other.close()


def test_a_second_asker_uses_its_own_response_where_nothing_is_stored(cache: Cache, fill: Fill) -> None:
    other = fill.asking.lead("another", fill.fail, fill.close)
    mine = fill.asking.join("mine", fill.fail, fill.close)
    assert mine is not None and other.answered()
    fill.asking.declined_for = Detail.NO_STORE
    fill.decline()
    client = Client()
    assert a_leading(cache, client, an_exchange).ask(fill, mine, None) is Outcome.DONE
    assert client.got == [f"fwd=uri-miss; detail={Detail.NO_STORE.value}"]
    other.close()


@pytest.mark.parametrize(
    ("error", "question", "again"),
    [
        (Unanswered("hung up"), "mine", True),
        (UpstreamError("dduct's own machine", 403), "mine", True),
        (Unanswered("hung up"), "the leader's", False),
        (UpstreamError("no route"), "mine", False),
    ],
)
def test_some_failures_of_a_leader_are_not_shared_with_followers(
    cache: Cache, fill: Fill, error: UpstreamError, question: str, again: bool
) -> None:
    fill.asking.lead("the leader's", fill.fail, fill.close).fail(error)
    leading = a_leading(cache, Client(), an_exchange, question)
    if again:
        assert leading.after_failure(fill, error, None) is Outcome.RETRY
    else:
        with pytest.raises(UpstreamError):
            leading.after_failure(fill, error, None)


def test_followers_of_a_failed_leader_retry_a_few_times_together(cache: Cache, fill: Fill) -> None:
    error = Unanswered("hung up")
    fill.asking.lead("the leader's", fill.fail, fill.close).fail(error)
    leading = a_leading(cache, Client(), an_exchange)
    assert leading.after_failure(fill, error, None) is Outcome.RETRY
    while not fill.asking.retries.exhausted():
        assert fill.asking.retries.take()  # by the other followers
    claim = cache.claim(KEY)
    assert isinstance(claim, Lead)
    with pytest.raises(Unanswered):
        leading.lead(claim.fill, None)
    assert claim.fill.state is FillState.FAILED and leads_now(cache)
