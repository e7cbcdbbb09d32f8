"""The command line as a user meets it: what it makes, and the one line that it says of a mistake."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bench
from core.arguments import parse_arguments, scheduler_config
from core.costs import read_costs
from core.runs import Case, Session
from reports.run_folder import load_run
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from simulator.costs import prefill_token_ns

ROOT = Path(bench.__file__).parent
SIM = ["--mode", "sim", "--quiet", "--costs", "roofline:a100-40gb:qwen-7b"]
HEADER = "arrival_s,input_tokens,output_tokens\n"


def run(*argv: str | Path) -> int:
    return bench.main([str(argument) for argument in argv])


def mistake(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The line that a mistake gets."""
    assert run(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("bench.py: error: ")
    return lines[0]


def without_wall_clock(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    for key in ("wall_clock", "scheduler_us_per_step"):
        summary.pop(key)
    return summary


# -- what it makes


def test_sim_accounts_for_every_request_and_repeats_itself(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text(HEADER + "".join(f"{i / 8},{20 + i % 7},{3 + i % 5}\n" for i in range(60)) + "9,9000,5\n")
    for out in ("a", "b"):
        assert run(*SIM, "--workload", trace, "--policy", "sjf-bucket", "--bucket", "32", "--out", tmp_path / out) == 0
    first, second = (without_wall_clock(tmp_path / out) for out in ("a", "b"))
    assert first == second
    assert first["requests"] == {"submitted": 61, "finished": 60, "rejected": 1, "aborted": 0}
    rejected = load_run(tmp_path / "a").requests.query("outcome == 'rejected'")
    assert "context of 8192" in rejected["reason"].item()


def test_an_earlier_run_at_out_is_moved_aside(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for seed in "12":
        assert run(*SIM, "--workload", "tour", "--seed", seed, "--out", out) == 0
    assert json.loads((out / "manifest.json").read_text())["seed"] == 2
    assert json.loads((tmp_path / "run.1" / "manifest.json").read_text())["seed"] == 1


def test_several_policies_share_a_report_that_can_be_made_again(tmp_path: Path) -> None:
    out = tmp_path / "several"
    assert run(*SIM, "--workload", "tour", "--policy", "fcfs,sjf", "--layout", "padded,paged", "--out", out) == 0
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert run("--mode", "report", out, "--quiet") == 0
    for case in ("fcfs on padded", "sjf on padded", "fcfs on paged", "sjf on paged"):
        assert case in page
        assert case in (out / "report.html").read_text()


def test_report_compares_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for policy in ("fcfs", "sjf"):
        assert run(*SIM, "--workload", "tour", "--policy", policy, "--out", tmp_path / policy) == 0
    assert run("--mode", "report", tmp_path / "fcfs", tmp_path / "sjf", "--out", tmp_path / "both.html") == 0
    assert "B / A" in capsys.readouterr().out
    assert "sjf" in (tmp_path / "both.html").read_text()


def test_flags_come_from_a_yaml_file_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "flags.yaml"
    config.write_text("workload: tour\npolicy: [sjf-bucket]\nbucket: 16\nmax_num_seqs: 4\n")
    assert run(*SIM, "--config", config, "--bucket", "64", "--out", tmp_path / "run") == 0
    config = settings(tmp_path / "run")
    assert (config["policy"], config["bucket"], config["max_running"]) == ("sjf-bucket", 64, 4)


def settings(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["config"]
    return config


def test_every_part_reaches_the_scheduler_whatever_the_policy() -> None:
    flags = {
        "batching": "slice:8", "phase": "mixed", "chunk_tokens": 256, "admission": "quantile:0.8", "aging": "linear",
        "aging_s": 3.5, "aging_weight": 2.5, "victim": "lowest-priority", "preemption": "swap", "swap_tokens": 0,
        "oracle": "noisy:0.6:4",
    }  # fmt: skip
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    args = parse_arguments([*SIM, "--policy", "fcfs,sjf,static", *argv, "--prefix-cache", "--overlap"])
    for policy in args.policy:
        config = scheduler_config(args, policy, "paged")
        assert {name: getattr(config, name) for name in flags} == flags
        assert config.prefix_cache
        assert config.overlap
    plain = scheduler_config(parse_arguments(SIM), "fcfs", "paged")
    assert plain == SchedulerConfig()


def test_what_only_some_policies_take_is_kept_from_the_others() -> None:
    args = parse_arguments([*SIM, "--policy", "fcfs,sjf-bucket", "--bucket", "64", "--max-rows", "3"])
    configs = [scheduler_config(args, policy, "paged") for policy in args.policy]
    assert [config.bucket for config in configs] == [None, 64]
    assert [config.max_rows for config in configs] == [3, 3]
    alone = parse_arguments([*SIM, "--policy", "fcfs", "--bucket", "64"])
    assert scheduler_config(alone, "fcfs", "paged").bucket == 64  # for the scheduler to refuse


def session(*argv: str | Path) -> Session:
    return Session(parse_arguments([*SIM, *map(str, argv)]), "some command")


def test_buckets_of_equal_mass_become_the_edges_of_the_workload(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    # lengths 1 to 12 weigh one each, 5 to 8 one more: 16 in all, quarters of 4
    trace.write_text(HEADER + "0,1,12\n0,5,4\n")
    made = session("--workload", trace, "--policy", "sjf-bucket,fcfs", "--bucket", "equal-mass:4")
    configs = [made.config(Case(policy, "paged"), None, None) for policy in ("sjf-bucket", "fcfs")]
    assert [config.bucket for config in configs] == ["edges:4,6,8", None]


def test_length_quantiles_are_the_workloads_where_something_needs_them(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text(HEADER + "".join(f"0,9,{output}\n" for output in range(257, 0, -1)))
    case = Case("srpt", "paged")
    config = session("--workload", trace, "--policy", "srpt", "--oracle", "noisy:0.5").config(case, None, None)
    assert config.length_quantiles == tuple(range(1, 258))
    assert session("--workload", trace, "--policy", "srpt").config(case, None, None).length_quantiles is None


def test_prefill_times_come_from_the_costs_where_there_are_any() -> None:
    made, case = session("--workload", "tour"), Case("fcfs", "paged")
    costs = read_costs("roofline:a100-40gb:qwen-7b")
    assert made.config(case, None, None, costs).prefill_token_ns == prefill_token_ns(costs, "paged")
    assert made.config(case, None, None).prefill_token_ns == SchedulerConfig().prefill_token_ns
    assert made.config(case, None, None, plain=True) == made.config(case, None, None)


def test_sim_reckons_with_its_costs(tmp_path: Path) -> None:
    assert run(*SIM, "--workload", "tour", "--out", tmp_path / "run") == 0
    costs = read_costs("roofline:a100-40gb:qwen-7b")
    assert settings(tmp_path / "run")["prefill_token_ns"] == prefill_token_ns(costs, "paged")


def test_requests_know_what_their_prompts_share_only_for_a_prefix_cache() -> None:
    without = session("--workload", "chat-sessions", "--requests", "60").requests()
    assert not any(request.block_hashes for request in without)
    shared = session("--workload", "chat-sessions", "--requests", "60", "--prefix-cache").requests()
    assert all(len(request.block_hashes) == request.prompt_tokens // 16 for request in shared)
    assert len({request.block_hashes[0] for request in shared}) == 4


@pytest.mark.parametrize("block_tokens", ["16", "64", "1024"])
def test_real_prompts_share_the_blocks_that_the_simulation_reckons_with(
    block_tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = session("--workload", "chat-sessions", "--requests", "40", "--prefix-cache", "--block-tokens", block_tokens)
    monkeypatch.setattr(made, "model", lambda: SimpleNamespace(tokenizer=None))
    simulated, real = made.requests(), made.prompts(made.workload)

    def classes(requests: list[Request]) -> list[list[int]]:
        """Each block by the number of the first one that it is equal to."""
        numbers: dict[int, int] = {}
        return [[numbers.setdefault(block, len(numbers)) for block in request.block_hashes] for request in requests]

    assert classes(simulated) == classes(real)
    assert any(blocks for blocks in classes(real))


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SIM, "--workload", "seed", "--dry-run", "--out", tmp_path / "run") == 0
    assert "would run fcfs on paged, at most 16 running" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "what", ["policies", "parts", "orders", "oracles", "buckets", "workloads", "models", "costs", "gpus"]
)
def test_lists_have_a_line_each(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", what) == 0
    assert all(len(line.split(maxsplit=1)) == 2 for line in capsys.readouterr().out.splitlines())


def test_simulating_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import bench; "
        f"sys.exit(bench.main({[*SIM, '--workload', 'tour', '--out', str(tmp_path / 'run')]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -- mistakes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--mode", "sim", "--policy", "sjf-buckets"], "did you mean sjf-bucket?"),
        (["--polcy", "sjf"], "did you mean --policy?"),
        (["--mode", "simulate"], "did you mean sim?"),
        ([*SIM, "--workload", "touur"], "did you mean preset 'tour'?"),
        ([*SIM, "--workload", "no/such/trace.csv"], "no/such/trace.csv"),
        (["--mode", "sim", "--workload", "tour"], "--mode sim needs --costs"),
        (["--mode", "sim", "--costs", "roofline:a100:qwen-7b", "--workload", "tour"], "did you mean a100-40gb?"),
        (["--mode", "sim", "--costs", "roofline:l4:llama-2-70b"], "leaves no room for KV"),
        (["--mode", "sim", "--costs", "nowhere"], "neither a run folder nor roofline"),
        ([*SIM, "--policy", "fcfs", "--bucket", "32"], "policy fcfs takes no bucket"),
        ([*SIM, "--bucket-order", "full"], "did you mean fullest?"),
        ([*SIM, "--bucket", "pow"], "did you mean pow2?"),
        ([*SIM, "--bucket", "0"], "bucket is 0; must be >= 1"),
        ([*SIM, "--bucket", "equal-mass:1"], "must be at least equal-mass:2"),
        ([*SIM, "--bucket", "edges:9,3"], "must be >= 1 and increase"),
        ([*SIM, "--oracle", "noisy:2"], "with TAU from 0 to 1"),
        ([*SIM, "--batching", "slice"], "must be slice:K"),
        ([*SIM, "--admission", "quantile:2"], "must be quantile:Q with Q between 0 and 1"),
        ([*SIM, "--phase", "mix"], "did you mean mixed?"),
        ([*SIM, "--aging", "linar"], "did you mean linear?"),
        ([*SIM, "--victim", "longest"], "did you mean longest-remaining?"),
        ([*SIM, "--preemption", "swapp"], "did you mean swap?"),
        ([*SIM, "--swap-tokens", "-1"], "must be >= 0"),
        ([*SIM, "--policy", "no/such/file.py:Mine"], "policy no/such/file.py:Mine: no such file as no/such/file.py"),
        ([*SIM, "--policy", "no/such/file.yaml"], "no such file as no/such/file.yaml"),
        ([*SIM, "--experiments", "mm1"], "--experiments has no effect on --mode sim"),
        (["--mode", "reproduce", "--policy", "sjf"], "--policy has no effect on --mode reproduce"),
        ([*SIM, "--tp", "2"], "--tp has no effect on --mode sim"),
        (["--mode", "real", "--tp", "2", "--layout", "padded"], "--tp 2 needs the paged layout; leave out --layout"),
        (["--mode", "real", "--tp", "64", "--device", "cuda", "--model", "shape:tiny"], "tp 64 needs 64 GPUs from"),
        ([*SIM, "--requests", "0"], "0 is out of range; must be >= 1"),
        ([*SIM, "--rate", "fast"], "'fast' is not a number"),
        ([*SIM, "--slo", "ttft=5"], "ttft"),
        ([*SIM, "--workload", "seed", "--kv-tokens", "500"], "raise --kv-tokens"),
        (["--mode", "real", "--model", "no/such/folder/"], "no/such/folder"),
        (["--mode", "real", "--model", "shape:qwen-8b"], "did you mean"),
        (["--mode", "report"], "needs a run folder"),
        (["--mode", "report", "no/such/run"], "not a run folder"),
        (["--policy", "sjf"], "--policy has no effect on --mode tour"),
        ([*SIM, "--temperature", "0.5"], "--temperature has no effect on --mode sim"),
        (["--mode", "real", "--costs", "roofline:h100:qwen-7b"], "--costs has no effect on --mode real"),
        (["--mode", "gate", "--policy", "sjf"], "--policy has no effect on the gate of Lockstep itself; give --wor"),
        (["--mode", "gate", "--ceiling", "sjf/padded=5%"], "--ceiling has no effect on the gate of Lockstep itself"),
        (["--mode", "gate", "--costs", "h100-qwen-7b"], "--costs has no effect on --mode gate"),
        (["--mode", "gate", "--workload", "seed", "--ceiling", "sjf/padded=5"], "is not CASE[/KIND]=LIMIT"),
        ([*SIM, "--ceiling", "fcfs/padded=5%"], "--ceiling has no effect on --mode sim"),
        (["--mode", "sim", "some/run"], "run folders are for --mode report"),
        (["--config", "no.yaml"], "no.yaml cannot be read"),
    ],
)
def test_a_mistake_gets_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in mistake(capsys, *argv)


WITHOUT_TORCH = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import bench
sys.exit(bench.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--mode", "report", "no/such/run"], "no/such/run is not a run folder: it does not exist"),
        (["--mode", "real", "--model", "shape:tiny"], "which is not installed: pip install lockstep[engine]"),
    ],
)
def test_a_mistake_gets_one_line_where_torch_is_not_installed(argv: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *argv], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (bench.USAGE, 1), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,-3,5", "-3"),
        ("1,0,5", "0"),
        ("1,7,many", "many"),
        ("1,7", "has 2 columns; the header has 3"),
        ("soon,7,5", "soon"),
    ],
)
def test_a_malformed_row_is_named(row: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text(HEADER + "0,10,5\n" + row + "\n")
    line = mistake(capsys, *SIM, "--workload", trace)
    assert "row 3" in line
    assert said in line


def test_a_model_folder_that_is_not_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no config.json" in mistake(capsys, "--mode", "real", "--model", tmp_path, "--workload", "tour")


def test_a_single_prompt_longer_than_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "one.csv"
    trace.write_text(HEADER + "0,9000,5\n")
    assert "more than the model's context of 8192" in mistake(capsys, *SIM, "--workload", trace)
    trace.write_text(HEADER + "0,9000,5\n0,10,5\n")
    assert "request 1 of workload" in mistake(capsys, *SIM, "--workload", trace, "--strict")


def test_an_unwritable_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in mistake(capsys, *SIM, "--workload", "tour", "--out", tmp_path / "file" / "run")


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "not empty" in mistake(capsys, *SIM, "--workload", "tour", "--out", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("reports.run_folder.RunWriter.flush", lambda self: None)
    monkeypatch.setattr("reports.run_folder._write_atomically", full)
    line = mistake(capsys, *SIM, "--workload", "tour", "--out", tmp_path / "run")
    assert "No space left on device" in line


def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = [sys.executable, str(ROOT / "bench.py"), *SIM, "--workload", "chat", "--requests", "40000", "--rate", "20",
            "--policy", "sjf-bucket", "--out", str(out)]  # fmt: skip
    # a background job ignores SIGINT, and its children would too
    heed_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    for _ in range(600):
        if (out / "requests.csv").exists() and (out / "requests.csv").stat().st_size > 20_000:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert (out / "report.html").exists()
    cut_short = load_run(out)
    assert cut_short.partial
    assert len(cut_short.requests) > 100
    assert run("--mode", "report", out, "--quiet") == 0
