"""A ranking and an extreme against a dictionary that is sorted each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import examples

from scheduler.ranking import Extreme, Ranking

moves = st.lists(st.tuples(st.sampled_from(("set", "discard", "first")), st.integers(0, 9), st.integers(0, 5)))


@examples(100)
@given(moves)
def test_first_is_the_smallest_rank_and_then_the_smallest_item(sequence: list[tuple[str, int, int]]) -> None:
    ranking: Ranking[int] = Ranking()
    ranks: dict[int, int] = {}
    for move, item, rank in sequence:
        if move == "set":
            ranking.set(item, rank)
            ranks[item] = rank
        elif move == "discard":
            ranking.discard(item)
            ranks.pop(item, None)
        assert len(ranking) == len(ranks)
        assert (item in ranking) == (item in ranks)
        if ranks:
            assert ranking.first() == min(ranks, key=lambda i: (ranks[i], i))


def test_an_item_that_comes_back_is_not_found_at_its_old_rank() -> None:
    ranking: Ranking[str] = Ranking()
    ranking.set("a", 1)
    ranking.set("b", 2)
    ranking.discard("a")
    ranking.set("a", 3)
    assert ranking.first() == "b"


def test_stale_entries_do_not_pile_up() -> None:
    ranking: Ranking[int] = Ranking()
    for rank in range(10_000):
        ranking.set(rank % 3, -rank)
    assert len(ranking._heap) <= 4 * 3 + 65
    assert ranking.first() == 9_999 % 3


def test_an_empty_ranking_has_no_first() -> None:
    with pytest.raises(IndexError):
        Ranking[int]().first()


@examples(100)
@given(st.lists(st.tuples(st.sampled_from(("add", "remove", "first")), st.integers(0, 9))), st.booleans())
def test_the_extreme_is_that_of_the_members_now(sequence: list[tuple[str, int]], largest: bool) -> None:
    members: dict[int, None] = {}
    extreme = Extreme(members, largest)
    for move, number in sequence:
        if move == "add":
            members[number] = None
            extreme.add(number)
        elif move == "remove":
            members.pop(number, None)
        elif members:
            assert extreme.first() == (max if largest else min)(members)


def test_members_that_come_and_go_do_not_pile_up_in_an_extreme() -> None:
    members: dict[int, None] = {0: None}
    extreme = Extreme(members)
    assert extreme.first() == 0
    for number in range(1, 10_000):
        members[number] = None
        extreme.add(number)
        del members[number]
        assert extreme._heap is None or len(extreme._heap) <= 4 * 2 + 65
    assert extreme.first() == 0


def test_an_empty_extreme_has_no_first() -> None:
    with pytest.raises(IndexError):
        Extreme({}).first()
