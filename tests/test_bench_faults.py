"""``--mode real`` when the engine cannot go on: a sentence, an exit code, and the run folder with what there was."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from core.folders import replay_folder
from engine.executors import PagedExecutor
from reports.run_folder import load_run

DEVICE_LOST = "CUDA error: device-side assert triggered"
REAL = ["--mode", "real", "--quiet", "--model", "shape:tiny", "--device", "cpu", "--max-running", "2",
        "--arrivals", "all-at-once"]  # fmt: skip


def run(*argv: str | Path) -> int:
    return bench.main([str(argument) for argument in argv])


def work_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, first: int, times: int = 1 << 30) -> None:
    """The device's work raises, from the call ``first`` on (those of the warm-up included)."""
    calls = iter(range(1 << 30))
    work = PagedExecutor._run

    def failing(self: PagedExecutor, step: Any) -> Any:
        if first <= next(calls) < first + times:
            raise error
        return work(self, step)

    monkeypatch.setattr(PagedExecutor, "_run", failing)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"0,{9 + n},{4 + n}\n" for n in range(6)))
    return path


@pytest.mark.parametrize("overlap", [[], ["--overlap"]])
def test_a_lost_device_ends_the_run_with_a_sentence_and_keeps_what_there_was(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overlap: list[str]
) -> None:
    work_fails(monkeypatch, RuntimeError(f"{DEVICE_LOST}\nCompile with TORCH_USE_CUDA_DSA"), 15)
    assert run(*REAL, *overlap, "--workload", trace, "--out", tmp_path / "run") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"bench.py: error: the device has failed: {DEVICE_LOST}; the run ended early, with what there was"]
    found = load_run(tmp_path / "run")
    outcomes = found.requests["outcome"].value_counts().to_dict()
    assert outcomes == {"finished": outcomes["finished"], "aborted": 6 - outcomes["finished"]}
    assert set(found.requests.query("outcome == 'aborted'")["reason"]) == {"error"}
    assert 0 < outcomes["finished"] < 6
    assert replay_folder(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["requests"]["submitted"] == 6
    assert run("--mode", "report", "--quiet", tmp_path / "run") == 0


def test_a_device_that_is_lost_before_the_run_is_one_sentence(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_fails(monkeypatch, RuntimeError(DEVICE_LOST), 0)
    assert run(*REAL, "--workload", trace, "--out", tmp_path / "run") == 1
    assert capsys.readouterr().err == f"bench.py: error: the device has failed: {DEVICE_LOST}\n"


def test_requests_that_memory_does_not_suffice_for_are_counted_and_the_run_goes_on(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the prompts of the first step, whole, and again down to a single token
    work_fails(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), 3, 8)
    assert run(*REAL, "--workload", trace, "--out", tmp_path / "run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.py: 2 requests ended with an error, the last one: memory is too short for the step: ")
    assert "CUDA out of memory. Tried to allocate 9 GiB. (KV memory" in line
    found = load_run(tmp_path / "run")
    assert found.requests["outcome"].value_counts().to_dict() == {"finished": 4, "aborted": 2}
    assert not found.partial
    assert replay_folder(tmp_path / "run")


def test_a_disk_that_fills_up_ends_the_run_with_a_sentence_and_what_was_written_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "long.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "0,5,9\n" * 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))  # writes beyond it fail, as they do on a full disk
    try:
        code = run(*REAL, "--workload", trace, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert capsys.readouterr().err == f"bench.py: error: cannot write {tmp_path / 'run/replay.jsonl'}: File too large\n"
    found = load_run(tmp_path / "run")
    assert found.partial
    assert 0 < len(found.requests) < 100
    assert run("--mode", "report", "--quiet", tmp_path / "run", "--out", tmp_path / "report") == 0


def test_the_manifest_says_how_the_memory_was_shared_out(trace: Path, tmp_path: Path) -> None:
    assert run(*REAL, "--workload", trace, "--out", tmp_path / "run") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    memory = manifest["memory"]
    assert memory["kv_tokens"] == manifest["config"]["kv_tokens"] == 2 * 2048
    assert memory["weights_bytes"] > 0
    assert not memory["measured"]


@pytest.mark.parametrize(
    ("share", "message"),
    [("0", "must be > 0"), ("nine tenths", "is not a number"), ("0.8", "no effect on a model on the cpu")],
)
def test_a_share_that_means_nothing_is_refused(
    trace: Path, capsys: pytest.CaptureFixture[str], share: str, message: str
) -> None:
    assert run(*REAL, "--workload", trace, "--gpu-memory-utilization", share) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_what_is_asked_for_and_does_not_fit_is_refused(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = ["cuda" if flag == "cpu" else flag for flag in REAL]
    assert run(*gpu, "--workload", trace, "--kv-tokens", "10000000000") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("bench.py: error: a KV memory of 10,000,000,000 tokens takes")
    assert run(*gpu, "--workload", trace, "--gpu-memory-utilization", "1.5") == 2
    assert "at most 1" in capsys.readouterr().err
