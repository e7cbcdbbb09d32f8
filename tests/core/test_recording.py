"""A recording of costs: what it covers follows from what the device can do, and it is a run like any other."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import bench
from core.recording import Pilot, recording_config, scale_of, swap_rows
from core.runs import replay_folder
from reports.run_folder import load_run
from scheduler.config import SchedulerConfig


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


def test_padded_steps_are_recorded_too(tmp_path: Path) -> None:
    steps = recorded(tmp_path / "run", "--layout", "padded", "--budget-s", "1", "--max-running", "4",
                     "--max-prefill-tokens", "128", "--kv-tokens", "1024")  # fmt: skip
    assert set(steps["layout"]) == {"padded"}
    assert set(steps["kind"]) == {"prefill", "decode"}


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


def test_no_slot_of_a_padded_recording_is_longer_than_memory_has_for_all() -> None:
    config = recording_config(SchedulerConfig(layout="padded", max_running=256, kv_tokens=100_000))
    scale = scale_of(config, Pilot(30_000.0, 2048, 0.0006), 60.0)
    assert scale.context_tokens * 256 <= 100_000
    assert config.phase is None
    assert recording_config(CONFIG).phase == "mixed"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--record-costs", "--workload", "seed"], "--workload has no effect with --record-costs"),
        (["--record-costs", "--overlap"], "--overlap has no effect with --record-costs"),
        (["--record-costs", "--policy", "sjf"], "--policy has no effect with --record-costs"),
        (["--budget-s", "3"], "--budget-s is the time of a recording; give --record-costs"),
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
