"""Prefill apart from decode: times, tokens and KV on the way from one to the other."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_runs import Record

from scheduler.config import SchedulerConfig
from scheduler.request import Request
from simulator.cluster import Cluster, ClusterPlan, simulate_cluster
from simulator.cluster.faults import read_faults
from simulator.cluster.transfer import Link
from simulator.costs import IntegerCosts
from simulator.replica import ANY

S = 1_000_000_000
SECOND = IntegerCosts(step_ns=S, row_ns=0, token_ns=0, column_ns=0)
#: a token takes half a second, and each transfer a quarter besides
LINK = Link(token_bytes=8, bytes_per_s=16, latency_s=0.25)


def run(
    requests: list[Request], prefill: int = 1, decode: int = 1, faults: str = "", link: Link = LINK, **settings: Any
) -> tuple[Cluster, Record]:
    count = prefill + decode
    record = Record()
    plan = ClusterPlan(
        (SchedulerConfig(kv_tokens=64, block_tokens=4, **settings),) * count,
        (SECOND,) * count,
        "least-outstanding",
        faults=read_faults(faults, count) if faults else (),
        prefill=prefill,
        link=link,
    )
    return simulate_cluster(requests, plan, record), record


def steps(record: Record) -> list[tuple[float, int, str]]:
    return [(end / S, replica, kind) for end, replica, _, _, kind, *_ in record.steps]


def test_a_prompt_is_computed_here_and_goes_on_there_after_its_transfer() -> None:
    """4 tokens of KV: 2.25 s. The first token comes from the prefill replica, and no prompt is computed again."""
    cluster, record = run([Request("a", 0, 4, 3, 3)])
    assert steps(record) == [(1, 0, "prefill"), (4.25, 1, "decode"), (5.25, 1, "decode")]
    (a,) = record.journeys
    assert (a.first_token_ns, a.finish_ns, a.output_tokens, a.replica, a.retries) == (S, 5.25 * S, 3, 1, 0)
    assert record.gap_counts == {3.25 * S: 1, S: 1}
    assert (cluster.transfers.transfers, cluster.transfers.tokens, cluster.transfers.busy_ns) == (1, 4, 2.25 * S)
    counters = cluster.counters
    assert (counters.linear_useful_prefill, counters.linear_useful_decode) == (4, 2), "each token once"
    assert counters.recomputed_tokens == 0


def test_a_busy_link_makes_the_next_wait() -> None:
    """Both prompts are done at 1 s. The second transfer starts as the first ends, at 3.25 s."""
    cluster, record = run([Request(name, 0, 4, 2, 2) for name in "ab"])
    assert {journey.id: journey.finish_ns / S for journey in record.journeys} == {"a": 4.25, "b": 6.5}
    assert cluster.transfers.waited_ns == 2.25 * S
    assert cluster.transfers.peak_tokens == 8
    assert cluster.transfers.waiting_tokens == 0


def test_each_prefill_replica_has_a_way_out_of_its_own() -> None:
    cluster, record = run([Request(name, 0, 4, 2, 2) for name in "ab"], prefill=2)
    assert {journey.id: journey.finish_ns / S for journey in record.journeys} == {"a": 4.25, "b": 4.25}
    assert cluster.transfers.waited_ns == 0


def test_a_request_of_one_token_ends_where_its_prompt_was_computed() -> None:
    cluster, record = run([Request("a", 0, 4, 1, 1)])
    (a,) = record.journeys
    assert (a.replica, a.finish_ns, cluster.transfers.transfers) == (0, S, 0)


def test_kv_is_booked_as_it_is_admitted() -> None:
    """Memory for 64 tokens: the second of two sequences of 40 waits at the decode replica for the first one's end."""
    _, record = run([Request(name, 0, 37, 4, 4) for name in "ab"], prefill=2, link=Link(8, 1e12))
    (a, b) = sorted(record.journeys, key=lambda journey: journey.id)
    assert (a.finish_ns - S) // S == 3
    assert (b.finish_ns - S) // S == 6
    assert a.preemptions == b.preemptions == 0


def test_kv_that_was_preempted_is_computed_again_where_it_decodes() -> None:
    _, record = run([Request(name, 0, 26, 20, 20) for name in "ab"], prefill=2, link=Link(8, 1e12))
    assert sum(journey.preemptions for journey in record.journeys) > 0
    assert [journey.output_tokens for journey in record.journeys] == [20, 20]
    assert (1, "prefill") in [(replica - 1, kind) for _, replica, kind in steps(record)]


@pytest.mark.parametrize(
    ("faults", "finish", "retries", "lost_tokens"),
    [
        # at the decode replica, with two tokens: they go through a prefill, as a prompt of 6, which gives the third
        ("die:1@4.5", 4.5 + 1 + 3.25 + 1, 1, 5),
        # on its way: it is sent again, to the other one
        ("die:1@2", 3.25 + 2.25 + 3, 0, 0),
        # on its way, and where it comes from is lost: seen as the transfer would have ended
        ("die:0@2+1", 3.25 + 1 + 2.75 + 2, 1, 4),
    ],
)
def test_what_is_lost_on_the_way_goes_on(faults: str, finish: float, retries: int, lost_tokens: int) -> None:
    _, record = run([Request("a", 0, 4, 4, 4)], decode=2, faults=faults)
    (a,) = record.journeys
    assert (a.state, a.output_tokens, a.first_token_ns) == ("finished", 4, S)
    assert (a.finish_ns / S, a.retries, a.lost_tokens) == (finish, retries, lost_tokens)
    assert sum(record.gap_counts.values()) == 3


def test_what_no_decode_replica_can_hold_is_rejected_before_it_is_prefilled() -> None:
    record = Record()
    large, small = (SchedulerConfig(kv_tokens=tokens, block_tokens=4) for tokens in (640, 64))
    plan = ClusterPlan((large, small), (SECOND, SECOND), prefill=1, link=LINK)
    simulate_cluster([Request("a", 0, 60, 30, 30), Request("b", 0, 30, 30, 30)], plan, record, max_repeat=ANY)
    assert {journey.id: journey.state for journey in record.journeys} == {"a": "rejected", "b": "finished"}
