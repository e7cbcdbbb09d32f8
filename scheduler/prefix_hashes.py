"""Ids for the KV blocks of prompts, each for its block *and* all before it: prompts share as far as their ids agree."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

from scheduler.errors import ConfigError

_MASK63 = (1 << 63) - 1
#: spreads the ids of the blocks that one link of a chain covers; odd, near 2^63 over the golden ratio
_STRIDE = 0x4F1BBCDCBFA53E0B


def block_hashes_of(token_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """The ids of the full blocks of a prompt whose tokens are known: 63 bits of the block before and the tokens."""
    pack = struct.Struct(f"<{block_tokens}q").pack
    hashes = []
    link = 0
    for start in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        link = _chained(link, pack(*token_ids[start : start + block_tokens]))
        hashes.append(link)
    return tuple(hashes)


def block_hashes_of_prefix(
    prefix_ids: Sequence[int], prefix_block_tokens: int, prompt_tokens: int, block_tokens: int, own: str
) -> tuple[int, ...]:
    """The ids of the full blocks of a prompt that is known by the ids of its ``prefix_block_tokens`` blocks only.

    Blocks of another size are told apart where one is a multiple of the other, else a :class:`ConfigError`. What
    ``prefix_ids`` do not reach is the prompt's own: ``own`` tells it from every other.
    """
    blocks = prompt_tokens // block_tokens
    hashes: list[int] = []
    link = 0
    if prefix_ids and prefix_block_tokens % block_tokens and block_tokens % prefix_block_tokens:
        raise ConfigError(
            f"block_tokens is {block_tokens}, but the workload's prompts share blocks of {prefix_block_tokens} tokens; "
            f"the prefix cache needs a block size that divides {prefix_block_tokens}, or a multiple of it"
        )
    if block_tokens <= prefix_block_tokens:
        for prefix_id in prefix_ids:
            if len(hashes) >= blocks:
                break
            link = _chained(link, prefix_id.to_bytes(8, "little"))
            hashes.extend(_spread(link, prefix_block_tokens // block_tokens))
    else:
        for number, prefix_id in enumerate(prefix_ids, 1):
            link = _chained(link, prefix_id.to_bytes(8, "little"))
            if number * prefix_block_tokens % block_tokens == 0:
                hashes.append(link)
    if len(hashes) < blocks:
        hashes.extend(_spread(_chained(link, b"own " + own.encode()), blocks - len(hashes)))
    return tuple(hashes[:blocks])


def _chained(link: int, content: bytes) -> int:
    digest = blake2b(link.to_bytes(8, "little") + content, digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK63


def _spread(link: int, blocks: int) -> list[int]:
    return [(link + number * _STRIDE) & _MASK63 for number in range(blocks)]
