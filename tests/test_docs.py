"""The pages, the READMEs and the site: links and commands that a reader would follow are right."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import yaml
from documents import DOCS, PAGES, READMES, ROOT, anchors, code_blocks, commands, files, links, name_of, prose

from core.arguments import parse_arguments
from scheduler.model_shapes import MODEL_SHAPES
from serving.arguments import parse_command
from simulator import profiles
from simulator.gpus import GPUS
from workloads.presets import PRESETS

WRITTEN = (*READMES, *PAGES)
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_in(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    assert isinstance(below, list | type({}.values()))
    return [page for part in below for page in pages_in(part)]


def test_the_site_has_every_page_once() -> None:
    assert sorted(pages_in(SITE["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: no {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name_of(page)}: no heading for {link}"


def test_a_page_of_the_site_is_linked_as_a_page() -> None:
    """``docs/x.md`` in code is a link that the site cannot follow."""
    for page in PAGES:
        assert not re.search(r"`docs/[\w-]+\.md`", page.read_text(encoding="utf-8")), name_of(page)


def test_no_page_is_without_a_title() -> None:
    for page in PAGES:
        assert page.read_text(encoding="utf-8").startswith("# "), name_of(page)


# -- commands


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_command_is_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    given = list(commands(text, tmp_path))
    for name, content in files(text).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for program, *argv in given:
        assert (ROOT / program).is_file() or (tmp_path / program).is_file(), f"{name_of(page)}: no {program}"
        if argv == ["--help"]:
            continue
        if program == "bench.py":
            assert_names_exist(parse_arguments(without_config(argv)))
        elif program == "api_server.py":
            settings = parse_command(without_config(argv), {}).settings.engine
            assert settings.emulate is None or settings.emulate in profiles.profile_names()


def without_config(argv: list[str]) -> list[str]:
    """What is in the reader's own file cannot be known, unless the page says it."""
    if "--config" not in argv or Path(argv[argv.index("--config") + 1]).is_file():
        return argv
    at = argv.index("--config")
    return argv[:at] + argv[at + 2 :]


def assert_names_exist(args: argparse.Namespace) -> None:
    """Names of presets, costs and shapes are those of the program; whatever looks like a file is the reader's."""
    if args.mode == "sim" and not args.list:
        assert args.costs or args.replica_costs
    if args.workload and "." not in args.workload and args.workload.upper() != args.workload:
        assert args.workload in PRESETS
    for costs in [*([args.costs] if args.costs else []), *(args.replica_costs or [])]:
        assert_costs_exist(costs)
    if args.model and args.model.startswith("shape:"):
        assert args.model.removeprefix("shape:") in MODEL_SHAPES


def assert_costs_exist(costs: str) -> None:
    if costs.startswith("roofline:"):
        _, gpu, shape = costs.split(":")
        assert (gpu, shape) == ("GPU", "MODEL") or (gpu in GPUS and shape in MODEL_SHAPES), costs
    elif costs.startswith("project:"):
        _, profile, gpu, *shape = costs.split(":")
        assert gpu in GPUS, costs
        assert all(name in MODEL_SHAPES for name in shape), costs
        assert_costs_exist(profile)
    elif "/" not in costs and "." not in costs and costs.upper() != costs:
        assert costs in profiles.profile_names(), costs


def test_commands_are_found_as_bash_finds_them(tmp_path: Path) -> None:
    page = "\n".join(
        [
            "In prose: `python bench.py --list gpus`.",
            "```bash",
            'run="python bench.py --mode sim"   # a variable',
            "for seed in 0 1; do",
            "  $run --seed $seed \\",
            "      --out 'a b'",
            "done",
            "cat > x.yaml <<END",
            "python bench.py --not a command",
            "END",
            "curl http://x && python api_server.py | less",
            "```",
            "```python",
            "python = 1",
            "```",
        ]
    )
    assert list(commands(page, tmp_path)) == [
        ["bench.py", "--mode", "sim", "--seed", "0", "--out", "a b"],
        ["bench.py", "--mode", "sim", "--seed", "1", "--out", "a b"],
        ["bench.py", "--list", "gpus"],
    ]


# -- the README in two languages

ENGLISH, CHINESE = (page.read_text(encoding="utf-8") for page in READMES)


def without_comments(code: str) -> list[str]:
    return [stripped for line in code.splitlines() if (stripped := re.sub(r"(^|\s+)# .*$", "", line).strip())]


def cells(text: str) -> list[list[list[str]]]:
    """The figures in each cell of each row of a table, rows of dashes left out."""
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[re.findall(r"\d[\d,.]*\d|\d", cell) for cell in row.strip("|").split("|")] for row in rows]


def test_both_readmes_have_the_same_headings() -> None:
    marks = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert marks[0] == marks[1]


def test_both_readmes_have_the_same_code() -> None:
    english, chinese = (
        [(language, without_comments(code)) for language, code in code_blocks(text)] for text in (ENGLISH, CHINESE)
    )
    assert english == chinese


def test_both_readmes_name_the_same_commands_and_settings() -> None:
    english, chinese = (sorted(re.findall("`([^`]+)`", prose(text))) for text in (ENGLISH, CHINESE))
    assert english == chinese


def test_both_readmes_have_the_same_figures_in_their_tables() -> None:
    english, chinese = cells(ENGLISH), cells(CHINESE)
    assert len(english) == len(chinese)
    for here, there in zip(english, chinese, strict=True):
        assert [sorted(cell) for cell in here] == [sorted(cell) for cell in there]


def test_both_readmes_lead_to_the_same_pages() -> None:
    """Each to the other, and otherwise the same ones, in any order."""
    english, chinese = (set(links(text)) for text in (ENGLISH, CHINESE))
    assert english - {"README.zh.md"} == chinese - {"README.md"}
    assert "README.zh.md" in english
    assert "README.md" in chinese
