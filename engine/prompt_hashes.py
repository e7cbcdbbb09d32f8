"""Which KV blocks two prompts have in common, by hashes of their tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b


def block_hashes_of(token_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """A 64-bit hash for each full block of ``token_ids``, which stands for that block *and* all before it.

    Equal in every process, and equal for two prompts exactly as far as their tokens are (but for chance: one pair in
    2**64).
    """
    hashes = []
    chain = b""
    for end in range(block_tokens, len(token_ids) + 1, block_tokens):
        block = array("q", token_ids[end - block_tokens : end]).tobytes()
        chain = blake2b(chain + block, digest_size=8).digest()
        hashes.append(int.from_bytes(chain, "little"))
    return tuple(hashes)
