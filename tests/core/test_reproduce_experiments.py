"""The other experiments on small cases that can be worked out, and the mode that runs them."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import bench
from core.reproduce import alignment, hindsight, kv_sharing, ltr_example, multi_bin
from core.reproduce.experiment import Experiment, Options
from core.reproduce.registry import EXPERIMENTS
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from simulator.optimum import optimum

BY_TITLE = {title: settings for title, settings, _ in ltr_example.ORDERS}


# -- vllm-ltr's example


def test_long_jobs_first_take_20_thirds_of_a_second_a_token() -> None:
    assert ltr_example.mean_normalized_s(BY_TITLE["FCFS"]) == Fraction(20, 3)


def test_short_jobs_first_take_19_fifteenths() -> None:
    assert ltr_example.mean_normalized_s({"policy": "srpt", "quantum": 100}) == Fraction(19, 15)
    assert ltr_example.mean_normalized_s(BY_TITLE["shortest first"]) == Fraction(19, 15)


# -- alignment


def test_the_alignment_is_arithmetics_and_only_the_readmes_time_differs() -> None:
    found = alignment.run(Options())
    (outside,) = [row for row in found.rows if not row.passed]
    assert (outside.published, outside.ours) == (8, 10)
    assert "10" in outside.explanation
    assert found.unexplained == []


# -- multi-bin


def test_equation_4_gives_the_published_throughputs() -> None:
    for bins, published in multi_bin.PUBLISHED.items():
        assert multi_bin.throughput(bins) == pytest.approx(published, abs=0.0005)


def test_many_bins_tend_to_a_row_that_never_waits() -> None:
    assert multi_bin.throughput(10**9) == pytest.approx(128 / 10.5)


def makespan_ns(config: SchedulerConfig, tokens: list[int]) -> int:
    return round(len(tokens) / multi_bin.measured(config, tokens) * multi_bin.UNIT_TOKENS * 1_000_000)


@pytest.mark.parametrize("bins", [1, 2, 4, 5])
def test_batches_that_run_to_completion_take_their_longest_members(bins: int) -> None:
    tokens = multi_bin.in_bins(multi_bin.service_tokens(1, rows=4, batches=2), bins, rows=4)
    longest = sum(max(tokens[start : start + 4]) for start in range(0, len(tokens), 4))
    assert makespan_ns(SchedulerConfig(policy="static", max_running=4), tokens) == longest * 1_000_000


@pytest.mark.parametrize("bins", [1, 2, 4, 5])
def test_multi_bin_makes_these_batches(bins: int) -> None:
    tokens = multi_bin.service_tokens(1, rows=4, batches=2)
    binned = SchedulerConfig(
        policy="multi-bin", max_running=4, oracle="true", bins=bins, length_quantiles=multi_bin.piece_ends()
    )
    static = SchedulerConfig(policy="static", max_running=4)
    assert makespan_ns(binned, tokens) == makespan_ns(static, multi_bin.in_bins(tokens, bins, rows=4))


def test_each_bin_fills_whole_batches() -> None:
    tokens = multi_bin.service_tokens(3, rows=4, batches=2)
    ends = [end - 1 for end in multi_bin.piece_ends()]
    counts = [sum(low < n <= high for n in tokens) for low, high in zip([1000, *ends], ends, strict=False)]
    assert counts == [8] * multi_bin.PIECES


# -- sharing a memory


def test_lognormal_lengths_have_the_published_means_and_keep_to_the_context() -> None:
    for spread in (kv_sharing.FITTED, *kv_sharing.OTHERS):
        outputs = kv_sharing.lognormal(kv_sharing.MEAN_OUTPUT, spread.output, kv_sharing.CONTEXT_TOKENS - 1)
        assert sum(outputs) / len(outputs) == pytest.approx(kv_sharing.MEAN_OUTPUT, rel=0.01)
        assert max(outputs) < kv_sharing.CONTEXT_TOKENS


def test_whole_contexts_in_one_piece_let_seven_run() -> None:
    """15,700 slots hold seven times 2,048, in a contiguous pool as in a buddy allocator."""
    requests = kv_sharing.requests_of(kv_sharing.FITTED, 1, 300)
    seen = kv_sharing.occupancy({"policy": "fcfs", "kv_pool": "contiguous"}, requests, kv_sharing.costs())
    assert seen.mean_rows == 7
    assert 0.1 < seen.held_share < 0.3


@pytest.mark.parametrize("system", kv_sharing.SYSTEMS, ids=lambda system: system.title)
def test_less_is_reserved_more_run(system: kv_sharing.System) -> None:
    requests = kv_sharing.requests_of(kv_sharing.FITTED, 1, 300)
    seen = kv_sharing.occupancy(system.settings, requests, kv_sharing.costs(kv_sharing.SLOW_HOST_MS))
    assert seen.mean_rows == pytest.approx(system.batch, rel=0.35)
    assert seen.held_share == pytest.approx(system.held, rel=0.35)


# -- hindsight


@pytest.mark.parametrize("settings", [settings for _, settings in hindsight.POLICIES], ids=str)
def test_no_policy_beats_the_optimum(settings: dict[str, Any]) -> None:
    for seed in range(3):
        rounds = hindsight.instance(100 + seed, 5)
        best = optimum(rounds, hindsight.KV_TOKENS, preemptive=True)
        total = hindsight.total_rounds(hindsight.play_rounds(rounds, hindsight.KV_TOKENS, settings))
        assert hindsight.volume_rounds(rounds, hindsight.KV_TOKENS) <= best.total_latency <= total


# -- the mode


def run(*argv: str | Path) -> int:
    return bench.main(["--mode", "reproduce", *map(str, argv)])


def test_the_mode_writes_its_files_and_an_explained_difference_is_no_failure(tmp_path: Path) -> None:
    assert run("--experiments", "alignment", "--out", tmp_path / "a", "--quiet") == 0
    data = json.loads((tmp_path / "a" / "reproduce.json").read_text())
    assert [experiment["name"] for experiment in data["experiments"]] == ["alignment"]
    assert (tmp_path / "a" / "reproduce.csv").read_text().count("\n") == 11
    assert "The alignment of" in (tmp_path / "a" / "report.html").read_text()
    assert run("--experiments", "alignment", "--out", tmp_path / "a", "--quiet") == 0
    assert (tmp_path / "a.1" / "report.html").exists()


def test_an_unexplained_difference_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(options: Options) -> Findings:
        return Findings("wrong", "Wrong", "nobody", "None.", (Row("one", 1, 2),))

    monkeypatch.setitem(EXPERIMENTS, "wrong", Experiment("wrong", "Wrong", "nobody", wrong))
    assert run("--experiments", "wrong", "--out", tmp_path / "w", "--quiet") == 1


def test_an_unknown_experiment_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--experiments", "mm2") == 2
    assert "did you mean mm1?" in capsys.readouterr().err


def test_without_the_solver_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in EXPERIMENTS if name not in ("alignment", "hindsight")]:
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    assert run("--out", tmp_path / "all", "--quiet") == 0
    data = json.loads((tmp_path / "all" / "reproduce.json").read_text())
    assert [bool(experiment["not_run"]) for experiment in data["experiments"]] == [False, True]
    assert run("--experiments", "hindsight", "--out", tmp_path / "one", "--quiet") == 2
    assert "lockstep[bounds]" in capsys.readouterr().err
