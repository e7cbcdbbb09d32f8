"""A trace that is long enough to be tuned for, and short enough to be simulated many times."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

REQUESTS = 630


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short and long requests at about the rate that an L4 carries with qwen2.5-0.5b and 8 of them running."""
    rng = Random(7)
    now, lines = 0.0, ["arrival_s,input_tokens,output_tokens"]
    for _ in range(REQUESTS):
        now += rng.expovariate(9.0)
        long = rng.random() < 0.15
        lines.append(f"{now:.4f},{rng.randint(20, 60) * (8 if long else 1)},{rng.randint(8, 24) * (10 if long else 1)}")
    path = tmp_path_factory.mktemp("tuned") / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def command(trace: Path) -> tuple[str, ...]:
    """The command, but for ``--out``."""
    return (
        "--mode", "tune", "--quiet", "--workload", str(trace), "--costs", "roofline:l4:qwen2.5-0.5b",
        "--slo", "ttft_ms=300,tpot_ms=30", "--confidence", "0.7", "--workers", "1", "--budget", "12",
    )  # fmt: skip


@pytest.fixture
def given(command: tuple[str, ...]) -> list[str]:
    """The command, to be added to."""
    return list(command)


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few knobs, so that little is simulated."""
    path = tmp_path_factory.mktemp("tuned") / "space.yaml"
    path.write_text(
        "policy: [fcfs, srpt, sjf-predicted]\nmax_running: 4:32\nphase: [default, mixed]\nbucket: default\n"
        "bucket_order: default\naging_s: default\nchunk_tokens: default\nmax_prefill_tokens: 2048\n"
        "admission: default\nkv_tokens: default\n"
    )
    return path
