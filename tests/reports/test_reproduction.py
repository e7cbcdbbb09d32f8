"""Rows of published against our values: when they agree, and what the files and the page say of them."""

from __future__ import annotations

import csv
import io
import json

from rich.console import Console

from reports.reproduction import COLUMNS, Findings, Row, as_csv, as_json
from reports.reproduction_page import render_reproduction
from reports.terminal import print_reproduction


def found(*rows: Row, **fields: object) -> Findings:
    return Findings("name", "Title <1>", "a paper", "A setup.", rows, **fields)  # type: ignore[arg-type]


def test_a_share_of_the_published_value_is_allowed_and_the_statistical_error() -> None:
    assert Row.within("q", 10.0, 10.2, 0.02).passed
    assert not Row.within("q", 10.0, 10.21, 0.02).passed
    assert Row.within("q", 10.0, 10.21, 0.02, error=0.02).passed
    assert not Row.within("q", 10.0, 9.7, 0.02, error=0.05).passed


def test_rounded_means_every_digit_that_was_published() -> None:
    assert Row.rounded("q", 6.67, 20 / 3, 2).passed
    assert not Row.rounded("q", 6.67, 6.66, 2).passed


def test_one_sided_relations() -> None:
    assert Row("q", 1.0, 1.5, relation="at least").passed
    assert not Row("q", 1.0, 0.99, relation="at least").passed
    assert Row("q", 1.0, 0.5, relation="at most").passed
    assert not Row("q", 1.0, 1.01, relation="at most").passed


def test_texts_and_counts_must_be_equal() -> None:
    assert Row("q", "[1, 2]", "[1, 2]").verdict == "within tolerance"
    assert Row("q", "[1, 2]", "[1, 3]").verdict == "differs"
    assert Row("q", 8, 10).difference == 2


def test_a_difference_needs_an_explanation() -> None:
    explained, bare = Row("q", 8, 10, explanation="arithmetic"), Row("q", 8, 10)
    assert found(explained).unexplained == []
    assert found(explained, bare).unexplained == [bare]
    assert found(bare, Row("q", 1, 1)).verdict() == "1 of 2 differ"


def test_files_hold_every_row() -> None:
    findings = [found(Row.within("a, b", 10.0, 10.1, 0.02, error=0.5), Row("t", "[1]", "[2]", explanation="why"))]
    rows = list(csv.reader(io.StringIO(as_csv(findings))))
    assert rows[0] == list(COLUMNS)
    assert rows[1] == ["name", "a, b", "10", "10.1", "0.1", "0.2", "0.5", "within tolerance", ""]
    assert rows[2][-2:] == ["differs", "why"]
    data = json.loads(as_json(findings, "bench"))
    assert [row["verdict"] for row in data["experiments"][0]["rows"]] == ["within tolerance", "differs"]


def test_the_page_is_self_contained_and_escapes_what_it_shows() -> None:
    page = render_reproduction(
        [found(Row("x < y", 2.0, 2.0), Row("z", 1.0, 3.0)), found(not_run="no solver", extra=())], "bench --x"
    )
    assert "x &lt; y" in page
    assert "Title &lt;1&gt;" in page
    assert "1 differ, 1 without an explanation" in page
    assert "no solver" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    # the one that sorts tables
    assert page.count("<script") == page.count("<script>") == 1


def test_the_terminal_shows_rows_and_explanations() -> None:
    console = Console(record=True, width=140, file=io.StringIO())
    print_reproduction([found(Row("t = 8", 8, 10, explanation="arithmetic says 10"))], console=console)
    text = console.export_text()
    assert "t = 8: arithmetic says 10" in text
    assert "1 of 1 differ" in text
