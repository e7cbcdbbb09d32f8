"""The buddy pool: pieces of a power of two, split, merged, and never merged across areas."""

from __future__ import annotations

from itertools import permutations

import pytest
from kv_sequences import sequence

from scheduler.kv import BuddyPool


def free_pieces(pool: BuddyPool) -> list[int]:
    """Sizes of the free areas, as the public calls show them."""
    sizes = [1 << order for order in range(pool.capacity_blocks.bit_length())]
    found = []
    for size in sizes:
        smaller, up_to = (pool.unusable_tokens(tokens) for tokens in (size, 2 * size))
        # of areas as large as all that is free together, unusable_tokens says nothing
        count = (up_to - smaller) // size if pool.free_blocks >= 2 * size else (pool.free_blocks - smaller) // size
        found += [size] * count
    return found


def test_buddy_reservations_are_rounded_up_to_a_power_of_two() -> None:
    pool = BuddyPool(64)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 2, 3, 4, 5, 33, 64)] == [0, 1, 2, 4, 4, 8, 64, 64]
    a = sequence(0)
    pool.book(a, 33)
    assert (a.pool_blocks, pool.reserved_tokens, pool.free_blocks) == (64, 64, 0)
    assert not pool.can_book(sequence(1), 1)
    pool.release(a, 64, "finished")
    assert (a.pool_blocks, pool.reserved_tokens, pool.free_blocks) == (0, 0, 64)


def test_buddy_takes_the_smallest_area_that_fits_and_splits_it() -> None:
    pool = BuddyPool(32)
    a, b, c, d = (sequence(i) for i in range(4))
    pool.book(a, 4)
    assert free_pieces(pool) == [4, 8, 16], "32 was halved three times"
    pool.book(b, 3)
    assert free_pieces(pool) == [8, 16], "a's other half"
    pool.book(c, 9)
    assert free_pieces(pool) == [8]
    assert pool.unusable_tokens(9) == 0, "16 are needed, and 8 are free in all"
    pool.book(d, 1)
    assert free_pieces(pool) == [1, 2, 4]
    assert pool.unusable_tokens(4) == 3
    assert pool.unusable_tokens(5) == 0, "7 are free, and 8 would be needed"
    assert pool.can_book(sequence(9), 4)
    assert not pool.can_book(sequence(9), 5)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_buddy_merges_back_to_one_area(order: tuple[int, ...]) -> None:
    pool = BuddyPool(16)
    members = [sequence(i) for i in range(3)]
    for member, tokens in zip(members, (4, 2, 8), strict=True):
        pool.book(member, tokens)
    assert free_pieces(pool) == [2]
    for index in order:
        pool.release(members[index], members[index].pool_blocks, "finished")
    assert free_pieces(pool) == [16]


def test_buddy_does_not_merge_neighbours_that_are_no_halves_of_one() -> None:
    pool = BuddyPool(8)
    members = [sequence(i) for i in range(4)]
    for member in members:
        pool.book(member, 2)
    pool.release(members[1], 2, "finished")
    pool.release(members[2], 2, "finished")
    assert free_pieces(pool) == [2, 2]
    assert not pool.can_book(sequence(9), 4)
    assert pool.unusable_tokens(4) == 4


def test_buddy_memory_of_another_size_is_a_row_of_areas() -> None:
    pool = BuddyPool(13)
    assert free_pieces(pool) == [1, 4, 8]
    assert pool.largest_tokens == 8
    assert not pool.can_book(sequence(9), 9)
    members = [sequence(i) for i in range(3)]
    for member, tokens in zip(members, (3, 1, 5), strict=True):
        pool.book(member, tokens)
    assert (pool.free_blocks, pool.reserved_tokens) == (0, 13), "each area is of the size that is asked for"
    for member in members:
        pool.release(member, member.pool_blocks, "finished")
    assert free_pieces(pool) == [1, 4, 8], "neighbours, but not halves of one area"


def test_buddy_takes_the_lowest_address_of_equal_areas() -> None:
    pool = BuddyPool(8)
    a, b, c, d, e = (sequence(i) for i in range(5))
    for member in (a, b, c, d):
        pool.book(member, 2)
    pool.release(c, 2, "evicted")
    pool.release(a, 2, "finished")
    pool.book(e, 2)
    assert (pool.reused, pool.reused_after_preemption) == (1, 0), "a's piece, although c's was freed first"
    pool.release(b, 2, "finished")
    pool.release(e, 2, "finished")
    assert free_pieces(pool) == [2, 4], "so the lower half is whole again"


def test_buddy_reuse_is_told_by_what_freed_the_first_token_last() -> None:
    pool = BuddyPool(8)
    a, b, c, d = (sequence(i) for i in range(4))
    pool.book(a, 2)
    pool.release(a, 2, "evicted")
    pool.book(b, 4)
    assert (pool.allocations, pool.reused, pool.reused_after_preemption) == (2, 0, 0), "half of it was never used"
    pool.release(b, 4, "finished")
    pool.book(c, 1)
    assert (pool.allocations, pool.reused, pool.reused_after_preemption) == (3, 1, 0)
    pool.release(c, 1, "evicted")
    pool.book(d, 4)
    assert (pool.allocations, pool.reused, pool.reused_after_preemption) == (4, 1, 1)


def test_buddy_refuses_what_it_cannot_do() -> None:
    pool = BuddyPool(6)
    with pytest.raises(RuntimeError, match="no free piece of 8"):
        pool.book(sequence(0), 5)
    with pytest.raises(RuntimeError, match="does not grow"):
        pool.grow(1)
    with pytest.raises(RuntimeError, match="no block table"):
        pool.table(sequence(0), 1)
