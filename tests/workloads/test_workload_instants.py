"""Times out of text, exact to the nanosecond."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.instants import parse_milliseconds_ns, parse_seconds_ns, parse_timestamp_ns


def test_hundred_nanosecond_timestamps_differ_by_exactly_what_they_say() -> None:
    first = parse_timestamp_ns("2023-11-16 18:15:46.6805900")
    assert parse_timestamp_ns("2023-11-16 18:15:46.6805901") - first == 100
    assert parse_timestamp_ns("2023-11-16 18:15:50.9951690") - first == 4_314_579_000
    assert parse_timestamp_ns("2023-11-17 00:00:00") - first == (5 * 3600 + 44 * 60 + 14) * 10**9 - 680_590_000


def test_leap_days_and_new_years_are_counted() -> None:
    day = 86_400 * 10**9
    assert parse_timestamp_ns("2024-03-01 00:00:00") - parse_timestamp_ns("2024-02-28 00:00:00") == 2 * day
    assert parse_timestamp_ns("2024-01-01 00:00:00") - parse_timestamp_ns("2023-12-31 23:59:59") == 10**9


def test_offsets_move_a_timestamp_to_utc() -> None:
    utc = parse_timestamp_ns("2024-05-12 00:00:00.003947")
    for text in (
        "2024-05-12T00:00:00.003947Z",
        "2024-05-12 00:00:00.003947+00:00",
        "2024-05-12 02:00:00.003947+02:00",
        "2024-05-11 18:30:00.003947-0530",
    ):
        assert parse_timestamp_ns(text) == utc


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2023-11-16", "2023-13-01 00:00:00", "2023-02-29 00:00:00", "2023-11-16 24:00:00",
     "2023-11-16 23:60:00", "2023-11-16 23:59:60", "2023-11-16 23:59:59.1234567890", "1700000000",
     "٢٠٢٣-11-16 18:15:46"],
)  # fmt: skip
def test_what_is_no_timestamp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must (have|be)"):
        parse_timestamp_ns(text)


@settings(deadline=None)
@given(st.integers(0, 2**60))
def test_nanoseconds_survive_being_written_as_seconds(time_ns: int) -> None:
    assert parse_seconds_ns(f"{time_ns // 10**9}.{time_ns % 10**9:09d}") == time_ns
    assert parse_milliseconds_ns(Decimal(time_ns).scaleb(-6)) == time_ns


def test_seconds_may_be_short_or_scientific() -> None:
    assert [parse_seconds_ns(text) for text in ("0", " 12 ", ".5", "3.", "2.5e-3")] == [
        0, 12 * 10**9, 500_000_000, 3 * 10**9, 2_500_000,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "-1", "1_0", "nan", "inf", "1e16", "1e999999", "1,5", "0x10", "٣"])
def test_what_is_no_time_in_seconds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number of seconds >= 0"):
        parse_seconds_ns(text)


@pytest.mark.parametrize("value", [True, None, "12", -1, Decimal("-0.5"), [1], 10**15, float("nan")])
def test_what_is_no_time_in_milliseconds_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number of milliseconds >= 0"):
        parse_milliseconds_ns(value)
