"""The kernels in Triton, for GPUs from sm_80 on. Products are the library's, but for a few rows."""

from __future__ import annotations

from engine.kernels.activation import embed, gated
from engine.kernels.begin import take_in
from engine.kernels.decode_attention import decode_attention
from engine.kernels.norms import add_rms_norm, rms_norm
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.reference import linear
from engine.kernels.rotary import rotate_and_store
from engine.kernels.sampling import sample
from engine.kernels.skinny import skinny_gated, skinny_linear

__all__ = [
    "add_rms_norm",
    "decode_attention",
    "embed",
    "gated",
    "linear",
    "prefill_attention",
    "rms_norm",
    "rotate_and_store",
    "sample",
    "skinny_gated",
    "skinny_linear",
    "take_in",
]
