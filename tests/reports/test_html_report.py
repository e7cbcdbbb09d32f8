from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade_runs import HandMade, every_part, four_requests
from simulated_runs import simulated_run

from reports.agreement import agree
from reports.charts import PANELS, Series, cdf_chart, timeline_chart, timeline_of
from reports.comparison import compare
from reports.html import render_report
from reports.run import Run
from reports.run_folder import load_run
from scheduler.config import SchedulerConfig

VOID = {"input", "meta", "br", "link", "use", "path", "rect"}


class Structure(HTMLParser):
    """Checks that tags are closed in order, and collects ids and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    return structure


@pytest.fixture
def real(tmp_path: Path) -> Run:
    return four_requests(tmp_path / "real", {"label": "fcfs on padded", "world": "real"}).close(report=False)


@pytest.fixture
def twin(tmp_path: Path) -> Run:
    return four_requests(tmp_path / "sim", {"label": "fcfs on padded", "world": "sim"}, 2).close(report=False)


def pages(real: Run, twin: Run) -> list[str]:
    return [
        render_report([real]),
        render_report([real, twin], [agree(real, twin, replayed=False)]),
        render_report([real, twin], comparison=compare(real, twin)),
    ]


def test_page_is_well_formed_with_ids_of_its_own(real: Run, twin: Run) -> None:
    for page in pages(real, twin):
        ids = parsed(page).ids
        assert ids
        assert len(ids) == len(set(ids))


def test_page_needs_no_network(real: Run, twin: Run) -> None:
    """All that it needs it carries: neither markup nor scripts name another place."""
    for page in pages(real, twin):
        without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
        # Vega, packed: who asks whom is seen in a browser
        without_names = re.sub(r'(?<=id="vega">)[^<]*', "", without_names)
        assert not re.search(r"(https?:)?//\w", without_names)
        assert "@import" not in page
        structure = parsed(page)
        assert not structure.tags & {"link", "iframe", "img", "object", "embed"}
        assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts)\b", page)
        assert all(address.startswith("#") for address in structure.addresses)


def test_the_same_runs_give_the_same_bytes(real: Run, twin: Run) -> None:
    assert pages(real, twin) == pages(real, twin)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\"'$title"
    manifest = {
        "label": evil, "name": evil, "command": evil, "workload": evil, "model": evil, "started_at": evil,
        "hardware": evil, "git_commit": evil, "config": {evil: evil}, "versions": {"<b>": [evil]}, "world": evil,
    }  # fmt: skip
    runs = [four_requests(tmp_path / str(i), manifest).close(report=False) for i in range(2)]
    for page in (
        render_report(runs[:1], title=evil, command=evil),
        render_report(runs, [agree(runs[0], runs[1])]),
        render_report(runs, comparison=compare(runs[0], runs[1])),
    ):
        structure = parsed(page)
        assert "b" not in structure.tags
        assert "<script>alert" not in page
        assert "$title" in page


def test_a_simulated_twin_that_was_not_named_is_added_once(real: Run, twin: Run) -> None:
    agreement = agree(real, twin)
    assert render_report([real], [agreement]) == render_report([real, twin], [agreement])
    assert render_report([], [agreement]) == render_report([real], [agreement])


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        render_report([])


def test_a_page_is_at_most_two_megabytes_whatever_is_on_it(tmp_path: Path) -> None:
    """Many runs, repeats among them, of many requests each; and each beside a twin."""
    policies = ("fcfs", "sjf", "sjf-bucket", "srpt", "hrrn", "las")
    runs = [
        simulated_run(tmp_path / f"{policy}-{seed}", 150, seed=seed, policy=policy, layout="padded")
        for seed in range(4)
        for policy in policies
    ]
    page = render_report(runs)
    assert len(page.encode()) < 2_000_000
    assert "Drawn: one run of each group of repeats, 6 of 24 runs." in page
    pairs = [agree(run, other) for run, other in zip(runs[::2], runs[1::2], strict=True)]
    page = render_report(runs, pairs)
    assert len(page.encode()) < 2_000_000


def test_a_killed_run_says_that_it_is_partial(tmp_path: Path) -> None:
    four_requests(tmp_path / "run").writer.flush()
    page = render_report([load_run(tmp_path / "run")])
    parsed(page)
    assert "Partial run." in page
    assert "the run did not end, and no row holds it" in page


def test_an_empty_run_still_has_a_report(tmp_path: Path) -> None:
    run = HandMade(tmp_path / "run").close(report=False)
    page = render_report([run])
    parsed(page)
    assert "Nothing served." in page
    assert "not available: no request finished" in page


def test_many_runs_use_the_colours_again_with_other_dashes(tmp_path: Path) -> None:
    runs = [four_requests(tmp_path / str(i), {"name": f"run {i}"}).close(report=False) for i in range(10)]
    page = render_report(runs)
    parsed(page)
    assert 'class="key dotted series-1"' in page
    assert "series-9" not in page


PARTS_ONLY = ("Mixed steps", "Swapped tokens", "Wasted rows", "Prefix hits")


def test_parts_are_shown_where_they_occur(tmp_path: Path) -> None:
    plain, parts = four_requests(tmp_path / "a").close(report=False), every_part(tmp_path / "b").close(report=False)
    for title in PARTS_ONLY:
        assert title not in render_report([plain]), title
        assert title in render_report([parts]), title
        assert title in render_report([plain, parts]), title
    assert "KV utilisation by time" in render_report([plain])


def test_settings_in_force_are_listed(tmp_path: Path) -> None:
    mixed = SchedulerConfig(phase="mixed", chunk_tokens=64, kv_tokens=4096)
    run = four_requests(tmp_path / "a", {"config": mixed.as_dict()}).close(report=False)
    page = render_report([run])
    assert "<dd>mixed (64 tokens a step): prompts are computed in chunks" in page
    assert "paged, 4,096 tokens, blocks of 16" in page
    assert "<dt>Oracle</dt>" not in page
    other = four_requests(tmp_path / "b", {"config": SchedulerConfig("srpt").as_dict()}).close(report=False)
    page = render_report([run, other])
    assert "<td>srpt, quantum 32</td>" in page
    # what is the same for both stands once
    assert page.count("iteration: the batch is chosen anew") == 1


def test_equal_and_differing_counters_are_told_in_words(real: Run, tmp_path: Path) -> None:
    other = four_requests(tmp_path / "other", {"world": "sim"})
    other.step(2, 300, [301])
    page = render_report([real], [agree(real, other.close(report=False))])
    assert ">differ</span>" in page
    assert "3 → 4" in page
    assert ">equal</span>" in page


def test_charts_have_no_date_and_take_their_colours_from_the_page(real: Run) -> None:
    series = [Series(real, "a < b", 0, False)]
    line = timeline_of(real)
    assert line is not None
    charts = [
        cdf_chart("cdf", "TTFT", "ttft_ms", series),
        timeline_chart("t", [(series[0], line)], list(PANELS), [line]),
    ]
    for chart in charts:
        assert chart is not None
        assert "var(--series-1)" in chart
        assert "a &lt; b" in chart
        assert not re.search(r"<metadata|dc:date|#a[12]000\d|DejaVu", chart)


def test_a_latency_that_nobody_has_gets_no_chart(tmp_path: Path) -> None:
    run = HandMade(tmp_path / "run").close(report=False)
    assert cdf_chart("cdf", "TTFT", "ttft_ms", [Series(run, "x", 0, False)]) is None


def test_over_time_amounts_to_the_totals(real: Run) -> None:
    line = timeline_of(real, pieces=30)
    assert line is not None
    assert line.edges_s[[0, -1]].tolist() == [0, 0.3]
    # prefill until 100 ms with 1/8 padding, then two decode rows; 1/9 of their columns is padding, then 1/10
    assert line.padding[:10] == pytest.approx([1 / 8] * 10)
    assert line.rows[10:] == pytest.approx([2] * 20)
    assert line.waiting.max() >= 1
    assert (line.running[:-1] >= 1).all()
    assert line.running[-1] + line.waiting[-1] == 0
