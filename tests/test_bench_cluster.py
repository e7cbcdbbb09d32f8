"""Clusters on the command line: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from core.arguments import FLAGS_OF_MODE, parse_arguments
from reports.run_folder import load_run

PLAYED = ["--mode", "sim", "--workload", "chat", "--requests", "40", "--rate", "20", "--quiet"]
COSTS = ["--costs", "roofline:a100-40gb:qwen-7b"]


def simulated(folder: Path, *flags: str) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    assert bench.main([*PLAYED, *flags, "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    return summary, pd.read_csv(folder / "requests.csv"), pd.read_csv(folder / "steps.csv")


def test_a_cluster_writes_where_each_request_and_step_was(tmp_path: Path) -> None:
    summary, requests, steps = simulated(tmp_path / "run", *COSTS, "--replicas", "3", "--router", "least-outstanding")
    assert list(requests.columns[-2:]) == ["replica", "retries"]
    assert steps.columns[-1] == "replica"
    cluster = summary["cluster"]
    assert [replica["requests"] for replica in cluster["replicas"]] == [
        int((requests["replica"] == number).sum()) for number in range(3)
    ]
    busy_s = [replica["busy_s"] for replica in cluster["replicas"]]
    took = (steps["device_ns"] + steps["host_ns"]).groupby(steps["replica"]).sum() / 1e9
    assert busy_s == pytest.approx(list(took))
    assert summary["requests"] == {"submitted": 40, "finished": 40, "rejected": 0, "aborted": 0}
    assert summary["bounds"]["mean_e2e_ms"] is None
    assert "there are several" in summary["not_available"]["bounds.mean_e2e_ms"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Replica 2" in page
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["cluster"]["router"] == "least-outstanding"
    assert bench.main(["--mode", "report", str(tmp_path / "run"), "--quiet"]) == 0
    assert load_run(tmp_path / "run").summary["cluster"] == cluster


def test_a_profile_brings_its_block_size_to_every_replica(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played = ["--mode", "sim", "--quiet", "--workload", "chat", "--requests", "6"]
    for flags in (["--costs", "h100-qwen-7b", "--replicas", "2"], ["--replica-costs", "h100-qwen-7b,h100-qwen2.5-7b"]):
        out = tmp_path / flags[0]
        assert bench.main([*played, *flags, "--out", str(out)]) == 0
        assert json.loads((out / "manifest.json").read_text())["config"]["block_tokens"] == 64
        assert bench.main([*played, *flags, "--block-tokens", "16", "--out", str(out)]) == 2
        assert "were recorded with KV blocks of 64 tokens (simulated: 16)" in capsys.readouterr().err


def test_one_replica_is_the_plain_run_with_more_columns(tmp_path: Path) -> None:
    plain, requests, steps = simulated(tmp_path / "plain", *COSTS)
    cluster, more_requests, more_steps = simulated(tmp_path / "cluster", *COSTS, "--replicas", "1")
    pd.testing.assert_frame_equal(more_requests.drop(columns=["replica", "retries"]), requests)
    pd.testing.assert_frame_equal(more_steps.drop(columns=["replica"]), steps)
    for key in ("ttft_ms", "itl_ms", "counters", "kv", "load", "padding_waste"):
        assert cluster[key] == plain[key]
    assert "cluster" not in plain


def test_an_autoscaled_run_with_faults_says_what_it_held(tmp_path: Path) -> None:
    settings = tmp_path / "scale.yaml"
    settings.write_text(
        "max_replicas: 3\ntarget_ongoing_requests: 4\nmetrics_interval_s: 0.5\nlook_back_period_s: 1\n"
        "upscale_delay_s: 0\ncold_start_s: 1\nreplica_hour_price: 3600\n"
    )
    summary, requests, _ = simulated(
        tmp_path / "run", *COSTS, "--autoscale", str(settings), "--faults", "die:0@3+2,slow:1@2+3x2"
    )
    cluster = summary["cluster"]
    assert cluster["peak_replicas"] == 3
    assert cluster["cost"] == pytest.approx(cluster["replica_seconds"])
    assert cluster["sizes"][0] == [0, 1, 0]
    assert cluster["retries"] == int(requests["retries"].sum()) > 0
    assert summary["requests"]["finished"] == 40
    assert "Replicas over time" in (tmp_path / "run" / "report.html").read_text()


def test_prefill_and_decode_replicas_take_the_link_of_the_gpu(tmp_path: Path) -> None:
    summary, requests, steps = simulated(tmp_path / "run", *COSTS, "--disaggregate", "1:2")
    transfers = summary["cluster"]["transfers"]
    assert transfers["count"] == (requests["output_tokens"] > 1).sum()
    assert transfers["tokens"] == requests.loc[requests["output_tokens"] > 1, "prompt_tokens"].sum()
    assert transfers["bytes"] == transfers["tokens"] * 2 * 32 * 4096 * 2
    kinds = steps.groupby("replica")["kind"].unique()
    assert list(kinds[0]) == ["prefill"]
    assert list(kinds[1]) == list(kinds[2]) == ["decode"]
    assert [replica["role"] for replica in summary["cluster"]["replicas"]] == ["prefill", "decode", "decode"]


def test_replicas_may_have_different_costs(tmp_path: Path) -> None:
    names = "roofline:h100:qwen-7b,roofline:a100-40gb:qwen-7b"
    summary, _, _ = simulated(tmp_path / "run", "--replica-costs", names, "--router", "least-work")
    first, second = summary["cluster"]["replicas"]
    assert [first["costs"], second["costs"]] == names.split(",")
    assert first["busy_s"] < second["busy_s"]
    assert summary["padding_waste"]["time"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--router", "random"], "--router has no effect on a single replica"),
        (["--replicas", "1", "--router", "random"], "--router random has no effect on one replica"),
        (["--replicas", "2", "--router", "randon"], "did you mean random"),
        (["--replicas", "2", "--router", "prefix-affinity"], "needs --prefix-cache"),
        (["--replicas", "2", "--kv-transfer", "10"], "--kv-transfer has no effect without --disaggregate"),
        (["--kv-latency-ms", "1"], "--kv-latency-ms has no effect on a single replica"),
        (["--replicas", "2", "--disaggregate", "1:1"], "--replicas does not go with --disaggregate"),
        (["--disaggregate", "2"], "'2' is not P:D"),
        (["--disaggregate", "0:2"], "'0:2' is not P:D"),
        (["--replicas", "2", "--faults", "die:2@1"], "there is no replica 2"),
        (["--replicas", "2", "--faults", "burn:1@1"], "is not die:REPLICA@SECONDS"),
        (["--replicas", "2", "--replica-costs", "a,b"], "--costs and --replica-costs say the same twice"),
        (["--autoscale", "nothing.yaml"], "nothing.yaml cannot be read"),
    ],
)
def test_what_would_be_ignored_is_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*PLAYED, *COSTS, *flags]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--replicas", "2"], "needs --costs, or --replica-costs"),
        (["--replicas", "3", "--replica-costs", "h100-qwen-7b,h100-qwen-7b"], "names 2 replicas, and there are 3"),
        (["--disaggregate", "1:1", "--costs", "h100-qwen-7b"], "give --kv-transfer in GB/s"),
    ],
)
def test_what_is_lacking_is_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*PLAYED, *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_autoscaler_by_objectives_needs_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "scale.yaml"
    settings.write_text("max_replicas: 3\nmetric: slo\n")
    assert bench.main([*PLAYED, *COSTS, "--autoscale", str(settings)]) == 2
    assert "there are none; give --slo" in capsys.readouterr().err
    assert bench.main([*PLAYED, *COSTS, "--autoscale", str(settings), "--replicas", "2"]) == 2
    assert "--replicas does not go with --autoscale" in capsys.readouterr().err
    good = ["--autoscale", str(settings), "--slo", "ttft_ms=100", "--out", str(tmp_path / "run")]
    assert bench.main([*PLAYED, *COSTS, *good]) == 0


@pytest.mark.parametrize("flag", ["--replicas=2", "--router=random", "--faults=die:0@1", "--disaggregate=1:1"])
def test_clusters_are_simulated_only(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--mode", "validate", flag]) == 2
    assert "it is for: sim" in capsys.readouterr().err
    assert flag.partition("=")[0].removeprefix("--").replace("-", "_") in FLAGS_OF_MODE["sim"]
    assert parse_arguments(["--mode", "sim", flag])


def test_routers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--list", "routers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("round-robin")
