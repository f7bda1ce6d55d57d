"""Which client may replace a restricted object, and what an origin's answer tells about it: values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Tuple

import pytest

from fetching import permission
from protocol.freshness import FreshnessRules
from protocol.headers import Headers
from protocol.http1 import ResponseHead
from protocol.request_fields import DEFAULT
from storage.record import Metadata

NOW, HOUR, DAY = 1e9, 3600.0, 86400.0
ZIP, JSON = "application/zip", "application/json"


def head(kind: str = "", *fields: Tuple[str, str]) -> ResponseHead:
    said = [*([("Content-Type", kind)] if kind else []), *fields]
    return ResponseHead(200, b"", 1, Headers((name.encode(), value.encode()) for name, value in said))


def stored(*reasons: str, age: float = 0.0, fields: Tuple[Tuple[str, str], ...] = ()) -> Metadata:
    return Metadata("http://a/x", fields, NOW - age, restricted=bool(reasons), restricted_by=reasons)


@pytest.mark.parametrize(
    ("metadata", "brings", "known", "kinds", "allowed"),
    [
        (stored(), (), False, (ZIP, "text/html"), True),
        (stored("private"), (), False, (ZIP, JSON), True),
        (stored("fields"), (), False, (ZIP, ZIP), False),
        (stored("fields"), ("fields",), False, (ZIP, ZIP), True),
        (stored("fields"), ("fields",), False, (ZIP, "application/zip; x=1"), True),
        (stored("fields"), ("fields",), False, (ZIP, "application/gzip"), False),
        (stored("fields"), ("fields",), False, (JSON, JSON), False),
        (stored("fields"), ("fields",), False, ("", ""), False),
        (stored("fields"), ("fields",), True, (JSON, JSON), True),
        (stored("fields"), ("signature",), False, (ZIP, ZIP), False),
        (stored("fields", "signature"), ("fields",), False, (ZIP, ZIP), False),
        (stored("fields", "private"), ("fields", "signature"), False, (ZIP, ZIP), True),
        (stored("fields", age=2 * HOUR), ("fields",), False, (JSON, JSON), True),
        (stored("fields", age=2 * HOUR), (), False, (ZIP, ZIP), False),
        (stored("fields", age=2 * DAY), (), False, (ZIP, ZIP), True),
    ],
)
def test_a_restricted_object_is_replaced_with_permission_only(
    metadata: Metadata, brings: Tuple[str, ...], known: bool, kinds: Tuple[str, str], allowed: bool
) -> None:
    before, after = kinds
    fields = head(before).headers
    assert permission.may_replace(metadata, brings, known, head(after), fields, NOW) is allowed


def test_an_old_record_does_not_say_why_it_is_restricted() -> None:
    metadata = Metadata("http://a/x", (), NOW, restricted=True)
    assert not permission.may_replace(metadata, (), False, head(ZIP), head(ZIP).headers, NOW)
    assert permission.may_replace(metadata, ("fields",), False, head(ZIP), head(ZIP).headers, NOW)
    assert permission.shown(metadata, False, head(), FreshnessRules(), DEFAULT) == metadata


@pytest.mark.parametrize(
    ("metadata", "credentials", "said", "opened", "same"),
    [
        (stored(), True, [], True, True),
        (stored(), False, [], True, False),
        (stored("fields"), False, [], True, True),
        (stored("signature"), False, [], True, True),
        (stored("fields"), True, [], False, False),
        (stored("fields", "private"), False, [], False, False),
        (stored("fields"), False, [("Cache-Control", "private")], False, False),
        (stored("fields", fields=(("Vary", "Accept, Cookie"),)), False, [], False, False),
        (stored("fields", fields=(("Vary", "Accept"),)), False, [], True, True),
    ],
)
def test_an_answer_tells_whether_an_object_is_restricted(
    metadata: Metadata, credentials: bool, said: Tuple[Tuple[str, str], ...], opened: bool, same: bool
) -> None:
    after = permission.shown(metadata, credentials, head("", *said), FreshnessRules(), DEFAULT)
    assert (after.restricted, after.same_for_all) == (not opened, same)


def test_restrictions_of_two_records_are_combined() -> None:
    merged = permission.merged(stored("fields"), stored("signature", "fields"))
    assert (merged.restricted, merged.restricted_by) == (True, ("fields", "signature"))
    assert not permission.merged(stored(), stored("private")).same_for_all
    reached = permission.merged(replace(stored(), near=True), replace(stored(), own=True))
    assert reached.near and reached.own
