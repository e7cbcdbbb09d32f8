"""RMS norms, with the residual sum in the same launch: one program a token, the row is read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.hopper import launch_options, release, wait
from engine.kernels.launching import launch


@triton.jit(do_not_specialize=["tokens"])
def _norm_kernel(
    update, residual, weight, post_weight, out, tokens, hidden, eps, offset,
    PARTS: tl.constexpr, ADD: tl.constexpr, POST: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """``update`` ``[PARTS, tokens, hidden]`` is summed over its parts; without ``ADD`` there is none."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + offset
    dtype = out.dtype.element_ty
    if DEPENDENT:
        wait()
    x = tl.load(residual + token * hidden + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(PARTS):
            added += tl.load(update + (part * tokens + token) * hidden + column, mask=inside, other=0.0).to(tl.float32)
        if POST:
            post = tl.load(post_weight + column, mask=inside, other=0.0).to(tl.float32) + offset
            added = added.to(dtype).to(tl.float32)
            added = added * (1.0 / tl.sqrt(tl.sum(added * added, 0) / hidden + eps)) * post
        x = (x + added.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
        tl.store(residual + token * hidden + column, x.to(dtype), mask=inside)
    if DEPENDENT:
        release()
    x = x * (1.0 / tl.sqrt(tl.sum(x * x, 0) / hidden + eps))
    tl.store(out + token * hidden + column, (x * scale).to(dtype), mask=inside)


def _launch(
    update: Tensor | None, residual: Tensor, weight: Tensor, post: Tensor | None, eps: float, offset: float
) -> Tensor:
    tokens, hidden = residual.shape
    out = torch.empty_like(residual)
    launch(
        _norm_kernel, (tokens,),
        residual if update is None else update, residual, weight, weight if post is None else post, out,
        tokens, hidden, eps, offset,
        PARTS=update.shape[0] if update is not None and update.dim() == 3 else 1,
        ADD=update is not None, POST=post is not None, BLOCK=triton.next_power_of_2(hidden),
        num_warps=8 if hidden > 1024 else 4, **launch_options(tokens, residual.device),
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.rms_norm`."""
    return _launch(None, x, weight, None, eps, offset)


def add_rms_norm(
    update: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    post_norm: Tensor | None = None,
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.add_rms_norm`."""
    return _launch(update, residual, weight, post_norm, eps, offset)
