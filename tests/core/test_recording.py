"""A recording of costs: what it covers follows from what the device can do, and it is a run like any other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bench
from core.folders import replay_folder
from core.recording import (
    SHORTEST_CONTEXT,
    Pilot,
    Recording,
    Scale,
    Watch,
    decode_seconds,
    recording_settings,
    run_pilot,
    scale_of,
    swap_rows,
)
from reports.run_folder import load_run
from scheduler.config import SchedulerConfig
from scheduler.graphs import graph_sizes
from scheduler.plan import StepFeatures, StepOutcome, StepPlan
from scheduler.prefix_hashes import block_hashes_of
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.fits import FEWEST_STEPS, fit
from simulator.recorded import recorded_costs
from simulator.roofline import RooflineCosts, roofline
from simulator.warmth import LARGE, Heat

# small products gain nothing from threads, and lose much where other processes want the cores
torch.set_num_threads(1)


def recorded(folder: Path, *flags: str) -> pd.DataFrame:
    command = ["--mode", "real", "--record-costs", "--model", "shape:tiny", "--quiet", "--out", str(folder), *flags]
    assert bench.main(command) == bench.OK
    return load_run(folder).steps


def test_a_recording_has_every_kind_of_step_and_replays(tmp_path: Path) -> None:
    steps = recorded(tmp_path / "run", "--budget-s", "2", "--max-running", "8", "--max-prefill-tokens", "64",
                     "--kv-tokens", "1024", "--graph-rows", "1,2,4,8")  # fmt: skip
    kinds = steps.groupby("kind")["rows"].count()
    assert set(kinds.index) == {"prefill", "decode", "mixed"}
    assert (steps["repeat"] == 1).all()
    assert (steps["overlap"] == 0).all()
    decodes = steps[steps["kind"] == "decode"]
    assert set(decodes["graph_rows"]) <= {1, 2, 4, 8}
    assert {1, 2} <= set(decodes["graph_rows"])
    assert {16, 32, 64} <= set(steps[steps["kind"] == "prefill"]["new_tokens"])
    assert replay_folder(tmp_path / "run") is True
    manifest = load_run(tmp_path / "run").manifest
    assert manifest["kv_capacity_tokens"] == 1024
    assert manifest["config"]["graph_rows"] == [1, 2, 4, 8]
    summary = load_run(tmp_path / "run").summary
    counted = summary["requests"]
    assert counted["submitted"] == counted["finished"] + counted["aborted"]


def test_with_overlap_steps_of_every_kind_are_recorded_in_both_ways(tmp_path: Path) -> None:
    steps = recorded(tmp_path / "run", "--budget-s", "6", "--max-running", "8", "--max-prefill-tokens", "64",
                     "--kv-tokens", "1024", "--graph-rows", "1,2,4,8", "--overlap")  # fmt: skip
    counts = steps.groupby(["kind", "overlap"])["rows"].count()
    assert counts.index.tolist() == [(kind, way) for kind in ("decode", "mixed", "prefill") for way in (0, 1)]
    assert counts.min() >= FEWEST_STEPS
    # in turn: each part both ways before the next
    assert (steps["overlap"].diff().abs() == 1).sum() >= 10
    # of prompts that are handed in while another one is computed
    prefills = steps[(steps["kind"] == "prefill") & (steps["overlap"] == 1)]
    assert prefills[prefills["longest_context"] <= prefills["new_tokens"]]["new_tokens"].nunique() >= 8
    assert replay_folder(tmp_path / "run") is True
    costs = recorded_costs(tmp_path / "run")
    assert set(costs.overlapped_device) == set(costs.device)
    assert set(costs.overlapped_host) == set(costs.host)


def test_padded_steps_are_recorded_too(tmp_path: Path) -> None:
    steps = recorded(tmp_path / "run", "--layout", "padded", "--budget-s", "1", "--max-running", "4",
                     "--max-prefill-tokens", "128", "--kv-tokens", "1024")  # fmt: skip
    assert set(steps["layout"]) == {"padded"}
    assert set(steps["kind"]) == {"prefill", "decode"}


def recordable(config: SchedulerConfig) -> SchedulerConfig:
    return replace(config, **recording_settings(config.layout, config.max_prefill_tokens))


CONFIG = SchedulerConfig(max_running=256, kv_tokens=100_000, context_tokens=32_768)


def test_a_fast_device_is_recorded_to_the_end_of_its_memory_a_slow_one_as_far_as_time_goes() -> None:
    fast, slow = Pilot(30_000.0, 2048, 0.0006), Pilot(700.0, 512, 0.02)
    large, small = scale_of(CONFIG, fast, 60.0), scale_of(CONFIG, slow, 60.0)
    assert large.config.kv_tokens == 100_000
    assert large.context_tokens == 32_768
    assert large.contexts == [64, 256, 1024, 4096, 16_384]
    # a tenth of the time fills 4,200 tokens
    assert small.config.kv_tokens == 4192
    assert small.context_tokens == int(0.8 * 4192)
    assert swap_rows(CONFIG, slow, 60.0) == 4
    assert swap_rows(CONFIG, fast, 60.0) == 100


def test_where_a_step_takes_what_it_takes_however_few_its_rows_all_rows_are_recorded() -> None:
    """Of a GPU the pilot sees 16 rows and fewer, which take the same time each."""
    row_s, step_s = decode_seconds([(rows, 10_000_000 + 20_000 * (rows % 3)) for rows in range(1, 17)] * 2)
    assert 0.015 < step_s + 256 * row_s < 0.025
    pilot = Pilot(38_000.0, 2048, row_s, step_s)
    assert swap_rows(CONFIG, pilot, 60.0) == 256
    recording = Recording(scale_of(CONFIG, pilot, 60.0), 1000, temperature=0.0)
    recording._part_s = 6.0
    assert recording._affords(256, 2048 / 256)
    assert not recording._affords(256, 2048 / 4096)
    # and where rows are what takes time, they decide
    row_s, step_s = decode_seconds([(rows, 20_000_000 * rows) for rows in range(1, 17)])
    assert (row_s, step_s) == (pytest.approx(0.02), pytest.approx(0.0, abs=1e-6))
    row_s, step_s = decode_seconds([(8, 80_000)])
    assert step_s + 8 * row_s == pytest.approx(80e-6)
    assert decode_seconds([])[1] == 0


def test_no_slot_of_a_padded_recording_is_longer_than_memory_has_for_all() -> None:
    config = recordable(SchedulerConfig(layout="padded", max_running=256, kv_tokens=100_000))
    scale = scale_of(config, Pilot(30_000.0, 2048, 0.0006), 60.0)
    assert scale.context_tokens * 256 <= 100_000
    assert config.phase is None
    assert recordable(CONFIG).phase == "mixed"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--record-costs", "--workload", "seed"], "--workload has no effect with --record-costs"),
        (["--record-costs", "--prefix-cache"], "--prefix-cache has no effect with --record-costs"),
        (["--record-costs", "--policy", "sjf"], "--policy has no effect with --record-costs"),
        (["--budget-s", "3"], "--budget-s is the time of a recording or of the claims; give --record-costs"),
    ],
)
def test_what_a_recording_would_ignore_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--mode", "real", *flags]) == bench.USAGE
    assert message in capsys.readouterr().err
    assert bench.main(["--mode", "sim", "--record-costs"]) == bench.USAGE


def test_a_dry_run_says_what_would_be_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--mode", "real", "--record-costs", "--layout", "paged,padded", "--budget-s", "30", "--dry-run"]
    assert bench.main(command) == bench.OK
    assert "would record padded steps in 15 s, at most 256 running" in capsys.readouterr().out


class SimulatedLoop:
    """An engine loop on a projected GPU, in simulated time: requests have lengths, and no tokens are computed.

    With overlap all of the host's time is hidden.
    """

    def __init__(self, scheduler: Scheduler, costs: RooflineCosts) -> None:
        self.scheduler = scheduler
        self._costs = costs
        self._time_ns = 0
        self.overlap = False
        self.shares_prompts = scheduler.config.prefix_cache

    def now_ns(self) -> int:
        return self._time_ns

    def now_s(self) -> float:
        return self._time_ns / 1e9

    def submit(self, request: Request) -> None:
        if self.shares_prompts and request.prompt_token_ids is not None:
            hashes = block_hashes_of(request.prompt_token_ids, self.scheduler.config.block_tokens)
            request = replace(request, block_hashes=hashes)
        self.scheduler.submit(request, self._time_ns)

    def abort(self, name: str) -> None:
        self.scheduler.abort(name, self._time_ns)

    def run(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.submit(request)
        while self.step():
            pass

    def step(self) -> bool:
        plan = self.scheduler.next_step(self._time_ns)
        if plan is None:
            return False
        columns = plan.columns()
        device = int(np.sum(self._costs.device_ns(columns)))
        host = 0 if self.overlap else int(np.sum(self._costs.host_ns(columns)))
        self._time_ns += device + host
        self.scheduler.complete(plan, StepOutcome([self._time_ns], device, host), self._time_ns)
        return True


class Rows(Watch):
    """Keeps the features of all steps and their device time."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[StepFeatures] = []
        self.device_ns: list[int] = []

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        super().stepped(plan, steps, outcome)
        self.features.append(plan.features)
        self.device_ns.append(outcome.device_ns)


def played(gpu: str, model: str, budget_s: float, overlap: bool = False) -> tuple[Scale, Rows]:
    """The plan on a projected GPU, to its end in about the time given: its scale, and its steps."""
    costs = roofline(gpu, model)
    config = recordable(
        SchedulerConfig(kv_tokens=costs.kv_tokens, context_tokens=costs.context_tokens, max_running=256,
                        overlap=overlap, graph_rows=graph_sizes(256))
    )  # fmt: skip
    pilot = run_pilot(lambda scheduler: SimulatedLoop(scheduler, costs), config, 1000, budget_s)  # type: ignore[arg-type,return-value]
    scale = scale_of(config, pilot, budget_s)
    rows = Rows()
    loop = SimulatedLoop(Scheduler(replace(scale.config, overlap=False), rows), costs)
    recording = Recording(scale, 1000, temperature=0.0, clock=loop.now_s)
    recording._watch = rows
    recording.play(loop)  # type: ignore[arg-type]
    assert loop.scheduler.idle
    assert loop.now_s() < 1.1 * budget_s, recording.notes
    return scale, rows


@pytest.mark.parametrize(
    ("gpu", "model", "budget_s"),
    [
        ("h100", "qwen-7b", 60.0),
        ("h100", "qwen2.5-7b", 45.0),
        ("h100", "qwen2.5-0.5b", 60.0),
        ("h100", "smollm2-135m", 45.0),
        ("t4", "tiny", 20.0),
    ],
)
def test_what_a_gpu_would_record(gpu: str, model: str, budget_s: float) -> None:
    """The plan on a projected GPU: all graphs, contexts to the end, swaps, in about the time given, and a good fit."""
    scale, rows = played(gpu, model, budget_s)
    steps = pd.DataFrame(rows.features)
    steps["device_ns"] = rows.device_ns
    decodes = steps[steps["kind"] == "decode"]
    assert set(decodes["graph_rows"]) == set(graph_sizes(256))
    assert decodes["longest_context"].max() > 0.5 * scale.context_tokens
    assert (steps["swapped_tokens"] > 0).sum() >= 4
    shared = decodes["shared_kv_tokens"] / decodes["kv_tokens_read"]
    assert shared.max() > 0.5
    assert len(decodes[shared > 0.2]["rows"].unique()) > 5
    assert (shared == 0).mean() > 0.5
    mixed = steps[steps["kind"] == "mixed"]
    assert len(mixed) >= 30
    assert mixed["new_tokens"].nunique() > 100
    # rows that came in together would fill their steps
    assert (mixed[mixed["decode_rows"] > 48]["new_tokens"] <= 1024).mean() > 0.15
    few = mixed[mixed["decode_rows"] <= 16]
    assert few["longest_decode_context"].nunique() > 20
    assert few["longest_decode_context"].max() > 4 * SHORTEST_CONTEXT
    prompts = steps[steps["kind"] == "prefill"]
    assert {16, 64, 256, 1024, 2048} <= set(prompts["new_tokens"])
    assert prompts["new_tokens"].nunique() > 100
    assert prompts["longest_context"].max() > 0.4 * scale.context_tokens
    assert len(steps) < 20_000
    still = steps[steps["swapped_tokens"] == 0]
    for kind, group in still.groupby("kind"):
        cost = fit(str(kind), group, group["device_ns"].to_numpy(np.float64))
        assert cost.quality.held_out is not None
        assert cost.quality.held_out < 0.03, kind


@pytest.mark.parametrize(("kv_tokens", "skipped"), [(2048, False), (256, True)])
def test_prompts_beside_rows_take_as_many_rows_as_there_is_memory_for(kv_tokens: int, skipped: bool) -> None:
    costs = roofline("t4", "tiny")
    config = recordable(SchedulerConfig(kv_tokens=kv_tokens, context_tokens=1024, max_running=64))
    rows = Rows()
    loop = SimulatedLoop(Scheduler(config, rows), costs)
    recording = Recording(scale_of(config, Pilot(30_000.0, 1023, 1e-5, 1e-3), 5.0), 1000, temperature=0.0,
                          clock=loop.now_s)  # fmt: skip
    recording._watch, recording._loop = rows, loop  # type: ignore[assignment]
    recording._part_s = recording._deadline_s = 1.0
    recording._drawn_beside_decodes()
    assert any(note.startswith("no prompts beside rows") for note in recording.notes) == skipped
    mixed = [features for features in rows.features if features.kind == "mixed"]
    assert (len({features.new_tokens for features in mixed}) > 10) != skipped
    # the loop is not held up by a prompt for which there is no place
    assert loop.now_s() < 1.2


def test_with_overlap_prompts_come_after_rests_and_right_behind_each_other() -> None:
    """Both, of all lengths, alone and beside rows: else nobody could tell what a rest does to a card."""
    _, rows = played("h100", "qwen-7b", 90.0, overlap=True)
    heat, found, now_ns = Heat(), [], 0
    for features, took_ns in zip(rows.features, rows.device_ns, strict=True):
        if features.kind != "decode" and features.new_tokens >= LARGE:
            found.append((features.kind, features.new_tokens, heat.during(now_ns, took_ns)))
            heat.run(now_ns, took_ns)
        now_ns += took_ns
    for kind in ("prefill", "mixed"):
        rested, warm = (
            {length for name, length, level in found if name == kind and low < level < high}
            for low, high in ((0.0, 0.6), (0.8, 1.0))
        )
        assert len(rested) > 40, kind
        assert len(warm) > 50, kind
        assert min(rested) < 512 < 1536 < max(rested), kind
