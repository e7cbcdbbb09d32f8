"""Sequences for tests of the KV pools, which need a number, lengths and block hashes."""

from __future__ import annotations

from scheduler.request import Request
from scheduler.sequence import Sequence


def sequence(number: int, prompt_tokens: int = 1, hashes: tuple[int, ...] = ()) -> Sequence:
    return Sequence(Request(f"s{number}", 0, prompt_tokens, block_hashes=hashes), number, number, 1 << 30)
