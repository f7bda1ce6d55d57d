"""Preconditions and ranges by tables: every row names the section of RFC 9110 that it comes from."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

import pytest

from protocol import selection
from protocol.headers import Headers
from protocol.http1 import RequestHead
from protocol.selection import Part

LENGTH = 1000
OLD, MODIFIED, NEW = (f"Sun, 06 Nov 1994 08:49:{second} GMT" for second in (36, 37, 38))
STORED = f'ETag: "a,b" | Last-Modified: {MODIFIED} | Content-Type: x/y'


def headers(lines: str) -> Headers:
    pairs = (line.partition(": ") for line in filter(None, lines.split(" | ")))
    return Headers((name.encode(), value.encode()) for name, _, value in pairs)


class Case(NamedTuple):
    rule: str
    asked: str
    status: Optional[int]  # None: for the origin to answer
    spans: Tuple[Tuple[int, Optional[int]], ...] = ()
    stored: str = STORED
    method: bytes = b"GET"
    length: Optional[int] = LENGTH


WHOLE = ((0, LENGTH),)
CASES = [
    Case("§15.3.1 nothing special", "", 200, WHOLE),
    # preconditions
    Case("§13.1.2 If-None-Match that matches", 'If-None-Match: "a,b"', 304),
    Case("§13.1.2 weakly", 'If-None-Match: W/"a,b"', 304),
    Case("§13.1.2 a weak tag is stored", 'If-None-Match: "a"', 304, stored='ETag: W/"a"'),
    Case("§13.1.2 one of several", 'If-None-Match: "x" , "a,b","y"', 304),
    Case("§13.1.2 any", "If-None-Match: *", 304),
    Case("§13.1.2 another", 'If-None-Match: "x"', 200, WHOLE),
    Case("§13.1.2 half of it", 'If-None-Match: "a"', 200, WHOLE),
    Case("§13.1.2 none is stored", 'If-None-Match: "x"', 200, WHOLE, stored=""),
    Case("§13.1.2 malformed", "If-None-Match: a,b", 200, WHOLE),
    Case("§13.1.2 for HEAD, too", 'If-None-Match: "a,b"', 304, method=b"HEAD"),
    Case("§13.1.3 If-Modified-Since, the very date", f"If-Modified-Since: {MODIFIED}", 304),
    Case("§13.1.3 a later date", f"If-Modified-Since: {NEW}", 304),
    Case("§13.1.3 an earlier date", f"If-Modified-Since: {OLD}", 200, WHOLE),
    Case("§13.1.3 no date", "If-Modified-Since: yesterday", 200, WHOLE),
    Case("§13.1.3 for HEAD, too", f"If-Modified-Since: {MODIFIED}", 304, method=b"HEAD"),
    Case("9111 §4.3.2 Date instead of Last-Modified", f"If-Modified-Since: {NEW}", 304, stored=f"Date: {MODIFIED}"),
    Case("9111 §4.3.2 an earlier one", f"If-Modified-Since: {OLD}", 200, WHOLE, stored=f"Date: {MODIFIED}"),
    Case("9111 §4.3.2 neither", f"If-Modified-Since: {NEW}", 200, WHOLE, stored=""),
    Case("§13.2.2 If-None-Match comes first", f'If-None-Match: "x" | If-Modified-Since: {NEW}', 200, WHOLE),
    Case("§13.2.2 and alone", f'If-None-Match: "a,b" | If-Modified-Since: {OLD}', 304),
    Case("§13.1.1 If-Match that matches", 'If-Match: "a,b"', 200, WHOLE),
    Case("§13.1.1 any", "If-Match: *", 200, WHOLE),
    Case("§13.1.1 one of several", 'If-Match: "x", "a,b"', 200, WHOLE),
    Case("§13.1.1 another is the origin's to judge", 'If-Match: "x"', None),
    Case("§13.1.1 only strongly", 'If-Match: W/"a,b"', None),
    Case("§13.1.1 only strongly, seen from here", 'If-Match: "a"', None, stored='ETag: W/"a"'),
    Case("§13.1.1 none is stored", 'If-Match: "x"', None, stored=""),
    Case("§13.1.4 If-Unmodified-Since, the very date", f"If-Unmodified-Since: {MODIFIED}", 200, WHOLE),
    Case("§13.1.4 a later date", f"If-Unmodified-Since: {NEW}", 200, WHOLE),
    Case("§13.1.4 an earlier one is the origin's to judge", f"If-Unmodified-Since: {OLD}", None),
    Case("§13.1.4 no date", "If-Unmodified-Since: x", 200, WHOLE),
    Case("§13.1.4 none is stored", f"If-Unmodified-Since: {OLD}", 200, WHOLE, stored=""),
    Case("§13.2.2 If-Match comes first", f'If-Match: "a,b" | If-Unmodified-Since: {OLD}', 200, WHOLE),
    Case("§13.2.2 conditions before ranges", 'If-None-Match: "a,b" | Range: bytes=0-9', 304),
    # one range
    Case("§14.1.2 first and last", "Range: bytes=10-19", 206, ((10, 20),)),
    Case("§14.1.2 open-ended", "Range: bytes=10-", 206, ((10, LENGTH),)),
    Case("§14.1.2 a suffix", "Range: bytes=-10", 206, ((990, LENGTH),)),
    Case("§14.1.2 one byte", "Range: bytes=0-0", 206, ((0, 1),)),
    Case("§14.1.2 the last byte", "Range: bytes=999-", 206, ((999, LENGTH),)),
    Case("§14.1.2 a last beyond the end", "Range: bytes=10-5000", 206, ((10, LENGTH),)),
    Case("§14.1.2 a suffix longer than all", "Range: bytes=-5000", 206, WHOLE),
    Case("§14.1.2 everything", "Range: bytes=0-", 206, WHOLE),
    Case("§15.5.17 a first at the end", "Range: bytes=1000-", 416),
    Case("§15.5.17 a first beyond the end", "Range: bytes=2000-3000", 416),
    Case("§15.5.17 a suffix of nothing", "Range: bytes=-0", 416),
    Case("§15.5.17 nothing to take a part of", "Range: bytes=0-", 416, length=0),
    Case("§14.2 another unit", "Range: pages=1-2", 200, WHOLE),
    Case("§14.2 last before first", "Range: bytes=5-4", 200, WHOLE),
    Case("§14.2 only with GET", "Range: bytes=0-9", 200, WHOLE, method=b"HEAD"),
    Case("§14.2 an unknown length", "Range: bytes=0-9", 200, ((0, None),), length=None),
    # several
    Case("§14.1.2 two", "Range: bytes=0-9,20-29", 206, ((0, 10), (20, 30))),
    Case("§15.3.7.2 in the order of the request", "Range: bytes=20-29,0-9", 206, ((20, 30), (0, 10))),
    Case("§14.1.2 with a suffix", "Range: bytes=0-9,-10", 206, ((0, 10), (990, 1000))),
    Case("§15.3.7.2 unsatisfiable ones are left out", "Range: bytes=0-9,2000-,20-29", 206, ((0, 10), (20, 30))),
    Case("§15.3.7.2 with one left there are no parts", "Range: bytes=0-9,2000-", 206, ((0, 10),)),
    Case("§15.5.17 all are unsatisfiable", "Range: bytes=1000-,2000-", 416),
    Case("§14.2 one is malformed", "Range: bytes=0-9,x", 200, WHOLE),
    Case("§17.15 as much as the whole", "Range: bytes=0-499,500-999", 200, WHOLE),
    Case("§17.15 the whole again and again", "Range: bytes=" + ",".join(["0-"] * 200), 200, WHOLE),
    Case("§17.15 too many", "Range: bytes=" + ",".join(["0-0"] * 1001), 200, WHOLE),
    Case("as many as dnf asks for", "Range: bytes=" + ",".join(["0-1"] * 256), 206, ((0, 2),) * 256),
    Case(
        "as many as zstd:chunked asks for",
        "Range: bytes=" + ",".join(["0-0"] * 1000),
        206,
        ((0, 1),) * 1000,
        length=1001,
    ),
    Case(
        "unordered, overlapping, and less than the whole", "Range: bytes=5-9,0-6,5-9", 206, ((5, 10), (0, 7), (5, 10))
    ),
    # If-Range
    Case("§13.1.5 the tag", 'Range: bytes=0-9 | If-Range: "a,b"', 206, ((0, 10),)),
    Case("§13.1.5 another tag", 'Range: bytes=0-9 | If-Range: "x"', 200, WHOLE),
    Case("§13.1.5 a weak tag", 'Range: bytes=0-9 | If-Range: W/"a,b"', 200, WHOLE),
    Case("§13.1.5 a weak tag is stored", 'Range: bytes=0-9 | If-Range: "a"', 200, WHOLE, stored='ETag: W/"a"'),
    Case("§13.1.5 the date", f"Range: bytes=0-9 | If-Range: {MODIFIED}", 206, ((0, 10),)),
    Case("§13.1.5 a later date is not the same", f"Range: bytes=0-9 | If-Range: {NEW}", 200, WHOLE),
    Case("§13.1.5 an earlier date", f"Range: bytes=0-9 | If-Range: {OLD}", 200, WHOLE),
    Case("§13.1.5 no date is stored", f"Range: bytes=0-9 | If-Range: {OLD}", 200, WHOLE, stored=""),
    Case("§13.1.5 nonsense", "Range: bytes=0-9 | If-Range: x", 200, WHOLE),
    Case("§13.1.5 without Range it says nothing", 'If-Range: "x"', 200, WHOLE),
    Case("§13.2.2 unsatisfiable, but of another version", 'Range: bytes=2000- | If-Range: "x"', 200, WHOLE),
]


def select(case: Case) -> Optional[selection.Selection]:
    request = RequestHead(case.method, b"/", 1, headers(case.asked))
    return selection.select(request, headers(case.stored), case.length)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_request_gets_the_ranges_that_it_selects(case: Case) -> None:
    chosen = select(case)
    assert (None if chosen is None else chosen.status) == case.status
    assert chosen is None or tuple((part.start, part.end) for part in chosen.parts) == case.spans


def test_a_single_part_has_its_content_range() -> None:
    chosen = select(Case("", "Range: bytes=10-19", 206))
    assert chosen is not None
    assert chosen.fields == ((b"Content-Range", b"bytes 10-19/1000"),)
    assert (chosen.length, chosen.closing, chosen.parts) == (10, b"", (Part(10, 20),))


def test_a_416_states_the_length() -> None:
    """RFC 9110 §15.5.17; apt wants it so, and never a `/*`."""
    chosen = select(Case("", "Range: bytes=5000-", 416))
    assert chosen is not None and chosen.fields == ((b"Content-Range", b"bytes */1000"),)
    assert chosen.length == 0


def body_of(chosen: selection.Selection, representation: bytes) -> bytes:
    pieces: List[bytes] = []
    for part in chosen.parts:
        pieces += [part.preface, representation[part.start : part.end]]
    return b"".join([*pieces, chosen.closing])


def test_several_parts_are_a_multipart_body() -> None:
    """RFC 9110 §14.6: each part with its type and its range, and no field that a single part would have."""
    chosen = select(Case("", "Range: bytes=1-2,5-7", 206))
    assert chosen is not None
    ((name, kind),) = chosen.fields
    assert name == b"Content-Type" and kind.startswith(b"multipart/byteranges; boundary=")
    boundary = kind.partition(b"=")[2]
    head = b"--%s\r\nContent-Type: x/y\r\nContent-Range: bytes %s/1000\r\n\r\n"
    expected = head % (boundary, b"1-2") + b"bc\r\n" + head % (boundary, b"5-7") + b"fgh\r\n--" + boundary + b"--\r\n"
    assert body_of(chosen, b"abcdefgh" * 125) == expected
    assert chosen.length == len(expected)


def test_every_boundary_is_different() -> None:
    """Otherwise an object could be made that contains it."""
    chosen = [select(Case("", "Range: bytes=1-2,5-7", 206)) for _ in range(2)]
    assert chosen[0] is not None and chosen[1] is not None and chosen[0].closing != chosen[1].closing


def test_a_part_without_content_type_has_none() -> None:
    chosen = select(Case("", "Range: bytes=1-2,5-7", 206, stored=""))
    assert chosen is not None and b"Content-Type" not in chosen.parts[0].preface
