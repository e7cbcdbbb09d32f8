"""What a step comes to: the exact integers of its layout, and the digest of its rows."""

from __future__ import annotations

from typing import Any

from scheduler.cohorts import MASK64, Cohort
from scheduler.graphs import NO_GRAPHS, Graphs, graph_rows_for, graph_tokens_for, is_row
from scheduler.kv import KvPool
from scheduler.plan import Chunk, DigestEntry, Layout, StepFeatures
from scheduler.sequence import Sequence


class Draft:
    """What a step is to do, before it is a plan.

    ``chunks`` are prefills, ``cohorts`` are stepped as a whole and ``rows`` without their cohort. ``joining``: whose KV
    the step brings in, and who are resident after it.
    """

    __slots__ = ("chunks", "cohorts", "joining", "rows")

    def __init__(self, chunks: list[Chunk], cohorts: list[Cohort], rows: list[Sequence]) -> None:
        self.chunks = chunks
        self.cohorts = cohorts
        self.rows = rows
        self.joining: list[Sequence] = []

    @property
    def decodes(self) -> bool:
        return bool(self.cohorts or self.rows)

    def steps_on(self, sequence: Sequence) -> bool:
        """Whether ``sequence``, not yet advanced, is a decode row."""
        return any(cohort is sequence.cohort for cohort in self.cohorts) or sequence in self.rows

    def members(self) -> list[Sequence]:
        """The decode rows, in no order."""
        return [s for cohort in self.cohorts for s in cohort.members.values()] + self.rows

    def decode_chunks(self) -> list[Chunk]:
        """The decode rows as chunks, in no order."""
        found = [chunk_of((s, s.known - 1, 1, True)) for s in self.rows]
        for cohort in self.cohorts:
            before = cohort.tick - 1
            found += [chunk_of((s, s.offset + before, 1, True)) for s in cohort.members.values()]
        return found

    def in_row_order(self) -> list[Chunk]:
        """All chunks, by sequence number."""
        return sorted(self.chunks + self.decode_chunks(), key=lambda chunk: chunk.sequence.number)


def features_of(fields: tuple[Any, ...]) -> StepFeatures:
    """The features whose fields, in their order, are given, without the checks of a call."""
    return tuple.__new__(StepFeatures, fields)


def chunk_of(fields: tuple[Any, ...]) -> Chunk:
    """Likewise."""
    return tuple.__new__(Chunk, fields)


def entry_of(fields: tuple[Any, ...]) -> DigestEntry:
    """Likewise."""
    return tuple.__new__(DigestEntry, fields)


def measure(
    draft: Draft,
    layout: Layout,
    pool: KvPool,
    batch_rows: int,
    swapped_tokens: int,
    steps: int,
    graphs: Graphs = NO_GRAPHS,
    released: int = 0,
) -> tuple[StepFeatures, DigestEntry]:
    """Features and digest of a draft's (first) step.

    ``batch_rows``: rows that a closed batch began with. ``graphs`` that steps run as. ``released``: sequences that gave
    their memory back since the plan before.
    """
    if not draft.chunks:
        return _decode(draft, layout, pool, batch_rows, swapped_tokens, steps, graphs.graph_rows, released)
    if not draft.decodes:
        return _prefill(draft.chunks, layout, pool, swapped_tokens, graphs.graph_tokens, released)
    prefill, entry = _prefill(draft.chunks, layout, pool, swapped_tokens, (), released)
    decode, other = _decode(draft, layout, pool, 0, 0, 1, (), 0)
    tokens = prefill.new_tokens + decode.new_tokens
    graph = 0
    if graphs.graph_mixed:
        chunks = sum(not is_row(start, count) for _, start, count, _ in draft.chunks)
        graph = graph_tokens_for(tokens, chunks, graphs.graph_mixed)
    features = StepFeatures(
        layout=layout,
        kind="mixed",
        rows=prefill.rows + decode.rows,
        rows_computed=prefill.rows + decode.rows,
        new_tokens=tokens,
        new_tokens_computed=graph or tokens,
        context_tokens=prefill.context_tokens + decode.context_tokens,
        kv_columns_computed=prefill.kv_columns_computed + decode.kv_columns_computed,
        kv_tokens_read=prefill.kv_tokens_read + decode.kv_tokens_read,
        longest_context=max(prefill.longest_context, decode.longest_context),
        blocks_touched=prefill.blocks_touched + decode.blocks_touched,
        sampled_rows=prefill.sampled_rows + decode.rows,
        decode_rows=decode.rows,
        decode_context_tokens=decode.context_tokens,
        swapped_tokens=swapped_tokens,
        graph_rows=graph,
        longest_decode_context=decode.longest_context,
        released=released,
        shared_kv_tokens=prefill.shared_kv_tokens,
    )
    return features, DigestEntry(
        "mixed",
        features.rows,
        (entry.ids + other.ids) & MASK64,
        (entry.starts + other.starts) & MASK64,
        (entry.tokens + other.tokens) & MASK64,
        1,
    )


def _prefill(
    chunks: list[Chunk], layout: Layout, pool: KvPool, swapped: int, graph_tokens: tuple[int, ...], released: int
) -> tuple[StepFeatures, DigestEntry]:
    rows = len(chunks)
    new = context = read = longest = longest_chunk = blocks = samples = 0
    ids = starts = tokens = 0
    for sequence, start, count, sampled in chunks:
        end = start + count
        new += count
        context += count * start + count * (count + 1) // 2
        read += end
        longest = max(longest, end)
        longest_chunk = max(longest_chunk, count)
        blocks += pool.blocks_for(end) if pool.grows else 1
        samples += sampled
        hash64 = sequence.hash64
        ids += hash64
        starts += hash64 * start
        tokens += hash64 * count
    padded = layout == "padded"
    graph = graph_tokens_for(new, rows, graph_tokens) if graph_tokens else 0
    features = features_of((
        layout, "prefill", rows, rows, new, rows * longest_chunk if padded else graph or new, context,
        rows * longest_chunk * longest if padded else context, read, longest, blocks, samples, 0, 0, swapped, graph,
        0, released, pool.shared_tokens,
    ))  # fmt: skip
    return features, entry_of(("prefill", rows, ids & MASK64, starts & MASK64, tokens & MASK64, 1))


def _decode(
    draft: Draft,
    layout: Layout,
    pool: KvPool,
    batch_rows: int,
    swapped: int,
    steps: int,
    graph_sizes: tuple[int, ...],
    released: int,
) -> tuple[StepFeatures, DigestEntry]:
    cohorts, rows = draft.cohorts, draft.rows
    if len(cohorts) == 1 and not rows:
        (cohort,) = cohorts
        count, tokens, longest, blocks = cohort.count, cohort.tokens, cohort.longest, cohort.blocks
        ids, starts = cohort.ids, cohort.starts
    else:
        count = sum(cohort.count for cohort in cohorts) + len(rows)
        tokens = sum(cohort.tokens for cohort in cohorts) + sum(s.known for s in rows)
        longest = max([cohort.longest for cohort in cohorts] + [s.known for s in rows])
        blocks = sum(cohort.blocks for cohort in cohorts) + sum(pool.blocks_for(s.known) for s in rows)
        ids = (sum(cohort.ids for cohort in cohorts) + sum(s.hash64 for s in rows)) & MASK64
        starts = (sum(cohort.starts for cohort in cohorts) + sum(s.hash64 * (s.known - 1) for s in rows)) & MASK64
    padded = layout == "padded"
    graph_rows = graph_rows_for(count, graph_sizes) if graph_sizes else 0
    computed = max(count, batch_rows) if padded else graph_rows or count
    # a row that fills up a graph looks at one column
    features = features_of((
        layout, "decode", count, computed, count, computed, tokens,
        computed * longest if padded else tokens + computed - count, tokens, longest,
        blocks if pool.grows else count, count, count, tokens, swapped, graph_rows, longest, released,
        pool.shared_tokens,
    ))  # fmt: skip
    return features, entry_of(("decode", count, ids, starts, ids, steps))
