"""Cost profiles: a recording in a file, and what of it is told."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path
from random import Random
from typing import Any

import pytest

import bench
from reports.beyond import beyond_recorded
from reports.rows import STEP_COLUMNS, read_steps
from reports.run_folder import load_run
from scheduler.graphs import graph_rows_for, graph_sizes
from scheduler.plan import StepFeatures
from simulator import profiles
from simulator.costs import CostError
from simulator.recorded import recorded_costs

SIZES = graph_sizes(32)


def features(kind: Any, rng: Random) -> StepFeatures:
    rows, tokens = rng.randint(1, 32), 32 << rng.randint(0, 6)
    if kind == "prefill":
        pairs = tokens * (tokens + 1) // 2
        return StepFeatures("paged", kind, 1, 1, tokens, tokens, pairs, pairs, tokens, tokens, 0, 1)
    graph, context = graph_rows_for(rows, SIZES), rows * rng.randint(50, 2000)
    return StepFeatures("paged", "decode", rows, graph, rows, graph, context, context + graph - rows, context,
                        context // rows, 0, rows, rows, context, 0, graph)  # fmt: skip


def recording(folder: Path, seed: int = 0, **manifest: Any) -> Path:
    """A recording as a fast GPU would make it: 200 steps, graphs of up to 32 rows."""
    folder.mkdir()
    rng = Random(seed)
    with (folder / "steps.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(STEP_COLUMNS)
        for index in range(200):
            kind = "prefill" if index % 4 == 0 else "decode"
            f = features(kind, rng)
            device = 5_000_000 + 10_000 * f.new_tokens_computed + 160 * f.kv_columns_computed
            times = (round(device * rng.uniform(0.99, 1.01)), 150_000 + rng.randint(0, 20_000))
            writer.writerow((index, index, index + 1, 1, *f, *times, 0, "decode:1:2:3:4:1"))
    about = {
        "world": "real", "hardware": "NVIDIA H100, 16 cores", "model": "shape:qwen-7b", "dtype": "bfloat16",
        "started_at": "2026-03-04T05:06:07+00:00", "kv_capacity_tokens": 90_000, "git_commit": "0123abc",
        "command": "python bench.py --mode real --record-costs --out some/where --model shape:qwen-7b --name=x",
        "versions": {"torch": "2.11.0"},
        "config": {"kv_tokens": 40_000, "context_tokens": 32_768, "block_tokens": 16, "max_running": 32,
                   "max_prefill_tokens": 2048, "graph_rows": list(SIZES)},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**about, **manifest}))
    return folder


def test_a_profile_costs_what_its_recording_does(tmp_path: Path) -> None:
    folder, path = recording(tmp_path / "run"), tmp_path / "h100-qwen-7b.csv.xz"
    profiles.write_profile(path, [folder])
    assert path.stat().st_size < 12_000
    from_run, from_file = recorded_costs(folder), profiles.profile_costs(path, "h100-qwen-7b")
    assert from_file.graph_rows == from_run.graph_rows == SIZES
    # what the device has, not what the recording filled
    assert from_file.kv_tokens == from_run.kv_tokens == 90_000
    assert from_file.context_tokens == 32_768
    assert from_file.most == from_run.most
    for key, cost in from_run.device.items():
        assert from_file.device[key].line.values == pytest.approx(cost.line.values, rel=1e-4)
        assert from_file.errors[key] == pytest.approx(from_run.errors[key], rel=1e-2)
        assert from_run.errors[key] < 0.02


def test_a_profile_tells_what_it_is_of_and_not_where_it_was_made(tmp_path: Path) -> None:
    about, steps = profiles.write_profile(tmp_path / "p.csv.xz", [recording(tmp_path / "run")])
    assert profiles.title(about) == "NVIDIA H100, 16 cores; shape:qwen-7b bfloat16, paged; 200 steps, 2026-03-04"
    assert about["command"] == "python bench.py --mode real --record-costs --model shape:qwen-7b"
    assert about["git_commit"] == "0123abc"
    again = profiles.read_profile(tmp_path / "p.csv.xz")
    assert again.about == about
    assert again.steps.equals(steps)
    assert str(tmp_path) not in lzma.decompress((tmp_path / "p.csv.xz").read_bytes()).decode()


def test_runs_of_two_machines_are_no_profile(tmp_path: Path) -> None:
    folders = [recording(tmp_path / "a"), recording(tmp_path / "b", 1, hardware="another")]
    with pytest.raises(CostError, match=r"recorded on another hardware \(another\)"):
        profiles.write_profile(tmp_path / "p.csv.xz", folders)
    with pytest.raises(CostError, match=r"name ends in \.csv\.xz; write p\.csv\.xz for p"):
        profiles.write_profile(tmp_path / "p", folders[:1])


@pytest.mark.parametrize(
    "data",
    [b"", b"no xz", lzma.compress(b"# {}\nlayout,kind\n"), lzma.compress(b'# {"schema": 1}\nlayout,kind\n'),
     lzma.compress(b"\xff\xfe")],
)  # fmt: skip
def test_what_is_no_profile_is_said_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.csv.xz"
    path.write_bytes(data)
    with pytest.raises(CostError, match=r"p\.csv\.xz (is no cost profile|lacks the column)"):
        profiles.profile_costs(path, "p")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles with one in it, in place of the package's."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setattr(profiles, "FOLDER", folder)
    profiles.write_profile(folder / "h100-qwen-7b.csv.xz", [recording(tmp_path / "recording")])
    return folder


def simulate(folder: Path, *flags: str) -> int:
    return bench.main(["--mode", "sim", "--workload", "seed", "--requests", "24", "--arrivals", "all-at-once",
                       "--out", str(folder), *flags])  # fmt: skip


def test_a_profile_is_used_by_its_name(tmp_path: Path, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path / "run", "--costs", "h100-qwen-7b", "--max-running", "12") == bench.OK
    said = capsys.readouterr().out
    assert "Costs h100-qwen-7b: NVIDIA H100, 16 cores; shape:qwen-7b bfloat16" in said
    assert "mean error on steps left out: paged decode 0." in said
    run = load_run(tmp_path / "run")
    assert run.manifest["costs_of"].startswith("NVIDIA H100")
    assert run.manifest["config"]["graph_rows"] == list(graph_sizes(12))
    assert run.manifest["config"]["kv_tokens"] == 90_000
    assert 0 < run.summary["padding_waste"]["graph"] < 0.5
    assert run.summary["beyond_recorded"] == []
    decodes = run.steps[run.steps["kind"] == "decode"]
    assert {graph_rows_for(rows, graph_sizes(12)) for rows in decodes["rows"]} == set(decodes["graph_rows"])


def test_graphs_may_be_left_out_of_a_simulation(tmp_path: Path, shelf: Path) -> None:
    assert simulate(tmp_path / "run", "--costs", "h100-qwen-7b", "--graph-rows", "none", "--quiet") == bench.OK
    assert load_run(tmp_path / "run").summary["padding_waste"]["graph"] is None


def test_the_list_has_profiles_and_a_wrong_name_the_nearest(
    tmp_path: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--list", "costs"]) == bench.OK
    listed = capsys.readouterr().out
    assert "h100-qwen-7b " in listed
    assert "200 steps, 2026-03-04" in listed
    assert simulate(tmp_path / "run", "--costs", "h100-qwen7b") == bench.USAGE
    assert "profiles: h100-qwen-7b); did you mean h100-qwen-7b?" in capsys.readouterr().err


def test_a_profile_is_made_of_a_run_by_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path / "sim", "--costs", str(recording(tmp_path / "run"))) == bench.OK
    path = tmp_path / "mine.csv.xz"
    # a simulated run is none
    assert bench.main(["--mode", "report", str(tmp_path / "sim"), "--profile", str(path)]) == bench.USAGE
    assert "was simulated, not recorded" in capsys.readouterr().err
    (tmp_path / "run" / "requests.csv").write_bytes((tmp_path / "sim" / "requests.csv").read_bytes())
    assert bench.main(["--mode", "report", str(tmp_path / "run"), "--profile", str(path)]) == bench.OK
    assert f"profile: {path}" in capsys.readouterr().out
    assert simulate(tmp_path / "again", "--costs", str(path), "--quiet") == bench.OK


def test_what_goes_beyond_the_recording_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recording(tmp_path / "run")
    flags = ("--costs", str(folder), "--max-running", "64", "--requests", "80", "--max-prefill-tokens", "4096")
    assert simulate(tmp_path / "sim", *flags) == bench.OK
    said = capsys.readouterr().out
    assert "Beyond the recording: paged decode steps of up to 64 rows (recorded to 32) in" in said
    assert "paged prefill steps of up to 4" in said
    run = load_run(tmp_path / "sim")
    assert any("64 rows (recorded to 32)" in text for text in run.summary["beyond_recorded"])
    assert "Beyond the recording." in (tmp_path / "sim" / "report.html").read_text()


def test_a_context_beyond_the_recording_counts_the_steps_of_a_stretch(tmp_path: Path) -> None:
    costs = recorded_costs(recording(tmp_path / "run"))
    limit = costs.most["paged", "decode"]["longest_context"]
    steps = read_steps(tmp_path / "run")
    steps = steps[steps["kind"] == "decode"].head(1).copy()
    steps["repeat"], steps["longest_context"] = 10, limit - 6
    (warning,) = beyond_recorded(steps, costs)
    # contexts of limit - 6 to limit + 3
    assert (
        warning
        == f"paged decode steps of up to {limit + 3:,} tokens of context (recorded to {limit:,}) in 30 % of them"
    )
