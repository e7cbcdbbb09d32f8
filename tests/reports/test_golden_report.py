"""The summary and the report of a fixed run, kept in ``golden/``. Charts differ between versions of matplotlib, so that
only their places are compared.

After a change that is meant: ``PYTHONPATH=. python tests/reports/test_golden_report.py``, then read the difference.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from handmade_runs import every_part, four_requests

from reports.agreement import agree
from reports.comparison import compare
from reports.html import render_report
from reports.slo import Slo
from scheduler.config import SchedulerConfig

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = {
    "mode": "real",
    "label": "fcfs on padded",
    "command": "python bench.py --mode real --policy fcfs",
    "started_at": "2026-01-02T03:04:05Z",
    "workload": "four requests <by hand>",
    "seed": 7,
    "config": {"policy": "fcfs", "layout": "padded", "max_running": 16},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "hardware": {"device": "CPU, 2 cores"},
    "git_commit": "0123abc",
    "sha256": {"workload": "ab" * 32},
}


def produce(folder: Path) -> dict[str, str]:
    """The golden files by name, with neither charts nor paths of this machine."""
    slo = Slo.parse("ttft_ms=120")
    real = four_requests(folder / "real", MANIFEST).close(slo=slo)
    twin = four_requests(folder / "sim", {**MANIFEST, "mode": "sim"}, slower=2).close(slo=slo, report=False)
    config = SchedulerConfig(phase="mixed", chunk_tokens=64, preemption="swap", prefix_cache=True, overlap=True)
    manifest = {**MANIFEST, "label": "fcfs in all parts", "config": config.as_dict()}
    parts = every_part(folder / "parts", manifest).close()
    texts = {
        "summary.json": (folder / "real" / "summary.json").read_text(encoding="utf-8"),
        "report.html": (folder / "real" / "report.html").read_text(encoding="utf-8"),
        "pair.html": render_report([real, twin], [agree(real, twin, replayed=True)], "Real and simulated"),
        "parts.json": (folder / "parts" / "summary.json").read_text(encoding="utf-8"),
        "compared.html": render_report([real, parts], title="Two runs compared", comparison=compare(real, parts)),
    }
    return {name: normal(text, folder) for name, text in texts.items()}


def normal(text: str, folder: Path) -> str:
    charts = re.sub(r'<svg .*?aria-label="([^"]*)".*?</svg>', r"[chart: \1]", text, flags=re.DOTALL)
    # scripts are read where they are; what they are given is compared
    charts = re.sub(r"<script>.*?</script>", "<script></script>", charts, flags=re.DOTALL)
    charts = re.sub(r'(<script[^>]* id="vega">).*?</script>', r"\1</script>", charts)
    charts = re.sub(r"<!--.*?-->\n", "", charts, flags=re.DOTALL)
    style = re.sub(r"<style>.*?</style>", "<style></style>", charts, flags=re.DOTALL)
    return style.replace(str(folder), "FOLDER")


def test_summary_and_reports_are_those_of_the_golden_files(tmp_path: Path) -> None:
    for name, text in produce(tmp_path).items():
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), f"{name} differs; see this module's docstring"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for file_name, content in produce(Path(temporary)).items():
            (GOLDEN / file_name).write_text(content, encoding="utf-8")
