"""What each router picks, told from views made by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.request import Request
from simulator.cluster.errors import ClusterError
from simulator.cluster.routers import ROUTERS, PrefixAffinity, Router, SentPrefixes, View, build_router


@dataclass
class Seen:
    """A replica as a router sees it."""

    number: int
    outstanding: int = 0
    kv_tokens: int = 0
    expected_tokens: int = 0
    has_slot: bool = True
    matches: int = 0

    def expected_output(self, request: Request) -> int:
        return request.planned_output_tokens

    def prefix_blocks(self, request: Request) -> int:
        return self.matches


REQUEST = Request("a", 0, 8, block_hashes=(1, 2, 3, 4))
loads = st.lists(st.integers(0, 50), min_size=1, max_size=6)


def router(name: str, seed: int = 0) -> Router:
    return build_router(name, Random(seed))


def picked(one: Router, views: Sequence[View], request: Request = REQUEST) -> int:
    view = one.pick(request, views)
    assert view is not None
    return view.number


def test_round_robin_cycles_and_goes_on_behind_the_last_where_replicas_come_and_go() -> None:
    one, every = router("round-robin"), [Seen(number) for number in range(4)]
    assert [picked(one, every) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    assert [picked(one, [every[0], every[1], every[3]]) for _ in range(4)] == [3, 0, 1, 3]


@pytest.mark.parametrize(
    ("name", "amount"),
    [("least-outstanding", "outstanding"), ("shortest-kv", "kv_tokens"), ("least-work", "expected_tokens")],
)
@given(loads)
def test_the_least_loaded_is_picked_the_lower_number_of_equals(name: str, amount: str, given_loads: list[int]) -> None:
    views = [Seen(number, **{amount: load}) for number, load in enumerate(given_loads)]
    assert picked(router(name), views) == given_loads.index(min(given_loads))


@given(loads, st.integers(0, 1000))
def test_power_of_two_takes_the_better_of_two_that_it_draws(given_loads: list[int], seed: int) -> None:
    views = [Seen(number, outstanding=load) for number, load in enumerate(given_loads)]
    chosen = picked(router("power-of-two", seed), views)
    drawn = Random(seed).sample(views, min(2, len(views)))
    assert chosen in {view.number for view in drawn}
    assert given_loads[chosen] == min(view.outstanding for view in drawn)


def test_power_of_two_and_random_reach_every_replica_and_depend_on_the_seed_alone() -> None:
    views = [Seen(number) for number in range(5)]
    for name in ("power-of-two", "random"):
        first, again = ([picked(one, views) for _ in range(400)] for one in (router(name, 7), router(name, 7)))
        assert first == again
        counts = Counter(first)
        assert set(counts) == set(range(5))
        assert min(counts.values()) > 40


def test_prefix_affinity_follows_the_prefix() -> None:
    one = router("prefix-affinity")
    assert picked(one, [Seen(0, outstanding=1), Seen(1, outstanding=9, matches=3)]) == 1
    assert picked(one, [Seen(0, outstanding=1), Seen(1, outstanding=9, matches=1)]) == 0, "too little in common"
    assert picked(one, [Seen(0, 3, matches=2), Seen(1, 2, matches=2)]) == 1, "of equals the less loaded"
    assert picked(one, [Seen(0, 3), Seen(1, 2)], Request("b", 0, 8)) == 1, "without hashes the less loaded"


def test_prefix_affinity_gives_way_where_loads_are_out_of_balance() -> None:
    one, apart = router("prefix-affinity"), PrefixAffinity.BALANCE_REQUESTS
    assert picked(one, [Seen(0, 1), Seen(1, 1 + apart, matches=4)]) == 1
    assert picked(one, [Seen(0, 1), Seen(1, 2 + apart, matches=4)]) == 0
    assert picked(one, [Seen(0, 100), Seen(1, 101 + apart, matches=4)]) == 1, "not by half"


def test_a_routers_memory_of_prefixes_is_as_large_as_the_replicas() -> None:
    sent = SentPrefixes(4)
    sent.add(REQUEST)
    assert sent.match(Request("b", 0, 12, block_hashes=(1, 2, 9))) == 2
    sent.add(Request("c", 0, 8, block_hashes=(1, 8)))
    assert sent.match(REQUEST) == 1, "2 was used the longest ago"


def test_length_aware_keeps_lengths_together_and_shares_the_tokens() -> None:
    rng, one, views = Random(3), router("length-aware"), [Seen(number) for number in range(3)]
    lengths: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number in range(3000):
        length = rng.choice((10, 20, 50, 100, 400, 1000, 3000)) + rng.randrange(10)
        chosen = picked(one, views, Request(str(number), 0, length, max_tokens=1))
        if number >= 1000:
            lengths[chosen].append(length)
    assert max(lengths[0]) <= min(lengths[2])
    tokens = [sum(found) for found in lengths.values()]
    assert max(tokens) < 1.35 * min(tokens)
    assert len(lengths[0]) > 3 * len(lengths[2]), "the short ones are many"


def test_a_central_queue_waits_for_a_free_slot() -> None:
    one = router("central-queue")
    assert one.pick(REQUEST, [Seen(0, 4, has_slot=False), Seen(1, 4, has_slot=False)]) is None
    assert picked(one, [Seen(0, 4, has_slot=False), Seen(1, 3), Seen(2, 2)]) == 2


def test_an_unknown_router_is_named_with_the_nearest() -> None:
    with pytest.raises(ClusterError, match="round-robin"):
        build_router("roundrobin", Random(0))
    assert all(entry.summary for entry in ROUTERS.values())
