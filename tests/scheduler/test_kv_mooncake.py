"""The prefix cache on a public trace: every request's hit equals that of a trie, and of an independent LRU."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kv_sequences import sequence

from scheduler.kv import build_pool

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "mooncake_synthetic_trace.jsonl"
BLOCK = 512
LRU_BLOCKS = 10_000

pytestmark = pytest.mark.skipif(not TRACE.is_file(), reason="the public traces are not next to the checkout")


def requests() -> Iterator[tuple[int, tuple[int, ...]]]:
    """Prompt tokens and the hashes of the prompt's full blocks."""
    with TRACE.open() as lines:
        for line in lines:
            row = json.loads(line)
            yield row["input_length"], tuple(row["hash_ids"][: row["input_length"] // BLOCK])


def hits_of_pool(capacity_blocks: int) -> list[int]:
    """Blocks that the pool finds for each request, served one after another."""
    pool = build_pool("paged", capacity_blocks * BLOCK, BLOCK, prefix_cache=True)
    hits = []
    for number, (tokens, hashes) in enumerate(requests()):
        member = sequence(number, tokens, hashes)
        expected = pool.cached_tokens(member)
        cached = pool.book_cached(member, tokens)
        assert cached == expected
        assert cached % BLOCK == 0
        pool.computed(member, tokens)
        pool.release(member, member.pool_blocks, "finished")
        hits.append(cached // BLOCK)
    assert pool.free_blocks == pool.capacity_blocks
    return hits


def hits_of_trie() -> list[int]:
    """Blocks of each request that lie on a path of earlier ones, in a trie that forgets nothing."""
    root: dict[int, Any] = {}
    hits = []
    for tokens, hashes in requests():
        node, depth = root, 0
        while depth < len(hashes) and hashes[depth] in node:
            node, depth = node[hashes[depth]], depth + 1
        hits.append(min(depth, (tokens - 1) // BLOCK))
        for value in hashes[depth:]:
            node = node.setdefault(value, {})
    return hits


def hits_of_lru() -> list[int]:
    """Blocks of each request in a least-recently-used cache, which is all of the memory that the request leaves."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = []
    for tokens, hashes in requests():
        hit = 0
        while hit < min(len(hashes), (tokens - 1) // BLOCK) and hashes[hit] in cache:
            hit += 1
        hits.append(hit)
        in_use = set(hashes[:hit])
        for value in hashes[:hit]:
            cache.move_to_end(value)
        computed_blocks = (tokens + BLOCK - 1) // BLOCK - hit
        while len(cache) + computed_blocks > LRU_BLOCKS:
            oldest, _ = cache.popitem(last=False)
            assert oldest not in in_use
        entered = [value for value in hashes[hit:] if value not in cache]
        for value in reversed([*hashes[:hit], *entered]):
            cache[value] = None
            cache.move_to_end(value)
    return hits


@pytest.mark.parametrize(
    ("capacity_blocks", "reference"), [(1_000_000, hits_of_trie), (LRU_BLOCKS, hits_of_lru)], ids=["trie", "lru"]
)
def test_mooncake_hits_equal_the_reference(capacity_blocks: int, reference: Callable[[], list[int]]) -> None:
    assert hits_of_pool(capacity_blocks) == reference()


def test_mooncake_memory_decides_the_hit_ratio() -> None:
    blocks = sum(tokens // BLOCK for tokens, _ in requests())
    everything, limited = sum(hits_of_pool(1_000_000)), sum(hits_of_pool(LRU_BLOCKS))
    assert 0 < limited < everything < blocks
