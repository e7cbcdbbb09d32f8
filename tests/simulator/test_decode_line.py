"""The line that decode steps lie on gives each step's time to the nanosecond, as the cost model itself does."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.plan import NEVER, DigestEntry, Layout, StepFeatures, StepPlan
from simulator.costs import IntegerCosts, LinearDecode
from simulator.replica import ends_on_line
from simulator.roofline import RooflineCosts, roofline


def decode_plan(layout: Layout, rng: Random, repeat: int, until_ns: int = NEVER, swapped: int = 0) -> StepPlan:
    rows = rng.randint(1, 300)
    computed = rows + rng.randrange(20)
    context = rows * rng.randint(1, 3000)
    longest = context // rows + rng.randrange(500)
    columns = computed * longest if layout == "padded" else context + computed - rows
    features = StepFeatures(layout, "decode", rows, computed, rows, computed, context, columns, context, longest, rows,
                            rows, rows, context, swapped)  # fmt: skip
    return StepPlan(
        0, 0, repeat, features, DigestEntry("decode", rows, 0, 0, 0, 1), until_ns, False, (), list, lambda _: []
    )


def line_ends(costs: RooflineCosts, plan: StepPlan, start_ns: int) -> list[int]:
    line = costs.decode_line(plan.features)
    assert line is not None
    return ends_on_line(line, plan, start_ns)


@given(st.sampled_from(("paged", "padded")), st.integers(1, 300), st.integers(0, 1 << 61), st.integers(0, 2**32))
def test_the_steps_of_a_line_end_when_the_cost_model_says(layout: Layout, repeat: int, start: int, seed: int) -> None:
    rng = Random(seed)
    costs = roofline(*rng.choice((("a100-40gb", "qwen-7b"), ("a100-80gb", "llama-2-7b"))))
    plan = decode_plan(layout, rng, repeat)
    columns = plan.columns()
    each = np.broadcast_to(np.asarray(costs.device_ns(columns) + costs.host_ns(columns)), repeat)
    ends = [start]
    for ns in each.tolist():
        ends.append(ends[-1] + ns)
    assert line_ends(costs, plan, start) == ends[1:]


def test_a_line_is_followed_up_to_the_step_that_ends_late_enough() -> None:
    costs = roofline("a100-80gb", "llama-2-7b")
    ends = line_ends(costs, decode_plan("paged", Random(1), 20), 5)
    for until_ns, steps in ((ends[6], 7), (ends[6] + 1, 8), (0, 1), (ends[-1] + 1, 20)):
        assert line_ends(costs, decode_plan("paged", Random(1), 20, until_ns), 5) == ends[:steps]


def test_a_step_that_moves_kv_lies_on_no_line() -> None:
    plan = decode_plan("paged", Random(2), 1, swapped=10)
    assert roofline("a100-80gb", "llama-2-7b").decode_line(plan.features) is None


@pytest.mark.parametrize(("costs", "linear"), [(roofline("h100", "llama-2-7b"), True), (IntegerCosts(), False)])
def test_who_has_a_line_says_so(costs: object, linear: bool) -> None:
    assert isinstance(costs, LinearDecode) == linear
