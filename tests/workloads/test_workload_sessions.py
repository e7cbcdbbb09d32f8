"""Conversations: prompts that grow by what was said, behind system prompts that tenants share."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from workloads.presets import PRESETS, build_preset
from workloads.workload import Row, Workload


def build(seed: int = 0, requests: int | None = None) -> Workload:
    return build_preset("chat-sessions", rng=random.Random(seed), requests=requests)


def sessions_of(workload: Workload) -> list[list[Row]]:
    """The turns of each session: what has the same first block behind the system prompt."""
    sessions = PRESETS["chat-sessions"].sessions
    assert sessions is not None
    system_blocks = {tenant.name: tenant.system_blocks for tenant in sessions.tenants}
    turns: dict[int, list[Row]] = defaultdict(list)
    for row in workload.rows:
        turns[row.prefix_ids[system_blocks[row.tenant]]].append(row)
    return list(turns.values())


def test_a_turn_says_all_that_was_said_before_and_a_new_message() -> None:
    sessions = sessions_of(build(requests=3000))
    assert 1 <= min(map(len, sessions)) <= max(map(len, sessions)) == 10
    for turns in sessions:
        for before, after in pairwise(turns):
            said = before.prompt_tokens + before.output_tokens
            assert said + 16 <= after.prompt_tokens <= said + 256
            assert after.tenant == before.tenant
            assert after.prefix_ids[: len(before.prefix_ids)] == before.prefix_ids


def test_every_block_of_a_prompt_has_an_id_and_sessions_share_only_the_system_prompt() -> None:
    workload = build(requests=2000)
    sessions = sessions_of(workload)
    assert all(len(row.prefix_ids) == -(-row.prompt_tokens // 512) for row in workload.rows)
    owners = Counter(block for turns in sessions for block in {b for row in turns for b in row.prefix_ids})
    shared = {block for block, count in owners.items() if count > 1}
    assert shared == set(range(8))  # 1 + 2 + 1 + 4 blocks of system prompts


def test_tenants_have_their_shares_and_every_request_fits_into_a_context_of_8192() -> None:
    workload = build(requests=20_000)
    sessions = Counter(turns[0].tenant for turns in sessions_of(workload))
    shares = {tenant: count / sessions.total() for tenant, count in sessions.items()}
    assert shares == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}, abs=0.02)
    assert max(row.prompt_tokens + row.max_tokens for row in workload.rows) <= 8192
    assert all(row.output_tokens <= row.max_tokens for row in workload.rows)


def test_most_of_what_is_asked_was_there_before() -> None:
    seen: set[int] = set()
    known = total = 0
    for row in build().rows:
        total += row.prompt_tokens
        full_blocks = row.prefix_ids[: row.prompt_tokens // 512]
        known += 512 * sum(block in seen for block in full_blocks)
        seen.update(full_blocks)
    assert 0.7 < known / total < 0.85


def test_sessions_are_pinned_bit_by_bit() -> None:
    at_once = build_preset("chat-sessions", rng=random.Random(0), arrivals="all-at-once")
    assert at_once.sha256() == "56b2fc55a6887a5b084f9536b8beb777cc24cb5d7753835d6b0b00390179e12e"
    assert build(seed=1).sha256() != build(seed=2).sha256()
