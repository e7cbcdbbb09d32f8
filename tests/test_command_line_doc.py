"""``docs/command-line.md``: its tables are those of the two parsers.

After a change of a flag: ``PYTHONPATH=. python tests/test_command_line_doc.py``, then read the difference.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from documents import DOCS, PAGES, READMES, prose

from core.arguments import FLAGS_OF_MODE, build_parser
from serving.arguments import build_parser as build_server_parser

FILE = DOCS / "command-line.md"
ANY_MODE = ("help", "mode", "list")
#: flags of other programs: Ray Serve's script, the one that writes manifests, benchmarks, aiperf
OTHERS = {"--replica-cpus", "--replica-gpus", "--ray-address", "--also-queued", "--first-token", "--pause-ms",
          "--use-server-token-count"}  # fmt: skip


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def named(action: argparse.Action) -> str:
    """A flag with its value, and its other names."""
    names = action.option_strings or [str(action.metavar)]
    value = f" {action.metavar}" if action.option_strings and action.nargs != 0 else ""
    return ", ".join(f"`{cell(name + value)}`" for name in names if name != "-h")


def modes(action: argparse.Action) -> str:
    taking = [mode for mode, flags in FLAGS_OF_MODE.items() if action.dest in flags]
    return "all" if action.dest in ANY_MODE or taking == list(FLAGS_OF_MODE) else ", ".join(taking)


def groups(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Titles with what belongs to them; what has no title goes first."""
    first = [*parser._positionals._group_actions, *parser._optionals._group_actions]
    yield "", first
    for group in parser._action_groups:
        if group not in (parser._positionals, parser._optionals):
            title = re.sub(r" \(.*\)$", "", group.title or "")
            yield title[:1].upper() + title[1:], group._group_actions


def bench_tables() -> str:
    parts = []
    for title, actions in groups(build_parser()):
        rows = [f"| {named(action)} | {cell(action.help or '')} | {modes(action)} |" for action in actions]
        parts.append(
            "\n".join([*([f"### {title}", ""] if title else []), "| flag | | modes |", "|---|---|---|", *rows])
        )
    return "\n\n".join(parts)


def server_table() -> str:
    """What the server has and ``bench.py`` has not."""
    shared = {name for action in build_parser()._actions for name in action.option_strings}
    actions = [action for _, of_group in groups(build_server_parser()) for action in of_group]
    rows = [
        f"| {named(action)} | {cell(action.help or '')} |"
        for action in actions
        if not shared.issuperset(action.option_strings)
    ]
    return "\n".join(["| flag | |", "|---|---|", *rows])


def filled(text: str) -> str:
    """``text`` with its generated parts made again."""
    for name, made in (("bench", bench_tables()), ("server", server_table())):
        marked = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        assert re.search(marked, text, re.DOTALL), f"docs/command-line.md has no part {name}"
        text = re.sub(marked, lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text, flags=re.DOTALL)
    return text


def test_the_tables_are_those_of_the_parsers() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert text == filled(text), "see this module's docstring"


def test_every_flag_that_a_page_names_is_one() -> None:
    """Outside of blocks of code, which are parsed as commands. The first cells of pages for those who come from another
    program are that program's."""
    ours = {
        name for build in (build_parser, build_server_parser) for action in build()._actions
        for name in action.option_strings
    }  # fmt: skip
    for page in (*READMES, *PAGES):
        for line in prose(page.read_text(encoding="utf-8")).splitlines():
            cells = line.split(" | ")
            theirs = page.stem.startswith("from-") and len(cells) > 1
            for flag in re.findall(r"(?<=`)--[a-z][\w-]*", " | ".join(cells[1:]) if theirs else line):
                assert flag in ours or flag in OTHERS, f"{page.name}: {flag}"


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text(encoding="utf-8")), encoding="utf-8")
