"""The gate: passes as committed, fails on any difference, on injected regressions and broken ceilings, and says when
there is nothing to compare with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import bench
from reports import gate, gate_cases
from reports.gate import Case, Ceiling, Difference, GateError, GateResult
from reports.terminal import print_gate
from scheduler import composition
from scheduler.buckets import FixedWidth
from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.graphs import graph_rows_for
from scheduler.orders import ByLength
from scheduler.policies import POLICIES
from scheduler.policy import Order, Policy
from scheduler.request import requests_of
from workloads.workload import Row, Workload

SESSIONS = gate_cases.LOADS["sessions"]

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def one_small_load(monkeypatch: Patch) -> None:
    """The gate's machinery on a load that takes a second; the whole gate is a command of its own in CI."""
    load = replace(gate_cases.LOADS["burst"], requests=24)
    monkeypatch.setattr(gate_cases, "LOADS", {"burst": load})


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    gate.write_baseline(gate_cases.run_cases(), path)
    return path


def check(baseline: Path) -> GateResult:
    return gate.compare(gate_cases.run_cases(), gate_cases.ceilings(), baseline)


def main(baseline: Path, *flags: str) -> int:
    return bench.main(["--mode", "gate", "--baseline", str(baseline), *flags])


def variants(result: GateResult) -> set[str]:
    """Those that differ."""
    return {difference.case.split("/")[1] for difference in result.differences}


# -- the same


def test_nothing_changed_passes_twice_in_a_row(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = baseline.read_bytes()
    assert [main(baseline), main(baseline)] == [0, 0]
    assert "ceilings kept" in capsys.readouterr().out
    assert main(baseline, "--update-baseline", "--quiet") == 0
    assert baseline.read_bytes() == before
    assert capsys.readouterr().out == ""


def test_the_committed_baseline_keeps_every_ceiling(monkeypatch: Patch) -> None:
    monkeypatch.undo()
    recorded = json.loads(gate_cases.BASELINE.read_text())["cases"]
    cases = {name: Case(name, case["key"], case["counters"]) for name, case in recorded.items()}
    ceilings = gate_cases.ceilings()
    assert [line for ceiling in ceilings if (line := ceiling.broken(cases)) is not None] == []
    assert {case.case for case in ceilings} >= {"burst/sjf-bucket-32/padded", "steady/sjf-bucket-pow2/padded"}


def test_what_is_compared_are_whole_numbers_of_every_kind_of_waste(baseline: Path) -> None:
    whole = RunCounters()
    assert all(type(getattr(whole, name)) is int for name in gate.COUNTERS)
    kinds = {name for kind in gate.KINDS.values() for name in (kind.useful, kind.computed)}
    assert kinds | {"preemptions", "prefix_hit_tokens", "steps_prefill", "steps_decode"} <= set(gate.COUNTERS)


# -- injected regressions


def edge_off_by_one(patch: Patch) -> None:
    """Buckets 0-31, 32-63, ... instead of 1-32, 33-64, ..."""
    patch.setattr(FixedWidth, "key", lambda self, length: length // self.width)
    patch.setattr(FixedWidth, "last", lambda self, length: (length // self.width + 1) * self.width - 1)


def mixing_lengths(patch: Patch) -> None:
    """``sjf`` that steps all residents together."""

    def build(config: SchedulerConfig) -> Policy:
        return Policy("sjf", ByLength(FixedWidth(1), "fullest"), Order())

    patch.setitem(POLICIES, "sjf", replace(POLICIES["sjf"], build=build))


def a_graph_dropped(patch: Patch) -> None:
    """Four rows run as a graph of eight."""
    patch.setattr("scheduler.graphs._SIZES", tuple(size for size in (1, 2, 4, 8, 16) if size != 4))


def a_prompt_graph_dropped(patch: Patch) -> None:
    sizes = tuple(range(128, 2049, 128))
    patch.setattr("scheduler.graphs._TOKENS", sizes[:5] + sizes[6:])


def the_next_graph(patch: Patch) -> None:
    """A step runs as the graph after the one that it fits into."""
    patch.setattr("scheduler.features.graph_rows_for", lambda rows, sizes: graph_rows_for(rows + 1, sizes))


def a_part_without_effect(patch: Patch) -> None:
    compose = composition.compose
    plain: dict[str, Any] = {"batching": None, "phase": None, "chunk_tokens": None}
    patch.setattr("scheduler.state.compose", lambda config: compose(replace(config, **plain)))


@pytest.mark.parametrize(
    ("regression", "differing", "counter"),
    [
        (edge_off_by_one, {"sjf-bucket-32", "sjf-bucket-64-fullest", "graphs-sjf-bucket"}, "attention_computed_decode"),
        (mixing_lengths, {"sjf", "sjf-min-rows-4"}, "attention_computed_decode"),
        (a_graph_dropped, {"graphs", "graphs-sjf-bucket"}, "graph_rows"),
        (a_prompt_graph_dropped, {"graphs", "graphs-sjf-bucket"}, "linear_computed_prefill"),
        (the_next_graph, {"graphs", "graphs-sjf-bucket"}, "graph_rows"),
        (a_part_without_effect, {"slice-8", "mixed"}, "steps_decode"),
    ],
)
def test_an_injected_regression_fails(
    regression: Callable[[Patch], None], differing: set[str], counter: str, baseline: Path, monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    regression(monkeypatch)
    result = check(baseline)
    assert not result.stale
    assert variants(result) == differing
    assert main(baseline) == 1
    printed = capsys.readouterr().out
    assert counter in printed
    assert "FAILED" in printed


def test_a_prefix_cache_that_finds_nothing_fails(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(gate_cases, "LOADS", {"sessions": replace(SESSIONS, requests=16)})
    gate.write_baseline(gate_cases.run_cases(), tmp_path / "baseline.json")
    monkeypatch.setattr(gate, "requests_of", lambda rows, *_, **__: requests_of(rows, prefix_cache=False))
    result = check(tmp_path / "baseline.json")
    assert {difference.counter for difference in result.differences} >= {"linear_computed_prefill", "prefix_hit_tokens"}
    assert all("prefix-cache" in difference.case for difference in result.differences)


def test_an_improvement_fails_too_until_it_is_made_the_baseline(
    baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(baseline.read_text())
    data["cases"]["burst/fcfs/padded"]["counters"]["attention_computed_decode"] += 1
    baseline.write_text(json.dumps(data))
    (difference,) = check(baseline).differences
    assert difference.baseline == difference.now + 1
    assert main(baseline) == 1
    capsys.readouterr()
    assert main(baseline, "--update-baseline") == 0
    printed = capsys.readouterr().out
    assert "attention_computed_decode" in printed
    assert "1 counter changed" in printed
    assert main(baseline) == 0


# -- ceilings


def waste_of(**shares: tuple[int, int]) -> dict[str, Case]:
    """Cases that compute so many KV columns in decode steps, and so many of them for nothing."""
    plain = dict.fromkeys(gate.COUNTERS, 0)
    return {
        name: Case(name, "", plain | {"attention_useful_decode": of - waste, "attention_computed_decode": of})
        for name, (waste, of) in shares.items()
    }


def test_a_ceiling_is_exact() -> None:
    ceiling = Ceiling("a", Fraction(5, 100))
    assert ceiling.broken(waste_of(a=(5, 100))) is None
    assert ceiling.broken(waste_of(a=(0, 0))) is None
    # 5 % and one in 10^18 more, which no float would show
    assert ceiling.broken(waste_of(a=(5 * 10**16, 10**18))) is None
    assert ceiling.broken(waste_of(a=(5 * 10**16 + 1, 10**18))) == (
        "a: 5.00 % (50,000,000,000,000,001 of 1,000,000,000,000,000,000) of the KV columns of decode steps are "
        "padding; at most 5 % may be"
    )


def test_a_case_may_waste_as_much_as_the_one_it_is_held_against_and_no_more() -> None:
    ceiling = Ceiling("a", "b")
    assert ceiling.broken(waste_of(a=(1, 3), b=(2, 6))) is None
    assert ceiling.broken(waste_of(a=(334, 1000), b=(1, 3))) == (
        "a: 33.40 % (334 of 1,000) of the KV columns of decode steps are padding; of b 33.33 % (1 of 3), and it must "
        "not waste more"
    )


@pytest.mark.parametrize(
    ("text", "ceiling"),
    [
        ("sjf/padded=0%", Ceiling("sjf/padded", Fraction(0))),
        ("sjf-bucket/padded/prefill=2.5%", Ceiling("sjf-bucket/padded", Fraction(1, 40), "prefill")),
        ("fcfs/paged/graph=12%", Ceiling("fcfs/paged", Fraction(3, 25), "graph")),
        ("mine.py:Mine/padded=fcfs/padded", Ceiling("mine.py:Mine/padded", "fcfs/padded")),
    ],
)
def test_a_ceiling_can_be_read(text: str, ceiling: Ceiling) -> None:
    assert Ceiling.parse(text) == ceiling


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sjf/padded", "is not CASE[/KIND]=LIMIT"),
        ("=5%", "is not CASE[/KIND]=LIMIT"),
        ("sjf/padded=5", "is not CASE[/KIND]=LIMIT"),
        ("sjf/padded=five%", "'five' is not a number of percent"),
        ("sjf/padded=100%", "100 % is out of range"),
        ("sjf/padded=-1%", "-1 % is out of range"),
    ],
)
def test_what_is_no_ceiling_is_told(text: str, said: str) -> None:
    with pytest.raises(GateError) as raised:
        Ceiling.parse(text)
    assert said in str(raised.value)


def test_what_breaks_a_ceiling_cannot_be_made_the_baseline(
    baseline: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = baseline.read_bytes()
    mixing_lengths(monkeypatch)
    assert main(baseline, "--update-baseline") == 1
    printed = capsys.readouterr().out
    assert "ceiling broken: burst/sjf/padded: " in printed
    assert "at most 0 % may be" in printed
    assert "NOT updated" in printed
    assert baseline.read_bytes() == before
    baseline.unlink()
    assert main(baseline, "--update-baseline") == 1
    assert not baseline.exists()
    assert main(baseline) == 1, "a broken ceiling is known without a baseline"


def test_what_is_to_be_buckets_and_wastes_more_than_fcfs_fails_whatever_the_baseline_says(
    baseline: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = replace(gate_cases.VARIANTS["sjf-bucket-32"], settings={"policy": "fcfs", "batching": "slice:8"})
    monkeypatch.setitem(gate_cases.VARIANTS, "sjf-bucket-32", slices)
    gate.write_baseline(gate_cases.run_cases(), baseline)
    assert main(baseline) == 1
    printed = capsys.readouterr().out
    assert "ceiling broken: burst/sjf-bucket-32/padded: " in printed
    assert "of burst/fcfs/padded " in printed
    assert "at most 5 % may be" in printed


def test_that_buckets_never_waste_more_than_fcfs_is_no_theorem() -> None:
    """Why the rule is one of committed workloads: two may run, lengths cross the edge at 32, and other pairs meet."""
    lengths = [(30, 3), (8, 1), (30, 4), (30, 4), (24, 3), (8, 3)]
    workload = Workload("pairs", tuple(Row(0, prompt, output, 4) for prompt, output in lengths), "made by hand")
    fcfs, bucket = (
        gate.run_case(policy, workload, SchedulerConfig(policy, "padded", max_running=2), {}).waste("decode")
        for policy in ("fcfs", "sjf-bucket")
    )
    assert (fcfs.wasted, fcfs.computed) == (16, 341)
    assert (bucket.wasted, bucket.computed) == (32, 357)


# -- nothing to compare with


def test_without_a_baseline_nothing_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path / "none.json") == 2
    printed = capsys.readouterr().out
    assert f"stale: {tmp_path / 'none.json'} does not exist" in printed
    assert "CANNOT COMPARE" in printed


def test_a_baseline_of_other_workloads_is_stale(baseline: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(gate_cases, "LOADS", {"burst": replace(gate_cases.LOADS["burst"], seed=99)})
    result = check(baseline)
    assert not result.failed
    assert not result.passed
    assert len(result.stale) == len(result.cases)
    assert main(baseline, "--quiet") == 2


def test_a_baseline_of_other_settings_is_stale(baseline: Path, monkeypatch: Patch) -> None:
    other = replace(gate_cases.VARIANTS["sjf-bucket-32"], settings={"policy": "sjf-bucket", "bucket": 33})
    monkeypatch.setitem(gate_cases.VARIANTS, "sjf-bucket-32", other)
    result = check(baseline)
    assert {line.split("/")[1] for line in result.stale} == {"sjf-bucket-32"}
    assert not result.differences


def test_a_setting_that_is_new_leaves_a_baseline_as_it_is(baseline: Path, monkeypatch: Patch) -> None:
    as_dict = SchedulerConfig.as_dict
    monkeypatch.setattr(SchedulerConfig, "as_dict", lambda self: {**as_dict(self), "new": None})
    assert check(baseline).passed


def test_cases_that_are_gone_and_new_are_stale(baseline: Path, monkeypatch: Patch) -> None:
    kept = gate_cases.VARIANTS["fcfs"]
    monkeypatch.setattr(gate_cases, "VARIANTS", {"fcfs": kept, "new": replace(kept, memories=("paged",))})
    stale = check(baseline).stale
    assert "burst/new/paged is not in the baseline" in stale
    assert "burst/sjf/padded is in the baseline, and is not run" in stale


def test_a_baseline_of_other_counters_is_stale(baseline: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(gate, "COUNTERS", (*gate.COUNTERS, "aborted"))
    assert all("was recorded with other counters" in line for line in check(baseline).stale)
    assert main(baseline, "--quiet") == 2


def test_a_baseline_of_another_version_is_stale_and_can_be_made_anew(
    baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.write_text(json.dumps({"schema": 1, "cases": {}}))
    assert main(baseline) == 2
    assert f"recorded by another version of Lockstep (schema 1; this one's is {gate.SCHEMA})" in capsys.readouterr().out
    assert main(baseline, "--update-baseline") == 0
    assert check(baseline).passed


def test_what_differs_is_told_before_what_is_stale(baseline: Path, monkeypatch: Patch) -> None:
    mixing_lengths(monkeypatch)
    monkeypatch.setitem(gate_cases.VARIANTS, "new", replace(gate_cases.VARIANTS["fcfs"], memories=("paged",)))
    result = check(baseline)
    assert result.stale
    assert result.failed
    assert main(baseline, "--quiet") == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "\udcff", '{"schema": 2}', '{"schema": "two", "cases": {}}', '{"schema": 2, "cases": {"a": {}}}',
        '{"schema": 2, "cases": {"a": {"key": 1, "counters": {}}}}',
        '{"schema": 2, "cases": {"a": {"key": "k", "counters": {"finished": 1.0}}}}', '{"name": "some package"}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_the_users_mistake_and_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    before = path.read_bytes()
    assert [main(path), main(path, "--update-baseline")] == [2, 2]
    assert "is no baseline of the gate" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_baseline_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_a_baseline_is_written_whole_or_not_at_all(failing: str, baseline: Path, monkeypatch: Patch) -> None:
    before = baseline.read_bytes()

    def half(path: Path, text: str, **_: Any) -> None:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    def fail(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        if failing == "write_text":
            patch.setattr(Path, "write_text", half)
        else:
            patch.setattr(os, "replace", fail)
        with pytest.raises(GateError) as raised:
            gate.write_baseline([Case("a", "k", {"finished": 1})], baseline)
    assert "cannot be written: " in str(raised.value)
    assert baseline.read_bytes() == before
    assert os.listdir(baseline.parent) == [baseline.name]


def test_a_link_to_a_baseline_stays_a_link(baseline: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(baseline)
    gate.write_baseline([Case("a", "k", {"finished": 1})], link)
    assert link.is_symlink()
    assert list(json.loads(baseline.read_text())["cases"]) == ["a"]


# -- what is printed


def test_the_table_of_an_update() -> None:
    result = GateResult(
        [Case("sjf/padded", "k", {}), Case("mine.yaml/padded", "k", {})],
        differences=[
            Difference("sjf/padded", "attention_computed_decode", 10_000_000, 12_345_678),
            Difference("sjf/padded", "steps_decode", 4_000, 3_999),
            Difference("mine.yaml/padded", "preemptions", 0, 3),
        ],
        stale=["fcfs/padded is not in the baseline"],
        changed=["mine.yaml/padded: the policy's file is not the one that the baseline was recorded with"],
    )
    console = Console(file=StringIO(), width=120)
    print_gate(result, Path("padding_baseline.json"), took_s=1.25, update=True, console=console)
    assert isinstance(console.file, StringIO)
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    assert text == Path(__file__).with_name("gate_update.txt").read_text(encoding="utf-8").rstrip("\n")
