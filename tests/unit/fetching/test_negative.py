"""Negative answers: found as long as they hold, and as they were kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fetching import negative
from fetching.negative import Asked, Negative, NegativeAnswers
from fetching.shared_answers import LONGEST, SharedAnswers
from net.addresses import Scope
from protocol.freshness import Stored
from protocol.headers import Headers

NOW = 1_800_000_000.0
NAME = "https/some.thing/x.deb"
SENT = Headers([(b"User-Agent", b"apt"), (b"Accept-Language", b"\xe9")])
FIELDS = Headers([(b"Date", b"x"), (b"X-Odd", b"a\xe9b"), (b"X-Odd", b"again")])
GONE = Negative(404, Stored(FIELDS, NOW, 2.5), b"no\nsuch\nfile\xff", (("x-a", "1"),), Scope.OWN_ADDRESS, NOW + 60)


class Around:
    """One memory, and what one configuration sees of it."""

    def __init__(self) -> None:
        self.now = NOW
        self.shared = SharedAnswers(short=1, long=1, marks=4)
        self.answers = self.configured()

    def configured(self, limit: float = 60.0, rules: int = 1) -> NegativeAnswers:
        return NegativeAnswers(self.shared, limit, rules, lambda: self.now)

    def keep(self, answer: Negative = GONE, sent: Headers = SENT) -> bool:
        return self.answers.keep(NAME, sent, answer, self.answers.asking(NAME))


@pytest.fixture
def around() -> Around:
    return Around()


WANTED = Headers([*SENT, (b"X-A", b"1")])


def test_it_is_found_as_it_was_kept(around: Around) -> None:
    assert around.keep()
    found = around.answers.find(NAME, WANTED)
    assert found is not None and list(found.stored.fields) == list(FIELDS)
    assert replace(found, stored=GONE.stored) == GONE
    assert (found.stored.fetched_at, found.stored.initial_age) == (NOW, 2.5)


@pytest.mark.parametrize(("later", "found"), [(0, True), (59.9, True), (60, False), (-1, False), (1e6, False)])
def test_it_holds_for_its_time_by_any_clock(around: Around, later: float, found: bool) -> None:
    around.keep()
    around.now += later
    assert (around.answers.find(NAME, WANTED) is not None) is found


@pytest.mark.parametrize(
    "sent", [SENT, Headers([*SENT, (b"X-A", b"2")]), Headers([(b"X-A", b"1"), (b"User-Agent", b"pip")])]
)
def test_it_is_for_requests_that_are_alike(around: Around, sent: Headers) -> None:
    around.keep()
    assert around.answers.find(NAME, sent) is None


@pytest.mark.parametrize(
    "name", [b"Accept", b"Accept-Charset", b"Accept-Language", b"Origin", b"Referer", b"User-Agent"]
)
def test_several_are_kept_for_requests_that_are_not_alike(around: Around, name: bytes) -> None:
    for value in (b"a", b"b"):
        assert around.keep(replace(GONE, body=value, vary=()), Headers([(name, value)]))
    for value in (b"a", b"b"):
        found = around.answers.find(NAME, Headers([(name, value)]))
        assert found is not None and found.body == value
    assert around.answers.find(NAME, Headers([])) is None


@pytest.mark.parametrize(
    ("name", "sent"), [("https/some.thing/y.deb", WANTED), (NAME, Headers([*WANTED, (b"Accept", b"x")]))]
)
def test_one_of_an_equal_hash_is_another_s(
    around: Around, monkeypatch: pytest.MonkeyPatch, name: str, sent: Headers
) -> None:
    around.keep()
    found, mark = around.shared.get((NAME, negative._like(SENT))), around.shared.mark(NAME)
    monkeypatch.setattr(around.shared, "get", lambda _: found)
    monkeypatch.setattr(around.shared, "mark", lambda _: mark)
    assert around.answers.find(NAME, WANTED) is not None
    assert around.answers.find(name, sent) is None


def test_another_name_has_none(around: Around) -> None:
    around.keep()
    assert around.answers.find("https/some.thing/y.deb", WANTED) is None


def test_what_may_be_there_since_ends_it(around: Around) -> None:
    around.keep()
    around.answers.forget(NAME)
    assert around.answers.find(NAME, WANTED) is None
    assert around.keep() and around.answers.find(NAME, WANTED) is not None


def test_a_question_from_before_that_brings_none(around: Around) -> None:
    before = around.answers.asking(NAME)
    assert before == Asked(NOW, around.shared.mark(NAME))
    around.answers.forget(NAME)
    assert not around.answers.keep(NAME, SENT, GONE, before)
    assert around.answers.find(NAME, WANTED) is None


def test_another_configuration_has_others(around: Around) -> None:
    around.keep()
    assert around.configured(rules=2).find(NAME, WANTED) is None
    assert around.configured(limit=0.0).find(NAME, WANTED) is None
    assert around.configured(limit=0.0).any() is False
    assert around.configured().find(NAME, WANTED) is not None


def test_one_that_is_too_long_is_not_kept(around: Around) -> None:
    assert not around.keep(replace(GONE, body=bytes(LONGEST)))
    assert around.answers.find(NAME, WANTED) is None


def test_its_age_and_its_time_that_is_left_are_those_of_the_moment() -> None:
    assert GONE.fields(NOW + 3)[-1] == (b"Age", b"5")
    assert GONE.note(NOW + 3) == "hit; ttl=57; detail=negative"
