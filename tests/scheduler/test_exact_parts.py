"""Schedules of the parts and policies worked out by hand, step by step: the slow reference and the scheduler give them.

Unless a test says otherwise every step takes a second. The step that computes the last known token of a prompt emits
the first output token.
"""

from __future__ import annotations

from typing import Any

import pytest
from worked_example import SECOND, both_writings, run_by_hand

from scheduler.request import Request


def job(name: str, arrival: float = 0, prompt: int = 1, output: int = 1, unit_ns: int = SECOND, **more: Any) -> Request:
    more = {"max_tokens": output} | more
    return Request(name, round(arrival * unit_ns), prompt, output_tokens=output, **more)


# -- mixed steps


@both_writings
def test_a_mixed_step_gives_decodes_their_tokens_first_and_prompts_the_rest(writing: str) -> None:
    """Budget 8. b's prompt of 12 is cut to what is left of each step: 3, then 7 beside a's token, then 2."""
    run = run_by_hand(
        writing, [job("a", prompt=5, output=4), job("b", prompt=12, output=2)], phase="mixed", chunk_tokens=8
    )
    assert run.steps == [
        ("prefill", {"a": (0, 5), "b": (0, 3)}),
        ("mixed", {"a": (5, 1), "b": (3, 7)}),
        ("mixed", {"a": (6, 1), "b": (10, 2)}),
        ("decode", {"a": (7, 1), "b": (12, 1)}),
    ]
    assert run.finish == {"a": 4, "b": 4}
    c = run.counters
    assert (c.steps_prefill, c.steps_mixed, c.steps_decode) == (1, 2, 1)
    assert (c.linear_useful_decode, c.linear_useful_prefill) == (4, 17)
    assert (c.decode_rows, c.decode_rows_computed) == (4, 4)
    # a reads 6, 7 and 8 positions, b 13; the rest of all pairs are the prompts' 1 + ... + 5 and 1 + ... + 12
    assert (c.attention_useful_decode, c.attention_useful_prefill) == (6 + 7 + 8 + 13, 15 + 78)
    assert [(f.decode_rows, f.decode_context_tokens) for f in run.features] == [(0, 0), (1, 6), (1, 7), (2, 21)]


@both_writings
def test_rows_of_a_mixed_step_are_no_more_than_its_budget(writing: str) -> None:
    """Budget 2: a and b decode, and c's prompt gets nothing until one of them has ended."""
    jobs = [job("a", output=4), job("b", output=3), job("c", prompt=2, output=1)]
    run = run_by_hand(writing, jobs, phase="mixed", chunk_tokens=2)
    assert run.steps == [
        ("prefill", {"a": (0, 1), "b": (0, 1)}),
        ("decode", {"a": (1, 1), "b": (1, 1)}),
        ("decode", {"a": (2, 1), "b": (2, 1)}),
        ("mixed", {"a": (3, 1), "c": (0, 1)}),
        ("prefill", {"c": (1, 1)}),
    ]


@both_writings
def test_decode_first_prefills_when_nobody_is_left_to_decode(writing: str) -> None:
    jobs = [job("a", output=3), job("b", arrival=1, output=2)]
    assert run_by_hand(writing, jobs, phase="decode-first").rows == ["a", "a", "a", "b", "b"]
    assert run_by_hand(writing, jobs, phase="prefill-first").rows == ["a", "b", "ab", "a"]


# -- slices


@both_writings
def test_a_slice_is_closed_for_its_steps(writing: str) -> None:
    """d comes at 2.5 into a slice of a and b from 2 to 4, and is prefilled after it, not at 3."""
    jobs = [job("a", output=4), job("b", output=4), job("c", output=3), job("d", arrival=2.5, output=1)]
    run = run_by_hand(writing, jobs, batching="slice:2", max_running=4, max_rows=2)
    assert run.rows == ["ab", "c", "ab", "ab", "d", "ab", "c", "c"]
    assert run.finish == {"a": 6, "b": 6, "c": 8, "d": 5}
    free = run_by_hand(writing, jobs, max_running=4, max_rows=2)
    assert free.rows == ["ab", "c", "ab", "d", "ab", "ab", "c", "c"]


@both_writings
def test_who_ends_in_a_slice_leaves_a_dead_row_until_it_opens(writing: str) -> None:
    jobs = [job("a", output=2), job("b", output=6)]
    run = run_by_hand(writing, jobs, batching="slice:3", layout="padded", kv_tokens=100)
    assert [(f.rows, f.rows_computed) for f in run.features] == [(2, 2), (2, 2), (1, 2), (1, 2), (1, 1), (1, 1)]


# -- memory


SWAPPING = [job("a", prompt=4, output=4), job("b", prompt=3, output=3)]


@both_writings
def test_swapping_moves_the_newest_out_and_back(writing: str) -> None:
    """Nine tokens of memory hold a's 5 and b's 4; the next step evicts b's 4, until a has ended."""
    run = run_by_hand(writing, SWAPPING, kv_tokens=9, block_tokens=1, preemption="swap")
    assert run.steps == [
        ("prefill", {"a": (0, 4), "b": (0, 3)}),
        ("decode", {"a": (4, 1), "b": (3, 1)}),
        ("decode", {"a": (5, 1)}),
        ("decode", {"a": (6, 1)}),
        ("decode", {"b": (4, 1)}),
    ]
    assert [f.swapped_tokens for f in run.features] == [0, 0, 4, 0, 4]
    c = run.counters
    assert (c.preemptions, c.swapped_out, c.swapped_in, c.swapped_tokens, c.recomputed_tokens) == (1, 1, 1, 8, 0)


@pytest.mark.parametrize("settings", [{}, {"preemption": "swap", "swap_tokens": 3}])
@both_writings
def test_without_room_on_the_host_it_is_computed_again(writing: str, settings: dict[str, Any]) -> None:
    run = run_by_hand(writing, SWAPPING, kv_tokens=9, block_tokens=1, **settings)
    assert run.steps[-1] == ("prefill", {"b": (0, 5)})
    c = run.counters
    assert (c.preemptions, c.swapped_out, c.swapped_in, c.swapped_tokens, c.recomputed_tokens) == (1, 0, 0, 0, 4)


@both_writings
def test_victims(writing: str) -> None:
    """Seven tokens: a, b and c hold two each, and the next step needs three more."""
    jobs = [
        job("a", prompt=2, output=4, priority=2),
        job("b", prompt=2, output=5, priority=1),
        job("c", prompt=2, output=2, priority=0),
    ]

    def second_step(**settings: Any) -> str:
        return run_by_hand(writing, jobs, kv_tokens=7, block_tokens=1, **settings).rows[1]

    assert second_step() == "ab"
    assert second_step(victim="newest") == "ab"
    assert second_step(victim="longest-remaining") == "ac"
    assert second_step(victim="lowest-priority") == "bc"


@both_writings
def test_a_cached_prefix_is_not_computed_again(writing: str) -> None:
    """b shares two blocks of 4. c is those two blocks: its last token is computed, so that one block is a hit."""
    jobs = [
        job("a", prompt=10, output=3, block_hashes=(1, 2)),
        job("b", arrival=1.5, prompt=11, output=1, block_hashes=(1, 2)),
        job("c", arrival=9, prompt=8, output=1, block_hashes=(1, 2)),
        job("d", arrival=20, prompt=9, output=1, block_hashes=(3, 2)),
    ]
    run = run_by_hand(writing, jobs, prefix_cache=True, block_tokens=4, kv_tokens=400)
    assert run.steps == [
        ("prefill", {"a": (0, 10)}),
        ("decode", {"a": (10, 1)}),
        ("prefill", {"b": (8, 3)}),
        ("decode", {"a": (11, 1)}),
        ("prefill", {"c": (4, 4)}),
        ("prefill", {"d": (0, 9)}),
    ]
    assert (run.counters.prefix_hit_tokens, run.counters.prefix_query_tokens) == (12, 38)


@both_writings
def test_what_is_computed_at_the_same_time_is_not_shared(writing: str) -> None:
    jobs = [job("a", prompt=8, block_hashes=(1, 2)), job("b", prompt=8, block_hashes=(1, 2))]
    run = run_by_hand(writing, jobs, prefix_cache=True, block_tokens=4, kv_tokens=40)
    assert run.steps == [("prefill", {"a": (0, 8), "b": (0, 8)})]


@both_writings
def test_the_tail_of_a_prefix_goes_out_of_the_cache_before_its_head(writing: str) -> None:
    """Four blocks: a leaves three in the cache and one free; b needs two, and takes a's third."""
    jobs = [
        job("a", prompt=12, block_hashes=(1, 2, 3)),
        job("b", arrival=5, prompt=8, block_hashes=(8, 9)),
        job("c", arrival=10, prompt=13, block_hashes=(1, 2, 3)),
    ]
    run = run_by_hand(writing, jobs, prefix_cache=True, block_tokens=4, kv_tokens=16)
    assert run.steps[-1] == ("prefill", {"c": (8, 5)})


@both_writings
def test_the_least_recently_used_prefix_goes_first(writing: str) -> None:
    """a and b leave two blocks each, a is used again, and c's two blocks take b's place."""
    jobs = [
        job("a", prompt=8, block_hashes=(1, 2)),
        job("b", arrival=2, prompt=8, block_hashes=(5, 6)),
        job("c", arrival=4, prompt=9, block_hashes=(1, 2)),
        job("d", arrival=6, prompt=8),
        job("e", arrival=8, prompt=9, block_hashes=(5, 6)),
        job("f", arrival=10, prompt=9, block_hashes=(1, 2)),
    ]
    run = run_by_hand(writing, jobs, prefix_cache=True, block_tokens=4, kv_tokens=20)
    assert [next(iter(step.values())) for _, step in run.steps][2:5] == [(8, 1), (0, 8), (4, 5)]


# -- admission


@pytest.mark.parametrize(("kv_tokens", "expected"), [(20, ["ab"]), (19, ["a", "b"]), (18, ["a", "a", "b"])])
@both_writings
def test_peak_future_is_lightllms(writing: str, kv_tokens: int, expected: list[str]) -> None:
    """Two of 4 + 6: at once the peak is 2 x 6 + 8 = 20. With k tokens out of the first it is 20 - k."""
    jobs = [job("a", prompt=4, output=6), job("b", prompt=4, output=6)]
    run = run_by_hand(writing, jobs, admission="peak-future", kv_tokens=kv_tokens, block_tokens=1)
    assert run.rows[: len(expected)] == expected


@both_writings
def test_quantile_trusts_max_tokens_until_ten_have_finished(writing: str) -> None:
    """Prompt 2, max_tokens 10, memory 20: one at a time; after ten of 3 tokens four of 2 + 3 fit."""
    jobs = [job(f"{i:02}", prompt=2, output=3, max_tokens=10) for i in range(14)]
    run = run_by_hand(writing, jobs, admission="quantile", kv_tokens=20, block_tokens=1)
    assert list(run.finish.values()) == [*range(3, 33, 3), 33, 33, 33, 33]


@pytest.mark.parametrize(
    ("admission", "together"), [("now", 8), ("reserve-max", 2), ("reserve-pow2", 4), ("reserve-oracle", 5)]
)
@both_writings
def test_what_is_booked(writing: str, admission: str, together: int) -> None:
    """Memory 32; prompt 1, 5 tokens, max_tokens 12: books 1, 13, 1 + 8 or 1 + 5 in a step's first prefill."""
    jobs = [job(f"{i}", prompt=1, output=5, max_tokens=12) for i in range(8)]
    run = run_by_hand(writing, jobs, admission=admission, kv_tokens=36 if together == 4 else 32, block_tokens=1)
    assert len(run.steps[0][1]) == together


# -- overlap


@both_writings
def test_overlap_hides_the_host(writing: str) -> None:
    """Device 10, host 4: the first plan is made before its step, all others during the one before."""
    jobs = [job("a", prompt=3, output=4, unit_ns=1)]
    run = run_by_hand(writing, jobs, overlap=True, device=10, host=4, unit_ns=1)
    assert run.ends == [14, 24, 34, 44]
    assert run_by_hand(writing, jobs, device=10, host=4, unit_ns=1).ends == [14, 28, 42, 56]
    # the host's 10 for the next step hide the device's 4, and after the last there is none
    assert run_by_hand(writing, jobs, overlap=True, device=4, host=10, unit_ns=1).ends == [20, 30, 40, 44]
    assert run.counters.wasted_rows == 0


@both_writings
def test_an_end_token_under_overlap_wastes_one_row(writing: str) -> None:
    """The fourth token ends a at 44; the step that was planned at 34 runs to 54, and b, come at 45, waits for it."""
    jobs = [
        job("a", prompt=3, output=4, max_tokens=10, stop_kind="eos", unit_ns=1),
        job("b", arrival=45, prompt=3, output=1, unit_ns=1),
    ]
    run = run_by_hand(writing, jobs, overlap=True, device=10, host=4, unit_ns=1)
    assert run.ends == [14, 24, 34, 44, 54, 68]
    assert run.finish == {"a": 44, "b": 68}
    assert run.counters.wasted_rows == 1
    assert run.counters.steps_decode == 4


@both_writings
def test_what_a_wasted_row_holds_is_free_after_it(writing: str) -> None:
    """Memory for one: b, there from the start, is admitted when a's wasted step has been completed."""
    jobs = [
        job("a", prompt=3, output=2, max_tokens=5, stop_kind="eos", unit_ns=1),
        job("b", prompt=3, output=1, unit_ns=1),
    ]
    run = run_by_hand(writing, jobs, overlap=True, device=10, host=4, unit_ns=1, kv_tokens=5, block_tokens=1)
    assert run.rows == ["a", "a", "a", "b"]
    assert run.ends == [14, 24, 34, 48]
    assert run.finish == {"a": 24, "b": 48}


@both_writings
def test_nobody_is_evicted_while_a_plan_is_in_flight(writing: str) -> None:
    """The step that needs an eviction is planned after the one before it: its host time is not hidden."""
    run = run_by_hand(writing, SWAPPING, overlap=True, device=10, host=4, unit_ns=1, kv_tokens=9, block_tokens=1)
    # a's last two steps: the first of them evicts b
    assert run.rows == ["ab", "ab", "a", "a", "b"]
    assert run.ends == [14, 24, 38, 48, 62]


@both_writings
def test_who_ends_in_the_step_in_flight_commits_no_memory(writing: str) -> None:
    """Memory of 8: a may need 4 and b 6, so that b is refused beside a, and admitted while a's only step runs."""
    jobs = [job("a", prompt=3, output=1, unit_ns=1), job("b", prompt=4, output=2, unit_ns=1)]
    run = run_by_hand(
        writing, jobs, overlap=True, device=10, host=4, unit_ns=1, kv_tokens=8, block_tokens=1, phase="mixed",
        chunk_tokens=4, admission="quantile",
    )  # fmt: skip
    assert run.rows == ["a", "b", "b"]
    assert run.ends == [14, 24, 34]


# -- policies


@both_writings
def test_vtc_serves_the_tenant_that_was_served_least(writing: str) -> None:
    """Prompt 4 and 2 tokens count 4 + 4. c comes when A has 14, starts from there and is before A's third."""
    jobs = [job(f"a{i}", prompt=4, output=2, tenant="A") for i in range(3)]
    jobs += [job("b", prompt=4, output=2, tenant="B"), job("c", arrival=5, prompt=4, output=2, tenant="C")]
    run = run_by_hand(writing, jobs, policy="vtc", max_running=1)
    assert run.finish == {"a0": 2, "b": 4, "a1": 6, "c": 8, "a2": 10}


MS = 1_000_000


@both_writings
def test_mlfq_demotes_who_has_used_up_its_quantum(writing: str) -> None:
    """Steps of 4 ms, one row: after three of them a is at level 1 and b, at level 0, goes to its end."""
    jobs = [job("a", output=6, unit_ns=MS), job("b", arrival=5, output=3, unit_ns=MS)]
    run = run_by_hand(writing, jobs, policy="mlfq", unit_ns=MS, device=4, max_running=2, max_rows=1)
    assert "".join(run.rows) == "aabab" + "b" + "aaa"
    assert run.finish == {"a": 36, "b": 24}


@both_writings
def test_mlfq_promotes_who_was_not_served_for_three_seconds(writing: str) -> None:
    """Steps of 1 s put everybody on level 7. a, evicted by b at 1, is promoted at 4 and evicts c; c is at 7."""
    jobs = [
        job("a", output=3),
        job("b", arrival=1, output=2),
        job("c", arrival=3, output=2),
        job("d", arrival=5, output=2),
    ]
    run = run_by_hand(writing, jobs, policy="mlfq", quantum=0, max_running=1)
    assert "".join(run.rows) == "abbcaddca"
    assert run.finish == {"a": 9, "b": 3, "c": 8, "d": 7}
    assert run.counters.preemptions == 3


@both_writings
def test_mlfq_starts_long_prompts_lower(writing: str) -> None:
    """Prompts of 1 and 3 at 6 ms a token: quanta of 10 and 20 ms. At 12 ms a (12 ms) is at level 1 as b is."""
    jobs = [job("b", prompt=3, output=3, unit_ns=MS), job("a", prompt=1, output=4, unit_ns=MS)]
    run = run_by_hand(
        writing, jobs, policy="mlfq", unit_ns=MS, device=3, max_running=2, max_rows=1, prefill_token_ns=6 * MS
    )
    # a: 3, 6, 9 and 12 ms of service, always before b
    assert "".join(run.rows) == "ab" + "aaa" + "bb"


@both_writings
def test_hrrn_weighs_waiting_by_length(writing: str) -> None:
    """At 10 l has 9/10 and s 8/2; at 12 l has 11/10 and t 1/2."""
    jobs = [job("x", output=10), job("l", arrival=1, output=10), job("s", arrival=2, output=2)]
    jobs.append(job("t", arrival=11, output=2))
    run = run_by_hand(writing, jobs, policy="hrrn", max_running=1)
    assert run.finish == {"x": 10, "s": 12, "l": 22, "t": 24}


@both_writings
def test_edf_goes_by_deadline_and_evicts_after_the_quantum(writing: str) -> None:
    jobs = [
        job("a", output=3),
        job("b", arrival=1, output=2, deadline_ns=9 * SECOND),
        job("c", arrival=1, output=2, deadline_ns=5 * SECOND),
    ]
    assert run_by_hand(writing, jobs, policy="edf", max_running=1).finish == {"a": 3, "b": 7, "c": 5}
    assert run_by_hand(writing, jobs, policy="edf", max_running=1, quantum=0).finish == {"a": 7, "b": 5, "c": 3}


@both_writings
def test_lpm_takes_the_longest_cached_prefix(writing: str) -> None:
    jobs = [
        job("a", prompt=9, output=2, block_hashes=(1, 2)),
        job("b", arrival=1, prompt=9, output=1, block_hashes=(7, 8)),
        job("c", arrival=1, prompt=9, output=1, block_hashes=(1, 3)),
        job("d", arrival=1, prompt=9, output=1, block_hashes=(1, 2)),
    ]
    settings = {"prefix_cache": True, "block_tokens": 4, "kv_tokens": 400, "max_running": 1}
    assert "".join(run_by_hand(writing, jobs, policy="lpm", **settings).rows) == "aadcb"
    assert "".join(run_by_hand(writing, jobs, policy="fcfs", **settings).rows) == "aabcd"


@both_writings
def test_multi_bin_batches_like_with_like(writing: str) -> None:
    """Two bins, up to 2 tokens and above. l3 alone starts 5 s after it came."""
    jobs = [job("s1", output=2), job("l1", output=8), job("s2", output=2), job("l2", output=8)]
    jobs.append(job("l3", arrival=10, output=8))
    run = run_by_hand(
        writing, jobs, policy="multi-bin", bins=2, length_quantiles=(2, 2, 8, 8), max_running=2, max_wait_s=5.0
    )
    assert run.finish == {"s1": 2, "s2": 2, "l1": 10, "l2": 10, "l3": 23}


@both_writings
def test_a_group_follows_buckets_that_merge_as_it_is_admitted(writing: str) -> None:
    """17 wait, most of them short: two buckets, a and b in the upper one. Behind b 15 wait, and there is one again."""
    long, short = [job(name, prompt=40) for name in "abcde"], [job(f"s{n}", prompt=8) for n in range(12)]
    run = run_by_hand(
        writing, [*long[:2], *short, *long[2:]], policy="bucket-serve", max_prefill_tokens=100, max_running=17
    )
    assert run.steps[0] == ("prefill", {"a": (0, 40), "b": (0, 40), "s0": (0, 8), "s1": (0, 8)})


@both_writings
def test_linear_ageing_crosses_over(writing: str) -> None:
    """One token a second: l (10) is passed by who comes with 2 before 8 s; at 8 s they are even and l came first."""
    jobs = [job("x", output=9), job("l", output=10), job("s", arrival=7, output=2), job("t", arrival=8, output=2)]
    jobs.append(job("u", arrival=8.5, output=2))
    settings: dict[str, Any] = {"policy": "sjf-predicted", "max_running": 1}
    aged = run_by_hand(writing, jobs, aging="linear", aging_weight=1.0, **settings)
    assert aged.finish == {"x": 9, "s": 11, "l": 21, "t": 23, "u": 25}
    assert run_by_hand(writing, jobs, aging="none", **settings).finish["l"] == 25


@both_writings
def test_las_steps_who_was_served_least(writing: str) -> None:
    """Quantum 2, one row: whoever has had fewer rounds of two tokens goes on, ties in order of arrival."""
    jobs = [job("a", output=5), job("b", output=5)]
    run = run_by_hand(writing, jobs, policy="las", quantum=2, max_rows=1, max_running=2)
    assert "".join(run.rows) == "ab" + "ab" + "aabb" + "ab"


@both_writings
def test_trail_spares_who_is_nearly_done(writing: str) -> None:
    """Evictable in the first 0.8 x 10 tokens: at 7 s a is evicted for b, at 8 s it is not."""

    def order(arrival: int, policy: str) -> str:
        jobs = [job("a", output=10), job("b", arrival=arrival, output=1)]
        return "".join(run_by_hand(writing, jobs, policy=policy, quantum=0, max_running=1).rows)

    assert order(7, "trail") == "aaaaaaab" + "aaa"
    assert order(8, "trail") == "aaaaaaaaaa" + "b"
    assert order(8, "srpt") == "aaaaaaaab" + "aa"
