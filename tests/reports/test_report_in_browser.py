"""The report in a real browser: light and dark, on a desk and on a phone, with and without scripts."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, Tab
from simulated_runs import simulated_run

from reports.agreement import agree
from reports.html import write_report
from reports.run_folder import load_run
from reports.salvage import salvage_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

H100 = Path(__file__).parents[2] / "benchmarks" / "validation" / "h100-2026-11-27.tar.xz"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
DRAWN = "document.documentElement.dataset.charts === 'drawn'"
#: light grounds are near 1, dark ones near 0
GROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 765"
INK_ON_CANVAS = """(() => {
    const canvas = document.querySelector(".lanes canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] > 200) colours.add(pixels.slice(i, i + 3).join());
    return colours.size;
})()"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with Tab() as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, of two policies each beside a slower run that stands for the real one, of a simulation of
    20,000 requests, and of the runs of an H100 that are kept in the repository."""
    top = tmp_path_factory.mktemp("pages")
    short = {"layout": "paged", "max_running": 16, "kv_tokens": 320}
    one = simulated_run(top / "one", 60, journal=True, policy="fcfs", **short)
    pairs = []
    for policy in ("fcfs", "sjf-bucket"):
        real = simulated_run(top / f"real-{policy}", 40, slower=2, policy=policy, layout="padded")
        pairs.append(agree(real, simulated_run(top / f"sim-{policy}", 40, policy=policy, layout="padded")))
    write_report(top / "one.html", [one])
    write_report(top / "pairs.html", [], pairs)
    large = simulated_run(top / "large", 20_000, gap_ns=2_000_000, policy="sjf-bucket", layout="paged", max_running=64)
    write_report(top / "large.html", [large])
    with tarfile.open(H100) as archive:
        archive.extractall(top / "h100", filter="data")
    write_report(top / "h100.html", [salvage_run(folder) for folder in sorted((top / "h100").glob("*/*/*/real-1"))])
    return {name: top / f"{name}.html" for name in ("one", "pairs", "large", "h100")}


def opened(tab: Tab, page: Path, width: int = 1280, dark: bool = False) -> None:
    tab.problems.clear()
    tab.requests.clear()
    tab.look(width, 900, dark=dark)
    tab.open(page.as_uri())
    tab.wait(f"document.readyState === 'complete' && {DRAWN}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["one", "pairs", "large", "h100"])
def test_the_page_is_drawn_without_a_word_to_anybody(
    name: str, width: int, dark: bool, tab: Tab, pages: dict[str, Path]
) -> None:
    opened(tab, pages[name], width, dark)
    assert tab.problems == []
    assert tab.requests == [pages[name].as_uri()]
    assert tab.value(OVERFLOW) == 0
    assert (tab.value(GROUND) < 0.3) == dark
    charts = tab.value("[...document.querySelectorAll('[data-vega]')].map(card => [card.dataset.vega, "
                       "card.querySelectorAll('.drawn svg path, .drawn svg line').length, "
                       "getComputedStyle(card.querySelector('.still')).display])")  # fmt: skip
    assert [kind for kind, _, _ in charts] == ["cdf", "cdf", "cdf", "spots"]
    assert all(marks > 10 and still == "none" for _, marks, still in charts)
    # the axes and the states of requests, blended at most with their neighbours
    assert tab.value(INK_ON_CANVAS) > 4
    assert tab.value("[...document.querySelectorAll('.still svg, .card > svg')].length") > 3


def test_of_many_requests_a_sample_is_shown(tab: Tab, pages: dict[str, Path]) -> None:
    assert pages["large"].stat().st_size < 2_000_000
    opened(tab, pages["large"])
    assert tab.value("document.querySelector('.lanes').dataset.shown") == "2000"
    assert tab.value("document.body.textContent.includes('2,000 of 20,000 requests are shown')")
    # the longest of all are among them
    run = "JSON.parse(document.querySelector('.lanes script').textContent)[0]"
    longest = tab.value(f"Math.max(...{run}.requests.map(one => one[9].reduce((a, b) => a + b)))")
    unit_s = tab.value(f"{run}.unit_s")
    slowest_ms = load_run(pages["large"].with_suffix("")).summary["e2e_ms"]["max"]
    # each of seven times is cut to whole units
    assert longest * unit_s == pytest.approx(slowest_ms / 1000, abs=7 * unit_s)


def test_every_colour_of_an_interactive_chart_is_one_of_the_page(tab: Tab, pages: dict[str, Path]) -> None:
    used = {}
    for dark in (False, True):
        opened(tab, pages["pairs"], dark=dark)
        used[dark] = tab.value("getComputedStyle(document.querySelector('.drawn svg .mark-line path')).stroke")
        assert used[dark] == tab.value("getComputedStyle(document.querySelector('.dot.series-1')).backgroundColor")
    assert used[False] != used[True]


def test_lanes_are_filtered_by_length(tab: Tab, pages: dict[str, Path]) -> None:
    opened(tab, pages["one"])

    def shown() -> int:
        return int(tab.value("document.querySelector('.lanes').dataset.shown"))

    def fill(control: str, value: object) -> None:
        tab.value(f"""(() => {{
            const field = document.querySelector("[data-control={control}]");
            field.value = "{value}";
            field.dispatchEvent(new Event("input"));
        }})()""")

    inputs = tab.value("JSON.parse(document.querySelector('.lanes script').textContent)[0].requests.map(one => one[1])")
    assert shown() == len(inputs) == 60
    fill("input-least", 50)
    assert shown() == sum(tokens >= 50 for tokens in inputs) < 60
    fill("input-most", 70)
    assert shown() == sum(50 <= tokens <= 70 for tokens in inputs) > 0
    fill("output-least", 1000)
    assert shown() == 0
    for control in ("input-least", "input-most", "output-least"):
        fill(control, "")
    assert shown() == 60


def test_lanes_zoom_and_tell_the_story_of_a_request(tab: Tab, pages: dict[str, Path]) -> None:
    opened(tab, pages["one"])
    whole = tab.value("Number(document.querySelector('.lanes').dataset.shown)")
    tab.value("document.querySelector('.lanes canvas').scrollIntoView({block: 'center'})")
    box = tab.value(
        "(({x, y, width}) => ({x, y, width}))(document.querySelector('.lanes canvas').getBoundingClientRect())"
    )
    point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 150}
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", **point)
    tip = tab.value("(tip => tip.hidden ? '' : tip.textContent)(document.querySelector('.lanes .tip'))")
    assert "tokens in" in tip
    assert "E2E" in tip
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)
    story = tab.value("document.querySelector('.story').textContent")
    assert story.split(":")[0] == tip.split(":")[0]
    # the keyboard goes on from there
    tab.value("document.querySelector('.lanes canvas').focus()")
    key(tab, "ArrowDown")
    assert tab.value("document.querySelector('.story').textContent") != story
    for _ in range(4):
        key(tab, "+")
    zoomed = tab.value("Number(document.querySelector('.lanes').dataset.shown)")
    assert 0 < zoomed < whole
    # those that were only queued all the while can be left out
    tab.value("document.querySelector('[data-control=admitted]').click()")
    assert 0 < tab.value("Number(document.querySelector('.lanes').dataset.shown)") < zoomed
    tab.value("document.querySelector('[data-control=admitted]').click()")
    tab.value("document.querySelector('.lanes canvas').focus()")
    key(tab, "Home")
    assert tab.value("Number(document.querySelector('.lanes').dataset.shown)") == whole
    # some request lost its memory, and its story says so
    tab.value("document.querySelector('.lanes canvas').focus()")
    stories = []
    for _ in range(whole):
        key(tab, "ArrowUp")
    for _ in range(whole):
        key(tab, "ArrowDown")
        stories.append(tab.value("document.querySelector('.story').textContent"))
    assert len(set(stories)) > whole - 3
    assert any("preempted" in text and "computed again" in text for text in stories)
    assert any("while others were prefilled" in text for text in stories)


def key(tab: Tab, name: str) -> None:
    text = {"text": name} if len(name) == 1 else {}
    tab.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
    tab.call("Input.dispatchKeyEvent", type="keyUp", key=name)


def test_another_run_and_another_view_can_be_chosen(tab: Tab, pages: dict[str, Path]) -> None:
    opened(tab, pages["pairs"])

    def image() -> Any:
        return tab.value("document.querySelector('.lanes canvas').toDataURL()")

    seen = {image()}
    for control, value in (("view", "lengths"), ("run", "2"), ("view", "lanes"), ("order", "e2e")):
        tab.value(f"""(() => {{
            const field = document.querySelector("[data-control={control}]");
            field.value = "{value}";
            field.dispatchEvent(new Event("input"));
            field.dispatchEvent(new Event("change"));
        }})()""")
        seen.add(image())
    assert len(seen) == 5
    before = tab.value("document.querySelector('[data-vega=spots] .drawn').innerHTML")
    tab.value("""(() => {
        const field = document.querySelector("[data-vega=spots] select");
        field.value = [...field.options].at(-1).value;
        field.dispatchEvent(new Event("change"));
    })()""")
    tab.wait("document.querySelector('[data-vega=spots] .drawn svg') && "
             "document.querySelector('[data-vega=spots] .drawn').textContent.includes('TPOT')")  # fmt: skip
    assert tab.value("document.querySelector('[data-vega=spots] .drawn').innerHTML") != before
    assert tab.problems == []


def test_a_drag_zooms_into_a_chart_and_a_double_click_shows_all(tab: Tab, pages: dict[str, Path]) -> None:
    opened(tab, pages["pairs"])
    tab.value("document.querySelector('[data-vega=cdf]').scrollIntoView({block: 'center'})")
    box = tab.value("document.querySelector('[data-vega=cdf] .drawn svg').getBoundingClientRect().toJSON()")
    line = "document.querySelector('[data-vega=cdf] .drawn .mark-line path').getAttribute('d')"
    whole = tab.value(line)
    y = box["y"] + box["height"] / 2
    for kind, share in (("mousePressed", 0.4), ("mouseMoved", 0.5), ("mouseMoved", 0.7), ("mouseReleased", 0.7)):
        x = box["x"] + share * box["width"]
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    tab.wait(f"{line} !== {json.dumps(whole)}")
    for clicks in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=clicks)
    tab.wait(f"{line} === {json.dumps(whole)}")
    # the pointer is told what it is at
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - 9, y=y)
    tab.wait("[...document.querySelectorAll('.drawn .tip')].some(tip => !tip.hidden && "
             "tip.textContent.includes('% of requests: at most'))")  # fmt: skip
    assert tab.problems == []


def test_tables_sort_by_value_and_keep_a_run_with_its_twin(tab: Tab, pages: dict[str, Path]) -> None:
    opened(tab, pages["pairs"])
    table = "document.querySelector('table')"

    def column() -> list[str]:
        return list(tab.value(f"[...{table}.tBodies[0].rows].map(row => row.cells[1].textContent)"))

    def values(cells: list[str]) -> list[float]:
        return [float(text.split()[0].replace(",", "")) for text in cells]

    for direction in ("descending", "ascending"):
        tab.value(f"{table}.tHead.rows[0].cells[1].querySelector('button').click()")
        assert tab.value(f"{table}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == direction
        leading = values(column())[::2]
        assert leading == sorted(leading, reverse=direction == "descending")
        assert len(set(leading)) == 2
        twins = tab.value(f"[...{table}.tBodies[0].rows].map(row => row.classList.contains('twin'))")
        assert twins == [False, True, False, True]
    # units are seen through: seconds among milliseconds
    order = tab.value("""(() => {
        const body = document.querySelector("table").tBodies[0];
        const rows = ["2.5 s", "900 ms", "–", "1,100 ms"].map((text) => {
            const row = body.insertRow();
            for (let i = 0; i < 3; i++) row.insertCell().textContent = "0";
            row.cells[2].textContent = text;
            row.cells[2].className = "number";
            return row;
        });
        for (const row of [...body.rows]) if (!rows.includes(row)) row.remove();
        const head = document.querySelector("table").tHead.rows[0].cells[2];
        head.querySelector("button").click();
        return rows.map((row) => row.rowIndex);
    })()""")
    assert order == [1, 3, 4, 2]


def test_without_scripts_the_still_charts_are_there(tab: Tab, pages: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "plain.html"
    page.write_text(re.sub(r"<script>.*?</script>", "", pages["one"].read_text(), flags=re.DOTALL))
    tab.look(1280, 900)
    tab.open(page.as_uri())
    tab.wait("document.readyState === 'complete' && document.title")
    heights = tab.value("[...document.querySelectorAll('.still')].map(still => still.offsetHeight)")
    assert len(heights) == 5
    assert min(heights) > 100
    shown = tab.value("[...document.querySelectorAll('.scripted')].map(part => part.offsetHeight)")
    assert shown
    assert not any(shown)


def test_the_page_has_what_a_screen_reader_needs(tab: Tab, pages: dict[str, Path]) -> None:
    for page in pages.values():
        opened(tab, page)
        assert tab.value("document.documentElement.lang") == "en"
        assert tab.value("document.querySelectorAll('main, h1').length") == 2
        unnamed = tab.value("""[...document.querySelectorAll("svg[role=img], canvas, button, select, input")]
            .filter((one) => !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim()))
            .map((one) => one.outerHTML.slice(0, 80))""")
        assert unnamed == []
        # headings go down a level at a time
        levels = tab.value("[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert tab.value("[...document.querySelectorAll('table thead th')].every(th => th.scope === 'col')")


def test_it_prints_without_its_controls(tab: Tab, pages: dict[str, Path]) -> None:
    opened(tab, pages["one"])
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = tab.value(
            "[...document.querySelectorAll('.controls, .copy, .skip')].map(one => getComputedStyle(one).display)"
        )
        assert shown
        assert set(shown) == {"none"}
        # what a dark screen shows in light ink is printed in dark ink, on white
        tab.call(
            "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
        )
        ink = tab.value("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
        assert max(ink) < 80
        assert tab.value(GROUND) == 1
        tab.value("window.dispatchEvent(new Event('beforeprint'))")
        assert tab.value("document.querySelectorAll('details:not([open])').length") == 0
        tab.value("window.dispatchEvent(new Event('afterprint'))")
        assert tab.value("document.querySelectorAll('details:not([open])').length") > 0
        assert len(tab.call("Page.printToPDF", printBackground=True)["data"]) > 50_000
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")
