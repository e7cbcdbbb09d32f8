"""Rows, their digest, and the figures that describe them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.errors import WorkloadError
from workloads.workload import END_OF_TIME_NS, Row, Workload

ROOT = Path(__file__).resolve().parents[2]


def workload(*rows: Row, name: str = "some") -> Workload:
    return Workload(name, rows, source="written by hand")


def test_digest_is_the_same_in_processes_with_other_hash_seeds() -> None:
    program = (
        "import random; from workloads.load import load_workload; from workloads.prompts import PromptWriter;"
        "w = load_workload('chat', rng=random.Random(7), requests=50);"
        "p = PromptWriter(lambda text: list(text.encode()), seed=7);"
        "print(w.sha256(), p.prompt(3, 200))"
    )

    def output(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert output("1") == output("4242") != ""


def test_digest_depends_on_every_field_of_every_row_and_on_nothing_else() -> None:
    base = Row(5, 10, 20, 30, "a")
    variants = [
        base,
        Row(6, 10, 20, 30, "a"),
        Row(5, 11, 20, 30, "a"),
        Row(5, 10, 21, 30, "a"),
        Row(5, 10, 20, 31, "a"),
        Row(5, 10, 20, 30, "b"),
        Row(5, 10, 20, 30, "a", priority=-1),
        Row(5, 10, 20, 30, "a", ttft_slo_ns=0),
        Row(5, 10, 20, 30, "a", ttft_slo_ns=7),
        Row(5, 10, 20, 30, "a", prefix_ids=(0,)),
        Row(5, 10, 20, 30, "a", prefix_ids=(0, 1)),
    ]
    digests = {workload(row).sha256() for row in variants} | {workload(base, base).sha256()}
    assert len(digests) == len(variants) + 1
    shared = (Row(5, 10, 20, 30, "a", prefix_ids=(0,)),)
    assert Workload("some", shared, "by hand", prefix_block_tokens=64).sha256() not in digests
    assert Workload("other", (base,), "otherwise", temperature=1.0, max_running=3).sha256() == workload(base).sha256()


def test_digest_is_pinned() -> None:
    rows = (Row(0, 1, 2, 3), Row(1_000_000_007, 4, 5, 6, "租户"))
    assert workload(*rows).sha256() == "d24d49243887c2ad927a48be2cdbbe1c38c439688d176ad96484801dcdaf12a6"


def test_summary_uses_nearest_ranks_and_population_cv() -> None:
    rows = [Row(arrival, prompt, 2, 2) for arrival, prompt in zip([0, 1, 2, 5, 10], [9, 1, 5, 3, 100], strict=True)]
    summary = workload(*(row.arriving_at(row.arrival_ns * 1_000_000_000) for row in rows)).summary()
    assert summary.requests == 5
    assert summary.prompt == (1, 5, 100, 100, 23.6)
    assert summary.output == (2, 2, 2, 2, 2.0)
    assert summary.span_s == 10.0
    assert summary.rate_per_s == 0.4
    # gaps 1, 1, 3, 5: mean 2.5, population variance 2.75
    assert summary.arrival_cv == pytest.approx(2.75**0.5 / 2.5)


def test_p99_of_a_hundred_is_the_ninety_ninth() -> None:
    summary = workload(*(Row(0, length, 1, 1) for length in range(100, 0, -1))).summary()
    assert (summary.prompt.median, summary.prompt.p99, summary.prompt.max) == (50, 99, 100)


def test_load_that_arrives_at_once_has_no_rate() -> None:
    summary = workload(Row(3, 1, 1, 1), Row(3, 1, 1, 1)).summary()
    assert (summary.span_s, summary.rate_per_s, summary.arrival_cv) == (0.0, None, None)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (Row(0, 0, 1, 1), "request 1: prompt tokens is 0; must be >= 1"),
        (Row(0, 1, -3, 1), "request 1: output tokens is -3; must be >= 1"),
        (Row(0, 1, 3, 2), "request 1: output tokens is 3 but max_tokens is 2"),
        (Row(-1, 1, 1, 1), "request 1: it arrives at -1 ns; must be at 0 ns or later"),
        (Row(END_OF_TIME_NS, 1, 1, 1), "146 years"),
    ],
)
def test_impossible_rows_are_refused_by_number(row: Row, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        workload(Row(0, 1, 1, 1), row)


def test_empty_and_misordered_workloads_are_refused() -> None:
    with pytest.raises(WorkloadError, match="has no requests"):
        workload()
    with pytest.raises(WorkloadError, match="must be at 9 ns or later"):
        workload(Row(9, 1, 1, 1), Row(8, 1, 1, 1))
    with pytest.raises(WorkloadError, match="temperature is nan"):
        Workload("some", (Row(0, 1, 1, 1),), "by hand", temperature=float("nan"))
