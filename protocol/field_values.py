"""The meaning of some field values: byte ranges (RFC 9110 §14) and dates (§5.6.7). Pure, like `http1`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import formatdate
from typing import List, Optional, Tuple

from protocol.remembering import remember_short

RANGES_LIMIT = 1000  # clients ask for so many ranges of zstd:chunked layers at once, and for 256 of zchunk files
_RANGES = re.compile(rb"bytes[ \t]*=(.*)", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(rb"([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})")


@dataclass(frozen=True)
class ByteRange:
    """One requested range: `first` None means the last `last` bytes, `last` None means to the end."""

    first: Optional[int]
    last: Optional[int]

    def window(self, length: int) -> Optional[Tuple[int, int]]:
        """The half-open span in a representation of `length` bytes, or None where unsatisfiable."""
        if self.first is None:
            count = min(self.last or 0, length)
            return (length - count, length) if count else None
        if self.first >= length:
            return None
        return self.first, length if self.last is None else min(self.last + 1, length)


def parse_ranges(value: bytes) -> List[ByteRange]:
    """The ranges that a Range field asks for; none for anything that a server may ignore (RFC 9110 §14.2).

    One malformed range makes the whole field invalid, and so do more than RANGES_LIMIT.
    """
    match = _RANGES.fullmatch(value.strip(b" \t"))
    if match is None:
        return []
    texts = [text.strip(b" \t") for text in match.group(1).split(b",")]
    ranges = [_parse_range(text) for text in texts if text]
    if len(ranges) > RANGES_LIMIT:
        return []
    understood = [one for one in ranges if one is not None]
    return understood if len(understood) == len(ranges) else []


def _parse_range(text: bytes) -> Optional[ByteRange]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


_LEAP_SECOND = 60
_CENTURY_TURN = 70  # RFC 850 years have two digits; below 70 they mean 20xx: no date sent today is of 1969
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_DAY = "(?:mon|tue|wed|thu|fri|sat|sun)"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        f"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
        f"{_DAY}[a-z]{{3,6}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
        f"{_DAY} {_MONTH} (?P<day>[0-9 ][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
    )
)


def format_date(timestamp: float) -> bytes:
    """An IMF-fixdate (RFC 9110 §5.6.7) of seconds since the epoch."""
    return formatdate(timestamp, usegmt=True).encode()


@remember_short(entries=1024, length=64)
def parse_date(value: bytes) -> Optional[float]:
    """Seconds since the epoch of any of HTTP's three date formats (RFC 9110 §5.6.7), or None.

    A string that only resembles a date, such as one in another time zone, gives None.
    """
    text = value.decode("latin-1")
    match = next((found for found in (pattern.fullmatch(text) for pattern in _DATES) if found), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 2000 if year < _CENTURY_TURN else 1900
    numbers = (int(match["day"]), int(match["hour"]), int(match["minute"]), min(int(match["second"]), 59))
    try:
        when = datetime(year, _MONTHS.index(match["month"].lower()) + 1, *numbers, tzinfo=timezone.utc)
    except ValueError:
        return None
    return when.timestamp() + (int(match["second"]) == _LEAP_SECOND)
