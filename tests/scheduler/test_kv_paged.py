"""The paged pool: what is handed out, and what is reused."""

from __future__ import annotations

import pytest
from kv_sequences import sequence

from scheduler.kv import PagedPool


def test_paged_blocks_round_up() -> None:
    pool = PagedPool(100, 16)
    assert pool.capacity_blocks == 6
    assert [pool.blocks_for(tokens) for tokens in (1, 16, 17, 96)] == [1, 1, 2, 6]
    assert pool.can_book(sequence(99), 96)
    assert not pool.can_book(sequence(99), 97)


def test_paged_last_freed_goes_first_and_virgin_blocks_last() -> None:
    pool = PagedPool(10, 1)
    a, b, c, d = (sequence(i) for i in range(4))
    pool.book(a, 3)
    assert pool.table(a, 3) == [0, 1, 2]
    pool.book(b, 2)
    assert pool.table(b, 2) == [3, 4]
    pool.release(a, 3, "finished")
    pool.release(b, 2, "finished")
    pool.book(c, 4)
    assert pool.table(c, 4) == [3, 4, 0, 1], "b's were freed last, then a's; each in the order it was held"
    pool.book(d, 3)
    assert pool.table(d, 3) == [2, 5, 6], "only then blocks that nobody had"


def test_paged_counts_reuse_by_what_freed_the_block() -> None:
    pool = PagedPool(10, 1)
    a, b, c = (sequence(i) for i in range(3))
    pool.book(a, 3)
    pool.book(b, 2)
    pool.release(a, 3, "finished")
    pool.release(b, 2, "evicted")
    pool.book(c, 4)
    pool.grow(3)
    assert (pool.allocations, pool.reused, pool.reused_after_preemption) == (12, 3, 2)
    assert (pool.free_blocks, pool.reserved_tokens) == (3, 7)


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 0, 4], [2, 5]])
def test_paged_reuse_does_not_depend_on_how_growth_is_cut(pieces: list[int]) -> None:
    pool = PagedPool(10, 1)
    for number, freed in enumerate(("finished", "evicted", "finished")):
        member = sequence(number)
        pool.book(member, 3)
        pool.release(member, 3, "evicted" if freed == "evicted" else "finished")
    pool.grow(5)
    pool.release(sequence(9), 5, "finished")
    for piece in pieces:
        pool.grow(piece)
    assert (pool.allocations, pool.reused, pool.reused_after_preemption, pool.free_blocks) == (21, 11, 3, 3)


def test_paged_never_hands_out_more_than_there_is() -> None:
    pool = PagedPool(8, 2)
    pool.book(sequence(0), 7)
    with pytest.raises(RuntimeError, match="1 KV blocks wanted, 0 free"):
        pool.grow(1)


def test_paged_a_table_grows_and_keeps_its_beginning() -> None:
    pool = PagedPool(20, 2)
    a, b = sequence(0), sequence(1)
    pool.book(a, 3)
    pool.book(b, 2)
    assert pool.table(a, 2) == [0, 1]
    assert pool.table(b, 1) == [2]
    pool.grow(1)
    assert pool.table(a, 3) == [0, 1, 3]
    assert pool.unusable_tokens(100) == 0


def test_paged_without_a_cache_shares_nothing() -> None:
    pool = PagedPool(40, 4)
    a, b = sequence(0, 9, (1, 2)), sequence(1, 9, (1, 2))
    assert pool.book_cached(a, 9) == 0
    pool.computed(a, 9)
    assert pool.cached_tokens(b) == 0
    assert pool.book_cached(b, 9) == 0
    assert set(pool.table(a, 3)).isdisjoint(pool.table(b, 3))
    assert (pool.cached_blocks, pool.shared_blocks, pool.evictions, pool.freed_by([(a, 3)])) == (0, 0, 0, 3)
    assert (a.pool_blocks, pool.largest_tokens) == (3, 40)
