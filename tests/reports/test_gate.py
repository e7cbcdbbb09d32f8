"""The gate: passes as committed, and fails on any difference, on an injected regression, and on a stale baseline."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import bench
from reports import gate
from scheduler.buckets import FixedWidth, parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.orders import ByLength
from scheduler.policies import POLICIES
from scheduler.policy import Order, Policy, View
from scheduler.sequence import Sequence


class EdgeOffByOne(ByLength):
    """Buckets 0-31, 32-63, ... instead of 1-32, 33-64, ..."""

    def lane(self, sequence: Sequence, view: View) -> int:
        return self.buckets.key(sequence.known + 1)

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        return self.buckets.last(sequence.known + 1) - sequence.known


def off_by_one(config: SchedulerConfig) -> Policy:
    buckets = parse_buckets(config.bucket or 32)
    return Policy(
        "sjf-bucket", EdgeOffByOne(buckets, "fullest"), EdgeOffByOne(buckets, config.bucket_order or "lowest")
    )


def mixing_lengths(config: SchedulerConfig) -> Policy:
    return Policy("sjf", ByLength(FixedWidth(1), "fullest"), Order())


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
