"""Ids of prompt blocks: two prompts share a prefix exactly as far as their ids agree."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import ConfigError
from scheduler.prefix_hashes import block_hashes_of, block_hashes_of_prefix
from scheduler.request import requests_of


class Row(NamedTuple):
    prompt_tokens: int
    prefix_ids: tuple[int, ...] = ()
    arrival_ns: int = 0
    output_tokens: int = 5
    max_tokens: int = 9
    tenant: str = ""
    priority: int = 0
    ttft_slo_ns: int | None = None


def agreeing(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@given(
    st.lists(st.integers(0, 1), max_size=40),
    st.lists(st.integers(0, 1), max_size=40),
    st.lists(st.integers(0, 1), max_size=40),
    st.integers(1, 7),
)
def test_ids_of_tokens_agree_as_far_as_whole_blocks_do(
    shared: list[int], a: list[int], b: list[int], block_tokens: int
) -> None:
    first, second = shared + a, shared + b
    ids = block_hashes_of(first, block_tokens), block_hashes_of(second, block_tokens)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    assert [len(each) for each in ids] == [len(first) // block_tokens, len(second) // block_tokens]
    assert agreeing(*ids) == same // block_tokens
    assert all(0 <= each < 1 << 63 for each in ids[0])


def test_ids_of_tokens_are_pinned() -> None:
    assert block_hashes_of(range(8), 4) == (block_hashes_of(range(4), 4)[0], block_hashes_of(range(9), 4)[1])
    assert block_hashes_of(range(8), 4) == (2141542520064864664, 6154036696642149100)


@given(
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.integers(0, 3), max_size=8),
    st.integers(1, 64 * 9),
    st.integers(1, 64 * 9),
    st.sampled_from([1, 2, 16, 32, 64, 128, 192]),
)
def test_ids_of_prefix_blocks_agree_as_far_as_those_do(
    a: list[int], b: list[int], a_tokens: int, b_tokens: int, block_tokens: int
) -> None:
    first = block_hashes_of_prefix(a, 64, a_tokens, block_tokens, "a")
    second = block_hashes_of_prefix(b, 64, b_tokens, block_tokens, "b")
    assert [len(first), len(second)] == [a_tokens // block_tokens, b_tokens // block_tokens]
    shared_tokens = 64 * agreeing(tuple(a), tuple(b))
    assert agreeing(first, second) == min(shared_tokens, a_tokens, b_tokens) // block_tokens
    assert len(set(first)) == len(first)


def test_blocks_that_do_not_fit_into_each_other_are_refused_only_where_prompts_share() -> None:
    with pytest.raises(ConfigError, match="block_tokens is 24, but the workload's prompts share blocks of 512 tokens"):
        requests_of([Row(2000, (1, 2, 3, 4))], block_tokens=24)
    assert len(requests_of([Row(2000)], block_tokens=24)[0].block_hashes) == 2000 // 24
    assert requests_of([Row(2000, (1, 2, 3, 4))], block_tokens=24, prefix_cache=False)[0].block_hashes == ()


@pytest.mark.parametrize(("block_tokens", "blocks", "shared"), [(16, 125, 64), (512, 3, 2), (1024, 1, 1)])
def test_requests_of_a_workload_share_what_its_rows_say(block_tokens: int, blocks: int, shared: int) -> None:
    rows = [Row(2000, (7, 8, 9, 10)), Row(2000, (7, 8, 11, 12)), Row(2000), Row(2000)]
    requests = [request.block_hashes for request in requests_of(rows, block_tokens)]
    assert [len(hashes) for hashes in requests] == [blocks] * 4
    assert agreeing(requests[0], requests[1]) == shared
    assert [agreeing(requests[0], requests[2]), agreeing(requests[2], requests[3])] == [0, 0]


def test_objectives_become_deadlines_from_the_arrival_on() -> None:
    rows = [Row(10, arrival_ns=1000, ttft_slo_ns=500, priority=-2), Row(10, arrival_ns=2000)]
    first, second = requests_of(rows)
    assert (first.deadline_ns, first.priority) == (1500, -2)
    assert (second.deadline_ns, second.priority) == (None, 0)
