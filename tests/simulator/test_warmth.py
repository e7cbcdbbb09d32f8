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


def recorded(warmth: Warmth, count: int = 3000) -> pd.DataFrame:
    """Steps of prompts, 20 us a token, among decode steps of 10 ms. Long prompts come right behind others."""
    rng, heat, now_ns = np.random.default_rng(0), Heat(), 0.0
    rows = []
    left = 0
    for _ in range(count):
        large, tokens = left == 0, 8
        took_ns = 10e6
        if large:
            tokens = int(rng.choice((LARGE, 500, 1000, 2048)))
            usual_ns = 20e3 * tokens
            took_ns = usual_ns * warmth.factor(heat.during(now_ns, usual_ns)) * float(rng.normal(1.0, 0.02))
            heat.run(now_ns, took_ns)
            left = int(rng.choice((0, 0, 0, 1) if tokens > 1000 else (0, 1, 5, 40)))
        else:
            left -= 1
        rows.append(("prefill" if large else "decode", tokens, took_ns, 0.0))
        now_ns += took_ns
    return pd.DataFrame(rows, columns=["kind", "new_tokens_computed", "device_ns", "host_ns"])


def prompts(steps: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return (steps["kind"] == "prefill").to_numpy()


def predict(steps: pd.DataFrame) -> npt.NDArray[np.float64]:
    """A line over the tokens of prompts, with their sum; NaN for decode steps."""
    large = prompts(steps)
    times = steps["device_ns"].to_numpy(np.float64)[large]
    lines = np.column_stack([np.ones(large.sum()), steps["new_tokens_computed"].to_numpy(np.float64)[large]])
    told = lines @ np.linalg.lstsq(lines, times, rcond=None)[0]
    predicted = np.full(len(steps), math.nan)
    predicted[large] = told * times.sum() / told.sum()
    return predicted


def test_what_a_card_does_is_found_in_its_steps() -> None:
    steps = recorded(Warmth(0.92, 1.03))
    found = fitted(steps, prompts(steps), predict)
    assert found is not None
    warmth, rested = found
    assert warmth.warm / warmth.cool == pytest.approx(1.03 / 0.92, abs=0.015)
    large = prompts(steps)
    a_token = predict(rested)[large] / steps["new_tokens_computed"][large]
    assert a_token.to_numpy() * warmth.cool == pytest.approx(20e3 * 0.92, rel=0.015)
    assert (rested["device_ns"] == steps["device_ns"])[~large].all()


def test_costs_that_know_no_rests_are_fitted_to_what_they_do() -> None:
    steps = recorded(Warmth(0.92, 1.03))
    a_token = predict(steps) / steps["new_tokens_computed"].to_numpy()
    long, short = (a_token[steps["new_tokens_computed"] == tokens].mean() for tokens in (2048, LARGE))
    assert long > 1.02 * short


def test_the_sum_of_the_times_stays_as_it_is() -> None:
    steps = recorded(Warmth(0.9, 1.0))
    found = fitted(steps, prompts(steps), predict)
    assert found is not None
    warmth, rested = found
    heat, total, now_ns = Heat(), 0.0, 0.0
    for device_ns, told_ns in zip(steps["device_ns"].tolist(), predict(rested).tolist(), strict=True):
        if not math.isnan(told_ns):
            total += told_ns * warmth.factor(heat.during(now_ns, device_ns))
            heat.run(now_ns, device_ns)
        now_ns += device_ns
    assert total == pytest.approx(steps["device_ns"][steps["kind"] == "prefill"].sum(), rel=1e-5)


@pytest.mark.parametrize("warmth", [Warmth(1.0, 1.0), Warmth(1.05, 0.95)])
def test_a_card_whose_clock_does_not_move_is_told_from_one_whose_does(warmth: Warmth) -> None:
    steps = recorded(warmth)
    assert fitted(steps, prompts(steps), predict) is None


def test_few_steps_tell_nothing() -> None:
    steps = recorded(Warmth(0.8, 1.0), count=120)
    assert fitted(steps, prompts(steps), predict) is None


def test_a_compiled_kernel_is_no_clock() -> None:
    steps = recorded(Warmth(0.92, 1.03))
    first = int(np.flatnonzero(steps["kind"] == "prefill")[3])
    steps.loc[first, "device_ns"] *= 40

    def without(told: pd.DataFrame) -> npt.NDArray[np.float64]:
        usual = told.assign(device_ns=told["device_ns"].where(told.index != first, told["device_ns"] / 40))
        return predict(usual)

    found = fitted(steps, prompts(steps), without)
    assert found is not None
    assert found[0].warm / found[0].cool == pytest.approx(1.03 / 0.92, abs=0.015)


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
    assert 0.88 < warmth.cool < 0.94 < 1.0 < warmth.warm < 1.05

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
    assert last > 1.06 * first
