"""Lengths of sequences in bins and buckets."""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from serving.cohorts import MOST_BINS, bin_width, binned, buckets_of, by_power_of_two, cohorts


def config(bucket: int | str | None) -> dict[str, object]:
    return SchedulerConfig(bucket=bucket).as_dict()


def test_the_seeds_example_is_two_cohorts_when_four_are_aligned() -> None:
    found = cohorts([60, 60, 60, 60, 100], buckets_of(config(32)))
    assert found == {
        "lengths": 2, "largest": 4, "largest_length": 60, "aligned": 0.8, "buckets": 2, "fullest_bucket": 4
    }  # fmt: skip
    assert cohorts([50, 52, 55, 60, 100], buckets_of(config(32)))["aligned"] == 0
    assert cohorts([], buckets_of(config(32)))["aligned"] is None


def test_buckets_are_the_policys_or_powers_of_two() -> None:
    assert [buckets_of(config(32)).key(length) for length in (1, 32, 33)] == [0, 0, 1]
    assert [buckets_of(config("edges:10,500")).key(length) for length in (10, 11, 501)] == [0, 1, 2]
    for setting in (None, "adaptive", "pow2"):
        assert [buckets_of(config(setting)).key(length) for length in (8, 9, 16, 17)] == [3, 4, 4, 5]


def test_bins_are_the_policys_buckets_doubled_until_they_are_few() -> None:
    assert bin_width(config(32), 2048) == 32
    assert bin_width(config(32), 2049) == 64
    assert bin_width(config(None), 64) == 1
    for longest in (1, 63, 64, 65, 1000, 32768):
        width = bin_width(config(None), longest)
        assert -(-longest // width) <= MOST_BINS
        assert sum(binned(range(1, longest + 1), width, -(-longest // width))) == longest
    assert binned([1, 32, 33, 64, 65], 32, 3) == [2, 2, 1]


def test_label_values_are_few_and_every_length_has_one() -> None:
    counts = by_power_of_two([1, 16, 17, 32, 33, 500, 512], 500)
    assert counts == {16: 2, 32: 2, 64: 1, 128: 0, 256: 0, 512: 2}
    assert by_power_of_two([40], 32) == {16: 0, 32: 1}  # longer than can be
    assert len(by_power_of_two([], 1 << 20)) == 17
