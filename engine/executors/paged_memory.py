"""KV in blocks, and attention over them: by torch's own attention on gathered blocks, or by our kernels in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.attention import StepAttention, grouped_attention
from engine.fused.decoder import Chunks, KvCache, Rows, attend
from engine.kernels import DecodeWorkspace, Heads, Kernels, decode_splits, processors_of
from engine.models import LoadedModel
from engine.tensors import upload
from scheduler.graphs import is_row


class PackedChunk(NamedTuple):
    """A chunk among the packed tokens of a step: where its tokens begin, how many they are, and its context."""

    first: int
    tokens: int
    end: int
    """tokens of context, the chunk's own included"""
    table: list[int]
    """the blocks that hold them"""


class PagedMemory(Protocol):
    """Blocks of KV for all layers of a model."""

    tensors: list[Tensor]
    """all there is, blocks first"""

    def attention(self, chunks: Sequence[PackedChunk], slots: list[int], longest_context: int) -> StepAttention:
        """One step's. ``slots`` (block x block tokens + offset) are where the KV of the packed tokens goes.

        Rows of one token behind a context come after all other chunks.
        """

    def masked_pairs(self, chunks: Iterable[tuple[int, int]]) -> int:
        """Query-key pairs that are computed under a mask, for chunks of (start, tokens)."""


class Group(NamedTuple):
    """Chunks of one shape: rows of ``tokens`` queries each, at the end of ``end`` tokens of context."""

    tokens: int
    end: int
    slots: Tensor | slice
    """where the queries are among the packed tokens: ``int64[rows * tokens]``, or a slice where they are in a row"""
    blocks: Tensor
    """``int64[rows * blocks]``: the blocks that hold the context of each row"""
    rows: int
    mask: Tensor | None
    """``bool[tokens, end]``; ``None`` where none is needed, or where the plain causal mask does"""


class GatheredMemory:
    """A pool of blocks ``[blocks, block_tokens, 2, kv_heads, head_dim]`` per layer. A :class:`PagedMemory`.

    Chunks of one shape (same length, same start) are one batched call of SDPA over their gathered blocks; so are the
    equal-length rows of a decode step.
    """

    def __init__(self, model: LoadedModel, blocks: int, block_tokens: int) -> None:
        self._device = model.device
        shape = (blocks, block_tokens, 2, model.kv_heads, model.head_dim)
        self.tensors = [torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(model.layers)]

    def attention(self, chunks: Sequence[PackedChunk], slots: list[int], longest_context: int) -> StepAttention:
        members: dict[tuple[int, int], list[PackedChunk]] = {}
        for chunk in chunks:
            members.setdefault((chunk.tokens, chunk.end), []).append(chunk)
        groups = [self._group(rows) for rows in members.values()]
        return GatheredAttention(self.tensors, self._indices(slots), groups, longest_context)

    def masked_pairs(self, chunks: Iterable[tuple[int, int]]) -> int:
        """Of a chunk that continues a prompt, the masked pairs of its own square."""
        return sum(tokens * (tokens - 1) // 2 for start, tokens in chunks if start > 0)

    def _group(self, rows: list[PackedChunk]) -> Group:
        _, tokens, end, _ = rows[0]
        offsets = [row.first for row in rows]
        slots: Tensor | slice
        if offsets == list(range(offsets[0], offsets[0] + len(rows) * tokens, tokens)):
            slots = slice(offsets[0], offsets[0] + len(rows) * tokens)
        else:
            slots = self._indices([slot for offset in offsets for slot in range(offset, offset + tokens)])
        blocks = self._indices([block for row in rows for block in row.table])
        mask = None
        if 1 < tokens < end:
            mask = torch.ones(tokens, end, dtype=torch.bool, device=self._device).tril(end - tokens)
        return Group(tokens, end, slots, blocks, len(rows), mask)

    def _indices(self, values: list[int]) -> Tensor:
        return upload(values, torch.int64, self._device)


class GatheredAttention:
    """One step's attention over a :class:`GatheredMemory`."""

    def __init__(self, pools: list[Tensor], slots: Tensor, groups: list[Group], longest_context: int) -> None:
        self.longest_context = longest_context
        self._pools = pools
        self._slots = slots
        self._groups = groups

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store and attend; see :class:`~engine.attention.StepAttention`. ``batch`` is 1."""
        pool = self._pools[layer]
        fresh = torch.stack((key[0], value[0]), dim=0).permute(2, 0, 1, 3)
        pool.flatten(0, 1).index_copy_(0, self._slots, fresh)
        heads, total, head_dim = query.shape[1:]
        output = query.new_empty(total, heads, head_dim)
        packed = query[0].transpose(0, 1)
        for group in self._groups:
            output[group.slots] = self._attend_group(pool, packed[group.slots], group, scale)
        return output[None]

    @staticmethod
    def _attend_group(pool: Tensor, queries: Tensor, group: Group, scale: float) -> Tensor:
        """``[rows * tokens, heads, head_dim]`` for one group of queries of that shape."""
        held = pool.index_select(0, group.blocks).reshape(group.rows, -1, *pool.shape[2:])[:, : group.end]
        attended = grouped_attention(
            queries.reshape(group.rows, group.tokens, *queries.shape[1:]).transpose(1, 2),
            held[:, :, 0].transpose(1, 2),
            held[:, :, 1].transpose(1, 2),
            scale,
            mask=group.mask,
            causal=group.mask is None and group.tokens > 1,
        )
        return attended.transpose(1, 2).reshape(queries.shape)


class KernelMemory:
    """The fused executor's cache, read where it is by its kernels. A :class:`PagedMemory`."""

    def __init__(self, model: LoadedModel, blocks: int, block_tokens: int, kernels: Kernels) -> None:
        self._device = model.device
        self._heads = Heads(model.heads, model.kv_heads, model.head_dim)
        self._block_tokens, self._kernels = block_tokens, kernels
        self._cache = KvCache(model, blocks, block_tokens)
        self.tensors = self._cache.tensors

    def attention(self, chunks: Sequence[PackedChunk], slots: list[int], longest_context: int) -> StepAttention:
        rows = [chunk for chunk in chunks if is_row(chunk.end - chunk.tokens, chunk.tokens)]
        prompts = list(chunks[len(rows) :])
        # in strides of 16: kernels are compiled for whether a stride is a multiple of it, and a row aligned
        width = -(-max(len(chunk.table) for chunk in chunks) // 16) * 16
        tables = np.zeros((len(chunks), width), dtype=np.int32)
        for row, chunk in enumerate(chunks):
            tables[row, : len(chunk.table)] = chunk.table
        offsets = [chunk.first for chunk in prompts]
        offsets.append(sum(chunk.tokens for chunk in chunks))
        splits = decode_splits(len(rows), self._heads.key_value, longest_context, processors_of(self._device))
        named, split = upload(tables, torch.int32, self._device), len(rows)
        return KernelAttention(
            self._kernels,
            self._cache,
            longest_context,
            upload([slot // self._block_tokens for slot in slots], torch.int64, self._device),
            upload([slot % self._block_tokens for slot in slots], torch.int64, self._device),
            Chunks(
                named[split:],
                upload([chunk.end - chunk.tokens for chunk in prompts], torch.int32, self._device),
                upload(offsets, torch.int32, self._device),
                max(chunk.tokens for chunk in prompts),
            ) if prompts else None,
            Rows(
                named[:split],
                upload([chunk.end for chunk in rows], torch.int32, self._device),
                DecodeWorkspace(len(rows), self._heads, splits.most, self._device) if splits.most > 1 else None,
                splits,
            ) if rows else None,
        )  # fmt: skip

    def masked_pairs(self, chunks: Iterable[tuple[int, int]]) -> int:
        """None: the kernels leave out what is masked, but for parts of a tile."""
        return 0


@dataclass(frozen=True, eq=False)
class KernelAttention:
    """One step's attention over a :class:`KernelMemory`: the rows, then the chunks of prompts."""

    kernels: Kernels
    cache: KvCache
    longest_context: int
    blocks: Tensor
    offsets_in_block: Tensor
    chunks: Chunks | None
    rows: Rows | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store and attend; see :class:`~engine.attention.StepAttention`. ``batch`` is 1."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.blocks, :, self.offsets_in_block] = key[0].transpose(0, 1)
        values[self.blocks, :, self.offsets_in_block] = value[0].transpose(0, 1)
        packed = query[0].transpose(0, 1).contiguous()
        return attend(self.kernels, packed, keys, values, self.chunks, self.rows, scale=scale)[None]


def slots_of(table: Sequence[int], start: int, end: int, block_tokens: int) -> list[int]:
    """The slots (block x block tokens + offset) of the positions from ``start`` to ``end`` of a sequence."""
    slots: list[int] = []
    for place in range(start // block_tokens, -(-end // block_tokens)):
        first, shift = place * block_tokens, (table[place] - place) * block_tokens
        slots += range(max(start, first) + shift, min(end, first + block_tokens) + shift)
    return slots
