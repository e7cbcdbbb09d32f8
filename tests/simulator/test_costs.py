"""Cost models: integers that can be worked out by hand, and a roofline that is near what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from core.reproduce.projection import DECODE_MS, PREFILL_MS
from scheduler.plan import Layout, StepColumns
from simulator.costs import CostError, IntegerCosts, prefill_token_ns
from simulator.gpus import GPUS
from simulator.roofline import RooflineCosts, roofline


def decode(rows: int, context: int, layout: Layout = "paged", repeat: int = 1) -> StepColumns:
    """``repeat`` decode steps of equally long sequences, the first of ``context`` tokens."""
    longest = context if repeat == 1 else context + np.arange(repeat, dtype=np.int64)
    read = rows * longest
    return StepColumns(layout, "decode", repeat, rows, rows, rows, rows, read, read, read, longest, rows)


def prefill(rows: int, tokens: int, layout: Layout = "paged", sampled: bool = True) -> StepColumns:
    new, pairs = rows * tokens, rows * tokens * (tokens + 1) // 2
    computed = new * tokens if layout == "padded" else pairs
    return StepColumns(layout, "prefill", 1, rows, rows, new, new, pairs, computed, new, tokens, rows * sampled)


def mixed(prompts: int, tokens: int, rows: int, context: int) -> StepColumns:
    """``prompts`` whole prompts of ``tokens`` beside ``rows`` decode rows of ``context`` tokens, on paged memory."""
    prefilled, decoded = prefill(prompts, tokens), decode(rows, context)
    new = prefilled.new_tokens + rows
    attention = prefilled.context_tokens + decoded.context_tokens
    read = prefilled.kv_tokens_read + decoded.kv_tokens_read
    return StepColumns("paged", "mixed", 1, prompts + rows, prompts + rows, new, new, attention, attention, read,
                       max(tokens, context), prompts + rows, rows, 0, decoded.context_tokens)  # fmt: skip


# -- integers


def test_integer_costs_by_hand() -> None:
    costs = IntegerCosts(step_ns=1000, row_ns=10, token_ns=7, column_ns=2)
    assert costs.device_ns(decode(3, 50)) == 1000 + 30 + 2 * 150
    assert costs.device_ns(prefill(2, 50)) == 1000 + 7 * 100 + 2 * 100
    assert costs.host_ns(decode(3, 50)) == 0


def test_integer_costs_of_a_mixed_step_are_those_of_its_prompts_and_its_rows() -> None:
    costs = IntegerCosts(step_ns=1000, row_ns=10, token_ns=7, column_ns=2)
    assert costs.device_ns(mixed(2, 50, 3, 60)) == 1000 + 7 * 100 + 10 * 3 + 2 * (100 + 180)


def test_integer_costs_of_a_swap_are_so_much_a_token() -> None:
    swapping = decode(3, 50)._replace(swapped_tokens=40)
    assert IntegerCosts(swap_token_ns=5).device_ns(swapping) == IntegerCosts().device_ns(decode(3, 50)) + 200
    assert IntegerCosts().device_ns(swapping) == IntegerCosts().device_ns(decode(3, 50))


def test_integer_costs_of_a_padded_step_are_those_of_what_it_computes() -> None:
    costs = IntegerCosts(step_ns=1000, row_ns=10, token_ns=7, column_ns=2)
    # two of four rows alive, of 5 and 9 tokens
    dead = StepColumns("padded", "decode", 1, 2, 4, 2, 4, 14, 36, 14, 9, 2)
    assert costs.device_ns(dead) == 1000 + 40 + 2 * 36


def test_integer_costs_of_a_stretch_are_those_of_its_steps() -> None:
    costs = IntegerCosts()
    stretch = costs.device_ns(decode(3, 50, repeat=20))
    assert isinstance(stretch, np.ndarray)
    assert stretch.dtype == np.int64
    assert stretch.tolist() == [costs.device_ns(decode(3, 50 + step)) for step in range(20)]


def test_a_prefill_token_costs_its_part_of_a_prompt_of_512_in_whole_microseconds() -> None:
    # a step of 1,000,000 ns, 100,300 ns a token and 10 ns for each of 512 tokens read: 102,263 ns a token
    costs = IntegerCosts(step_ns=1_000_000, token_ns=100_300, column_ns=10)
    assert prefill_token_ns(costs, "paged") == 102_000
    assert prefill_token_ns(costs, "padded") == 102_000
    assert prefill_token_ns(IntegerCosts(step_ns=0, token_ns=1, column_ns=0), "paged") == 1000
    assert prefill_token_ns(roofline("h100", "qwen-7b"), "padded") % 1000 == 0


# -- the roofline


def milliseconds(costs: RooflineCosts, columns: StepColumns) -> float:
    return float(np.sum(costs.device_ns(columns))) / 1e6


@pytest.mark.parametrize(("batch", "context"), DECODE_MS)
def test_decode_is_within_a_quarter_of_what_was_measured(batch: int, context: int) -> None:
    projected = milliseconds(roofline("a100-80gb", "llama-2-7b"), decode(batch, context))
    assert projected == pytest.approx(DECODE_MS[batch, context], rel=0.25)


@pytest.mark.parametrize("tokens", PREFILL_MS)
def test_prefill_is_within_a_quarter_of_what_was_measured(tokens: int) -> None:
    projected = milliseconds(roofline("a100-80gb", "llama-2-7b"), prefill(1, tokens))
    assert projected == pytest.approx(PREFILL_MS[tokens], rel=0.25)


@pytest.mark.parametrize("gpu", GPUS)
def test_more_rows_and_more_context_never_cost_less(gpu: str) -> None:
    costs = roofline(gpu, "qwen2.5-0.5b", "float16")
    by_rows = [milliseconds(costs, decode(rows, 700)) for rows in (1, 2, 8, 64, 512)]
    by_context = [milliseconds(costs, decode(8, context)) for context in (1, 100, 1000, 10_000)]
    by_tokens = [milliseconds(costs, prefill(1, tokens)) for tokens in (1, 16, 256, 4096)]
    for times in (by_rows, by_context, by_tokens):
        assert times == sorted(times)
        assert times[0] < times[-1]


def test_a_padded_step_costs_what_its_longest_row_makes_of_it() -> None:
    costs = roofline("a100-80gb", "llama-2-7b")
    # rows of 1,000 and 200 tokens
    paged = StepColumns("paged", "decode", 1, 2, 2, 2, 2, 1200, 1200, 1200, 1000, 2)
    padded = StepColumns("padded", "decode", 1, 2, 2, 2, 2, 1200, 2000, 1200, 1000, 2)
    assert milliseconds(costs, paged) < milliseconds(costs, padded) == milliseconds(costs, decode(2, 1000))


def test_a_stretch_is_rounded_step_by_step() -> None:
    costs = roofline("a100-80gb", "llama-2-7b")
    for layout in ("paged", "padded"):
        stretch = costs.device_ns(decode(5, 300, layout, repeat=50))
        assert isinstance(stretch, np.ndarray)
        assert stretch.tolist() == [costs.device_ns(decode(5, 300 + step, layout)) for step in range(50)]


def test_a_mixed_step_reads_the_weights_once_for_both_its_parts() -> None:
    costs = roofline("a100-80gb", "llama-2-7b")
    prompt, rows, both = (milliseconds(costs, c) for c in (prefill(1, 256), decode(32, 1000), mixed(1, 256, 32, 1000)))
    assert max(prompt, rows) < both < prompt + rows
    # where the products of a long prompt bind, a few rows beside it are nearly free
    assert milliseconds(costs, mixed(1, 2048, 8, 100)) == pytest.approx(milliseconds(costs, prefill(1, 2048)), rel=0.02)


def test_a_mixed_step_of_prompts_alone_or_rows_alone_costs_what_they_do() -> None:
    costs = roofline("a100-80gb", "llama-2-7b")
    assert costs.device_ns(mixed(2, 300, 0, 1)) == costs.device_ns(prefill(2, 300))
    assert costs.device_ns(mixed(0, 1, 9, 400)) == costs.device_ns(decode(9, 400))


@pytest.mark.parametrize(("gpu", "gigabytes_per_s"), [("t4", 13.7), ("a100-40gb", 27.4), ("h100", 54.8)])
def test_swapped_kv_moves_at_the_speed_of_the_link(gpu: str, gigabytes_per_s: float) -> None:
    costs = roofline(gpu, "qwen2.5-0.5b", "float16")
    tokens = 100_000
    beyond = milliseconds(costs, decode(4, 100)._replace(swapped_tokens=tokens)) - milliseconds(costs, decode(4, 100))
    size = costs.shape.kv_bytes_per_token(2) * tokens
    assert size / beyond / 1e6 == pytest.approx(gigabytes_per_s, rel=0.01)


def test_only_sampled_rows_go_through_the_output_head() -> None:
    costs = roofline("a100-80gb", "llama-2-7b")
    head = milliseconds(costs, prefill(64, 64)) - milliseconds(costs, prefill(64, 64, sampled=False))
    assert head > 0


def test_faster_hardware_is_faster() -> None:
    by_speed = [roofline(gpu, "llama-3-8b") for gpu in ("l4", "a100-80gb", "h100")]
    decodes = [milliseconds(costs, decode(16, 1000)) for costs in by_speed]
    prefills = [milliseconds(costs, prefill(1, 2048)) for costs in by_speed]
    assert decodes == sorted(decodes, reverse=True)
    assert prefills == sorted(prefills, reverse=True)


def test_capacity_is_what_fits_beside_the_weights() -> None:
    """A100 80 GB: 0.9 of the memory, less 13.5 GB of weights and 1 GiB of workspace, at 512 KiB a token."""
    costs = roofline("a100-80gb", "llama-2-7b")
    assert costs.kv_tokens is not None
    weights = 2 * 6_738_415_616
    expected = (0.9 * (80 << 30) - weights - (1 << 30)) / (512 << 10)
    assert costs.kv_tokens == pytest.approx(expected, rel=1e-3)
    assert costs.context_tokens == 4096
    assert costs.name == "roofline:a100-80gb:llama-2-7b"
    assert costs.host_ns(decode(1, 1)) > 0


@pytest.mark.parametrize(
    ("gpu", "model", "message"),
    [
        ("a100-80", "llama-2-7b", r"unknown GPU 'a100-80'; did you mean a100-80gb\?"),
        ("h100", "lama-2-7b", r"unknown model shape 'lama-2-7b'; did you mean llama-2-7b\?"),
        ("t4", "llama-2-70b", r"llama-2-70b in bfloat16 leaves no room for KV on a NVIDIA T4 16 GB; take a smaller"),
    ],
)
def test_what_cannot_be_projected_is_said_in_one_line(gpu: str, model: str, message: str) -> None:
    with pytest.raises(CostError, match=message):
        roofline(gpu, model)
