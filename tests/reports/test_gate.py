"""The gate: passes as committed, and fails on any difference, on an injected regression, and on a stale baseline."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import bench
from reports import gate
from scheduler import composition
from scheduler.buckets import FixedWidth, parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.orders import ByLength
from scheduler.policies import POLICIES
from scheduler.policy import Order, Policy
from scheduler.request import requests_of


class EdgeOffByOne(FixedWidth):
    """Buckets 0-31, 32-63, ... instead of 1-32, 33-64, ..."""

    def key(self, length: int) -> int:
        return length // self.width

    def last(self, length: int) -> int:
        return (self.key(length) + 1) * self.width - 1


def off_by_one(config: SchedulerConfig) -> Policy:
    buckets = parse_buckets(config.bucket or 32)
    if isinstance(buckets, FixedWidth):
        buckets = EdgeOffByOne(buckets.width)
    return Policy("sjf-bucket", ByLength(buckets, "fullest"), ByLength(buckets, config.bucket_order or "lowest"))


def mixing_lengths(config: SchedulerConfig) -> Policy:
    return Policy("sjf", ByLength(FixedWidth(1), "fullest"), Order())


SESSIONS = gate.LOADS["sessions"]


@pytest.fixture(autouse=True)
def one_small_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's machinery on a load that takes a second; the whole gate is a command of its own in CI."""
    load = replace(gate.LOADS["burst"], requests=24)
    monkeypatch.setattr(gate, "LOADS", {"burst": load})


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    gate.update(path)
    return path


def test_nothing_changed_passes(baseline: Path) -> None:
    assert gate.check(baseline).passed
    assert bench.main(["--mode", "gate", "--quiet", "--baseline", str(baseline)]) == 0


@pytest.mark.parametrize(("policy", "build"), [("sjf-bucket", off_by_one), ("sjf", mixing_lengths)])
def test_an_injected_regression_fails(
    policy: str, build: Callable[[SchedulerConfig], Policy], baseline: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(POLICIES, policy, replace(POLICIES[policy], build=build))
    result = gate.check(baseline)
    assert not result.stale
    assert {difference.case.split("/")[1] for difference in result.differences} >= {
        "sjf-bucket": {"sjf-bucket-32"}, "sjf": {"sjf"}
    }[policy]  # fmt: skip
    assert bench.main(["--mode", "gate", "--baseline", str(baseline)]) == 1
    printed = capsys.readouterr().out
    assert "attention_computed_decode" in printed
    assert "FAILED" in printed


def test_a_part_without_effect_fails(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose = composition.compose
    plain = {"batching": None, "phase": None, "chunk_tokens": None}
    monkeypatch.setattr("scheduler.state.compose", lambda config: compose(replace(config, **plain)))
    result = gate.check(baseline)
    assert {difference.case.split("/")[1] for difference in result.differences} == {"slice-8", "mixed"}


def test_a_prefix_cache_that_finds_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LOADS", {"sessions": replace(SESSIONS, requests=16)})
    gate.update(tmp_path / "baseline.json")
    monkeypatch.setattr(gate, "requests_of", lambda rows, *_, **__: requests_of(rows, prefix_cache=False))
    result = gate.check(tmp_path / "baseline.json")
    assert {difference.counter for difference in result.differences} >= {"linear_computed_prefill", "prefix_hit_tokens"}
    assert all("prefix-cache" in difference.case for difference in result.differences)


def test_a_setting_that_is_new_leaves_the_keys_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = gate.LOADS["burst"].workload()
    before = gate._key(workload, SchedulerConfig("sjf"))
    as_dict = SchedulerConfig.as_dict
    monkeypatch.setattr(SchedulerConfig, "as_dict", lambda self: {**as_dict(self), "new": None})
    assert gate._key(workload, SchedulerConfig("sjf")) == before
    assert gate._key(workload, SchedulerConfig("sjf", max_running=8)) != before


def test_an_improvement_fails_too_until_it_is_made_the_baseline(baseline: Path) -> None:
    data = json.loads(baseline.read_text())
    data["cases"]["burst/fcfs/padded"]["counters"]["attention_computed_decode"] += 1
    baseline.write_text(json.dumps(data))
    (difference,) = gate.check(baseline).differences
    assert difference.now is not None
    assert difference.baseline == difference.now + 1
    assert bench.main(["--mode", "gate", "--baseline", str(baseline), "--update-baseline"]) == 0
    assert gate.check(baseline).passed


def test_a_missing_baseline_fails(tmp_path: Path) -> None:
    assert bench.main(["--mode", "gate", "--quiet", "--baseline", str(tmp_path / "none.json")]) == 1


def test_a_baseline_of_other_workloads_is_stale(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LOADS", {"burst": replace(gate.LOADS["burst"], seed=99)})
    result = gate.check(baseline)
    assert not result.passed
    assert not result.differences
    assert len(result.stale) == len(result.cases)


def test_a_case_that_is_gone_is_stale(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "VARIANTS", {"fcfs": gate.VARIANTS["fcfs"]})
    assert any("no longer run" in reason for reason in gate.check(baseline).stale)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0, "cases": {}}', '{"schema": 1, "cases": {"a": {}}}'])
def test_a_file_that_is_no_baseline_is_the_users_mistake(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    assert bench.main(["--mode", "gate", "--baseline", str(path)]) == 2
    assert "is no baseline of the gate" in capsys.readouterr().err
