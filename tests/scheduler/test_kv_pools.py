"""KV memory: what is handed out, what is reused, and what lies in pieces too small."""

from __future__ import annotations

import pytest

from scheduler.kv import ContiguousPool, PagedPool, build_pool
from scheduler.request import Request
from scheduler.sequence import Sequence


def sequence(number: int) -> Sequence:
    return Sequence(Request(f"s{number}", 0, 1), number, number, 1 << 30)


def test_paged_blocks_round_up() -> None:
    pool = PagedPool(100, 16)
    assert pool.capacity_blocks == 6
    assert [pool.blocks_for(tokens) for tokens in (1, 16, 17, 96)] == [1, 1, 2, 6]
    assert pool.can_book(96)
    assert not pool.can_book(97)


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


def test_contiguous_takes_the_first_piece_that_fits() -> None:
    pool = ContiguousPool(20)
    members = [sequence(i) for i in range(7)]
    for member, tokens in zip(members[:4], (4, 2, 6, 8), strict=True):
        pool.book(member, tokens)
    assert pool.free_blocks == 0
    pool.release(members[0], 4, "finished")
    pool.release(members[2], 6, "finished")
    assert pool.can_book(6)
    assert not pool.can_book(7)
    pool.book(members[4], 3)
    pool.book(members[5], 4)
    assert not pool.can_book(3), "1 is left of the first piece, 2 of the second"
    assert pool.can_book(2)
    assert (pool.free_blocks, pool.reserved_tokens) == (3, 17)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)])
def test_contiguous_joins_neighbouring_free_pieces(order: tuple[int, ...]) -> None:
    pool = ContiguousPool(12)
    members = [sequence(i) for i in range(3)]
    for member in members:
        pool.book(member, 4)
    for index in order:
        pool.release(members[index], 4, "finished")
    assert pool.can_book(12)
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


def test_pools_by_kind() -> None:
    assert isinstance(build_pool("paged", 64, 16), PagedPool)
    assert isinstance(build_pool("contiguous", 64, 16), ContiguousPool)
