"""Points in time as traces write them, to whole nanoseconds: no float on the way, so nothing is lost.

Each parser raises ``ValueError`` with what the text should have been; the caller knows file, row and column.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import lru_cache

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
#: no reasonable trace starts later than this many seconds or milliseconds after its zero
LARGEST_DECIMAL = Decimal(10) ** 15

_TIMESTAMP = re.compile(
    r"(\d{4}-\d{2}-\d{2})[ T](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?(?:Z|([+-])(\d{2}):?(\d{2}))?", re.ASCII
)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


def parse_timestamp_ns(text: str) -> int:
    """A date and time such as ``2023-11-16 18:15:46.6805900``, up to nine decimals, with or without a UTC offset.

    Returns nanoseconds since the first day of year 1, UTC; without an offset the text is taken as UTC.
    """
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise ValueError("must be a time such as 2023-11-16 18:15:46.6805900")
    day, hour, minute, second, decimals, sign, offset_hours, offset_minutes = match.groups()
    hours, minutes, seconds = int(hour), int(minute), int(second)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError("must have hours to 23, minutes and seconds to 59")
    total_s = _day_number(day) * 86_400 + hours * 3_600 + minutes * 60 + seconds
    if sign:
        ahead_s = int(offset_hours) * 3_600 + int(offset_minutes) * 60
        total_s -= ahead_s if sign == "+" else -ahead_s
    return total_s * NS_PER_S + (int(decimals.ljust(9, "0")) if decimals else 0)


@lru_cache(maxsize=64)
def _day_number(day: str) -> int:
    try:
        return date.fromisoformat(day).toordinal()
    except ValueError:
        raise ValueError("must have a date that exists") from None


def parse_seconds_ns(text: str) -> int:
    """A decimal number of seconds such as ``12.5``; beyond nine decimals it is rounded half to even."""
    return _scaled(text, NS_PER_S, "seconds")


def parse_milliseconds_ns(value: object) -> int:
    """Milliseconds out of JSON: an ``int``, or a ``Decimal`` where the number has decimals."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("must be a number of milliseconds >= 0")
    return _scaled(str(value), NS_PER_MS, "milliseconds")


def parse_milliseconds_text_ns(text: str) -> int:
    """A decimal number of milliseconds such as ``250``; beyond six decimals it is rounded half to even."""
    return _scaled(text, NS_PER_MS, "milliseconds")


def _scaled(text: str, factor: int, unit: str) -> int:
    trimmed = text.strip()
    try:
        value = Decimal(trimmed) if _DECIMAL.fullmatch(trimmed) else None
    except InvalidOperation:
        value = None
    if value is None or not 0 <= value < LARGEST_DECIMAL:
        raise ValueError(f"must be a number of {unit} >= 0 and less than 10 to the 15")
    return int((value * factor).to_integral_value())
