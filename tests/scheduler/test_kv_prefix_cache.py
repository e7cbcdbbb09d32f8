"""The prefix cache: what is found, what is shared, what stays, and what is overwritten first."""

from __future__ import annotations

import pytest
from kv_sequences import sequence

from scheduler.kv import BuddyPool, CachingPagedPool, ContiguousPool, PagedPool, build_pool
from scheduler.sequence import Sequence

BLOCK = 4


def prompt(number: int, hashes: tuple[int, ...], extra: int = 1) -> Sequence:
    """A prompt of full blocks with these hashes, and ``extra`` tokens more."""
    return sequence(number, len(hashes) * BLOCK + extra, hashes)


def serve(pool: CachingPagedPool, member: Sequence) -> int:
    """Prefill ``member``. Returns the tokens that the cache had."""
    cached = pool.book_cached(member, member.known)
    pool.computed(member, member.known)
    return cached


def leave(pool: CachingPagedPool, member: Sequence) -> None:
    pool.release(member, member.pool_blocks, "finished")


def cached(pool: CachingPagedPool, hashes: tuple[int, ...]) -> set[int]:
    """Those of ``hashes`` that are in the cache."""
    return {h for h in hashes if pool.cached_tokens(prompt(99, (h,)))}


def pool_of(blocks: int) -> CachingPagedPool:
    return CachingPagedPool(blocks * BLOCK, BLOCK)


def test_pools_by_kind() -> None:
    assert type(build_pool("paged", 64, 16)) is PagedPool
    assert type(build_pool("paged", 64, 16, prefix_cache=True)) is CachingPagedPool
    assert type(build_pool("contiguous", 64, 16)) is ContiguousPool
    assert type(build_pool("buddy", 64, 16)) is BuddyPool


@pytest.mark.parametrize("kind", ["contiguous", "buddy"])
def test_a_pool_without_blocks_has_no_prefix_cache(kind: str) -> None:
    with pytest.raises(ValueError, match=f"a {kind} pool has none; take the paged pool"):
        build_pool(kind, 64, 16, prefix_cache=True)  # type: ignore[arg-type]


def test_a_running_prompt_is_shared_as_far_as_it_is_the_same() -> None:
    pool = pool_of(20)
    a, b = prompt(0, (1, 2, 3)), prompt(1, (1, 2, 4))
    assert serve(pool, a) == 0
    assert pool.cached_tokens(b) == 2 * BLOCK
    assert serve(pool, b) == 2 * BLOCK
    assert (a.pool_blocks, b.pool_blocks) == (4, 4)
    assert pool.table(a, 4)[:2] == pool.table(b, 4)[:2]
    assert set(pool.table(a, 4)[2:]).isdisjoint(pool.table(b, 4)[2:])
    assert (pool.free_blocks, pool.allocations, pool.reserved_tokens) == (14, 6, 24), "4 blocks and 2 more"
    assert (pool.cached_blocks, pool.shared_blocks) == (4, 2)
    assert pool.freed_by([(a, 4)]) == pool.freed_by([(b, 4)]) == 2


def test_nothing_is_found_before_the_step_that_computes_it_has_ended() -> None:
    pool = pool_of(20)
    a, b = prompt(0, (1, 2, 3)), prompt(1, (1, 2, 3))
    pool.book_cached(a, a.known)
    assert pool.cached_tokens(b) == 0
    pool.computed(a, 5)
    assert pool.cached_tokens(b) == BLOCK, "one block is full"
    pool.computed(a, 12)
    assert pool.cached_tokens(b) == 3 * BLOCK


def test_the_last_known_token_is_always_computed() -> None:
    pool = pool_of(20)
    assert serve(pool, prompt(0, (1, 2), extra=0)) == 0
    b = prompt(1, (1, 2), extra=0)
    assert serve(pool, b) == BLOCK, "of 8 known tokens at most 7"
    assert pool.cached_blocks == 2
    assert pool.freed_by([(b, 2)]) == 1, "its second block is private: that hash was there already"
    assert pool.cached_tokens(prompt(2, (1, 2))) == 2 * BLOCK


def test_output_is_not_cached_and_a_prompt_may_have_fewer_hashes_than_blocks() -> None:
    pool = pool_of(20)
    a = sequence(0, 10, (1,))
    pool.book_cached(a, 10)
    pool.computed(a, 10)
    assert pool.cached_blocks == 1
    b = sequence(1, 6, (2, 3))
    b.place(9, 0)
    pool.book_cached(b, 9)
    pool.computed(b, 9)
    assert cached(pool, (1, 2, 3)) == {1, 2}, "the second block of b holds output"


def test_two_that_compute_the_same_at_once_keep_one_block_for_others() -> None:
    pool = pool_of(20)
    a, b, c = (prompt(i, (1, 2)) for i in range(3))
    pool.book_cached(a, 9)
    pool.book_cached(b, 9)
    pool.computed(a, 9)
    pool.computed(b, 9)
    assert (pool.cached_blocks, pool.shared_blocks, pool.free_blocks) == (2, 0, 14)
    assert serve(pool, c) == 8
    assert pool.table(c, 3)[:2] == pool.table(a, 3)[:2]
    assert pool.table(b, 3)[:2] != pool.table(a, 3)[:2]
    leave(pool, b)
    assert pool.free_blocks == 16, "3 of b's own; 1 of c's own and 3 of a's are in use"
    leave(pool, a)
    leave(pool, c)
    assert (pool.free_blocks, pool.cached_blocks) == (20, 2)


def test_what_a_finished_sequence_left_is_found_and_counts_as_free() -> None:
    pool = pool_of(4)
    a, b = prompt(0, (1, 2, 3)), prompt(1, (1, 2, 3))
    serve(pool, a)
    ids = list(pool.table(a, 4))
    leave(pool, a)
    assert (pool.free_blocks, pool.reserved_tokens, pool.cached_blocks) == (4, 0, 3)
    assert serve(pool, b) == 12
    assert pool.table(b, 4) == ids
    assert (pool.free_blocks, pool.allocations, pool.evictions) == (0, 5, 0)


def test_blocks_that_are_hit_are_not_free_to_be_booked_besides() -> None:
    pool = pool_of(5)
    first, a = prompt(0, (1, 2)), prompt(1, (1, 2))
    serve(pool, first)
    leave(pool, first)
    pool.book(sequence(8), 2 * BLOCK)
    assert pool.free_blocks == 3
    assert pool.can_book(a, 3 * BLOCK), "2 hits and the third block"
    assert not pool.can_book(a, 4 * BLOCK), "2 hits and 1 block that is free besides"
    assert pool.can_book(sequence(7), 3 * BLOCK), "who does not know them may have them all"
    with pytest.raises(RuntimeError, match="no KV blocks for 16 tokens, 3 free"):
        pool.book_cached(a, 4 * BLOCK)
    assert pool.free_blocks == 3


def test_blocks_in_use_are_shared_although_nothing_is_free() -> None:
    pool = pool_of(4)
    serve(pool, prompt(0, (1, 2), extra=0))
    b = prompt(1, (1, 2), extra=8)
    assert pool.free_blocks == 2
    assert pool.can_book(b, 16)
    assert not pool.can_book(sequence(2), 12)
    assert serve(pool, b) == 8
    assert (pool.free_blocks, pool.shared_blocks) == (0, 2)


def test_never_used_blocks_go_before_cached_ones() -> None:
    pool = pool_of(6)
    a = prompt(0, (1, 2))
    serve(pool, a)
    assert pool.table(a, 3) == [0, 1, 2]
    leave(pool, a)
    b = sequence(1)
    pool.book(b, 4 * BLOCK)
    assert pool.table(b, 4) == [2, 3, 4, 5], "a's private block, then those that nobody had"
    assert (pool.reused, pool.evictions, pool.cached_blocks) == (1, 0, 2)
    pool.grow(1)
    assert pool.table(b, 5)[4] == 1, "a's last full block"
    assert (pool.reused, pool.evictions, pool.cached_blocks) == (2, 1, 1)


def test_the_last_block_of_a_prompt_is_overwritten_first() -> None:
    pool = pool_of(4)
    a = prompt(0, (1, 2, 3))
    serve(pool, a)
    leave(pool, a)
    left = []
    for _ in range(4):
        pool.grow(1)
        left.append(cached(pool, (1, 2, 3)))
    assert left == [{1, 2, 3}, {1, 2}, {1}, set()]


def test_what_was_used_least_recently_is_overwritten_first_and_a_hit_refreshes() -> None:
    pool = pool_of(6)
    for number, hashes in enumerate([(1, 2), (3, 4), (5, 6)]):
        member = prompt(number, hashes, extra=0)
        serve(pool, member)
        leave(pool, member)
    again = prompt(3, (1, 2, 7), extra=0)
    assert serve(pool, again) == 2 * BLOCK
    assert cached(pool, tuple(range(1, 8))) == {1, 2, 3, 5, 6, 7}, "block 4 was the oldest but for those in use"
    leave(pool, again)
    order = []
    before = cached(pool, tuple(range(1, 8)))
    for _ in range(6):
        pool.grow(1)
        after = cached(pool, tuple(range(1, 8)))
        order += sorted(before - after)
        before = after
    assert order == [3, 6, 5, 7, 2, 1]


def test_a_block_ages_from_when_its_last_user_left() -> None:
    pool = pool_of(8)
    a, b, c = prompt(0, (1,)), prompt(1, (1,)), prompt(2, (2,))
    serve(pool, a)
    serve(pool, b)
    serve(pool, c)
    for member in (a, c, b):
        leave(pool, member)
    pool.grow(7)
    assert cached(pool, (1, 2)) == {1}


def test_looking_does_not_refresh() -> None:
    pool = pool_of(4)
    for number in (1, 2):
        member = prompt(number, (number,), extra=0)
        serve(pool, member)
        leave(pool, member)
    for _ in range(3):
        assert pool.cached_tokens(prompt(9, (1,))) == BLOCK
        assert pool.can_book(prompt(9, (1,)), BLOCK + 1)
    pool.grow(3)
    assert cached(pool, (1, 2)) == {2}


def test_a_prompt_behind_an_overwritten_block_is_found_again_when_that_is_back() -> None:
    pool = pool_of(8)
    a, b = (prompt(i, (1, 2)) for i in range(2))
    pool.book_cached(a, 9)
    pool.book_cached(b, 9)
    pool.computed(a, 4)
    pool.computed(b, 9)
    leave(pool, a)
    pool.grow(5)
    assert cached(pool, (1, 2)) == {2}, "b's second block is in use, a's first was not"
    assert pool.cached_tokens(prompt(9, (1, 2))) == 0, "without its beginning it is of no use"
    pool.release(sequence(7), 5, "finished")
    c = prompt(2, (1, 2))
    assert serve(pool, c) == 0
    assert pool.cached_tokens(prompt(9, (1, 2))) == 8
    assert pool.table(c, 2)[1] != pool.table(b, 2)[1]


def test_an_overwritten_block_counts_as_its_last_user_left_it() -> None:
    pool = pool_of(3)
    a = prompt(0, (1, 2))
    serve(pool, a)
    pool.release(a, 3, "evicted")
    pool.grow(3)
    assert (pool.allocations, pool.reused, pool.reused_after_preemption, pool.evictions) == (6, 0, 3, 2)


def test_an_evicted_sequence_finds_its_own_prompt() -> None:
    pool = pool_of(10)
    a = prompt(0, (1, 2, 3))
    serve(pool, a)
    ids = list(pool.table(a, 4))
    a.place(20, 19)
    pool.grow(1)
    pool.release(a, 5, "evicted")
    a.place(20, 0)
    assert pool.cached_tokens(a) == 12
    assert pool.book_cached(a, 20) == 12
    assert pool.table(a, 5)[:3] == ids[:3]


def test_a_sequence_that_keeps_its_kv_elsewhere_does_not_look_into_the_cache() -> None:
    pool = pool_of(6)
    a = prompt(0, (1, 2))
    b = prompt(1, (1, 2))
    serve(pool, a)
    b.place(13, 12)
    assert pool.cached_tokens(b) == 0
    assert not pool.can_book(b, 13), "3 are free, and it needs 4 of its own"
    leave(pool, a)
    assert pool.can_book(b, 13)
    pool.book(b, 13)
    assert pool.freed_by([(b, 4)]) == 4
    assert (pool.free_blocks, pool.cached_blocks, pool.shared_blocks) == (2, 2, 0)


def test_ids_run_out_only_with_the_blocks() -> None:
    pool = pool_of(2)
    a = sequence(0)
    pool.book(a, 2 * BLOCK)
    assert pool.table(a, 2) == [0, 1]
    with pytest.raises(RuntimeError, match="all blocks are in use"):
        pool.table(a, 3)
    with pytest.raises(RuntimeError, match="1 KV blocks wanted, 0 free"):
        pool.grow(1)


def test_what_was_released_is_not_shared() -> None:
    pool = pool_of(4)
    a = prompt(0, (1,))
    pool.book_cached(a, a.known)
    leave(pool, a)
    with pytest.raises(RuntimeError, match=r"s0.* holds no blocks whose KV could be shared"):
        pool.computed(a, a.known)
