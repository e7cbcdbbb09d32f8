"""KV memory in counts: what is handed out, what is free, what can be shared, behind one interface.

A simulator needs no block ids, only how many blocks are free; an executor needs ids. So a pool counts, and hands out
ids for a sequence when somebody asks for its block table.
"""

from __future__ import annotations

from scheduler.kv.buddy import BuddyPool
from scheduler.kv.contiguous import ContiguousPool
from scheduler.kv.host import HostMemory
from scheduler.kv.paged import PagedPool
from scheduler.kv.pool import Freed, KvPool, PoolKind
from scheduler.kv.prefix_cache import CachingPagedPool

__all__ = [
    "BuddyPool",
    "CachingPagedPool",
    "ContiguousPool",
    "Freed",
    "HostMemory",
    "KvPool",
    "PagedPool",
    "PoolKind",
    "build_pool",
]


def build_pool(kind: PoolKind, kv_tokens: int, block_tokens: int, prefix_cache: bool = False) -> KvPool:
    """The pool of ``kv_tokens`` tokens that ``kind`` names. ``block_tokens`` is the block size of a paged one.

    Raises ``ValueError`` for a prefix cache on a pool that has no blocks to share.
    """
    if kind == "paged":
        return (CachingPagedPool if prefix_cache else PagedPool)(kv_tokens, block_tokens)
    if prefix_cache:
        raise ValueError(f"a prefix cache shares blocks, and a {kind} pool has none; take the paged pool")
    return BuddyPool(kv_tokens) if kind == "buddy" else ContiguousPool(kv_tokens)
