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
from scheduler.graphs import Graphs, graph_rows_for, graph_sizes
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


def recording(folder: Path, seed: int = 0, shared_kv_tokens: int = 0, **manifest: Any) -> Path:
    """A recording as a fast GPU would make it: 200 steps, graphs of up to 32 rows."""
    folder.mkdir()
    rng = Random(seed)
    with (folder / "steps.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(STEP_COLUMNS)
        for index in range(200):
            kind = "prefill" if index % 4 == 0 else "decode"
            f = features(kind, rng)._replace(shared_kv_tokens=shared_kv_tokens)
            device = 5_000_000 + 10_000 * f.new_tokens_computed + 160 * f.kv_columns_computed
            times = (round(device * rng.uniform(0.99, 1.01)), 150_000 + rng.randint(0, 20_000))
            writer.writerow((index, index, index + 1, 1, *f, *times, 0, 0, 0, "decode:1:2:3:4:1"))
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
    assert from_file.graphs == from_run.graphs == Graphs(SIZES)
    # what the device has, not what the recording filled
    assert from_file.kv_tokens == from_run.kv_tokens == 90_000
    assert from_file.context_tokens == 32_768
    assert from_file.most == from_run.most
    for key, cost in from_run.device.items():
        assert from_file.device[key].line.values == pytest.approx(cost.line.values, rel=1e-4)
        assert from_file.errors[key] == pytest.approx(from_run.errors[key], rel=1e-2)
        assert from_run.errors[key] < 0.02


def test_runs_without_host_times_go_beside_the_recording_that_has_them(tmp_path: Path) -> None:
    """A run whose steps were all planned while others ran hides the host's work."""
    before = profiles.profile_of([recording(tmp_path / "recording")])
    run = recording(tmp_path / "run", seed=1, started_at="2026-05-06T07:08:09+00:00")
    steps = (run / "steps.csv").read_text().splitlines()
    place = steps[0].split(",").index("overlap")
    rows = [line.split(",") for line in steps[1:]]
    (run / "steps.csv").write_text(
        "\n".join([steps[0], *(",".join([*r[:place], "1", *r[place + 1 :]]) for r in rows)]) + "\n"
    )
    path = tmp_path / "p.csv.xz"
    profiles.write_profile(path, [run])
    with pytest.raises(CostError, match="hides the host time"):
        profiles.profile_costs(path, "runs alone").require("paged")
    # the engine before had no graphs of mixed steps
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["graph_mixed"] = [64, 128]
    (run / "manifest.json").write_text(json.dumps(manifest))
    about, joined = profiles.write_profile(path, [run], before)
    assert len(joined) == about["steps"] == 400
    assert profiles.profile_costs(path, "both").graphs.graph_mixed == (64, 128)
    assert joined["overlap"].tolist() == [0] * 200 + [1] * 200
    assert about["recorded"] == "2026-05-06"
    costs = profiles.profile_costs(path, "both")
    costs.require("paged")
    assert set(costs.overlapped_device) == {("paged", "prefill"), ("paged", "decode")}


@pytest.mark.parametrize("what", ["hardware", "model", "dtype", "tp"])
def test_another_hardware_or_model_is_left_out(tmp_path: Path, what: str) -> None:
    before = profiles.profile_of([recording(tmp_path / "recording", **{what: 3})])
    about, steps = profiles.write_profile(tmp_path / "p.csv.xz", [recording(tmp_path / "run")], before)
    assert len(steps) == 200
    assert about.get(what) != 3


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


def test_shared_prefixes_are_beyond_a_recording_without(tmp_path: Path) -> None:
    def said(folder: str, shared_kv_tokens: int) -> list[str]:
        config = {"kv_tokens": 90_000, "context_tokens": 32_768, "block_tokens": 16, "max_running": 256,
                  "max_prefill_tokens": 2048, "graph_rows": [], "prefix_cache": True}  # fmt: skip
        costs = recording(tmp_path / folder, shared_kv_tokens=shared_kv_tokens, config=config)
        flags = ["--workload", "chat-sessions", "--requests", "60", "--prefix-cache", "--max-running", "8", "--quiet"]
        assert (
            bench.main(["--mode", "sim", "--costs", str(costs), "--out", str(tmp_path / f"{folder}-sim"), *flags]) == 0
        )
        return [
            text for text in load_run(tmp_path / f"{folder}-sim").summary["beyond_recorded"] if "prefix cache" in text
        ]

    (text,) = said("without", 0)
    assert "rows that share the beginnings of their prompts" in text
    assert said("with", 500) == []


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


def test_a_step_smaller_than_any_recorded_is_named(tmp_path: Path) -> None:
    costs = recorded_costs(recording(tmp_path / "run"))
    least = costs.least["paged", "prefill"]["new_tokens_computed"]
    steps = read_steps(tmp_path / "run")
    steps = steps[steps["kind"] == "prefill"].head(4).copy()
    steps["new_tokens_computed"] = [1, least - 1, least, least]
    assert beyond_recorded(steps, costs) == [
        f"paged prefill steps of only 1 token (recorded from {least}) in 50 % of them"
    ]


def test_kv_read_beyond_the_recording_grows_with_each_row(tmp_path: Path) -> None:
    costs = recorded_costs(recording(tmp_path / "run"))
    limit = costs.most["paged", "decode"]["kv_tokens_read"]
    steps = read_steps(tmp_path / "run")
    steps = steps[steps["kind"] == "decode"].head(1).copy()
    steps["longest_context"], steps["rows"], steps["repeat"], steps["kv_tokens_read"] = 9, 5, 10, limit - 20
    # limit - 20, - 15, ..., + 25
    assert beyond_recorded(steps, costs) == [
        f"paged decode steps of up to {limit + 25:,} KV tokens in all (recorded to {limit:,}) in 50 % of them"
    ]


def test_what_goes_beyond_is_said_where_runs_are_compared_and_where_it_is_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--costs", str(recording(tmp_path / "run")), "--max-running", "64", "--requests", "80")
    assert simulate(tmp_path / "two", *flags, "--policy", "fcfs,sjf") == bench.OK
    said = capsys.readouterr().out
    assert "Beyond the recording: fcfs on paged: paged decode steps of up to 64 rows" in said
    assert "Beyond the recording: sjf on paged: " in said
    assert simulate(tmp_path / "quiet", *flags, "--quiet") == bench.OK
    captured = capsys.readouterr()
    assert "Beyond the recording" not in captured.out
    assert "Beyond the recording: paged decode steps of up to 64 rows (recorded to 32)" in captured.err


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--block-tokens", "32"), "KV blocks of 16 tokens (simulated: 32)"),
        (("--kv-tokens", "30000"), "a KV memory of 90,000 tokens (simulated: 30,000)"),
        (("--kv-tokens", "95000"), "a KV memory of 90,000 tokens (simulated: 95,000)"),
    ],
)
def test_costs_recorded_with_other_settings_are_refused_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], difference: str
) -> None:
    costs = ("--costs", str(recording(tmp_path / "run")), "--quiet")
    assert simulate(tmp_path / "sim", *costs, *flags) == bench.USAGE
    said = capsys.readouterr().err
    assert f"were recorded with {difference}; " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "sim").exists()
    assert simulate(tmp_path / "sim", *costs, *flags, "--force") == bench.OK
    assert load_run(tmp_path / "sim").manifest["forced"] == f"recorded with {difference}"


def test_a_memory_that_is_off_by_less_than_a_percent_is_the_same(tmp_path: Path) -> None:
    costs = ("--costs", str(recording(tmp_path / "run")), "--quiet")
    assert simulate(tmp_path / "sim", *costs, "--kv-tokens", "89500") == bench.OK
    assert "forced" not in load_run(tmp_path / "sim").manifest


def test_another_layout_is_refused_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = ("--costs", str(recording(tmp_path / "run")), "--quiet", "--layout", "padded")
    assert simulate(tmp_path / "sim", *costs) == bench.USAGE
    assert "has too few padded prefill steps" in capsys.readouterr().err
    assert simulate(tmp_path / "sim", *costs, "--force") == bench.OK
    assert (
        load_run(tmp_path / "sim").manifest["forced"].startswith("recorded with the paged layout (simulated: padded)")
    )


def test_blocks_are_of_the_recorded_size_where_nobody_says(tmp_path: Path) -> None:
    folder = recording(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["block_tokens"] = 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert simulate(tmp_path / "sim", "--costs", str(folder), "--quiet") == bench.OK
    assert load_run(tmp_path / "sim").manifest["config"]["block_tokens"] == 64


def test_jitter_is_drawn_by_the_seed_and_noted(tmp_path: Path) -> None:
    costs = ("--costs", str(recording(tmp_path / "run")), "--quiet")
    asked = {"plain": (), "one": ("--jitter",), "same": ("--jitter",), "two": ("--jitter", "--seed", "2")}
    for name, flags in asked.items():
        assert simulate(tmp_path / name, *costs, *flags) == bench.OK
    runs = {name: load_run(tmp_path / name) for name in asked}
    times = {name: run.steps["device_ns"].tolist() for name, run in runs.items()}
    assert times["one"] == times["same"]
    assert times["one"] != times["plain"]
    assert times["one"] != times["two"]
    assert runs["one"].manifest["jitter"] == {"seed": 0}
    assert "jitter" not in runs["plain"].manifest
    # a step may be faster than the costs say
    assert runs["plain"].summary["bounds"]["proven"] is True
    assert runs["one"].summary["bounds"]["proven"] is False
    assert sum(times["one"]) == pytest.approx(sum(times["plain"]), rel=0.02)


@pytest.mark.parametrize("flag", ["--jitter", "--force"])
def test_a_projection_has_nothing_to_vary_and_nothing_to_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert simulate(tmp_path / "sim", "--costs", "roofline:a100-40gb:qwen-7b", flag) == bench.USAGE
    assert f"error: {flag} " in capsys.readouterr().err


def test_what_was_chosen_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path / "sim", "--costs", str(recording(tmp_path / "run"))) == bench.OK
    assert "bias " in capsys.readouterr().out
    fits = load_run(tmp_path / "sim").manifest["fits"]
    assert set(fits) == {f"{what} paged {kind}" for what in ("device", "host") for kind in ("prefill", "decode")}
    for told in fits.values():
        assert told["form"] in ("linear", "filled", "floored")
        assert abs(told["bias"]) < 0.05


def test_a_profile_of_before_a_column_was_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv.xz"
    about, steps = profiles.write_profile(path, [recording(tmp_path / "run")])
    older = steps.drop(columns=["longest_decode_context", "released"])
    text = f"# {json.dumps(about)}\n{older.to_csv(index=False)}"
    path.write_bytes(lzma.compress(text.encode()))
    assert set(profiles.profile_costs(path, "p").device) == {("paged", "prefill"), ("paged", "decode")}


def test_a_bad_row_of_a_profile_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "p.csv.xz"
    about, steps = profiles.write_profile(path, [recording(tmp_path / "run")])
    steps.loc[41, "host_ns"] = -3
    path.write_bytes(lzma.compress(f"# {json.dumps(about)}\n{steps.to_csv(index=False)}".encode()))
    with pytest.raises(CostError, match=r"p\.csv\.xz row 42: host_ns is -3; must be a number >= 0"):
        profiles.profile_costs(path, "p")
