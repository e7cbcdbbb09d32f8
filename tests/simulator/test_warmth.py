"""What a rest of the card does to large steps: fitted from steps in their order."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from core.costs import read_costs
from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.recorded import RecordedCosts
from simulator.replica import simulate
from simulator.warmth import LARGE, TIME_NS, Heat, Warmth
from simulator.warmth_fit import fitted


class Seen:
    """An observer that keeps what each plan's steps took of the device."""

    def __init__(self) -> None:
        self.device_ns: list[int] = []

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self.device_ns.append(outcome.device_ns)

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None: ...

    def ended(self, sequence: Sequence) -> None: ...


def recorded(
    warmth: Warmth, seed: int = 0, noise: float = 0.02, count: int = 1500
) -> tuple[pd.DataFrame, npt.NDArray[np.float64]]:
    """Steps of prompts among decode steps of 10 ms, of which there are none to forty between two prompts."""
    rng, heat, now_ns = np.random.default_rng(0), Heat(), 0.0
    rows, predicted = [], []
    left = 0
    for _ in range(count):
        large = left == 0
        usual_ns = float(rng.uniform(10e6, 50e6)) if large else 10e6
        took_ns = usual_ns
        if large:
            level = heat.during(now_ns, usual_ns)
            took_ns *= warmth.factor(level) * float(rng.normal(1.0, 0.02))
            heat.run(now_ns, took_ns)
            left = int(rng.choice((0, 0, 1, 5, 40)))
        else:
            left -= 1
        rows.append(("prefill" if large else "decode", LARGE + 100 if large else 8, took_ns, 0.0))
        predicted.append(usual_ns if large else math.nan)
        now_ns += took_ns
    return pd.DataFrame(rows, columns=["kind", "new_tokens_computed", "device_ns", "host_ns"]), np.array(predicted)


def test_what_a_card_does_is_found_in_its_steps() -> None:
    found = fitted(*recorded(Warmth(0.92, 1.03)))
    assert found is not None
    assert found.cool == pytest.approx(0.92, abs=0.01)
    assert found.warm == pytest.approx(1.03, abs=0.01)


def test_the_sum_of_the_times_stays_as_it_is() -> None:
    steps, predicted = recorded(Warmth(0.9, 1.0))
    found = fitted(steps, predicted)
    assert found is not None
    heat, total, now_ns = Heat(), 0.0, 0.0
    large = ~np.isnan(predicted)
    for device_ns, usual_ns, is_large in zip(steps["device_ns"].tolist(), predicted.tolist(), large, strict=True):
        if is_large:
            total += usual_ns * found.factor(heat.during(now_ns, device_ns))
            heat.run(now_ns, device_ns)
        now_ns += device_ns
    assert total == pytest.approx(steps["device_ns"][large].sum(), rel=1e-6)


@pytest.mark.parametrize("warmth", [Warmth(1.0, 1.0), Warmth(1.05, 0.95)])
def test_a_card_whose_clock_does_not_move_is_told_from_one_whose_does(warmth: Warmth) -> None:
    assert fitted(*recorded(warmth)) is None


def test_few_steps_tell_nothing() -> None:
    assert fitted(*recorded(Warmth(0.8, 1.0), count=120)) is None


def test_a_compiled_kernel_is_no_clock() -> None:
    steps, predicted = recorded(Warmth(0.92, 1.03))
    first = int(np.flatnonzero(~np.isnan(predicted))[3])
    steps.loc[first, "device_ns"] *= 40
    found = fitted(steps, predicted)
    assert found is not None
    assert found.warm == pytest.approx(1.03, abs=0.01)


def test_heat_is_the_mean_over_the_step() -> None:
    heat = Heat()
    heat.run(0.0, 50e6)
    assert heat.level == pytest.approx(1 - math.exp(-50e6 / TIME_NS))
    start_ns, took_ns = 90e6, 30e6
    cold = 1 - heat.level * math.exp(-40e6 / TIME_NS)
    instants = (np.arange(10_000) + 0.5) * took_ns / 10_000
    assert heat.during(start_ns, took_ns) == pytest.approx(1 - cold * np.exp(-instants / TIME_NS).mean(), rel=1e-6)


def test_a_prompt_after_a_rest_is_simulated_faster_than_one_behind_others() -> None:
    costs = read_costs("h100-qwen-7b")
    assert isinstance(costs, RecordedCosts)
    warmth = costs.overlapped_warmth
    assert warmth is not None
    assert 0.9 < warmth.cool < 0.98 < warmth.warm < 1.03

    seen = Seen()
    config = SchedulerConfig(
        kv_tokens=costs.kv_tokens, context_tokens=8192, layout="paged", kv_pool="paged", block_tokens=64, overlap=True,
        max_prefill_tokens=2048,
    )  # fmt: skip
    requests = [Request(str(place), 0, 2000, 1, 1) for place in range(8)]
    simulate(requests, Scheduler(config, seen), costs)
    first, *_, last = seen.device_ns
    assert len(seen.device_ns) == 8
    assert last / first == pytest.approx(warmth.factor(1.0) / warmth.factor(0.25), rel=0.03)
    assert last > 1.03 * first
