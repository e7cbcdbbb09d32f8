"""A policy in YAML: what it comes to, and the line that a mistake in it gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from scheduler.buckets import AdaptiveSplit
from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.orders import ByLength, ByRemaining, LinearAgeing
from scheduler.policy import Ageing, Order
from scheduler.scheduler import Scheduler
from scheduler.user_policies.description import KEYS


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(dedent(text))
    return str(path)


def mistake(policy: str, **settings: Any) -> str:
    """What is said of it, after the name of the policy."""
    with pytest.raises(ConfigError) as caught:
        Scheduler(SchedulerConfig(policy=policy, **settings))
    message = str(caught.value)
    assert "\n" not in message
    start = f"policy {policy}"
    assert message.startswith(start)
    return message.removeprefix(start)


# -- what it comes to


def test_what_is_not_said_is_as_in_fcfs(tmp_path: Path) -> None:
    parts = compose(SchedulerConfig(policy=written(tmp_path, "name: nothing\n")))
    policy = parts.policy
    assert policy.name == "nothing"
    assert type(policy.waiting) is type(policy.resident) is Order
    assert (policy.urgency, policy.ageing, policy.quantum, parts.phase) == (None, None, 0, "prefill-first")


def test_everything_that_is_said_is_there(tmp_path: Path) -> None:
    text = """
        name: mine
        waiting: {order: length, buckets: "edges:8,64", pick: oldest, shortest_first: true}
        resident:
          order: remaining
        urgency: remaining
        quantum: 5
        evictable_share: 0.5
        phase: mixed
        chunk_tokens: 77
        admission: quantile:0.8
        aging: threshold
        aging_s: 1e-3
        victim: lowest-priority
        preemption: swap
        swap_tokens: 1_000
        overlap: true
        prefix_cache: yes
        oracle: true
        """
    parts = compose(SchedulerConfig(policy=written(tmp_path, text)))
    policy, config = parts.policy, parts.config
    assert isinstance(policy.waiting, ByLength)
    assert [policy.waiting.buckets.last(length) for length in (8, 9)] == [8, 64]
    assert (policy.waiting.pick, policy.waiting.shortest_first) == ("oldest", True)
    assert isinstance(policy.resident, ByRemaining)
    assert policy.urgency is not None
    assert policy.evictable is not None
    assert (policy.quantum, policy.ageing) == (5, Ageing(1_000_000))
    assert (parts.phase, parts.chunk_tokens, parts.swaps, parts.admission.share) == ("mixed", 77, True, 0.8)
    assert (config.overlap, config.prefix_cache, config.swap_tokens, config.oracle) == (True, True, 1000, "true")
    assert config.victim == "lowest-priority"


def test_an_order_can_be_named_alone(tmp_path: Path) -> None:
    assert isinstance(
        compose(SchedulerConfig(policy=written(tmp_path, "waiting: remaining"))).policy.waiting, ByRemaining
    )


def test_lengths_that_adapt_are_divided_alike_for_both(tmp_path: Path) -> None:
    text = "waiting: {order: length, buckets: adaptive}\nresident: {order: length, buckets: adaptive}"
    policy = compose(SchedulerConfig(policy=written(tmp_path, text))).policy
    assert isinstance(policy.waiting, ByLength)
    assert isinstance(policy.resident, ByLength)
    assert isinstance(policy.waiting.buckets, AdaptiveSplit)
    assert policy.waiting.buckets is policy.resident.buckets


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("phase: mixed\nchunk_tokens: 64", {}, {"phase": "mixed", "chunk_tokens": 64}),
        ("phase: mixed\nchunk_tokens: 64", {"chunk_tokens": 9}, {"phase": "mixed", "chunk_tokens": 9}),
        ("phase: mixed\nchunk_tokens: 64", {"phase": "mixed"}, {"phase": "mixed", "chunk_tokens": 64}),
        ("phase: mixed\nchunk_tokens: 64", {"phase": "decode-first"}, {"phase": "decode-first", "chunk_tokens": None}),
        ("waiting: remaining\naging: linear\naging_weight: 3", {"aging_s": 2.0}, {"aging": None, "aging_weight": None}),
        ("waiting: remaining\naging: threshold\naging_s: 3", {"aging": "none"}, {"aging": "none", "aging_s": None}),
        ("waiting: remaining\naging: threshold\naging_s: 3", {"aging_s": 4.0}, {"aging_s": 4.0}),
        ("preemption: swap\nswap_tokens: 5", {"preemption": "recompute"}, {"swap_tokens": None}),
        ("batching: run-to-completion\nmin_batch: 2\nmax_wait_s: 1", {"batching": "slice:4"}, {"min_batch": None}),
        ("prefix_cache: true", {}, {"prefix_cache": True, "overlap": False}),
        ("prefix_cache: false", {"prefix_cache": True}, {"prefix_cache": True}),
        ("swap_tokens: 7\npreemption: swap", {"swap_tokens": 0}, {"swap_tokens": 0}),
    ],
)  # fmt: skip
def test_settings_go_before_what_the_file_says(
    text: str, given: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = compose(SchedulerConfig(policy=written(tmp_path, text), **given)).config
    assert {name: getattr(config, name) for name in expected} == expected
    # told again, as a replay is, nothing changes
    assert compose(config).config == config


def test_ageing_by_another_kind_replaces_the_files(tmp_path: Path) -> None:
    policy = written(tmp_path, "waiting: remaining\naging: threshold\naging_s: 3")
    parts = compose(SchedulerConfig(policy=policy, aging_weight=2.0)).policy
    assert isinstance(parts.waiting, LinearAgeing)
    assert parts.ageing is None


def test_the_scheduler_carries_the_files_hash_and_refuses_another(tmp_path: Path) -> None:
    policy = written(tmp_path, "waiting: remaining")
    config = Scheduler(SchedulerConfig(policy=policy)).config
    assert config.policy_sha256 is not None
    assert SchedulerConfig.from_dict(config.as_dict()) == config
    written(tmp_path, "waiting: prediction")
    with pytest.raises(ConfigError, match=r"mine\.yaml has changed since this was recorded .* restore the file"):
        Scheduler(config)
    with pytest.raises(ConfigError, match="policy_sha256 is that of a policy's file, and policy fcfs is none"):
        Scheduler(replace(config, policy="fcfs"))


# -- mistakes

MISTAKES = [
    ("wating: length", ", line 1: unknown key 'wating'; did you mean waiting? (valid: name, summary, waiting, "),
    ("name: a\nwaiting: lenght", ", line 2: unknown order 'lenght'; did you mean length? (valid: arrival, length, "),
    ("waiting:\n  order: length\n  bucket: 5", ", line 3: waiting: order length takes no bucket; it takes buckets,"),
    ("waiting: {order: remaining, pick: oldest}", ", line 1: waiting: order remaining takes no pick (it belongs"),
    ("waiting: {order: length, pick: older}", ", line 1: unknown waiting.pick 'older'; did you mean oldest?"),
    ("waiting: {order: length, buckets: pow3}", ", line 1: waiting.buckets: unknown bucket 'pow3'; did you mean pow2?"),
    ("waiting: {order: length, buckets: 0}", ", line 1: waiting.buckets: bucket is 0; must be >= 1"),
    ("waiting: {order: length, min_rows: 4}", ", line 1: waiting: min_rows is about the rows of a step; move it to"),
    ("resident: {order: length, min_rows: -1}", ", line 1: resident.min_rows is -1; must be >= 0"),
    ("resident: {order: length, min_rows: few}", ", line 1: resident.min_rows is 'few'; must be a whole number"),
    ("resident: {order: length, shortest_first: 1}", ", line 1: resident.shortest_first is 1; must be true or false"),
    ("waiting: {order: bin, bins: 0}", ", line 1: waiting.bins is 0; must be >= 1"),
    ("waiting: [length]", ", line 1: waiting.order is ['length']; must be a text"),
    ("resident: tenant", ", line 1: resident: order tenant is for waiting requests, since it changes while others are"),
    ("resident: {order: length, buckets: adaptive}", ", line 1: resident.buckets adaptive follows who waits"),
    ("urgency: remaning", ", line 1: unknown urgency 'remaning'; did you mean remaining?"),
    ("urgency: service", ", line 1: urgency service rises as a sequence is served, which is only seen where residents "
     "are ordered by it; make resident order service, or use another urgency"),
    ("quantum: 5", ", line 1: quantum is about evicting for rank, which needs an urgency; add urgency"),
    ("evictable_share: 0.5", ", line 1: evictable_share is about evicting for rank"),
    ("urgency: arrival\nevictable_share: 0", ", line 2: evictable_share is 0; must be > 0"),
    ("waiting: level", ", line 1: waiting: order level counts the time in which residents are served"),
    ("promote_s: 3", ", line 1: promote_s is about levels; make waiting and resident order level"),
    ("phase: mix", ", line 1: unknown phase 'mix'; did you mean mixed?"),
    ("name: a\nphase: off", ", line 2: unknown phase 'false'"),
    ("batching: slice", ", line 1: batching is slice; must be slice:K"),
    ("oracle: noisy:3", ", line 1: oracle is noisy:3; must be noisy:TAU[:SEED]"),
    ("chunk_tokens: 0", ", line 1: chunk_tokens is 0; must be >= 1"),
    ("chunk_tokens: many", ", line 1: chunk_tokens is 'many'; must be a whole number"),
    ("aging_s: soon", ", line 1: aging_s is 'soon'; must be a number"),
    ("overlap: 1", ", line 1: overlap is 1; must be true or false"),
    ("quantum:", ", line 1: quantum has no value"),
    ("batching: run-to-completion\nmin_batch: 4", ": min_batch and max_wait_s go together"),
    ("name: a\nname: b", ", line 2: name was given before, in line 1; keep one of them"),
    ("waiting:\n  order: length\n  order: bin", ", line 3: order was given before, in line 2"),
    ("name: a\nwaiting: {order: length", ", line 2: not YAML: "),
    ("name: a\n\twaiting: length", ", line 2: not YAML: "),
    ("- length", " must be a mapping of keys to values"),
    ("", " must be a mapping of keys to values"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_is_told_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    assert mistake(written(tmp_path, text)).startswith(said)


def test_an_unknown_key_lists_them_all(tmp_path: Path) -> None:
    assert f"(valid: {', '.join(KEYS)})" in mistake(written(tmp_path, "zzz: 1"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bucket": 8}, " takes no bucket from outside; say it in the file, with its orders"),
        ({"min_rows": 2}, " takes no min_rows from outside"),
        ({"quantum": 8}, " takes no quantum: it has no urgency, and so evicts nobody for rank"),
    ],
)
def test_what_a_description_takes_from_outside(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert mistake(written(tmp_path, "waiting: length"), **settings).startswith(said)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    policy = f"{tmp_path}/none.yaml"
    assert mistake(policy) == f": no such file as {policy}"
