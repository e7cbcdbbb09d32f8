"""``--mode gate --workload``: a trace and policies of the user's, and what is the same, different, or another case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import bench
from scheduler import orders
from scheduler.buckets import equal_mass_edges
from scheduler.orders import ByLength

TRACE = "arrival_s,input_tokens,output_tokens\n" + "".join(
    f"{index / 50},{20 + 37 * index % 300},{3 + 11 * index % 40}\n" for index in range(60)
)
YAML = "waiting: {order: length, buckets: 64}\nresident: {order: length, buckets: 64}\n"
PYTHON = """\
from scheduler.policy import Order


class Mine(Order):
    def rank(self, sequence, view):
        return sequence.prompt_tokens
"""
BASELINE = "padding_baseline.json"

Gate = Callable[..., int]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The gate in a repository of the user's, with further flags."""
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "mine.py").write_text(PYTHON)
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, policy: str = "fcfs,sjf-bucket,mine.yaml,mine.py:Mine", layout: str = "padded,paged") -> int:
        argv = ["--mode", "gate", "--workload", "trace.csv", "--max-running", "8", "--policy", policy]
        return bench.main([*argv, "--layout", layout, *flags])

    assert run("--update-baseline", "--quiet") == 0
    return run


def stale(printed: str) -> set[str]:
    """The cases that could not be compared."""
    return {line.split()[1] for line in printed.splitlines() if line.startswith("stale: ")}


def test_the_same_again_is_the_same(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(BASELINE).read_bytes()
    assert [gate(), gate("--update-baseline"), gate()] == [0, 0, 0]
    assert "8 cases equal to padding_baseline.json" in capsys.readouterr().out
    assert Path(BASELINE).read_bytes() == before
    cases = json.loads(before)["cases"]
    assert set(cases) >= {"fcfs/padded", "mine.yaml/paged", "mine.py:Mine/padded"}
    assert all(type(count) is int for case in cases.values() for count in case["counters"].values())


def test_a_policys_file_is_behaviour(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(f"# a comment\n{YAML}")
    assert gate() == 0
    Path("mine.yaml").write_text(YAML.replace("64", "300"))
    assert gate() == 1
    printed = capsys.readouterr().out
    assert "policy: mine.yaml/padded: the policy's file is not the one that the baseline was recorded with" in printed
    assert "attention_computed_decode" in printed
    Path("mine.yaml").write_text(f"{YAML}phase: decode-first\n")
    assert gate() == 1, "a setting in the file is behaviour as well"
    assert not stale(capsys.readouterr().out)
    Path("mine.yaml").write_text(YAML)
    Path("mine.py").write_text(PYTHON.replace("return ", "return -"))
    assert gate() == 1
    assert "policy: mine.py:Mine/padded" in capsys.readouterr().out


def test_a_policys_file_may_lie_in_another_folder(gate: Gate) -> None:
    Path("policies").mkdir()
    Path("mine.yaml").rename("policies/mine.yaml")
    assert gate(policy="fcfs,sjf-bucket,policies/mine.yaml,mine.py:Mine") == 0


def test_requests_and_settings_are_what_a_case_is(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (
        ("--requests", "59"),
        ("--time-scale", "2"),
        ("--max-prefill-tokens", "512"),
        ("--kv-tokens", "4096"),
    ):
        assert gate(*flags) == 2, flags
        assert len(stale(capsys.readouterr().out)) == 8
    Path("trace.csv").write_text(TRACE.replace(",20,", ",21,", 1))
    assert gate() == 2


def test_a_setting_of_one_policy_is_no_setting_of_the_others(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--baseline", "other.json")
    assert gate(*flags, "--update-baseline", policy="fcfs,sjf-bucket", layout="padded") == 0
    capsys.readouterr()
    assert gate(*flags, "--bucket", "16", policy="fcfs,sjf-bucket", layout="padded") == 2
    assert stale(capsys.readouterr().out) == {"sjf-bucket/padded"}
    assert gate(*flags, policy="fcfs,sjf-bucket,sjf", layout="padded") == 2
    assert stale(capsys.readouterr().out) == {"sjf/padded"}


def test_what_the_program_makes_of_the_workload_is_behaviour(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--baseline", "edges.json", "--bucket", "equal-mass:4")
    assert gate(*flags, "--update-baseline", policy="sjf-bucket") == 0
    capsys.readouterr()
    monkeypatch.setattr("core.runs.equal_mass_edges", lambda *a: [edge + 20 for edge in equal_mass_edges(*a)])
    assert gate(*flags, policy="sjf-bucket") == 1
    assert not stale(capsys.readouterr().out)


def test_a_built_in_policy_that_is_changed_is_different(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sparse(ByLength):
        """The fullest bucket goes first, whatever was asked for."""

        def __init__(self, buckets: orders.Buckets, pick: str, *args: int, **options: bool) -> None:
            super().__init__(buckets, "fullest", *args, **options)

    monkeypatch.setattr("scheduler.policies.sjf_bucket.ByLength", Sparse)
    assert gate() == 1


def test_graphs_are_gated_where_they_are_asked_for(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--baseline", "graphs.json", "--graph-rows", "1,2,4,8", "--graph-tokens", "256,512,1024,2048")
    assert gate(*flags, "--update-baseline", policy="fcfs", layout="paged") == 0
    counters = json.loads(Path("graphs.json").read_text())["cases"]["fcfs/paged"]["counters"]
    assert counters["graph_rows"] > counters["graph_rows_used"] > 0
    assert gate(*flags, "--ceiling", "fcfs/paged/graph=99%", policy="fcfs", layout="paged") == 0
    assert gate(*flags, "--ceiling", "fcfs/paged/graph=0%", policy="fcfs", layout="paged") == 1
    monkeypatch.setattr("scheduler.features.graph_rows_for", lambda rows, sizes: sizes[-1])
    assert gate(*flags, policy="fcfs", layout="paged") == 1


def test_ceilings_hold_whatever_the_baseline_says(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    kept = "sjf-bucket/padded=20%,sjf-bucket/padded=fcfs/padded,mine.yaml/padded/prefill=fcfs/padded"
    assert gate("--ceiling", kept) == 0
    assert "3 ceilings kept" in capsys.readouterr().out
    before = Path(BASELINE).read_bytes()
    for broken in ("fcfs/padded=5%", "fcfs/padded=sjf-bucket/padded"):
        assert gate("--ceiling", broken) == 1
        assert "ceiling broken: fcfs/padded: " in capsys.readouterr().out
        assert gate("--ceiling", broken, "--update-baseline", "--max-prefill-tokens", "512") == 1
        assert "padding_baseline.json is NOT updated" in capsys.readouterr().out
    assert Path(BASELINE).read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ceiling", "sjf-bukcet/padded=5%"), "unknown case 'sjf-bukcet/padded'; did you mean sjf-bucket/padded?"),
        (("--ceiling", "sjf-bucket/padded=fcfs/pagde"), "ceiling of sjf-bucket/padded: unknown case 'fcfs/pagde'"),
        (("--kv-tokens", "100"), "raise --kv-tokens or lower --max-running"),
        (("--workload", "none.csv"), "no such file"),
        (("--requests", "61"), "has 60 requests and 61 were asked for"),
        (("--baseline", "trace.csv"), "trace.csv is no baseline of the gate"),
        (("--baseline", "no/folder/baseline.json", "--update-baseline"), "cannot be written: No such file"),
    ],
)
def test_a_mistake_is_no_difference(
    flags: tuple[str, ...], said: str, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert gate(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_policy_that_fails_is_a_mistake(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(PYTHON.replace("sequence.prompt_tokens", "1 // 0"))
    capsys.readouterr()
    assert gate() == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_gate_is_on_padded_unless_another_layout_is_asked_for(gate: Gate) -> None:
    argv = ["--mode", "gate", "--workload", "trace.csv", "--baseline", "one.json", "--update-baseline", "--quiet"]
    assert bench.main(argv) == 0
    assert list(json.loads(Path("one.json").read_text())["cases"]) == ["fcfs/padded"]
