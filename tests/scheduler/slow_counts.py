"""What the slow reference sums up over the steps of a run."""

from __future__ import annotations

import hashlib

from slow_orders import Job

from scheduler.counters import RunCounters
from scheduler.plan import StepFeatures

#: a job of a step, the position from which it is computed, and how many tokens
Piece = tuple[Job, int, int]


def count_step(c: RunCounters, f: StepFeatures) -> None:
    """Add one step to the counters."""
    c.steps_prefill += f.kind == "prefill"
    c.steps_decode += f.kind == "decode"
    if f.kind == "mixed":
        c.steps_mixed += 1
    linear, attention = (f.new_tokens, f.new_tokens_computed), (f.context_tokens, f.kv_columns_computed)
    decode_linear, decode_attention, rows, rows_computed = linear, attention, f.rows, f.rows_computed
    if f.kind != "decode":
        # neither mixed steps nor their parts are ever padded; a prefill has no decode part
        decode_linear = (f.decode_rows, f.decode_rows)
        decode_attention = (f.decode_context_tokens, f.decode_context_tokens)
        rows = rows_computed = f.decode_rows
    c.linear_useful_decode += decode_linear[0]
    c.linear_computed_decode += decode_linear[1]
    c.attention_useful_decode += decode_attention[0]
    c.attention_computed_decode += decode_attention[1]
    c.decode_rows += rows
    c.decode_rows_computed += rows_computed
    c.graph_rows += f.graph_rows
    c.graph_rows_used += f.new_tokens if f.graph_rows else 0
    c.linear_useful_prefill += linear[0] - decode_linear[0]
    c.linear_computed_prefill += linear[1] - decode_linear[1]
    c.attention_useful_prefill += attention[0] - decode_attention[0]
    c.attention_computed_prefill += attention[1] - decode_attention[1]


def hexdigest(steps: list[tuple[str, dict[str, tuple[int, int]]]]) -> str:
    """Maximal runs of equal decode steps, each hashed as the sums that define a plan."""
    runs: list[tuple[str, dict[str, tuple[int, int]], int]] = []
    for kind, members in steps:
        if runs and kind == "decode" == runs[-1][0]:
            _, first, count = runs[-1]
            if members == {name: (start + count, 1) for name, (start, _) in first.items()}:
                runs[-1] = ("decode", first, count + 1)
                continue
        runs.append((kind, members, 1))
    digest = hashlib.sha256()
    for kind, members, count in runs:
        hashed = [(_hash(name), start, n) for name, (start, n) in members.items()]
        sums = (
            sum(h for h, _, _ in hashed) % 2**64,
            sum(h * start for h, start, _ in hashed) % 2**64,
            sum(h * n for h, _, n in hashed) % 2**64,
        )
        digest.update(repr((kind, len(members), *sums, count)).encode())
    return digest.hexdigest()


def pairs_of(pieces: list[Piece]) -> int:
    """(query, key) pairs under the causal mask."""
    return sum(position + 1 for _, start, n in pieces for position in range(start, start + n))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
