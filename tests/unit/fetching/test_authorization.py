"""Whether a client may have what is stored: a real cache, and an origin that follows a script."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import pytest
from support.fetching import PATH, TOKEN, URL, Answer, Answering, Around, meta, ok, sha256_of

from fetching.cacheable_request import CacheableRequest
from fetching.outcomes import Admission
from net.addresses import Reach
from protocol.headers import Field
from storage.entry import Entry
from storage.record import Metadata
from upstream.dialling import UpstreamError

BODY = b"the body of an object"
ETAG, OTHER = (b"ETag", b'"1"'), (b"ETag", b'"2"')
SAME = Answer(304, (ETAG,))
ZIP = (b"Content-Type", b"application/zip")
RESTRICTED = meta(("ETag", '"1"'), ("Content-Type", "application/zip"), restricted=True, restricted_by=("fields",))
OPEN = meta(("ETag", '"1"'))
DIGEST = sha256_of(BODY)
ELSEWHERE = f"https://cdn.thing{PATH}"


class Case:
    """One client and one stored object."""

    def __init__(self, directory: Path, stored: Metadata, *answers: Union[Answer, UpstreamError]) -> None:
        self.around = Around(directory, *answers)
        self.stored = stored

    def admit(self, request: Optional[CacheableRequest] = None) -> Tuple[Admission, Answering]:
        """Ask whether this client may have the stored object, which is put into the cache if it is not there yet."""
        request = request or self.around.request(TOKEN)
        if self.around.stored(request.key) is None:
            self.around.put(BODY, self.stored, request.key)
        hit = self.around.hit(request)
        answering = Answering(self.around, request)
        try:
            metadata = hit.metadata or self.stored
            return answering.authorization.admit(metadata, len(BODY), hit), answering
        finally:
            hit.entry.close()

    @property
    def now_stored(self) -> Optional[Metadata]:
        hit = self.around.hit(self.around.request())
        hit.entry.close()
        return hit.metadata


# --- before the origin is asked -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "fields", "digest", "needs"),
    [
        (OPEN, (), None, False),
        (OPEN, (TOKEN,), None, True),
        (OPEN, (TOKEN,), DIGEST, False),
        (meta(same_for_all=True), (TOKEN,), None, False),
        (RESTRICTED, (), None, True),
        (RESTRICTED, (TOKEN,), DIGEST, True),
    ],
)
def test_who_needs_permission(
    tmp_path: Path, stored: Metadata, fields: Tuple[Field, ...], digest: Any, needs: bool
) -> None:
    around = Around(tmp_path)
    answering = Answering(around, around.request(*fields, digest=digest))
    assert answering.authorization.needs_permission(stored) is needs


@pytest.mark.parametrize(
    ("marks", "reach", "why"),
    [
        ({"near": True}, Reach.NOTHING, "fwd=bypass; detail=local"),
        ({"near": True, "redirect": ELSEWHERE}, Reach.NOTHING, "fwd=bypass; detail=local"),
        ({"near": True, "redirect": ELSEWHERE}, Reach.EVERYTHING, None),
        ({"own": True, "redirect": ELSEWHERE}, Reach.NOTHING, "fwd=bypass; detail=local"),
        ({"own": True, "redirect": ELSEWHERE}, Reach.OWN_ADDRESSES, None),
        ({"vary": (("accept", "text/html"),)}, Reach.NOTHING, "fwd=vary-miss"),
        ({}, Reach.NOTHING, None),
    ],
)
def test_which_objects_are_for_others(tmp_path: Path, marks: Dict[str, Any], reach: Reach, why: Optional[str]) -> None:
    around = Around(tmp_path)
    answering = Answering(around, around.request(reach=reach))
    assert answering.authorization.why_relayed(meta(**marks)) == why
    assert around.origins.asked == []


# --- its answer -----------------------------------------------------------------------------------


def test_a_proof_is_permission_and_lasts_for_a_while(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME)
    for _ in range(2):
        assert case.admit()[0] is Admission.GRANTED
    assert len(case.around.origins.asked) == 1


def test_permission_is_for_these_credentials_only(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME, Answer(403))
    assert case.admit()[0] is Admission.GRANTED
    admission, other = case.admit(case.around.request((b"Authorization", b"Bearer other")))
    assert admission is Admission.ANSWERED and other.client.head.status == 403


def test_permission_is_for_this_version_only(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME, Answer(304, (OTHER,)))
    assert case.admit()[0] is Admission.GRANTED
    case.around.cache.remove(case.around.request().key)
    case.stored = meta(("ETag", '"2"'), restricted=True, restricted_by=("fields",))
    assert case.admit()[0] is Admission.GRANTED and len(case.around.origins.asked) == 2


def test_permission_for_head_is_none_for_the_bytes(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME, Answer(401))
    assert case.admit(case.around.request(TOKEN, method=b"HEAD"))[0] is Admission.GRANTED
    assert case.admit()[0] is Admission.ANSWERED


def test_a_client_without_credentials_is_asked_about_every_time(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME, Answer(401))
    anonymous = case.around.request()
    assert case.admit(anonymous)[0] is Admission.GRANTED
    assert case.admit(anonymous)[0] is Admission.ANSWERED


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_goes_to_the_client_as_it_is(tmp_path: Path, status: int) -> None:
    case = Case(tmp_path, RESTRICTED, Answer(status, (), b"no"))
    admission, answering = case.admit()
    assert admission is Admission.ANSWERED
    assert (answering.client.head.status, answering.client.body) == (status, b"no")
    assert answering.client.cache_status == "fwd=request; detail=credentials"
    assert case.around.stored(answering.request.key) == BODY


def test_a_refused_client_is_asked_about_again(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, Answer(403), Answer(403))
    request = case.around.request(TOKEN)
    for _ in range(2):
        assert case.admit(request)[0] is Admission.ANSWERED
    assert len(case.around.origins.asked) == 2


def test_an_open_object_may_be_sent_where_the_origin_is_in_trouble(tmp_path: Path) -> None:
    case = Case(tmp_path, OPEN, Answer(503))
    with pytest.raises(UpstreamError) as error:
        case.admit()
    assert error.value.status == 503


def test_another_version_may_replace_the_stored_one_if_its_client_is_known(tmp_path: Path) -> None:
    """Content of another kind may be a login page: a stranger gets it, and the object stays."""
    newer = ok(b"newer", OTHER, (b"Content-Type", b"application/gzip"))
    recent = replace(RESTRICTED, fetched_at=time.time())  # an old one may be replaced by anybody
    case = Case(tmp_path, recent, newer, SAME, newer)
    admission, stranger = case.admit(case.around.request((b"Authorization", b"Bearer other")))
    assert admission is Admission.ANSWERED and stranger.client.body == b"newer"
    known = case.around.request(TOKEN)
    assert case.admit(known)[0] is Admission.GRANTED
    case.around.services.grants.forget(known.grantee, known.key.name, '"1"')
    assert case.admit(known)[0] is Admission.CHANGED


def test_a_redirect_of_everybody_to_where_it_came_from_is_permission(tmp_path: Path) -> None:
    case = Case(tmp_path, meta(("ETag", '"1"'), redirect=ELSEWHERE), Answer(302, ((b"Location", ELSEWHERE.encode()),)))
    assert case.admit()[0] is Admission.GRANTED
    assert case.now_stored == meta(("ETag", '"1"'), redirect=ELSEWHERE, same_for_all=True)


@pytest.mark.parametrize("right", [True, False])
def test_the_same_bytes_are_a_proof_for_the_next_time(tmp_path: Path, right: bool) -> None:
    """Nothing else proves it here, so this client gets the origin's own bytes once."""
    case = Case(tmp_path, RESTRICTED, ok(BODY if right else BODY[::-1], ZIP), Answer(403))
    assert case.admit()[0] is Admission.ANSWERED
    assert case.admit()[0] is (Admission.GRANTED if right else Admission.ANSWERED)


def test_the_same_bytes_in_another_coding_are_no_proof(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, ok(BODY, (b"Content-Encoding", b"br")), Answer(403))
    for _ in range(2):
        assert case.admit()[0] is Admission.ANSWERED


def test_what_the_origin_gives_without_credentials_is_open_from_then_on(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME)
    assert case.admit(case.around.request())[0] is Admission.GRANTED
    now = case.now_stored
    assert now is not None and not now.restricted and now.same_for_all


def test_what_the_origin_gives_to_head_shows_nothing_of_the_object(tmp_path: Path) -> None:
    case = Case(tmp_path, RESTRICTED, SAME)
    assert case.admit(case.around.request(method=b"HEAD"))[0] is Admission.GRANTED
    assert case.now_stored == RESTRICTED


@pytest.mark.parametrize("private", [True, False])
def test_what_is_private_stays_restricted(tmp_path: Path, private: bool) -> None:
    control = (b"Cache-Control", b"private" if private else b"public")
    case = Case(tmp_path, RESTRICTED, Answer(304, (ETAG, control)))
    assert case.admit(case.around.request())[0] is Admission.GRANTED
    now = case.now_stored
    assert now is not None and now.restricted is private


# --- bytes that another URL has brought -----------------------------------------------------------


class Brought:
    """An object that another URL has brought, and a request for its digest at this URL."""

    def __init__(self, directory: Path, brought: Metadata, answer: Answer) -> None:
        self.around = Around(directory, answer)
        other = self.around.request(digest=DIGEST, host="other.thing")
        self.around.put(BODY, brought, other.key)
        self.answering = Answering(self.around, self.around.request(TOKEN, digest=DIGEST))
        hit = self.around.hit(self.answering.request)
        self.entry: Entry = hit.entry
        assert hit.metadata is None
        try:
            self.outcome = self.answering.authorization.confirm_alias(hit.entry, hit.entry.record.metadata)
        finally:
            hit.entry.close()

    @property
    def alias(self) -> Optional[Metadata]:
        hit = self.around.hit(self.answering.request)
        hit.entry.close()
        return hit.metadata


FROM_ELSEWHERE = meta(url=f"https://other.thing{PATH}")


def test_a_head_that_confirms_the_bytes_of_another_url_is_enough(tmp_path: Path) -> None:
    brought = Brought(tmp_path, FROM_ELSEWHERE, ok(BODY))
    assert isinstance(brought.outcome, Metadata) and brought.outcome.url == URL
    assert not brought.answering.reply.started  # the stored bytes are still to be sent


@pytest.mark.parametrize("answer", [Answer(404), Answer(401), ok(BODY + b"!")], ids=["none", "refused", "longer"])
def test_what_does_not_confirm_them_goes_to_the_client(tmp_path: Path, answer: Answer) -> None:
    brought = Brought(tmp_path, FROM_ELSEWHERE, answer)
    assert brought.outcome is Admission.ANSWERED and brought.alias is None
    assert (brought.answering.client.head.status, brought.answering.client.body) == (answer.status, answer.body)


def test_a_restricted_object_is_opened_by_its_own_origin_only(tmp_path: Path) -> None:
    """Any other one could say that it has these bytes, without having them."""
    restricted = meta(url=f"https://other.thing{PATH}", restricted=True, restricted_by=("fields",))
    brought = Brought(tmp_path, restricted, ok(BODY))
    assert brought.outcome is Admission.ANSWERED and brought.alias is None
    assert brought.answering.client.body == BODY


def test_the_bytes_themselves_confirm_what_a_head_does_not(tmp_path: Path) -> None:
    """An object from dduct's own machine is not opened by a head from elsewhere."""
    near = meta(url=f"https://other.thing{PATH}", near=True)
    brought = Brought(tmp_path, near, ok(BODY))
    assert brought.outcome is Admission.ANSWERED and brought.answering.client.body == BODY
    assert brought.alias is not None and brought.alias.url == URL


# --- who may change it ----------------------------------------------------------------------------


def test_who_may_change_a_restricted_object(tmp_path: Path) -> None:
    around = Around(tmp_path, *[ok(b"page", (b"Content-Type", b"text/html"))] * 3)
    answering = Answering(around, around.request(TOKEN))
    for stored, may in ((OPEN, True), (RESTRICTED, False)):
        exchange = answering.query.get_full()
        assert answering.authorization.may_change(stored, exchange) is may
        exchange.close()
    answering.authorization.grant(RESTRICTED)
    exchange = answering.query.get_full()
    assert answering.authorization.may_change(RESTRICTED, exchange)
    exchange.close()
