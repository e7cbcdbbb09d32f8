"""Policies of the user's own through the command line: what they leave behind, also when they fail."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import bench
from core.arguments import parse_arguments, scheduler_config
from core.folders import replay_folder
from core.runs import Case, Session
from reports.run_folder import load_run
from scheduler.policies import POLICIES

SIM = ["--mode", "sim", "--quiet", "--costs", "roofline:a100-40gb:qwen-7b"]

DESCRIBED = """\
name: short prompts first
summary: buckets of 64
waiting: {order: length, buckets: 64}
"""
PYTHON = """\
from scheduler.policy import LiveOrder, Order


class Shortest(Order):
    def rank(self, sequence, view):
        return sequence.known


class Tired(LiveOrder):
    def first(self, queue, view):
        if view.resident and len(queue.sequences) < 4:
            raise RuntimeError("that is enough")
        return queue.oldest()
"""


@pytest.fixture
def described(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(DESCRIBED)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(
        "arrival_s,input_tokens,output_tokens\n" + "".join(f"0,{9 + 5 * i % 40},{4 + i % 3}\n" for i in range(12))
    )
    return path


def run(*argv: str | Path) -> int:
    return bench.main([str(argument) for argument in argv])


def mistake(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert run(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


# -- what a run says of its policy


@pytest.mark.parametrize(
    ("suffix", "name", "title"), [("yaml", "", "short prompts first"), ("py", ":Shortest", "Shortest")]
)
def test_the_manifest_has_the_file_and_its_hash(
    suffix: str, name: str, title: str, described: Path, python: Path, trace: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"mine.{suffix}"
    assert run(*SIM, "--workload", trace, "--policy", f"{path}{name}", "--out", tmp_path / "run") == 0
    settings = manifest(tmp_path / "run")["config"]
    assert settings["policy"] == f"{path}{name}"
    assert settings["policy_sha256"] == sha256(path.read_bytes()).hexdigest()
    assert load_run(tmp_path / "run").label == f"{title} on paged, projected"


def test_several_are_compared(described: Path, python: Path, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "several"
    policies = f"fcfs,{described},{python}:Shortest"
    assert run(*SIM, "--workload", trace, "--policy", policies, "--max-running", "3", "--out", out) == 0
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"sim-fcfs-paged", "sim-mine.yaml-paged", "sim-mine.py-Shortest-paged"}
    page = (out / "report.html").read_text()
    assert all(label in page for label in ("fcfs on paged", "short prompts first on paged", "Shortest on paged"))


def test_what_only_some_policies_take_is_given_to_those(described: Path, python: Path) -> None:
    args = parse_arguments([*SIM, "--policy", f"sjf-bucket,{described},{python}:Shortest", "--bucket", "8"])
    assert [scheduler_config(args, policy, "paged").bucket for policy in args.policy] == [8, None, None]


def test_a_setting_that_nobody_takes_is_refused(
    described: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, *SIM, "--workload", trace, "--policy", described, "--bucket", "8")
    assert line.endswith("mine.yaml takes no bucket from outside; say it in the file, with its orders")


def test_the_command_line_goes_before_the_file(described: Path, trace: Path, tmp_path: Path) -> None:
    described.write_text(DESCRIBED + "phase: mixed\nchunk_tokens: 64\noverlap: true\n")
    argv = [*SIM, "--workload", trace, "--policy", described, "--chunk-tokens", "32", "--out", tmp_path / "run"]
    assert run(*argv) == 0
    settings = manifest(tmp_path / "run")["config"]
    assert (settings["phase"], settings["chunk_tokens"], settings["overlap"]) == ("mixed", 32, True)


def test_requests_know_what_they_share_if_a_file_asks_for_the_prefix_cache(described: Path) -> None:
    described.write_text("waiting: cached-prefix\nprefix_cache: true\n")
    argv = [*SIM, "--workload", "chat-sessions", "--requests", "20", "--policy", f"fcfs,{described}"]
    session = Session(parse_arguments(argv), "some command")
    assert all(request.block_hashes for request in session.requests())
    caches = [session.config(Case(policy, "paged"), None, None).prefix_cache for policy in ("fcfs", str(described))]
    assert caches == [False, True]


def test_two_files_of_one_name_would_share_a_folder(
    described: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mine.yaml"
    other.write_text(DESCRIBED)
    line = mistake(capsys, *SIM, "--workload", trace, "--policy", f"{described},{other}")
    assert "would have the name of another run, mine.yaml-paged; rename one" in line


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("none.yaml", "policy none.yaml: no such file as none.yaml"),
        ("none.py:Mine", "policy none.py:Mine: no such file as none.py"),
        ("{python}", "does not say which policy of the file; add :Shortest"),
        ("{python}:Shorter", "unknown name 'Shorter'; did you mean Shortest?"),
    ],
)
def test_a_mistake_gets_one_line(policy: str, said: str, python: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in mistake(capsys, *SIM, "--workload", "tour", "--policy", policy.format(python=python))


# -- a policy that fails


def test_a_policy_that_fails_leaves_what_there_was(
    python: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = [*SIM, "--workload", trace, "--policy", f"{python}:Tired", "--max-running", "4", "--out", out]
    line = mistake(capsys, *argv)
    assert line.startswith("bench.py: error: policy Tired at 0.")
    assert "waiting.first raised RuntimeError: that is enough (mine.py, line 12); what there is: " in line
    cut_short = load_run(out)
    assert cut_short.partial
    assert 0 < len(cut_short.requests) < 12
    assert len(cut_short.steps) > 3
    (out / "report.html").unlink()
    assert run("--mode", "report", out, "--quiet") == 0
    assert (out / "report.html").exists()


def test_the_runs_before_it_are_reported_too(
    python: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "several"
    policies = f"fcfs,{python}:Tired,srpt"
    line = mistake(capsys, *SIM, "--workload", trace, "--policy", policies, "--max-running", "4", "--out", out)
    assert "mine.py-Tired-paged" in line
    page = (out / "report.html").read_text()
    assert "fcfs on paged" in page
    assert "Tired on paged" in page
    assert not (out / "sim-srpt-paged").exists()
    assert run("--mode", "report", out, "--quiet") == 0


# -- on the engine


@pytest.mark.usefixtures("small_model")
def test_a_real_run_keeps_what_there_was_and_replays_up_to_there(
    python: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = ["--mode", "real", "--quiet", "--workload", trace, "--policy", f"{python}:Tired", "--max-running", "4"]
    assert "that is enough (mine.py, line 12)" in mistake(capsys, *argv, "--out", out)
    cut_short = load_run(out)
    assert cut_short.partial
    assert len(cut_short.steps) > 3
    assert replay_folder(out) is True
    assert run("--mode", "report", out, "--quiet") == 0


@pytest.mark.usefixtures("small_model")
def test_a_changed_file_is_told_where_a_journal_would_be_replayed(
    python: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    argv = ["--mode", "validate", "--quiet", "--workload", trace, "--policy", f"{python}:Shortest", "--out", out]
    assert run(*argv, "--costs", "roofline:a100-40gb:qwen-7b", "--max-running", "3") == 0
    assert run("--mode", "report", out, "--quiet") == 0
    assert "not replayed" not in capsys.readouterr().err
    python.write_text(PYTHON + "\n# a remark\n")
    assert run("--mode", "report", out, "--quiet") == 0
    said = capsys.readouterr().err
    assert "is not replayed: policy" in said
    assert "mine.py has changed since this was recorded" in said


# -- lists


def test_the_list_says_what_policies_need_and_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", "policies") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["policy", "needs", "preempts", "starvation-free", "rule"]
    columns = [header.index(word) for word in header.split()]
    rows = {}
    for line in lines[: len(POLICIES)]:
        name, *values = [line[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)]
        rows[name] = values
    assert rows["fcfs"][:3] == ["-", "on OOM", "yes"]
    assert rows["sjf-predicted"][:3] == ["length", "no", "with ageing"]
    assert rows == {
        name: [entry.needs, entry.preempts, entry.starvation_free, entry.summary] for name, entry in POLICIES.items()
    }
    assert [line.split()[0] for line in lines[len(POLICIES) :]] == ["orca", "FILE.yaml", "FILE.py:NAME"]


def test_help_and_lists_mention_policies_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "FILE.yaml, FILE.py:NAME" in said
    assert "policies | parts | orders" in said
    assert run("--list", "orders") == 0
    listed = capsys.readouterr().out
    assert "order length" in listed
    assert "urgency remaining" in listed
