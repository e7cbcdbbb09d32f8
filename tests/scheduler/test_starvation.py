"""Who starves and who does not: a long request that comes early, and short ones at the rate of the whole capacity.

The stream: ``AHEAD`` short requests and then the long one at time 0, and from then on a short one every 2 s. A short
one takes two steps of a second, the long one ten; prompts are one step. So the stream alone keeps the device busy, a
backlog of about ``AHEAD`` short requests stays, and all that is served is served at somebody's expense. One slot,
unless a test says otherwise: nobody runs beside the long request, and nobody's prefill comes between its steps.

A policy *starves* the long request if its end recedes with the length of the stream, second for second. A policy is
free of starvation if the end is within a bound that does not depend on the stream, however long it is. The bounds are
derived in the docstrings. What they do not say: with more slots and prefill first, requests of a single token that
come every second are prefilled for ever and nobody decodes, under any policy; phase ``mixed`` is the cure for that.
"""

from __future__ import annotations

from typing import Any

import pytest
from worked_example import SECOND, both_writings, run_by_hand

from scheduler.request import Request

AHEAD = 4
SHORT = 2
LONG = 10


def finish_of_long(
    writing: str,
    shorts: int,
    long: dict[str, Any] | None = None,
    short: dict[str, Any] | None = None,
    period: float = SHORT,
    unit_ns: int = SECOND,
    **settings: Any,
) -> int:
    """When the long request ends, in steps, with a stream of ``shorts`` behind it; one every ``period`` steps."""
    long = {"prompt_tokens": 1} | (long or {})
    short = {"prompt_tokens": 1} | (short or {})
    deadline = short.pop("due", None)

    def made(number: int, at: float) -> Request:
        arrival = round(at * unit_ns)
        due = {} if deadline is None else {"deadline_ns": arrival + deadline * unit_ns}
        return Request(f"s{number}", arrival, max_tokens=SHORT, output_tokens=SHORT, **short, **due)

    requests = [made(i, 0) for i in range(AHEAD)]
    requests.append(Request("long", 0, max_tokens=LONG, output_tokens=LONG, **long))
    requests += [made(AHEAD + i, (i + 1) * period) for i in range(shorts)]
    run = run_by_hand(writing, requests, unit_ns=unit_ns, **({"max_running": 1} | settings))
    assert len(run.finish) == len(requests)
    return run.finish["long"]


def is_bounded(writing: str, bound: float, shorts: int = 40, **case: Any) -> None:
    """The end is within ``bound``, and the same for streams that go on for long after it."""
    finish = finish_of_long(writing, shorts, **case)
    assert finish <= bound
    assert shorts * case.get("period", SHORT) > bound, "the stream goes on beyond the bound"
    assert finish_of_long(writing, 2 * shorts, **case) == finish


def recedes(writing: str, shorts: int = 40, **case: Any) -> None:
    """The end is put off by two steps for each short request more."""
    ends = [finish_of_long(writing, count, **case) for count in (shorts, 2 * shorts, 3 * shorts)]
    assert ends[1] - ends[0] == ends[2] - ends[1] == SHORT * shorts
    assert ends[0] >= SHORT * shorts


# -- free of starvation


@pytest.mark.parametrize("policy", ["fcfs", "orca-reserve", "static", "bucket-serve"])
@both_writings
def test_in_order_of_arrival_only_those_ahead_count(writing: str, policy: str) -> None:
    """The work ahead plus one's own: 4 x 2 + 10, exactly. ``bucket-serve`` takes the lane of the oldest request, and
    in it the oldest, so that with one slot it is in order of arrival too. With more slots each of its prefills takes
    the oldest request at least, so that the long one is admitted after at most as many prefills as were ahead."""
    is_bounded(writing, AHEAD * SHORT + LONG, policy=policy)


@both_writings
def test_a_static_batch_takes_the_oldest(writing: str) -> None:
    """Four slots: the long request is fifth, so that it is in the second batch. The first takes 2 steps, the second
    at most one prefill for each slot and 9 decode steps."""
    is_bounded(writing, SHORT + 4 + LONG - 1, policy="static", max_running=4)


@pytest.mark.parametrize(("policy", "prompt"), [("sjf-aging", 50), ("sjf-predicted", 1)])
@both_writings
def test_past_the_threshold_the_oldest_leads(writing: str, policy: str, prompt: int) -> None:
    """Past 20 s the long request is the oldest aged one: it has the next slot, which is free after a short request at
    the latest, and then it runs: 20 + 2 + 10. Nobody older waits then: those ahead were shorter and came first."""
    is_bounded(writing, 20 + SHORT + LONG, policy=policy, aging_s=20.0, long={"prompt_tokens": prompt})


@both_writings
def test_an_aged_resident_is_paused_by_prefills_only(writing: str) -> None:
    """``sjf-aging`` with four slots: the long request is resident, and the others' lengths are always lower. Past the
    threshold it is in every decode step and nobody else is (their length is another), so that the slots fill up:
    at most three prefills come between its steps. A step that began before the threshold is added."""
    bound = 20 + 1 + 3 + LONG - 1
    is_bounded(writing, bound, policy="sjf-aging", aging_s=20.0, max_running=4, long={"prompt_tokens": 50})


@both_writings
def test_linear_ageing_bounds_who_may_pass(writing: str) -> None:
    """``sjf-predicted`` with weight 0.5 a second: a short request that comes at t has the rank 2 + 0.5 t, the long one
    10; so those that come before 16 s pass, which are the 4 and at most 8 more. At the rate of the capacity all of
    them have been served by 16 + 4 x 2; then the long one's 10, and 2 for the one that was running."""
    bound = (LONG - SHORT) / 0.5 + AHEAD * SHORT + SHORT + LONG
    is_bounded(writing, bound, policy="sjf-predicted", aging="linear", aging_weight=0.5)


@both_writings
def test_hrrn_up_to_a_little_more_than_the_capacity(writing: str) -> None:
    """The ratio of the long request, w / 10 after waiting for w, is passed by a short one's only if that has waited
    for more than w / 5: if it came in the first 0.8 w. At a rate of r short requests a second these are 4 + 0.8 r w.
    They are served in order of arrival, 2 s each, so that the long request is next when 2 (4 + 1 + 0.8 r w) <= w,
    one more being in service: at the rate of the capacity, r = 1/2, when w = 50. Its end is 10 later.

    In general w = (ahead + 1) s / (1 - r s (1 - s / n)): finite while the load r s is below n / (n - s) = 1.25.
    """
    is_bounded(writing, (AHEAD + 1) * LONG + LONG, policy="hrrn")


@both_writings
def test_hrrn_starves_under_heavy_overload(writing: str) -> None:
    """Twice the capacity is above the 1.25 that is derived above: some short request has always waited for long
    enough, and the long one comes when the stream has ended and its backlog has been served. First come, first served
    does not mind."""
    ends = [finish_of_long(writing, count, policy="hrrn", period=1) for count in (40, 80, 160)]
    assert ends[1] - ends[0] >= 40
    assert ends[2] - ends[1] >= 80
    is_bounded(writing, AHEAD * SHORT + LONG, policy="fcfs", period=1)


@pytest.mark.parametrize("period", [SHORT, 1])
@both_writings
def test_vtc_gives_a_tenant_its_share(writing: str, period: float) -> None:
    """The other tenant's counter grows with each of its requests, the long one's does not: it is the least after one
    of them at the latest, whatever is ahead and also under twice the load: 2 + 10. (Within a tenant it is first come,
    first served.)"""
    tenants: dict[str, Any] = {"long": {"tenant": "z"}, "short": {"tenant": "a"}}
    is_bounded(writing, SHORT + LONG, policy="vtc", period=period, **tenants)


@both_writings
def test_vtc_with_many_tenants(writing: str) -> None:
    """With k other tenants each may have one request served before: 3 x 2 + 10."""
    requests = [Request(f"s{i}", 0, 1, max_tokens=2, tenant=f"t{i % 3}") for i in range(30)]
    requests.append(Request("long", 0, 1, max_tokens=10, tenant="z"))
    assert run_by_hand(writing, requests, policy="vtc", max_running=1).finish["long"] <= 3 * SHORT + LONG


@both_writings
def test_mlfq_promotes(writing: str) -> None:
    """Steps of 100 ms, so that one step takes a request from level 0 to level 3, below all who come; and it may be
    evicted at once (quantum 0). Yet whenever it has not been served for 3 s it is at level 0, and of those the
    oldest: it has the next slot, after two steps of a short request at the latest, and a step in it that gives a
    token. So ten tokens take at most 10 x (30 + 2 + 1) steps after those ahead."""
    bound = AHEAD * SHORT + LONG * (30 + SHORT + 1)
    is_bounded(writing, bound, shorts=200, policy="mlfq", quantum=0, unit_ns=SECOND // 10)


@both_writings
def test_edf_by_the_deadline(writing: str) -> None:
    """Due at 30, and the short ones 5 after they come: those that come before 25 go first, all of them served by
    25 + 4 x 2 + 2; then the long one's 10. ``edf`` starves nobody who has a deadline."""
    deadline: dict[str, Any] = {"long": {"deadline_ns": 30 * SECOND}, "short": {"due": 5}}
    is_bounded(writing, 30 - 5 + (AHEAD + 1) * SHORT + LONG, policy="edf", **deadline)


@both_writings
def test_sjf_bucket_by_the_oldest(writing: str) -> None:
    """With four slots the long request becomes resident while no more than one other waits (a tie of groups goes to
    the oldest); the bucket of the oldest resident is its own from then on. At most three prefills come between."""
    case: dict[str, Any] = {"policy": "sjf-bucket", "max_running": 5, "long": {"prompt_tokens": 50}}
    is_bounded(writing, AHEAD * SHORT + 4 + LONG, bucket_order="oldest", **case)


# -- starving


@pytest.mark.parametrize(
    ("policy", "case"),
    [
        ("sjf", {"long": {"prompt_tokens": 50}}),
        ("sjf-bucket", {"long": {"prompt_tokens": 50}}),
        ("srpt", {}),
        ("trail", {}),
        ("sjf-predicted", {"aging": "none"}),
        ("las", {"quantum": 2}),
        ("edf", {"short": {"due": 5}}),
        ("lpm", {"prefix_cache": True, "block_tokens": 4, "short": {"prompt_tokens": 9, "block_hashes": (1, 2)}}),
    ],
)
@both_writings
def test_the_long_request_waits_for_the_streams_end(writing: str, policy: str, case: dict[str, Any]) -> None:
    """sjf and sjf-bucket: the group of short prompts is always the fuller one. srpt, trail, sjf-predicted: there is
    always one with fewer tokens (left). las: after two tokens there is always somebody with fewer. edf: it has no
    deadline, and everybody else has one. lpm: all others share a cached prefix."""
    recedes(writing, policy=policy, **case)


@pytest.mark.parametrize("policy", ["sjf", "sjf-bucket"])
@both_writings
def test_a_long_resident_is_parked_for_ever(writing: str, policy: str) -> None:
    """With five slots it is admitted, has its first token, and then there is always a shorter length to step."""
    recedes(writing, policy=policy, max_running=5, long={"prompt_tokens": 50})


@both_writings
def test_multi_bin_starves_who_is_alone_in_its_bin(writing: str) -> None:
    """Batches of two: the bin of short ones always has two waiting, the long one's never has. Without others that
    fill their bins first the oldest goes after max_wait at the latest."""
    settings: dict[str, Any] = {"policy": "multi-bin", "bins": 2, "length_quantiles": (2, 2, 10, 10), "max_running": 2}
    ends = [finish_of_long(writing, count, period=1, **settings) for count in (40, 80, 120)]
    assert ends[1] - ends[0] == ends[2] - ends[1] == 40
    assert ends[0] >= 40
    alone = [Request("long", 0, 1, max_tokens=10), Request("s", 0, 1, max_tokens=2)]
    assert run_by_hand(writing, alone, max_wait_s=3.0, **settings).finish["long"] == 3 + 10
