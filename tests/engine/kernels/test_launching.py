"""Launches that are looked up: by everything that a kernel is compiled anew for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from engine.kernels.launching import _special, launch


@triton.jit
def _scaled_kernel(x, out, count, step, factor, BLOCK: tl.constexpr, SQUARE: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place * step, mask=place < count, other=0.0) * factor
    if SQUARE:
        value = value * value
    tl.store(out + place, value, mask=place < count)


def scaled(x: torch.Tensor, count: int, step: int, factor: float, square: bool) -> torch.Tensor:
    out = x.new_empty(count)
    launch(
        _scaled_kernel, (triton.cdiv(count, 32),),
        x, out, count, step, factor, BLOCK=32, SQUARE=square, num_warps=1,
    )  # fmt: skip
    return out


def test_what_a_kernel_is_compiled_anew_for() -> None:
    x = torch.zeros(64)
    assert _special(x) == _special(x[4:])
    assert _special(x) != _special(x[1:])
    assert _special(x) != _special(x.double())
    assert len({_special(number) for number in (1, 2, 16, 1 << 31, (1 << 31) + 1)}) == 5
    assert _special(3) == _special(5)
    assert _special(0.5) == _special(1.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_launch_computes_what_it_is_given(device: str) -> None:
    """Addresses and numbers that are multiples of 16, or 1, between others, and again."""
    base = torch.arange(400, dtype=torch.float32, device=device)
    for _ in range(3):
        for first in (0, 1, 4):
            for count, step in ((16, 1), (33, 2), (48, 3), (1, 16), (20, 1)):
                for factor, square in ((2.0, False), (0.5, True)):
                    for dtype in (torch.float32, torch.float16):
                        x = base.to(dtype)[first:]
                        expected = x[: count * step : step] * factor
                        expected = expected * expected if square else expected
                        assert torch.equal(scaled(x, count, step, factor, square), expected)
