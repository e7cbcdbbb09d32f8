"""What is written for people: pages, their headings and links, and the commands in them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PAGES = tuple(sorted(DOCS.rglob("*.md")))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"`(python [\w/]+\.py[^`]*)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: a file in a document is named by its first line
_NAMED = re.compile(r"# (\w+\.(?:py|yaml))\n")
_SHELLS = ("bash", "sh")

_ARGUMENT_END, _COMMAND_END = "\x1f", "\x1e"
#: bash that finds no program: what would be given to Python is written down instead
_RECORDER = """
PATH=
recorded=$PWD/recorded
python() { printf '%s\\x1f' "$@" >> "$recorded"; printf '\\x1e' >> "$recorded"; }
lockstep() { python bench.py "$@"; }
lockstep-serve() { python api_server.py "$@"; }
"""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """What is outside of blocks of code."""
    return _FENCE.sub("", text)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each block, in order."""
    return _FENCE.findall(text)


def links(text: str) -> list[str]:
    """Targets of links and pictures, those to other sites left out."""
    return [target for target in _LINK.findall(prose(text)) if not re.match(r"\w+:", target)]


def anchors(text: str) -> set[str]:
    """What can follow a ``#``: headings as GitHub makes them, and as ``mkdocs.yml`` asks the site's builder to."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def files(text: str) -> dict[str, str]:
    """The files that a document has, by name."""
    return {found[1]: code for _, code in code_blocks(text) if (found := _NAMED.match(code))}


def commands(text: str, folder: Path) -> Iterator[list[str]]:
    """What the document has given to Python, as bash would: loops, variables and continued lines included.

    ``folder`` is an empty one. Nothing is run, and of equal commands of a block the first is there.
    """
    scripts = [code for language, code in code_blocks(text) if language in _SHELLS]
    scripts += _COMMAND.findall(prose(text))
    recorded = folder / "recorded"
    for script in scripts:
        recorded.unlink(missing_ok=True)
        # a document is no program: what follows it there fails in its own way, and is not looked at
        subprocess.run(["bash", "--norc", "--noprofile", "-c", _RECORDER + script], cwd=folder, capture_output=True)
        if recorded.exists():
            written = recorded.read_text(encoding="utf-8").split(_COMMAND_END)[:-1]
            for command in dict.fromkeys(written):
                yield command.removesuffix(_ARGUMENT_END).split(_ARGUMENT_END)
