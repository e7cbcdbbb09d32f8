"""What a front knows of its replicas, and that the simulator's routers decide by it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scheduler.request import Request
from serving.cluster.calls import Head, HttpCall, request_of
from serving.cluster.routing import ROUTER_NAMES, Routing, check_router
from simulator.cluster.errors import ClusterError
from simulator.cluster.routers import ROUTERS

CAPACITY = {"max_running": 2, "kv_tokens": 1600}
THREE = dict.fromkeys("abc", CAPACITY)


def request(name: str, prompt: int = 10, most: int = 10, blocks: tuple[int, ...] = ()) -> Request:
    return Request(name, 0, prompt, most, block_hashes=blocks)


def routing(router: str, replicas: dict[str, dict[str, int]] = THREE) -> Routing:
    one = Routing(router)
    one.settle(replicas)
    return one


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_a_call_counts_where_it_was_sent_until_it_has_ended() -> None:
    one = routing("least-outstanding")
    assert [one.pick(request(f"r{i}"), "abc") for i in range(4)] == ["a", "b", "c", "a"]
    one.ended("r1", "b")
    assert one.pick(request("r4"), "abc") == "b"
    one.ended("unknown")
    assert one.least_loaded("abc") == "b"
    assert one.least_loaded("a") == "a"


def test_a_call_that_is_asked_about_again_goes_where_it_was_to_go_while_it_can() -> None:
    one = routing("round-robin")
    assert [one.pick(request("r0"), "abc") for _ in range(3)] == ["a"] * 3
    assert one.pick(request("r1"), "abc") == "b"
    # its replica is gone: it counts elsewhere, once
    one.settle({"b": CAPACITY, "c": CAPACITY})
    assert one.pick(request("r0"), "bc") == "c"
    one.ended("r0", "a")
    assert one.least_loaded("bc") == "b"
    one.ended("r0", "c")
    assert [one.pick(request(f"s{i}"), "bc") for i in range(2)] == ["b", "c"]


def test_a_call_that_went_elsewhere_counts_there() -> None:
    one = routing("least-outstanding")
    assert one.pick(request("r0"), "abc") == "a"
    one.moved("r0", "c")
    assert [one.pick(request(f"s{i}"), "abc") for i in range(3)] == ["a", "b", "a"]
    # the refusal of the one that it was to go to comes late
    one.ended("r0", "a")
    assert one.pick(request("s3"), "abc") == "b"
    one.ended("r0", "c")
    assert one.pick(request("s4"), "abc") == "c"


def test_a_new_replica_has_the_number_of_the_one_that_was_lost() -> None:
    one = routing("round-robin")
    one.settle({"a": CAPACITY, "c": CAPACITY, "new": CAPACITY})
    assert [one.pick(request(f"r{i}"), ["a", "c", "new"]) for i in range(4)] == ["a", "new", "c", "a"]


def test_a_prompt_goes_where_its_beginning_went_while_that_memory_may_hold_it() -> None:
    one = routing("prefix-affinity")
    first, other = tuple(range(80)), tuple(range(1000, 1080))
    assert one.pick(request("r0", blocks=first), "abc") == "a"
    assert one.pick(request("r1", blocks=other), "abc") == "b"
    assert one.pick(request("r2", blocks=(*other[:70], 5000)), "abc") == "b"
    assert one.pick(request("r3", blocks=first[:60]), "abc") == "a"
    # 1600 tokens are 100 blocks: what came last takes their place
    assert one.pick(request("r4", blocks=(*first[:60], *range(2000, 2060))), "abc") == "a"
    assert one.pick(request("r5", blocks=first), "abc") == "c"


def test_lengths_part_the_replicas() -> None:
    one = routing("length-aware")
    for i in range(300):
        long = i % 3 == 0
        one.pick(request(f"r{i}", prompt=2000 if long else 20), "abc")
    assert one.pick(request("short", prompt=20), "abc") == "a"
    assert one.pick(request("long", prompt=2500), "abc") == "c"


def test_kv_is_what_a_replica_last_said_and_what_was_sent_since() -> None:
    one = routing("shortest-kv")
    for name, tokens in zip("abc", (300, 200, 100), strict=True):
        one.report(name, {"kv_tokens": tokens})
    assert [one.pick(request(f"r{i}", prompt=90), "abc") for i in range(3)] == ["c", "c", "b"]
    one.report("c", {"kv_tokens": 100})  # nothing new, what was sent still counts
    assert one.pick(request("r3", prompt=100), "abc") == "c"
    one.report("c", {"kv_tokens": 150})
    assert one.pick(request("r4"), "abc") == "c"


def test_least_work_counts_what_prompts_and_answers_may_come_to() -> None:
    one = routing("least-work")
    assert one.pick(request("r0", most=1000), "abc") == "a"
    assert one.pick(request("r1", most=10), "abc") == "b"
    assert one.pick(request("r2", most=10), "abc") == "c"
    assert one.pick(request("r3"), "abc") == "b"


@pytest.mark.parametrize(
    ("name", "prefix_cache", "message"),
    [
        ("central-queue", True, "central-queue is one of the simulator only: Ray Serve keeps no order"),
        ("prefix-affinity", False, "needs --prefix-cache"),
        ("prefix", True, "prefix"),
    ],
)
def test_a_router_that_cannot_be_had_is_refused(name: str, prefix_cache: bool, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        check_router(name, prefix_cache)


def test_all_other_routers_of_the_simulator_can_be_had() -> None:
    assert set(ROUTERS) - set(ROUTER_NAMES) == {"central-queue"}
    for name in ROUTER_NAMES:
        check_router(name, True)
        assert routing(name).pick(request("r0"), "abc") in "abc"


def test_conversations_share_blocks_as_far_as_they_agree() -> None:
    turns = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y" * 300}]
    first = request_of("a", body(messages=turns[:1], max_completion_tokens=7))
    second = request_of("b", body(messages=turns))
    assert first is not None
    assert second is not None
    assert (first.max_tokens, second.max_tokens) == (7, 2048)
    # '[null, [{"role": "user", "content": "' and 300 letters, in blocks of 64 bytes
    assert first.block_hashes[:5] == second.block_hashes[:5]
    assert len(first.block_hashes) == 5 < len(second.block_hashes)
    assert first.prompt_tokens < second.prompt_tokens <= len(body(messages=turns)) // 4 + 8


@pytest.mark.parametrize(
    ("fields", "tokens", "blocks"),
    [
        ({"prompt": "a" * 640}, 160, 10),
        ({"prompt": list(range(35))}, 35, 2),
        ({"prompt": ["a", "b"]}, 4, 0),
        ({"input": "abc"}, 1, 0),
    ],
)
def test_prompts_are_told_by_their_length(fields: dict[str, Any], tokens: int, blocks: int) -> None:
    found = request_of("a", body(**fields))
    assert found is not None
    assert (found.prompt_tokens, len(found.block_hashes)) == (tokens, blocks)


@pytest.mark.parametrize("text", [b"", b"[1]", b"{}", b"\xff", b'{"prompt": 3}', b'{"messages": []}'])
def test_what_has_no_prompt_is_no_request(text: bytes) -> None:
    assert request_of("a", text) is None
    assert HttpCall("GET", "/", b"", [], body(prompt="a")).request("a") is None


def test_a_stream_is_told_by_its_type() -> None:
    assert Head(200, [(b"content-type", b"text/event-stream; charset=utf-8")], False).is_stream
    assert not Head(200, [(b"content-type", b"application/json")], False).is_stream
