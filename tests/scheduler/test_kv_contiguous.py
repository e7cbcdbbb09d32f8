"""The contiguous pool: first fit, what is reused, and what lies in pieces too small."""

from __future__ import annotations

import pytest
from kv_sequences import sequence

from scheduler.kv import ContiguousPool


def test_contiguous_takes_the_first_piece_that_fits() -> None:
    pool = ContiguousPool(20)
    members = [sequence(i) for i in range(7)]
    for member, tokens in zip(members[:4], (4, 2, 6, 8), strict=True):
        pool.book(member, tokens)
    assert pool.free_blocks == 0
    pool.release(members[0], 4, "finished")
    pool.release(members[2], 6, "finished")
    assert pool.can_book(sequence(99), 6)
    assert not pool.can_book(sequence(99), 7)
    pool.book(members[4], 3)
    pool.book(members[5], 4)
    assert not pool.can_book(sequence(99), 3), "1 is left of the first piece, 2 of the second"
    assert pool.can_book(sequence(99), 2)
    assert (pool.free_blocks, pool.reserved_tokens) == (3, 17)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)])
def test_contiguous_joins_neighbouring_free_pieces(order: tuple[int, ...]) -> None:
    pool = ContiguousPool(12)
    members = [sequence(i) for i in range(3)]
    for member in members:
        pool.book(member, 4)
    for index in order:
        pool.release(members[index], 4, "finished")
    assert pool.can_book(sequence(99), 12)
    assert pool.free_blocks == 12


def test_contiguous_counts_what_is_free_but_of_no_use() -> None:
    pool = ContiguousPool(20)
    members = [sequence(i) for i in range(4)]
    for member in members:
        pool.book(member, 5)
    pool.release(members[0], 5, "finished")
    pool.release(members[2], 5, "finished")
    assert pool.unusable_tokens(5) == 0
    assert pool.unusable_tokens(6) == 10, "10 are free and 6 wanted, but in pieces of 5"
    assert pool.unusable_tokens(11) == 0, "11 would not fit however they lay"


def test_contiguous_reuse_is_memory_that_was_used_before() -> None:
    pool = ContiguousPool(20)
    a, b, c, d = (sequence(i) for i in range(4))
    pool.book(a, 8)
    pool.release(a, 8, "finished")
    pool.book(b, 5)
    assert (pool.allocations, pool.reused) == (2, 1)
    pool.book(c, 5)
    assert (pool.allocations, pool.reused) == (3, 1), "half of it was never used"
    pool.release(c, 5, "finished")
    pool.book(d, 5)
    assert (pool.allocations, pool.reused) == (4, 2)


def test_contiguous_refuses_what_it_cannot_do() -> None:
    pool = ContiguousPool(4)
    with pytest.raises(RuntimeError, match="does not grow"):
        pool.grow(1)
    with pytest.raises(RuntimeError, match="no free piece of 5"):
        pool.book(sequence(0), 5)
    with pytest.raises(RuntimeError, match="s1 has no block table"):
        pool.table(sequence(1), 1)


def test_contiguous_reuse_is_told_by_what_freed_the_first_token_last() -> None:
    pool = ContiguousPool(20)
    a, b, c, d, e, f = (sequence(i) for i in range(6))
    pool.book(a, 8)
    pool.release(a, 8, "finished")
    pool.book(b, 4)
    pool.release(b, 4, "evicted")
    assert (pool.allocations, pool.reused, pool.reused_after_preemption) == (2, 1, 0), "b took what a had left"
    pool.book(c, 6)
    assert (pool.reused, pool.reused_after_preemption) == (1, 1), "its first four were b's last, the rest a's"
    pool.book(d, 2)
    assert (pool.reused, pool.reused_after_preemption) == (2, 1), "its two were a's"
    pool.book(e, 2)
    assert (pool.reused, pool.reused_after_preemption) == (2, 1), "nobody had those"
    pool.release(c, 6, "finished")
    pool.book(f, 3)
    assert (pool.reused, pool.reused_after_preemption) == (3, 1), "c's end is more recent than b's"


def test_contiguous_takes_back_only_what_was_booked() -> None:
    pool = ContiguousPool(8)
    a = sequence(0)
    pool.book(a, 5)
    with pytest.raises(RuntimeError, match="gives back 4 KV tokens of the 5"):
        pool.release(a, 4, "finished")
