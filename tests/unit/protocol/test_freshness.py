"""RFC 9111 by tables: every row names the section that it comes from."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

import pytest

from protocol import field_values, freshness, validation
from protocol.freshness import Basis, FreshnessRules, Stored, directives_of
from protocol.headers import Headers
from protocol.http1 import RequestHead, ResponseHead
from protocol.request_fields import DEFAULT

NOW = 1_800_000_000.0
DAY = 86400
RULES = FreshnessRules(fresh_for=DAY)


def date(offset: float) -> str:
    """An HTTP date so many seconds from the moment at which the stored response was made."""
    return field_values.format_date(NOW + offset).decode()


def fields(lines: str) -> Headers:
    """`Name: value | Name: value`; `{-60}` is a date a minute before the response was made."""
    pairs = []
    for line in filter(None, lines.split(" | ")):
        name, _, value = line.partition(":")
        if "{" in value:
            value = date(float(value.strip(" {}")))
        pairs.append((name.encode(), value.strip().encode("latin-1")))
    return Headers(pairs)


def request(lines: str = "", method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, b"/", 1, fields(lines))


def response(lines: str = "", status: int = 200) -> ResponseHead:
    return ResponseHead(status, b"", 1, fields(lines))


# --- how long ---------------------------------------------------------------------------------------


class Life(NamedTuple):
    rule: str
    fields: str
    seconds: float


LIVES = [
    Life("9111 §4.2.1 s-maxage before max-age", "Cache-Control: s-maxage=30, max-age=60", 30),
    Life("9111 §4.2.1 s-maxage alone", "Cache-Control: s-maxage=30", 30),
    Life("9111 §5.2.2.10 s-maxage overrides Expires", "Cache-Control: s-maxage=30 | Expires: {90}", 30),
    Life("9111 §4.2.1 max-age", "Cache-Control: max-age=60", 60),
    Life("9111 §5.2 names have no case", "Cache-Control: MaX-aGe=60", 60),
    Life("9111 §5.2 several lines are one list", "Cache-Control: public | Cache-Control: max-age=60", 60),
    Life("9111 §5.2 both argument forms", 'Cache-Control: max-age="60"', 60),
    Life("9111 §5.2 an unknown directive is ignored", "Cache-Control: x=1, max-age=60, community=UCI", 60),
    Life("9111 §5.2 a comma in quotes separates nothing", 'Cache-Control: x="a, max-age=9", max-age=60', 60),
    Life("9111 §5.2 a directive hidden in quotes is none", 'Cache-Control: x="max-age=60"', DAY),
    Life("9111 §5.3 max-age overrides Expires", "Cache-Control: max-age=60 | Expires: {90}", 60),
    Life("9111 §5.3 even where Expires is later", "Cache-Control: max-age=60 | Expires: {100000}", 60),
    Life("9111 §5.3 even where Expires is past", "Cache-Control: max-age=60 | Expires: {-90}", 60),
    Life("9111 §4.2.1 max-age=0", "Cache-Control: max-age=0", 0),
    Life("9111 §4.2.1 max-age that is negative", "Cache-Control: max-age=-60", 0),
    Life("9111 §4.2.1 max-age that is no integer", "Cache-Control: max-age=60.5", 0),
    Life("9111 §4.2.1 max-age that is no number", "Cache-Control: max-age=soon", 0),
    Life("9111 §4.2.1 max-age without an argument", "Cache-Control: max-age", 0),
    Life("9111 §4.2.1 max-age with an empty argument", "Cache-Control: max-age=", 0),
    Life("9111 §4.2.1 two that differ: the smaller", "Cache-Control: max-age=60, max-age=30", 30),
    Life("9111 §4.2.1 two that differ on two lines", "Cache-Control: max-age=30 | Cache-Control: max-age=60", 30),
    Life("9111 §1.2.2 one that is too large", "Cache-Control: max-age=99999999999", 2**31),
    Life("9111 §1.2.2 one that is far too large", "Cache-Control: max-age=" + "9" * 60, 2**31),
    Life("9111 §4.2.1 Expires less Date", "Expires: {90} | Date: {0}", 90),
    Life("9111 §4.2.1 Expires less an earlier Date", "Expires: {90} | Date: {-10}", 100),
    Life("9111 §4.2.1 Expires without Date: less the time of arrival", "Expires: {90}", 90),
    Life("9111 §4.2.1 Expires like Date", "Expires: {0} | Date: {0}", 0),
    Life("9111 §5.3 Expires in the past", "Expires: {-90} | Date: {0}", 0),
    Life("9111 §5.3 Expires: 0", "Expires: 0", 0),
    Life("9111 §5.3 Expires: -1", "Expires: -1", 0),
    Life("9111 §5.3 an invalid Expires", "Expires: tomorrow", 0),
    Life("9111 §5.3 Expires in another zone is invalid", "Expires: Thu, 18 Aug 2050 02:01:18 PST", 0),
    Life("9111 §5.3 Expires without a day's name is invalid", "Expires: 18 Aug 2050 02:01:18 GMT", 0),
    Life("9110 §5.6.7 Expires in the format of RFC 850", "Expires: Friday, 15-Jan-27 09:00:00 GMT | Date: {0}", 3600),
    Life("9110 §5.6.7 Expires in the format of asctime", "Expires: Fri Jan 15 09:00:00 2027 | Date: {0}", 3600),
    Life("9111 §5.3 two lines of Expires are invalid", "Expires: {90} | Expires: {90}", 0),
    Life("9111 §4.2.1 an unreadable Date: the time of arrival", "Expires: {90} | Date: yesterday", 90),
    Life("8246 §2 immutable has no end", "Cache-Control: immutable", 365 * DAY),
    Life("8246 §2 but an origin's own lifetime counts", "Cache-Control: immutable, max-age=60", 60),
    Life("9111 §4.2.2 a tenth of the time since Last-Modified", "Last-Modified: {-1000} | Date: {0}", 100),
    Life("9111 §4.2.2 without Date: until the arrival", "Last-Modified: {-1000}", 100),
    Life("9111 §4.2.2 just modified", "Last-Modified: {0} | Date: {0}", 0),
    Life("9111 §4.2.2 modified in the future", "Last-Modified: {60} | Date: {0}", 0),
    Life("9111 §4.2.2 at most a week", "Last-Modified: {-100000000}", 7 * DAY),
    Life("9111 §4.2.2 an unreadable Last-Modified is none", "Last-Modified: long ago", DAY),
    Life("9111 §4.2.2 no heuristics beside max-age", "Last-Modified: {-1000} | Cache-Control: max-age=5", 5),
    Life("9111 §4.2.2 no heuristics beside Expires", "Last-Modified: {-1000} | Expires: 0", 0),
    Life("9111 §4.2.2 public alone says nothing of time", "Cache-Control: public", DAY),
    Life("9111 §5.4 Pragma in a response says nothing", "Pragma: no-cache", DAY),
    Life("the origin says nothing: cache.fresh_for", "Content-Type: x/y", DAY),
    Life("the origin says nothing at all", "", DAY),
]


def test_a_heuristic_lifetime_has_its_own_limit() -> None:
    modified = Stored(fields("Last-Modified: {-8640000}"), NOW)
    for bound, seconds in ((7 * DAY, 7 * DAY), (30 * DAY, 10 * DAY), (60, 60), (0, 0)):
        assert freshness.lifetime(modified, FreshnessRules(heuristic_max=bound)) == pytest.approx(seconds)


@pytest.mark.parametrize("lines", ["", "Last-Modified: {-8640000}"])
def test_without_heuristics_a_response_without_lifetime_is_never_fresh(lines: str) -> None:
    rules = FreshnessRules(heuristic_max=0)
    assert freshness.lifetime(Stored(fields(lines), NOW), rules) == 0
    assert freshness.lifetime(Stored(fields(lines + " | Cache-Control: max-age=60"), NOW), rules) == 60
    assert freshness.lifetime(Stored(fields(""), NOW), FreshnessRules(fresh_for=0)) == 0


@pytest.mark.parametrize("lines", ["", "Cache-Control: max-age=60", "Cache-Control: max-age=60, immutable"])
@pytest.mark.parametrize("asked", ["", "Cache-Control: max-stale", "Cache-Control: max-age=60"])
def test_a_volatile_object_is_validated_even_if_it_is_fresh(lines: str, asked: str) -> None:
    stored = Stored(fields(lines), NOW)
    assessment = freshness.assess(request(asked), stored, RULES, NOW + 1, NOW + 0.5, volatile=True)
    assert (assessment.usable, assessment.usable_on_error) == (False, True)
    assert assessment.basis is Basis.VOLATILE
    assert freshness.assess(request(asked), stored, RULES, NOW + 1, NOW, volatile=True).usable  # validated since


@pytest.mark.parametrize(("lines", "basis"), [("", "HEURISTIC"), ("Expires: {9}", "EXPLICIT"), ("Age: 5", "HEURISTIC")])
def test_a_heuristic_lifetime_is_marked_as_such(lines: str, basis: str) -> None:
    assert freshness.assess(request(), Stored(fields(lines), NOW), RULES, NOW, NOW).basis is Basis[basis]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.rule)
def test_a_response_is_fresh_for_as_long_as_its_origin_says(life: Life) -> None:
    assert freshness.lifetime(Stored(fields(life.fields), NOW), RULES) == pytest.approx(life.seconds)


# --- how old ----------------------------------------------------------------------------------------


class Old(NamedTuple):
    rule: str
    fields: str
    took: float
    age: float


AGES = [
    Old("9111 §4.2.3 made just now", "Date: {0}", 0, 0),
    Old("9111 §4.2.3 no Date, no Age", "", 0, 0),
    Old("9111 §4.2.3 the apparent age", "Date: {-30}", 0, 30),
    Old("9111 §4.2.3 Date in the future: never negative", "Date: {30}", 0, 0),
    Old("9111 §4.2.3 Age as it is said", "Age: 40 | Date: {0}", 0, 40),
    Old("9111 §4.2.3 Age and the time the answer took", "Age: 40 | Date: {0}", 3, 43),
    Old("9111 §4.2.3 the larger of the two: Age", "Age: 40 | Date: {-30}", 0, 40),
    Old("9111 §4.2.3 the larger of the two: apparent", "Age: 20 | Date: {-30}", 0, 30),
    Old("9111 §5.1 the first member of a list", "Age: 40, 80", 0, 40),
    Old("9111 §5.1 two lines are a list", "Age: 40 | Age: 80", 0, 40),
    Old("9111 §5.1 what is no number is ignored", "Age: old", 0, 0),
    Old("9111 §5.1 what is negative is ignored", "Age: -40", 0, 0),
    Old("9111 §5.1 what is no integer is ignored", "Age: 4.5", 0, 0),
    Old("9111 §5.1 an empty one is ignored", "Age:", 0, 0),
    Old("9111 §1.2.2 one that is too large", "Age: 99999999999", 0, 2**31),
    Old("9110 §5.6.7 an unreadable Date is none", "Date: today | Age: 5", 0, 5),
]


@pytest.mark.parametrize("old", AGES, ids=lambda old: old.rule)
def test_the_age_counts_date_age_and_response_delay(old: Old) -> None:
    assert freshness.initial_age(response(old.fields), NOW - old.took, NOW) == pytest.approx(old.age)


def test_a_stored_response_grows_older() -> None:
    """RFC 9111 §4.2.3: resident time counts on top of the initial age; a clock set back does not count."""
    stored = Stored(Headers(), NOW, 40)
    assert [stored.age(NOW + seconds) for seconds in (0, 1, 60, -30)] == [40, 41, 100, 40]


# --- may it be used ---------------------------------------------------------------------------------


class Use(NamedTuple):
    rule: str
    stored: str
    asked: str
    age: float
    usable: bool
    on_error: Optional[bool] = None  # None: of no interest here


MINUTE = "Cache-Control: max-age=60"
USES = [
    Use("9111 §4.2 fresh", MINUTE, "", 30, True, True),
    Use("9111 §4.2 fresh until its last moment", MINUTE, "", 59.9, True, True),
    Use("9111 §4.2 stale when its age is its lifetime", MINUTE, "", 60, False, True),
    Use("9111 §4.2 stale", MINUTE, "", 61, False, True),
    Use(
        "9111 §4.2.4 stale, and never to be used so: must-revalidate",
        MINUTE + ", must-revalidate",
        "",
        61,
        False,
        False,
    ),
    Use("9111 §5.2.2.2 must-revalidate while fresh", MINUTE + ", must-revalidate", "", 30, True, True),
    Use("9111 §5.2.2.8 proxy-revalidate", MINUTE + ", proxy-revalidate", "", 61, False, False),
    Use("9111 §5.2.2.10 s-maxage implies it", "Cache-Control: s-maxage=60", "", 61, False, False),
    Use("9111 §5.2.2.10 s-maxage while fresh", "Cache-Control: s-maxage=60", "", 30, True, True),
    Use("9111 §5.2.2.4 no-cache: validate before every use", MINUTE + ", no-cache", "", 1, False, False),
    Use("9111 §5.2.2.4 no-cache alone", "Cache-Control: no-cache", "", 1, False, False),
    Use(
        "9111 §5.2.2.4 the qualified form counts like the other",
        MINUTE + ', no-cache="set-cookie"',
        "",
        1,
        False,
        False,
    ),
    Use(
        "9111 §5.2.2.4 no-cache is not overcome by max-stale",
        "Cache-Control: no-cache",
        "Cache-Control: max-stale",
        1,
        False,
    ),
    Use("9111 §5.2.2.9 public changes nothing of it", MINUTE + ", public", "", 61, False, True),
    Use("9111 §5.2.2.6 no-transform changes nothing of it", MINUTE + ", no-transform", "", 30, True, True),
    Use("5861 §4 stale-if-error, within it", MINUTE + ", stale-if-error=100", "", 120, False, True),
    Use("5861 §4 stale-if-error, beyond it", MINUTE + ", stale-if-error=100", "", 161, False, False),
    Use("5861 §4 stale-if-error=0", MINUTE + ", stale-if-error=0", "", 61, False, False),
    Use("5861 §4 but must-revalidate", MINUTE + ", stale-if-error=100, must-revalidate", "", 61, False, False),
    Use("5861 §3 stale-while-revalidate is not taken up", MINUTE + ", stale-while-revalidate=100", "", 61, False, True),
    Use("9111 §5.2.1.4 no-cache of a request", MINUTE, "Cache-Control: no-cache", 1, False, False),
    Use("9111 §5.2.1.4 whatever else it says", MINUTE, "Cache-Control: max-stale, no-cache", 1, False, False),
    Use("9111 §5.4 Pragma: no-cache", MINUTE, "Pragma: no-cache", 1, False, False),
    Use("9111 §5.4 Pragma: NO-CACHE among others", MINUTE, "Pragma: x, NO-CACHE", 1, False, False),
    Use("9111 §5.4 Pragma beside Cache-Control is ignored", MINUTE, "Pragma: no-cache | Cache-Control: x", 1, True),
    Use("9111 §5.4 another Pragma", MINUTE, "Pragma: x", 1, True),
    Use("9111 §5.2.1.1 max-age, younger", MINUTE, "Cache-Control: max-age=10", 9, True),
    Use("9111 §5.2.1.1 max-age, just as old", MINUTE, "Cache-Control: max-age=10", 10, True),
    Use("9111 §5.2.1.1 max-age, older", MINUTE, "Cache-Control: max-age=10", 11, False, True),
    Use("9111 §5.2.1.1 max-age=0 wants validation", MINUTE, "Cache-Control: max-age=0", 0, False, True),
    Use("9111 §5.2.1.1 a larger max-age makes nothing fresh", MINUTE, "Cache-Control: max-age=1000", 61, False, True),
    Use("9111 §5.2.1.1 max-age and max-stale, together", MINUTE, "Cache-Control: max-age=100, max-stale=50", 90, True),
    Use("9111 §5.2.1.1 max-age comes first", MINUTE, "Cache-Control: max-age=80, max-stale=50", 90, False),
    Use("9111 §5.2.1.1 an invalid max-age is 0", MINUTE, "Cache-Control: max-age=x", 1, False),
    Use("9111 §5.2.1.2 max-stale, any", MINUTE, "Cache-Control: max-stale", 10_000, True),
    Use("9111 §5.2.1.2 max-stale, within", MINUTE, "Cache-Control: max-stale=10", 69, True),
    Use("9111 §5.2.1.2 max-stale, at its end", MINUTE, "Cache-Control: max-stale=10", 70, True),
    Use("9111 §5.2.1.2 max-stale, beyond", MINUTE, "Cache-Control: max-stale=10", 71, False),
    Use("9111 §5.2.1.2 an invalid max-stale is 0", MINUTE, "Cache-Control: max-stale=x", 61, False),
    Use(
        "9111 §4.2.4 max-stale against must-revalidate",
        MINUTE + ", must-revalidate",
        "Cache-Control: max-stale",
        61,
        False,
    ),
    Use(
        "9111 §4.2.4 max-stale against proxy-revalidate",
        MINUTE + ", proxy-revalidate",
        "Cache-Control: max-stale",
        61,
        False,
    ),
    Use("9111 §4.2.4 max-stale against s-maxage", "Cache-Control: s-maxage=60", "Cache-Control: max-stale", 61, False),
    Use("9111 §5.2.1.3 min-fresh, long enough", MINUTE, "Cache-Control: min-fresh=20", 40, True),
    Use("9111 §5.2.1.3 min-fresh, not long enough", MINUTE, "Cache-Control: min-fresh=20", 41, False, True),
    Use("9111 §5.2.1.3 min-fresh beyond the lifetime", MINUTE, "Cache-Control: min-fresh=61", 0, False),
    Use("9111 §5.2.1.3 min-fresh against max-stale", MINUTE, "Cache-Control: min-fresh=1, max-stale=50", 61, False),
    Use(
        "9111 §5.2.1.5 no-store of a request says nothing of what is stored",
        MINUTE,
        "Cache-Control: no-store",
        30,
        True,
    ),
    Use("9111 §5.2.1.6 no-transform of a request", MINUTE, "Cache-Control: no-transform", 30, True),
    Use("9111 §5.2.1.7 only-if-cached, fresh", MINUTE, "Cache-Control: only-if-cached", 30, True),
    Use("9111 §5.2.1.7 only-if-cached makes nothing fresh", MINUTE, "Cache-Control: only-if-cached", 61, False),
    Use("9111 §5.2 an unknown directive of a request", MINUTE, "Cache-Control: x=1", 30, True),
    Use("8246 §2 immutable while fresh", "Cache-Control: immutable, max-age=60", "", 30, True),
    Use(
        "8246 §2 immutable and no-cache of a request",
        "Cache-Control: immutable, max-age=60",
        "Cache-Control: no-cache",
        1,
        False,
    ),
    Use("9111 §4.2.2 heuristically fresh", "Last-Modified: {-1000}", "", 99, True),
    Use("9111 §4.2.2 heuristically stale", "Last-Modified: {-1000}", "", 100, False, True),
    Use("9111 §5.3 Expires, before it", "Expires: {60} | Date: {0}", "", 59, True),
    Use("9111 §5.3 Expires, at it", "Expires: {60} | Date: {0}", "", 60, False, True),
    Use("9111 §5.3 Expires: 0 is stale at once", "Expires: 0", "", 0, False, True),
    Use("cache.fresh_for, within", "", "", DAY - 1, True),
    Use("cache.fresh_for, beyond", "", "", DAY, False, True),
    Use(
        "an apt index: fresh, but max-age=0 asks", "Last-Modified: {-1000}", "Cache-Control: max-age=0", 5, False, True
    ),
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.rule)
def test_a_stored_response_is_used_where_rfc_9111_allows_it(use: Use) -> None:
    now = NOW + use.age
    assessment = freshness.assess(request(use.asked), Stored(fields(use.stored), NOW), RULES, now, now + 1)
    assert assessment.usable is use.usable
    if use.on_error is not None:
        assert assessment.usable_on_error is use.on_error


@pytest.mark.parametrize("use", [use for use in USES if not use.usable], ids=lambda use: use.rule)
def test_a_response_that_was_just_validated_is_used_in_any_case(use: Use) -> None:
    """RFC 9111 §4.3: the validation that a request caused, or waited for, is enough for it."""
    stored = Stored(fields(use.stored), NOW + use.age)
    assert freshness.assess(request(use.asked), stored, RULES, NOW + use.age, NOW + use.age - 1).usable


def test_the_initial_age_counts() -> None:
    """RFC 9111 §4.2.3."""
    stored = Stored(fields(MINUTE), NOW, 50)
    ages = [9, 11]
    assert [freshness.assess(request(), stored, RULES, NOW + age, NOW + 99).usable for age in ages] == [True, False]


def test_a_response_dated_in_the_future_is_validated() -> None:
    """The clock was wrong when it was fetched, or is now."""
    assert not freshness.assess(request(), Stored(fields(MINUTE), NOW + 60), RULES, NOW, NOW - 1).usable


def test_stale_if_error_can_be_switched_off() -> None:
    rules = FreshnessRules(stale_if_error=False)
    assert not freshness.assess(request(), Stored(fields(MINUTE), NOW), rules, NOW + 61, NOW + 61).usable_on_error


# --- may it be kept ---------------------------------------------------------------------------------


class Keep(NamedTuple):
    rule: str
    response: str
    asked: str = ""
    status: int = 200
    kept: bool = True
    restricted: bool = False


KEEPS = [
    Keep("9111 §3 a 200", ""),
    Keep("9111 §3 explicit freshness", MINUTE),
    Keep("9111 §3 public", "Cache-Control: public"),
    Keep("9111 §5.2.2.5 no-store", "Cache-Control: no-store", kept=False),
    Keep("9111 §5.2.2.5 No-Store among others", "Cache-Control: max-age=60, No-Store", kept=False),
    Keep("9111 §5.2.2.5 no-store with an argument", "Cache-Control: no-store=x", kept=False),
    Keep("9111 §5.2.2.3 must-understand beside it", "Cache-Control: no-store, must-understand"),
    Keep("9111 §5.2.2.3 must-understand alone", "Cache-Control: must-understand"),
    Keep("9111 §5.2.1.5 no-store of the request", "", "Cache-Control: no-store", kept=False),
    Keep("9111 §5.2.1.4 no-cache of the request does not forbid it", "", "Cache-Control: no-cache"),
    Keep("9111 §5.2.2.4 no-cache does not forbid it", "Cache-Control: no-cache"),
    Keep("9111 §5.2.2.7 private: only with permission of its origin", "Cache-Control: private", restricted=True),
    Keep("9111 §5.2.2.7 private, qualified", 'Cache-Control: private="x"', restricted=True),
    Keep("9111 §3.5 Authorization: only with permission of its origin", "", "Authorization: Bearer x", restricted=True),
    Keep("9111 §3.5 whatever the response says", "Cache-Control: public", "Authorization: x", restricted=True),
    Keep("9111 §3.5 must-revalidate neither", "Cache-Control: must-revalidate", "Authorization: x", restricted=True),
    Keep("a Cookie is a credential, too", "", "Cookie: id=1", restricted=True),
    Keep("GitLab's token, too", "", "PRIVATE-TOKEN: x", restricted=True),
    Keep("Artifactory's key, too", "", "X-JFrog-Art-Api: x", restricted=True),
    Keep("an API key, too", "", "X-Api-Key: x", restricted=True),
    Keep("any other key", "", "Ocp-Apim-Subscription-Key: x", restricted=True),
    Keep("a store's key, too", "", "X-Amz-Server-Side-Encryption-Customer-Key: x", restricted=True),
    Keep("what ends like Authorization", "", "X-Authorization: x", restricted=True),
    Keep("or in auth", "", "X-Registry-Auth: x", restricted=True),
    Keep("or is called Token", "", "Token: x", restricted=True),
    Keep("or as nobody knows", "", "DPoP: x", restricted=True),
    Keep("with _ as well as with -", "", "access_token: x", restricted=True),
    Keep("the key of a WebSocket is none", "", "Sec-WebSocket-Key: x"),
    Keep("nor is that of a repetition", "", "Idempotency-Key: x | X-Idempotency-Key: y"),
    Keep("what opens dduct opens no origin", "", "Proxy-Authorization: x"),
    Keep("nor is that of a cache", "", "Surrogate-Key: x"),
    Keep("npm's way to log in is none", "", "npm-auth-type: web"),
    Keep("9111 §4.1 Vary: *", "Vary: *", kept=False),
    Keep("9111 §4.1 Vary: * among others", "Vary: Accept, *", kept=False),
    Keep("9111 §4.1 another Vary", "Vary: Accept, User-Agent"),
    Keep("9111 §3.3 a 206", "Content-Range: bytes 0-1/2", status=206, kept=False),
    Keep("9111 §3.3 a 200 with Content-Range", "Content-Range: bytes 0-1/2", kept=False),
    Keep("9111 §3 a 203 is none of ours", MINUTE, status=203, kept=False),
    Keep("9111 §3 a 301", MINUTE, status=301, kept=False),
    Keep("9111 §3 a 304", "", status=304, kept=False),
    Keep("9111 §3 a 404", MINUTE, status=404, kept=False),
    Keep("9111 §3 a 500", MINUTE, status=500, kept=False),
    Keep("9111 §7.3 Set-Cookie does not forbid it", "Set-Cookie: id=1"),
    Keep("9111 §5.3 expired already: to be validated", "Expires: 0"),
]


@pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: keep.rule)
def test_a_response_is_storable_where_rfc_9111_allows_it(keep: Keep) -> None:
    asked, answer = request(keep.asked), response(keep.response, keep.status)
    assert (freshness.not_storable(asked, answer, RULES) is None) is keep.kept
    assert (bool(DEFAULT.opening(asked.headers)) or freshness.is_private(answer, RULES)) is keep.restricted


def test_no_store_and_private_can_be_overridden() -> None:
    rules = FreshnessRules(obey_no_store=False)
    for said in ("no-store", "private"):
        answer = response(f"Cache-Control: {said}")
        assert freshness.not_storable(request(), answer, rules) is None
        assert not freshness.is_private(answer, rules)
    assert freshness.not_storable(request("Cache-Control: no-store"), response(), rules) is not None


def test_a_redirect_to_a_page_is_not_an_object() -> None:
    """Otherwise an origin's login form would be stored in the archive's place."""
    page = response("Content-Type: text/html; charset=utf-8")
    assert freshness.not_storable(request(), page, RULES, redirected=True) is not None
    assert freshness.not_storable(request(), page, RULES, redirected=False) is None
    assert freshness.not_storable(request(), response("Content-Type: x/y"), RULES, redirected=True) is None


# --- Vary -------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    rule: str
    vary: str
    first: str
    second: str
    same: bool


VARIANTS = [
    Variant("9111 §4.1 nothing varies", "", "Accept: a", "Accept: b", True),
    Variant("9111 §4.1 the same value", "Vary: Accept", "Accept: a", "Accept: a", True),
    Variant("9111 §4.1 another value", "Vary: Accept", "Accept: a", "Accept: b", False),
    Variant("9111 §4.1 absent from both", "Vary: Accept", "", "", True),
    Variant("9111 §4.1 absent from the first", "Vary: Accept", "", "Accept: a", False),
    Variant("9111 §4.1 absent from the second", "Vary: Accept", "Accept: a", "", False),
    Variant("9111 §4.1 another field does not matter", "Vary: Accept", "X: 1", "X: 2", True),
    Variant("9111 §4.1 names have no case", "Vary: aCCept", "ACCEPT: a", "accept: a", True),
    Variant("9111 §4.1 all of several", "Vary: Accept, DNT", "Accept: a | DNT: 1", "Accept: a | DNT: 2", False),
    Variant("9111 §4.1 on several lines", "Vary: Accept | Vary: DNT", "DNT: 1", "DNT: 2", False),
    Variant("9111 §4.1 white space around commas", "Vary: Accept", "Accept: a,b", "Accept: a , b", True),
    Variant("9111 §4.1 lines combined", "Vary: Accept", "Accept: a, b", "Accept: a | Accept: b", True),
    Variant("9111 §4.1 the order counts", "Vary: Accept", "Accept: a, b", "Accept: b, a", False),
    Variant("9111 §4.1 the case of values counts", "Vary: Accept", "Accept: a", "Accept: A", False),
    Variant("always asked for as identity", "Vary: Accept-Encoding", "Accept-Encoding: gzip", "", True),
    Variant("left to authorisation", "Vary: Authorization", "Authorization: a", "Authorization: b", True),
    Variant("left to authorisation as well", "Vary: X-Api-Key", "X-Api-Key: a", "X-Api-Key: b", True),
    Variant("and so is what nobody knows", "Vary: X-Own", "X-Own: a", "X-Own: b", True),
    Variant("9111 §4.1 strangers are of one kind", "Vary: Authorization", "", "", True),
    Variant("9111 §4.1 and somebody of another", "Vary: Authorization", "", "Authorization: a", False),
    Variant("9111 §4.1 with other credentials", "Vary: Cookie, X-Api-Key", "", "X-Api-Key: a", False),
    Variant("left to authorisation in both ways", "Vary: Cookie", "Authorization: a", "Cookie: b", True),
    Variant("left to authorisation, too", "Vary: Cookie", "Cookie: a", "Cookie: b", True),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.rule)
def test_a_stored_response_answers_requests_of_its_own_kind(variant: Variant) -> None:
    vary = freshness.vary_fields(request(variant.first), response(variant.vary))
    assert freshness.varies(request(variant.second).headers, vary) is not variant.same


# --- what is stored, and what a validation makes of it ----------------------------------------------


def stored(lines: str) -> List[Tuple[str, str]]:
    return list(freshness.stored_fields(response(lines), NOW))


def test_fields_of_the_representation_are_stored_in_order() -> None:
    lines = (
        'Content-Type: x/y | ETag: "1" | Docker-Content-Digest: sha256:1 | Link: <a>; rel=next | Link: <b> | X-Own: 1'
    )
    kept = [name for name, _ in stored(lines + " | Date: {0}")]
    assert kept == ["Content-Type", "ETag", "Docker-Content-Digest", "Link", "Link", "X-Own", "Date"]


@pytest.mark.parametrize(
    "line",
    [
        "Connection: x",
        "Connection: named | Named: 1",
        "Keep-Alive: 5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authenticate: Basic",
        "Transfer-Encoding: chunked",
        "Upgrade: x",
        "Content-Length: 5",
        "Age: 5",
        "Via: 1.1 x",
        "Cache-Status: x; hit",
        "Set-Cookie: a=1",
        "Warning: 110",
        "Alt-Svc: h3=x",
    ],
)
def test_fields_of_one_transfer_are_not_stored(line: str) -> None:
    """RFC 9111 §3.1."""
    assert stored(line + " | Date: {0}") == [("Date", date(0))]


def test_a_response_without_date_gets_one() -> None:
    """RFC 9110 §6.6.1."""
    assert stored("") == [("Date", date(0))]


def test_too_many_fields_are_reduced_by_unimportant_ones() -> None:
    long = "x" * 900
    line = f'X-One: {long} | Server: {long} | ETag: "{"e" * 500}" | X-Two: {long} | NEL: {long} | Date: {{0}}'
    assert [name for name, _ in stored(line)] == ["X-One", "ETag", "X-Two", "Date"]
    assert [name for name, _ in stored("Server: x | NEL: y | Date: {0}")] == ["Server", "NEL", "Date"]


def test_a_304_with_too_many_fields_updates_the_important_ones() -> None:
    validated = response(f"Cache-Control: max-age=7 | X-Large: {'x' * 3000} | A: 2", 304)
    after = dict(validation.updated_fields(fields("A: 1 | Cache-Control: max-age=5 | Date: {-60}"), validated, NOW))
    assert after == {"A": "1", "Cache-Control": "max-age=7", "Date": date(0)}


class Renewal(NamedTuple):
    rule: str
    before: str
    validation: str
    after: Dict[str, str]


RENEWALS = [
    Renewal("9111 §3.2 fields are replaced", "A: 1 | B: 1", "A: 2", {"A": "2", "B": "1"}),
    Renewal("9111 §3.2 whatever their case", "A: 1", "a: 2", {"a": "2"}),
    Renewal("9111 §3.2 all lines of them", "A: 1 | A: 2", "A: 3", {"A": "3"}),
    Renewal("9111 §3.2 and added", "A: 1", "B: 2", {"A": "1", "B": "2"}),
    Renewal("9111 §3.2 Cache-Control", MINUTE, "Cache-Control: max-age=5", {"Cache-Control": "max-age=5"}),
    Renewal("9111 §3.2 not Content-Length", "", "Content-Length: 0", {}),
    Renewal("9111 §3.2 not Content-Encoding", "Content-Encoding: x", "Content-Encoding: y", {"Content-Encoding": "x"}),
    Renewal("9111 §3.2 not Content-Type", "Content-Type: x/y", "Content-Type: text/html", {"Content-Type": "x/y"}),
    Renewal("9111 §3.2 not Content-Range", "", "Content-Range: bytes 0-1/2", {}),
    Renewal("9111 §3.1 not what belongs to the connection", "A: 1", "Connection: A | A: 2", {"A": "1"}),
]


@pytest.mark.parametrize("renewal", RENEWALS, ids=lambda renewal: renewal.rule)
def test_a_304_updates_the_stored_fields(renewal: Renewal) -> None:
    validated = response(renewal.validation, 304)
    after = dict(validation.updated_fields(fields(renewal.before + " | Date: {-60}"), validated, NOW))
    assert after == {**renewal.after, "Date": date(0)}


CONDITIONS = [
    ("9111 §4.3.1 both validators", 'ETag: "1" | Last-Modified: {-9}', ["If-None-Match", "If-Modified-Since"]),
    ("9111 §4.3.1 the tag", 'ETag: W/"1"', ["If-None-Match"]),
    ("9111 §4.3.1 the date", "Last-Modified: {-9}", ["If-Modified-Since"]),
    ("9111 §4.3.1 neither", "X: 1", []),
]


@pytest.mark.parametrize(("rule", "before", "conditions"), CONDITIONS, ids=[row[0] for row in CONDITIONS])
def test_a_validation_is_conditional_on_what_is_stored(rule: str, before: str, conditions: List[str]) -> None:
    assert [name.decode() for name, _ in validation.validators(fields(before))] == conditions


SELECTIONS = [
    ("9111 §4.3.4 the same strong tag", 'ETag: "1"', 'ETag: "1"', True),
    ("9111 §4.3.4 another strong tag", 'ETag: "1"', 'ETag: "2"', False),
    ("9111 §4.3.4 a weak one", 'ETag: W/"1"', 'ETag: W/"1"', True),
    ("9111 §4.3.4 another weak one", 'ETag: W/"1"', 'ETag: W/"2"', False),
    ("9111 §4.3.4 none in the 304", 'ETag: "1"', "", True),
    ("9111 §4.3.4 none stored", "", 'ETag: "1"', True),
    ("9111 §4.3.4 another date", "Last-Modified: {-9}", "Last-Modified: {0}", False),
    ("9111 §4.3.4 the same date", "Last-Modified: {-9}", "Last-Modified: {-9}", True),
    ("and a tag with another date", 'ETag: "1" | Last-Modified: {-9}', 'ETag: "1" | Last-Modified: {0}', False),
]


@pytest.mark.parametrize(("rule", "before", "answer", "meant"), SELECTIONS, ids=[row[0] for row in SELECTIONS])
def test_a_304_confirms_the_stored_response_or_another(rule: str, before: str, answer: str, meant: bool) -> None:
    assert validation.selects(response(answer, 304), fields(before)) is meant


# --- redirects --------------------------------------------------------------------------------------


class Leads(NamedTuple):
    rule: str
    status: int
    fields: str
    seconds: Optional[float]


REDIRECTS = [
    Leads("9110 §15.4.2 301 is for good", 301, "", None),
    Leads("9110 §15.4.9 308 is for good", 308, "", None),
    Leads("9110 §15.4.3 302 is for now", 302, "", 0),
    Leads("9110 §15.4.4 303 is for now", 303, "", 0),
    Leads("9110 §15.4.8 307 is for now", 307, "", 0),
    Leads("9111 §4.2.2 no heuristics", 302, "Last-Modified: {-1000000}", 0),
    Leads("9111 §4.2.1 max-age", 302, "Cache-Control: max-age=60", 60),
    Leads("9111 §4.2.1 max-age of a permanent one", 301, "Cache-Control: max-age=60", 60),
    Leads("9111 §4.2.1 s-maxage", 307, "Cache-Control: s-maxage=60, max-age=5", 60),
    Leads("9111 §4.2.1 Expires", 302, "Expires: {90} | Date: {0}", 90),
    Leads("9111 §4.2.3 less its age", 302, "Cache-Control: max-age=60 | Age: 20", 40),
    Leads("9111 §4.2.3 and never negative", 302, "Cache-Control: max-age=60 | Age: 100", 0),
    Leads("9111 §5.2.2.4 no-cache", 302, "Cache-Control: no-cache, max-age=60", 0),
    Leads("9111 §5.2.2.4 no-cache of a permanent one", 308, "Cache-Control: no-cache", 0),
    Leads("9111 §5.2.2.5 no-store", 301, "Cache-Control: no-store, max-age=60", 0),
    Leads("9111 §5.2.2.7 private says nothing of time", 302, "Cache-Control: private, max-age=60", 60),
]


@pytest.mark.parametrize("leads", REDIRECTS, ids=lambda leads: leads.rule)
def test_a_redirect_holds_for_as_long_as_its_origin_says(leads: Leads) -> None:
    assert freshness.redirect_lifetime(response(leads.fields, leads.status), RULES, NOW) == leads.seconds


def test_a_no_store_of_a_redirect_can_be_overridden() -> None:
    rules = FreshnessRules(obey_no_store=False)
    assert freshness.redirect_lifetime(response("Cache-Control: no-store, max-age=60", 302), rules, NOW) == 60


@pytest.mark.parametrize(
    ("before", "seconds", "after"),
    [
        ("Cache-Control: public, max-age=60", 100, "public, max-age=60"),
        ("Cache-Control: public, max-age=60", 10, "public, max-age=10"),
        ("Cache-Control: public, max-age=60, immutable", 0, "public, max-age=0"),
        ("Cache-Control: s-maxage=60, max-age=5, must-revalidate", 10, "must-revalidate, max-age=5, s-maxage=10"),
        ("Cache-Control: immutable", 10, "max-age=10"),
        ("Expires: {90}", 10, "max-age=10"),
        ("Last-Modified: {-1000000}", 10, "max-age=10"),
        ("", 10, "max-age=10"),
        ("", 2 * DAY, None),
        ('Cache-Control: no-cache="a, b", max-age=60', 0, 'no-cache="a, b", max-age=0'),
    ],
)
def test_a_response_behind_a_redirect_is_fresh_no_longer_than_the_redirect(
    before: str, seconds: float, after: Optional[str]
) -> None:
    limited = freshness.limited(tuple(stored(before)), seconds, RULES, NOW)
    assert dict(limited).get("Cache-Control") == after
    if after is not None and "no-cache" not in after:
        headers = Headers((name.encode(), value.encode()) for name, value in limited)
        assert freshness.lifetime(Stored(headers, NOW), RULES) <= max(seconds, 0)


# --- invalidation -----------------------------------------------------------------------------------

NEGATIVES = [
    ("9110 §15.1 404", "Cache-Control: max-age=60", 404, 60),
    ("9110 §15.1 410", "Cache-Control: max-age=60", 410, 60),
    ("9110 §15.1 301", "Cache-Control: max-age=60", 301, 60),
    ("9110 §15.1 308", "Cache-Control: max-age=60", 308, 60),
    ("an object has rules of its own", "Cache-Control: max-age=60", 200, 0),
    ("a refusal is one client's", "Cache-Control: max-age=60", 401, 0),
    ("so is this one", "Cache-Control: max-age=60", 403, 0),
    ("it may lead elsewhere soon", "Cache-Control: max-age=60", 302, 0),
    ("9111 §4.2.1 s-maxage", "Cache-Control: max-age=60, s-maxage=30", 404, 30),
    ("9111 §4.2.1 Expires", "Expires: {90} | Date: {0}", 404, 90),
    ("9111 §5.3 an invalid date is in the past", "Expires: 0", 404, 0),
    ("9111 §4.2.2 nothing is guessed", "Last-Modified: {-864000}", 404, 0),
    ("8246 states no time", "Cache-Control: immutable", 404, 0),
    ("9111 §4.2.3 its age counts", "Cache-Control: max-age=60 | Age: 50", 404, 10),
    ("9111 §4.2.3 its date counts", "Cache-Control: max-age=60 | Date: {-40}", 404, 20),
    ("9111 §4.2 it is older than that", "Cache-Control: max-age=60 | Age: 90", 404, 0),
    ("9111 §5.2.2.5 no-store", "Cache-Control: max-age=60, no-store", 404, 0),
    ("9111 §5.2.2.3 helps here no more", "Cache-Control: max-age=60, no-store, must-understand", 404, 0),
    ("9111 §5.2.2.7 private", "Cache-Control: max-age=60, private", 404, 0),
    ("9111 §5.2.2.4 no-cache", 'Cache-Control: max-age=60, no-cache="x"', 404, 0),
    ("9111 §4.1 Vary", "Cache-Control: max-age=60 | Vary: x, *", 404, 0),
    ("it is for one client", "Cache-Control: max-age=60 | Set-Cookie: a=b", 404, 0),
    ("it makes no sense", "Cache-Control: max-age=60 | Content-Range: bytes 0-1/2", 404, 0),
]


@pytest.mark.parametrize(("rule", "lines", "status", "seconds"), NEGATIVES, ids=[r[0] for r in NEGATIVES])
def test_a_response_without_an_object_says_how_long_it_is_good(
    rule: str, lines: str, status: int, seconds: float
) -> None:
    assert freshness.negative_lifetime(response(lines, status), NOW, NOW) == seconds


INVALIDATIONS = [
    ("9111 §4.4 PUT", b"PUT", 200, True),
    ("9111 §4.4 POST", b"POST", 201, True),
    ("9111 §4.4 DELETE", b"DELETE", 204, True),
    ("9111 §4.4 PATCH", b"PATCH", 200, True),
    ("9111 §4.4 a method that nobody knows", b"FROB", 200, True),
    ("9111 §4.4 a redirect is no error", b"POST", 303, True),
    ("9111 §4.4 not on a client's error", b"PUT", 404, False),
    ("9111 §4.4 not on a server's error", b"DELETE", 500, False),
    ("9110 §9.2.1 GET is safe", b"GET", 200, False),
    ("9110 §9.2.1 HEAD is safe", b"HEAD", 200, False),
    ("9110 §9.2.1 OPTIONS is safe", b"OPTIONS", 200, False),
    ("9110 §9.2.1 TRACE is safe", b"TRACE", 200, False),
]


@pytest.mark.parametrize(("rule", "method", "status", "expected"), INVALIDATIONS, ids=[r[0] for r in INVALIDATIONS])
def test_an_unsafe_method_names_the_urls_to_invalidate(rule: str, method: bytes, status: int, expected: bool) -> None:
    assert validation.invalidates(method, status) is expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [("Cache-Control: only-if-cached", True), ("Cache-Control: x, ONLY-IF-CACHED", True), ("", False)],
)
def test_only_if_cached_is_recognized(lines: str, expected: bool) -> None:
    """RFC 9111 §5.2.1.7."""
    assert freshness.only_if_cached(request(lines)) is expected


@pytest.mark.parametrize("lines", ["=", ",", "a b", 'x="', "max-age = 60 x", '"max-age=5"'])
def test_a_malformed_directive_is_ignored(lines: str) -> None:
    directives = directives_of(fields("Cache-Control: " + lines))
    assert not directives or b"x" in directives


def test_the_tables_have_their_minimum_length() -> None:
    tables = (LIVES, AGES, USES, KEEPS, VARIANTS, RENEWALS, CONDITIONS, SELECTIONS, INVALIDATIONS)
    assert sum(len(table) for table in tables) >= 120
