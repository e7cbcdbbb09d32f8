"""Buckets: where their edges lie, and that those that adapt do so by the rule."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.buckets import (
    NO_END,
    AdaptiveSplit,
    Buckets,
    Edges,
    FixedWidth,
    PowersOfTwo,
    equal_mass_buckets,
    equal_mass_edges,
    parse_buckets,
    quantile_edges,
)
from scheduler.errors import ConfigError

edges = st.lists(st.integers(1, 4000), min_size=1, max_size=8, unique=True).map(lambda e: Edges(sorted(e)))


def adapted(lengths: list[int]) -> AdaptiveSplit:
    buckets = AdaptiveSplit(limit=4)
    for length in lengths:
        buckets.submitted(length)
    return buckets


schemes: st.SearchStrategy[Buckets] = st.one_of(
    st.integers(1, 100).map(FixedWidth),
    st.just(PowersOfTwo()),
    edges,
    st.lists(st.integers(1, 4000), max_size=40).map(adapted),
)


@given(schemes, st.integers(1, 5000))
def test_a_bucket_reaches_to_its_last_length_and_no_further(buckets: Buckets, length: int) -> None:
    last = buckets.last(length)
    assert last >= length
    assert buckets.last(last) == last
    assert buckets.key(last) == buckets.key(length)
    if last < NO_END:
        assert buckets.key(last + 1) > buckets.key(last)


@given(schemes, st.integers(1, 5000))
def test_a_bucket_begins_at_its_first_length(buckets: Buckets, length: int) -> None:
    key = buckets.key(length)
    first = buckets.first(key)
    assert 1 <= first <= length
    assert buckets.key(first) == key
    assert first == 1 or buckets.key(first - 1) < key


@given(schemes, st.integers(1, 5000), st.integers(1, 5000))
def test_keys_rise_with_the_lengths(buckets: Buckets, a: int, b: int) -> None:
    short, long = sorted((a, b))
    assert buckets.key(short) <= buckets.key(long)
    assert (buckets.key(short) == buckets.key(long)) == (long <= buckets.last(short))


def test_edges_belong_to_the_bucket_below() -> None:
    """The seed's 0-32, 33-64, ...: 32 belongs to the first."""
    fixed = FixedWidth(32)
    assert [fixed.key(length) for length in (1, 32, 33, 64, 65)] == [0, 0, 1, 1, 2]
    assert [fixed.last(length) for length in (1, 32, 33)] == [32, 32, 64]
    powers = PowersOfTwo()
    assert [powers.last(length) for length in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
    given_edges = Edges((10, 30))
    assert [given_edges.key(length) for length in (1, 10, 11, 30, 31, 10**9)] == [0, 0, 1, 1, 2, 2]
    assert [given_edges.last(length) for length in (10, 11, 31)] == [10, 30, NO_END]


# -- adaptive


def test_adaptive_buckets_split_at_the_midpoint_once_many_short_ones_wait() -> None:
    buckets = AdaptiveSplit(limit=4, longest=128)
    for length in (10, 20, 100, 120):
        buckets.submitted(length)
    assert (buckets.key(10), buckets.key(120), buckets.epoch) == (0, 0, 0)
    buckets.submitted(90)
    # five wait, but three of them above 64
    assert buckets.epoch == 0
    buckets.submitted(64)
    assert buckets.epoch == 0
    buckets.submitted(50)
    # four of seven are at or below 64: that half then holds no more than four
    assert buckets.epoch == 1
    assert [(buckets.key(n), buckets.last(n)) for n in (1, 64, 65, 128)] == [(0, 64)] * 2 + [(64, NO_END)] * 2
    buckets.submitted(30)
    # 10, 20, 30, 50 and 64: three of five at or below 32
    assert [buckets.last(n) for n in (32, 33, 65)] == [32, 64, NO_END]
    assert buckets.epoch == 2


def test_adaptive_buckets_become_one_again_when_few_wait() -> None:
    buckets = AdaptiveSplit(limit=4, longest=128)
    for length in (10, 20, 30, 40, 50):
        buckets.submitted(length)
    split = buckets.epoch
    assert split > 0
    assert buckets.last(1) < NO_END
    buckets.removed(50)
    assert buckets.epoch == split
    buckets.removed(10)
    assert (buckets.last(1), buckets.epoch) == (NO_END, split + 1)
    buckets.removed(20)
    assert buckets.epoch == split + 1


def test_a_removal_may_leave_mostly_short_ones() -> None:
    buckets = AdaptiveSplit(limit=4, longest=128)
    for length in (100, 110, 120, 10, 20, 30):
        buckets.submitted(length)
    assert buckets.epoch == 0
    buckets.removed(110)
    assert (buckets.last(10), buckets.epoch) == (64, 1)


def test_adaptive_buckets_are_at_least_sixteen_wide() -> None:
    buckets = AdaptiveSplit(limit=1, longest=128)
    for _ in range(50):
        buckets.submitted(3)
    assert buckets.last(3) == 16
    for _ in range(50):
        buckets.submitted(1 << 25)
    assert buckets.last(1 << 25) == NO_END


class SlowSplit:
    """The same rule, counted anew each time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: Counter[int] = Counter()
        self.edges = [0, 1 << 20]

    def settle(self, affected: int, came: bool) -> None:
        if not came and self.waiting.total() < self.limit:
            self.edges = [0, 1 << 20]
            return
        again = True
        while again:
            again = False
            for low, high in zip(self.edges[:-1], self.edges[1:], strict=True):
                middle = (low + high) // 2
                top = high == 1 << 20
                inside = sum(n for length, n in self.waiting.items() if low < length and (top or length <= high))
                short = sum(n for length, n in self.waiting.items() if low < length <= middle)
                if inside > self.limit and short > inside / 2 and middle - low >= 16:
                    self.edges = sorted([*self.edges, middle])
                    again = True
                    break


@pytest.mark.parametrize("seed", range(5))
def test_counting_incrementally_is_counting_anew(seed: int) -> None:
    rng = Random(seed)
    buckets, slow = AdaptiveSplit(limit=6), SlowSplit(6)
    here: list[int] = []
    for _ in range(400):
        came = len(here) < 3 or rng.random() < (0.6 if len(here) < 40 else 0.4)
        if came:
            length = min(1 << 21, max(1, round(rng.lognormvariate(5, 2))))
            here.append(length)
            buckets.submitted(length)
            slow.waiting[length] += 1
        else:
            length = here.pop(rng.randrange(len(here)))
            buckets.removed(length)
            slow.waiting[length] -= 1
        before = buckets.epoch
        slow.settle(length, came)
        for low, high in zip(slow.edges[:-1], slow.edges[1:], strict=True):
            assert buckets.key(low + 1) == low
            assert buckets.last(low + 1) == (NO_END if high == 1 << 20 else high)
        assert buckets.epoch == before


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=120), st.data())
def test_keys_change_only_with_the_epoch(lengths: list[int], data: st.DataObject) -> None:
    buckets = AdaptiveSplit(limit=4)
    probes = range(1, 4000, 37)
    here: list[int] = []
    for length in lengths:
        before = [(buckets.key(n), buckets.last(n)) for n in probes], buckets.epoch
        if here and data.draw(st.booleans()):
            buckets.removed(here.pop())
        else:
            here.append(length)
            buckets.submitted(length)
        if buckets.epoch == before[1]:
            assert [(buckets.key(n), buckets.last(n)) for n in probes] == before[0]
        else:
            assert buckets.epoch > before[1]


# -- from settings


@pytest.mark.parametrize(
    ("setting", "lengths", "keys"),
    [
        (32, (32, 33), (0, 1)),
        ("32", (32, 33), (0, 1)),
        ("pow2", (4, 5), (2, 3)),
        ("edges:5,9", (5, 6, 9, 10), (0, 1, 1, 2)),
        ("adaptive", (1, 100_000), (0, 0)),
    ],
)
def test_schemes_are_parsed(setting: int | str, lengths: tuple[int, ...], keys: tuple[int, ...]) -> None:
    assert tuple(map(parse_buckets(setting).key, lengths)) == keys


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (0, "bucket is 0; must be >= 1"),
        ("0", "bucket is 0; must be >= 1"),
        (-3, "bucket is -3; must be >= 1"),
        ("-3", "bucket is -3; must be >= 1"),
        ("pow", "unknown bucket 'pow'; did you mean pow2? (valid: N, pow2, edges:A,B,..., equal-mass:N, adaptive)"),
        ("pow2:3", "unknown bucket 'pow2:3'; did you mean pow2?"),
        ("3.5", "unknown bucket '3.5'"),
        ("edges", "unknown bucket 'edges'; did you mean edges:A,B,...?"),
        ("edges:", "bucket is edges:; '' is not a whole number"),
        ("edges:4,x", "bucket is edges:4,x; 'x' is not a whole number"),
        ("edges:4,4", "bucket edges are 4,4; must be >= 1 and increase"),
        ("edges:9,4", "bucket edges are 9,4; must be >= 1 and increase"),
        ("edges:0,4", "bucket edges are 0,4; must be >= 1 and increase"),
        ("equal-mass:8", "bucket is equal-mass:8, which needs a workload; give the edges: edges:A,B,..."),
        ("equal-mass:1", "bucket is equal-mass:1; must be at least equal-mass:2"),
        ("equal-mass:x", "bucket is equal-mass:x; 'x' is not a whole number"),
    ],
)
def test_what_is_no_scheme_is_told(setting: int | str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_buckets(setting)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_equal_mass_is_known_by_its_name() -> None:
    assert equal_mass_buckets("equal-mass:8") == 8
    assert [equal_mass_buckets(other) for other in (8, "8", "pow2", "edges:1,2")] == [None] * 4


# -- of equal mass


def weights_of(requests: list[tuple[int, int]]) -> Counter[int]:
    weights: Counter[int] = Counter()
    for prompt, output in requests:
        weights.update(range(prompt, prompt + output))
    return weights


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200)), min_size=1, max_size=30), st.integers(1, 12))
def test_buckets_of_equal_mass_differ_by_less_than_one_lengths_weight(
    requests: list[tuple[int, int]], count: int
) -> None:
    weights = weights_of(requests)
    found = equal_mass_edges(requests, count)
    assert list(found) == sorted(set(found))
    share = weights.total() / count
    heaviest = max(weights.values())
    buckets = Edges(found)
    masses: Counter[int] = Counter()
    for length, weight in weights.items():
        masses[buckets.key(length)] += weight
    if heaviest <= share and count > 1:
        assert len(found) == count - 1
        assert all(abs(mass - share) < heaviest for mass in masses.values())
    # each edge is the first length by which a whole number of shares is full
    for edge in found[: len(found) if count > 1 else 0]:
        below = sum(weight for length, weight in weights.items() if length <= edge)
        if below < weights.total():
            assert any(below - weights[edge] < k * share <= below + 1e-9 for k in range(1, count))


def test_equal_mass_worked_by_hand() -> None:
    # lengths 1 to 12 weigh one each, 5 to 8 one more: 16 in all, quarters of 4
    assert equal_mass_edges([(1, 12), (5, 4)], 4) == (4, 6, 8)
    # one length holds everything: a single edge, above which there is nothing
    assert equal_mass_edges([(7, 1), (7, 1)], 3) == (7,)
    assert equal_mass_edges([(7, 5)], 1) == (11,)
    with pytest.raises(ValueError, match="both must be at least 1"):
        equal_mass_edges([], 3)


def test_bins_hold_equally_many_quantiles() -> None:
    assert quantile_edges(range(1, 258), 4) == (65, 129, 193)
    assert quantile_edges((5, 5, 5, 5, 5, 9), 3) == (5,)
    assert quantile_edges((3, 4), 1) == ()


@given(st.lists(st.integers(1, 99), min_size=1, max_size=80).map(sorted), st.integers(1, 9))
def test_bins_split_distinct_lengths_evenly(quantiles: list[int], bins: int) -> None:
    found = quantile_edges(quantiles, bins)
    assert list(found) == sorted(set(found))
    assert len(found) <= bins - 1
    if len(set(quantiles)) == len(quantiles) >= bins:
        sizes = Counter(Edges(found).key(length) for length in quantiles)
        assert max(sizes.values()) - min(sizes.values()) <= 1
