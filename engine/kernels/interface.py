"""What a set of kernels is: the functions that a decoder is made of, and the tensors that they are given.

T are the packed tokens of a step, HQ query heads, HKV key/value heads, D the head dimension, H hidden, I intermediate.
The KV of a layer are two contiguous tensors ``keys`` and ``values`` ``[blocks, HKV, block_tokens, D]``. A *slot* is
``block * block_tokens + offset``. All tensors of a call are on one device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Activation = Literal["silu", "gelu_tanh", "gelu"]

#: parts of a row longer than so many tokens, where many rows are to keep all processors at work to the end
_EVEN_PARTS = 8
_EVEN_TOKENS = 512


class Heads(NamedTuple):
    """The columns of a fused QKV product: all query heads, then the key heads, then the value heads."""

    query: int
    key_value: int
    dim: int

    @property
    def columns(self) -> int:
        return (self.query + 2 * self.key_value) * self.dim


class Rotary(NamedTuple):
    """Rotary tables ``cos`` and ``sin`` ``[context, dims / 2]``, in float32 or the model's dtype.

    The first ``dims`` of each head are rotated, the rest passes. A rotated pair are two neighbours where
    ``interleaved``, otherwise one from each half. Products are rounded to the tables' dtype.
    """

    cos: Tensor
    sin: Tensor
    dims: int
    interleaved: bool = False


class Splits(NamedTuple):
    """How decode attention cuts contexts: each into ``most`` parts or fewer, none but the last under ``tokens``."""

    most: int
    tokens: int = 1


class DecodeWorkspace:
    """Scratch memory of decode attention for up to ``rows`` rows whose contexts are cut into up to ``splits`` parts.

    One workspace serves all layers of a model and all graphs of a device, as long as they run one after the other.
    ``arrivals`` is all zeros between launches.
    """

    def __init__(self, rows: int, heads: Heads, splits: int, device: torch.device) -> None:
        self.rows = rows
        self.splits = splits
        parts = rows * heads.query * splits
        self.outputs = torch.empty(parts, heads.dim, dtype=torch.float32, device=device)
        self.maxima = torch.empty(parts, dtype=torch.float32, device=device)
        self.sums = torch.empty(parts, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(rows * heads.key_value, dtype=torch.int32, device=device)


def decode_splits(rows: int, kv_heads: int, longest_tokens: int, processors: int) -> Splits:
    """How decode attention cuts the contexts of so many rows: into a power of two of parts, at most 32.

    Few rows are cut into enough parts to give each of the ``processors`` (streaming multiprocessors) two programs. More
    rows would do so whole, but the longest of them would keep one processor at work when all others are done: a row
    longer than 512 tokens is cut, into up to 8 parts. Where each processor has more than 16 programs, that is no loss.
    It depends on the bucket of rows and on the longest context that a launch may meet, not on the lengths it meets.
    """
    whole = max(rows * kv_heads, 1)
    to_fill = max(2 * processors // whole, 1)
    to_even = _EVEN_PARTS if whole <= 16 * processors else 1
    wanted = min(max(to_fill, to_even), -(-longest_tokens // 256), 32)
    return Splits(1 << max(wanted.bit_length() - 1, 0), max(_EVEN_TOKENS // to_fill, 1))


def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 of a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class Kernels(Protocol):
    """The functions of a decoder; a module is one. Every result is a new tensor unless the function says otherwise."""

    def take_in(
        self,
        ids: Tensor,
        places: Tensor,
        positions: Tensor,
        slots: Tensor,
        tables: Tensor,
        last: Tensor,
        block_tokens: int,
    ) -> Tensor:
        """The ids ``int64[T]`` of a step's tokens, whose blocks are named in ``tables``.

        Where ``ids`` ``int64[T]`` is negative, it is the entry of ``last`` ``int64[places]`` at the token's place.
        ``tables[place, position // block_tokens]`` (int32) becomes the block of the token's slot, in place; a slot of
        -1 is in none. ``places``, ``positions`` and ``slots`` are ``int64[T]``.
        """

    def embed(self, ids: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
        """Rows ``ids`` ``int64[T]`` of ``table`` ``[vocab, H]``, times ``scale`` rounded to the table's dtype."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
        """``x / rms(x) * (offset + weight)`` over the last dimension of ``x`` ``[T, H]``.

        Computed in float32. With no offset it is rounded before the product, as in Llama; else after it, as in Gemma.
        """

    def add_rms_norm(
        self,
        update: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        *,
        offset: float = 0.0,
        post_norm: Tensor | None = None,
    ) -> Tensor:
        """Add ``update`` to ``residual`` ``[T, H]`` in place, and return the RMS norm of the sum.

        ``update`` is ``[T, H]``, or float32 parts ``[P, T, H]`` of it that are summed first. With ``post_norm`` (a
        weight) it is itself normalised before it is added (Gemma 2 and 3, GLM-4-0414).
        """

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """``activation(gate) * up`` ``[T, I]`` of ``gate_up`` ``[T, 2I]``, whose first half is the gate."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotary: Rotary,
        positions: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
        heads: Heads,
        *,
        bias: Tensor | None = None,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        norm_eps: float = 1e-6,
        norm_offset: float = 0.0,
    ) -> Tensor:
        """Rotated queries ``[T, HQ, D]`` of ``qkv`` ``[T, (HQ + 2 HKV) D]``; keys and values go into the cache.

        In this order: add ``bias``; RMS norm of each query and key head with ``q_norm`` and ``k_norm`` ``[D]``; rotate
        to ``positions`` ``int64[T]``; write to ``slots`` ``int64[T]``, where -1 writes nothing.
        """

    def decode_attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        block_tables: Tensor,
        lengths: Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
        workspace: DecodeWorkspace | None = None,
        splits: Splits | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attention of one query a row, ``query`` ``[rows, HQ, D]``, over its context, itself included.

        ``block_tables`` ``int32[rows, max_blocks]`` name the blocks, ``lengths`` ``int32[rows]`` count the tokens; a
        row of length 0 gives zeros. With ``window`` only the last that many tokens count. ``splits`` is how many parts
        a context is cut into, by default as many as ``workspace`` has; one part needs no workspace. ``out``, of the
        query's shape and contiguous, is where the result goes, and is returned; by default a new tensor.
        """

    def prefill_attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        block_tables: Tensor,
        starts: Tensor,
        offsets: Tensor,
        longest_chunk: int,
        *,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of packed chunks, ``query`` ``[T, HQ, D]``, over contexts that are already in the cache.

        Chunk c is ``query[offsets[c]:offsets[c + 1]]``, which may be empty, at the positions from ``starts[c]`` on;
        its blocks are ``block_tables[c]`` (all int32). No chunk is longer than ``longest_chunk``. With ``window``
        position p sees ``p - window + 1 .. p``. ``out`` as above. Queries of no chunk are not computed: what ``out``
        has there stays, in a new tensor it is undefined.
        """

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` ``[T, K]`` times the transpose of ``weight`` ``[N, K]``, plus ``bias`` ``[N]``: ``[T, N]``."""

    def skinny_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, parts: bool = False) -> Tensor:
        """:meth:`linear` for the few rows of a decode step; ``parts``: perhaps as float32 sums ``[P, T, N]``."""

    def skinny_gated(self, x: Tensor, weight: Tensor, activation: Activation) -> Tensor:
        """:meth:`gated` of the product with a merged ``weight`` ``[2I, K]``, for the few rows of a decode step."""

    def sample(self, logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
        """A token for each row of ``logits`` ``[rows, vocab]``: ``int64[rows]``.

        The most likely one where ``temperature`` ``float32[rows]`` is 0, else a draw with the noise of the row's key
        (``int64[rows]``, below 2**32), as :func:`engine.sampling.gumbel_noise` makes it.
        """
