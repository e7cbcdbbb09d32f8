from __future__ import annotations

import io
from pathlib import Path

import pytest
from handmade_runs import HandMade, every_part, four_requests
from rich.console import Console

from reports.agreement import agree
from reports.comparison import compare
from reports.terminal import print_agreements, print_comparison, print_run, print_runs
from scheduler.config import SchedulerConfig


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_run_shows_its_key_figures_and_its_verdict(tmp_path: Path, console: Console) -> None:
    run = four_requests(tmp_path / "run", {"label": "fcfs on padded"}).close(report=False)
    print_run(run, console=console)
    text = text_of(console)
    assert "13.33 tok/s" in text
    assert "n too small" in text
    assert "2 of 4 requests finished" in text
    assert "\x1b" not in text


def test_parts_are_shown_where_they_occur(tmp_path: Path, console: Console) -> None:
    print_run(four_requests(tmp_path / "plain").close(report=False), console=console)
    assert "Mixed steps" not in text_of(console)
    config = SchedulerConfig(phase="mixed", preemption="swap", overlap=True).as_dict()
    print_run(every_part(tmp_path / "parts", {"config": config}).close(report=False), console=console)
    text = text_of(console)
    for title in ("Mixed steps", "Swapped tokens", "Wasted rows", "Prefix hits", "KV utilisation by time"):
        assert title in text, title
    assert "Scheduler: phase mixed (512 tokens a step), preemption swap, overlap" in text


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = four_requests(tmp_path / "run").close(report=False)
    print_run(run, quiet=True)
    print_runs([run, run], quiet=True)
    print_agreements([agree(run, run)], quiet=True)
    print_comparison(compare(run, run), quiet=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_pipe_gets_plain_text_of_a_fixed_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = four_requests(tmp_path / "run").close(report=False)
    print_run(run)
    text = capsys.readouterr().out
    table = [line for line in text.splitlines() if line.startswith(("+", "|"))]
    assert table
    assert not set("\x1b│─") & set(text)
    assert all(len(line) <= 120 for line in table)


def test_a_saturated_run_says_so(tmp_path: Path, console: Console) -> None:
    made = HandMade(tmp_path / "run")
    for number in range(200):
        made.request(number, 100 * number, 300 * number, 300 * number + 100, 300 * number + 300, output=2)
    print_run(made.close(report=False), console=console)
    assert "more than the hardware can carry" in text_of(console)


def test_agreement_and_disagreement_are_told_apart(tmp_path: Path, console: Console) -> None:
    measured = four_requests(tmp_path / "real").close(report=False)
    other = four_requests(tmp_path / "sim")
    other.step(2, 300, [301])
    print_agreements([agree(measured, measured), agree(measured, other.close(report=False))], console=console)
    first, second = [line for line in text_of(console).splitlines() if line.startswith(("agrees", "differs"))]
    assert first.startswith("agrees")
    assert second.startswith("differs")


def test_two_runs_are_compared_figure_by_figure(tmp_path: Path, console: Console) -> None:
    a = four_requests(tmp_path / "a").close(report=False)
    b = four_requests(tmp_path / "b", slower=2).close(report=False)
    print_comparison(compare(a, b), console=console)
    makespan = next(line for line in text_of(console).splitlines() if "Makespan" in line)
    assert "2.000" in makespan
    assert "worse" in makespan


def test_several_runs_stand_a_row_each(tmp_path: Path, console: Console) -> None:
    runs = [four_requests(tmp_path / name, {"label": name}).close(report=False) for name in ("one", "two")]
    print_runs(runs, console=console)
    text = text_of(console)
    assert "one" in text
    assert "two" in text
    assert text.count("2 of 4 requests finished") == 1
