"""The one attention function that is put under every model: it hands the layer's tensors to the step being run.

It is registered in transformers' ``AttentionInterface`` only. Without an entry among the mask functions transformers
builds no mask, and with ``use_cache=False`` it keeps no KV: both belong to the executor. The step itself travels from
``model(..., step=...)`` down to here as a keyword that the models pass through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.errors import ModelError

#: name under which the function is registered; a model is loaded with ``attn_implementation=ATTENTION``
ATTENTION = "lockstep"


class StepAttention(Protocol):
    """One step's attention, over whatever memory its executor keeps."""

    @property
    def longest_context(self) -> int:
        """Tokens of the longest context in the step."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new keys and values of ``layer``, attend, and return ``[batch, tokens, heads, head_dim]``.

        ``query`` is ``[batch, heads, tokens, head_dim]``, ``key`` and ``value`` have ``kv_heads``; all are views,
        already rotated.
        """


def grouped_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """SDPA of heads in groups that share keys and values: ``[batch, heads, tokens, head_dim]``, like ``query``.

    ``keys`` and ``values`` are ``[batch, kv_heads, context, head_dim]``, ``mask`` is ``bool[batch, 1, tokens,
    context]``, or without its batch and heads. On a GPU torch 2.13's only kernel that knows such groups takes no mask,
    and what it falls back to writes every weight in float32: so heads of one token are handed in as tokens of one head,
    and under a mask keys and values are repeated.
    """
    batch, heads, tokens, head_dim = query.shape
    group = heads // keys.shape[1]
    if group > 1 and tokens == 1:
        folded = query.reshape(batch, -1, group, head_dim)
        return scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale).reshape(query.shape)
    if group > 1 and mask is not None:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=heads != keys.shape[1]
    )


@contextmanager
def plans_nothing() -> Iterator[None]:
    """Attention in here is never cuDNN's, which builds a plan for each new shape: on an H100 one for every decode step.

    Torch 2.11 and later hand it what is masked, and 50 ms went to a plan where 30 layers took 25.
    """
    backends: Any = torch.backends.cuda
    was = backends.cudnn_sdp_enabled()
    backends.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        backends.enable_cudnn_sdp(was)


def step_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    step: StepAttention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer; see :class:`StepAttention` for the shapes."""
    if softcap is not None or s_aux is not None:
        raise ModelError("soft-capped logits and attention sinks are not run by this engine")
    if sliding_window is not None and step.longest_context > sliding_window:
        raise ModelError(
            f"a sequence of {step.longest_context} tokens is longer than the model's sliding window of {sliding_window}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return step.attend(int(layer), query, key, value, scale), None


AttentionInterface.register(ATTENTION, step_attention)
