"""Shapes of well-known models: what a step's bytes and operations follow from. A table; needs no torch.

The engine builds models of these shapes with random weights (``shape:NAME``), the simulator's roofline reads them.
Figures are those of the models' published ``config.json`` files, except ``qwen-7b`` and ``tiny`` (see there).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from scheduler.config import unknown_name

Family = Literal["llama", "qwen2", "qwen3", "glm", "opt"]

#: bytes of one element
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}

#: rows of OPT's position table before position 0
OPT_POSITION_OFFSET = 2


class UnknownShapeError(ValueError):
    """No model shape has that name."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The shape of a decoder-only transformer. ``heads`` are query heads, ``intermediate`` is the MLP's width.

    ``family`` says which blocks it is built of: ``llama`` (RMSNorm, rotary, gated MLP, no biases), ``qwen2`` (llama
    with ``qkv_bias``), ``qwen3`` (a norm on every query and key head), ``glm`` (rotary on half of each head), ``opt``
    (LayerNorm, learned positions, plain two-matrix MLP, biases everywhere).
    """

    name: str
    family: Family
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_tokens: int
    qkv_bias: bool = False
    tied: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def query_width(self) -> int:
        """Columns of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    @property
    def attention_weights(self) -> int:
        """Matrix elements of one layer's four attention projections."""
        return self.hidden * (self.query_width + 2 * self.kv_width) + self.query_width * self.hidden

    @property
    def mlp_weights(self) -> int:
        """Matrix elements of one layer's MLP: gate, up and down (OPT: up and down)."""
        return (2 if self.family == "opt" else 3) * self.hidden * self.intermediate

    @property
    def matrix_weights(self) -> int:
        """Matrix elements that every step multiplies by: all layers and the output head (tied or not)."""
        return self.layers * (self.attention_weights + self.mlp_weights) + self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; a tied output head is counted once."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        if self.family == "opt":
            embeddings += (self.context_tokens + OPT_POSITION_OFFSET) * self.hidden
        layer = self.attention_weights + self.mlp_weights + self._layer_vectors
        return embeddings + self.layers * layer + self._norm_width

    @property
    def _norm_width(self) -> int:
        return 2 * self.hidden if self.family == "opt" else self.hidden

    @property
    def _layer_vectors(self) -> int:
        """Elements of one layer's norms and biases."""
        norms = 2 * self._norm_width
        if self.family == "qwen3":
            norms += 2 * self.head_dim
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        if self.family == "opt":
            biases += self.hidden + self.intermediate + self.hidden
        return norms + biases

    def weight_bytes(self, dtype: str = "bfloat16") -> int:
        """Bytes of all parameters held in ``dtype`` (a key of :data:`DTYPE_BYTES`)."""
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
        return self.parameters * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of keys and values that one token holds over all layers."""
        return 2 * self.layers * self.kv_width * dtype_bytes

    def linear_flops_per_token(self, sampled: bool = True) -> int:
        """Operations of the matrix products for one token; ``sampled=False`` leaves the output head out."""
        head = 0 if sampled else self.vocab * self.hidden
        return 2 * (self.matrix_weights - head)

    def attention_flops_per_pair(self) -> int:
        """Operations of attention, over all layers, for one (query, key) pair."""
        return 4 * self.layers * self.query_width


def _llama(name: str, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int,
           context_tokens: int, rope_theta: float = 10_000.0) -> ModelShape:  # fmt: skip
    return ModelShape(name, "llama", hidden, layers, heads, kv_heads, hidden // heads, intermediate, vocab,
                      context_tokens, rope_theta=rope_theta, norm_eps=1e-5)  # fmt: skip


def _qwen2(name: str, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int,
           tied: bool = False) -> ModelShape:  # fmt: skip
    return ModelShape(name, "qwen2", hidden, layers, heads, kv_heads, hidden // heads, intermediate, vocab,
                      32_768, qkv_bias=True, tied=tied, rope_theta=1e6)  # fmt: skip


def _qwen3(name: str, hidden: int, layers: int, heads: int, intermediate: int, tied: bool = False) -> ModelShape:
    return ModelShape(name, "qwen3", hidden, layers, heads, 8, 128, intermediate, 151_936, 40_960, tied=tied,
                      rope_theta=1e6)  # fmt: skip


def _opt(name: str, hidden: int, layers: int, heads: int) -> ModelShape:
    return ModelShape(name, "opt", hidden, layers, heads, heads, hidden // heads, 4 * hidden, 50_272, 2_048,
                      qkv_bias=True, tied=True, norm_eps=1e-5)  # fmt: skip


_TABLE = (
    # Qwen-7B's dimensions in Qwen2's blocks (its own blocks differ in layout, not in the products they compute)
    replace(_qwen2("qwen-7b", 4096, 32, 32, 32, 11_008, 151_936), context_tokens=8_192, rope_theta=1e4),
    _qwen2("qwen2.5-0.5b", 896, 24, 14, 2, 4_864, 151_936, tied=True),
    _qwen2("qwen2.5-1.5b", 1536, 28, 12, 2, 8_960, 151_936, tied=True),
    _qwen2("qwen2.5-3b", 2048, 36, 16, 2, 11_008, 151_936, tied=True),
    _qwen2("qwen2.5-7b", 3584, 28, 28, 4, 18_944, 152_064),
    _qwen2("qwen2.5-14b", 5120, 48, 40, 8, 13_824, 152_064),
    _qwen2("qwen2.5-32b", 5120, 64, 40, 8, 27_648, 152_064),
    _qwen2("qwen2.5-72b", 8192, 80, 64, 8, 29_568, 152_064),
    _qwen3("qwen3-0.6b", 1024, 28, 16, 3_072, tied=True),
    _qwen3("qwen3-4b", 2560, 36, 32, 9_728, tied=True),
    _qwen3("qwen3-8b", 4096, 36, 32, 12_288),
    _qwen3("qwen3-32b", 5120, 64, 64, 25_600),
    _llama("llama-2-7b", 4096, 32, 32, 32, 11_008, 32_000, 4_096),
    _llama("llama-2-13b", 5120, 40, 40, 40, 13_824, 32_000, 4_096),
    _llama("llama-2-70b", 8192, 80, 64, 8, 28_672, 32_000, 4_096),
    _llama("llama-3-8b", 4096, 32, 32, 8, 14_336, 128_256, 8_192, 500_000.0),
    _llama("llama-3-70b", 8192, 80, 64, 8, 28_672, 128_256, 8_192, 500_000.0),
    _llama("mistral-7b", 4096, 32, 32, 8, 14_336, 32_000, 32_768, 1e6),
    replace(_llama("smollm2-135m", 576, 30, 9, 3, 1_536, 49_152, 8_192, 100_000.0), tied=True),
    ModelShape("glm-4-9b", "glm", 4096, 40, 32, 2, 128, 13_696, 151_552, 131_072, qkv_bias=True, norm_eps=1.5625e-7),
    _opt("opt-6.7b", 4096, 32, 32),
    _opt("opt-13b", 5120, 40, 40),
    _opt("opt-66b", 9216, 64, 72),
    _opt("opt-175b", 12_288, 96, 96),
    # for tests: the embedded model's vocabulary on two small layers
    ModelShape("tiny", "qwen2", 64, 2, 4, 2, 16, 128, 49_152, 2_048, qkv_bias=True),
)

#: every shape, by name
MODEL_SHAPES: dict[str, ModelShape] = {shape.name: shape for shape in _TABLE}


def model_shape(name: str) -> ModelShape:
    """The shape called ``name`` (case does not matter).

    Raises:
        UnknownShapeError: no shape has that name; the message names the nearest ones.
    """
    shape = MODEL_SHAPES.get(name.lower())
    if shape is None:
        raise UnknownShapeError(unknown_name("model shape", name, MODEL_SHAPES))
    return shape
