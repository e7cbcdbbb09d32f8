"""The pieces that pages are made of: sections, tables and their cells, and the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template


def chip(text: str, kind: str) -> str:
    """A word on a ground: ``good``, ``note``, ``bad`` or ``plain``."""
    return f'<span class="chip {kind}">{escape(text)}</span>'


def section(heading: str, lead: str, content: str) -> str:
    """A heading, a sentence, and markup."""
    return f'<section>\n<h2>{escape(heading)}</h2>\n<p class="lead">{escape(lead)}</p>\n{content}\n</section>'


def table(head: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    """A table in a card that scrolls sideways where it must; ``head``: text and class of each column."""
    cells = "".join(f'<th scope="col" class="{kind}">{escape(text)}</th>' for text, kind in head)
    body = "\n".join(rows)
    return (
        f'<div class="card scroll"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def row(name: str, cells: Sequence[str], kind: str = "") -> str:
    """A row of a table; ``name`` and ``cells`` are markup."""
    return f'<tr class="{kind}"><th scope="row" class="first">{name}</th>{"".join(cells)}</tr>'


def number_cell(text: str, detail: str = "", kind: str = "") -> str:
    """A cell with a number, and something small below it."""
    below = f'<span class="interval">{escape(detail)}</span>' if detail else ""
    return f'<td class="number {kind}">{escape(text)}{below}</td>'


def page(title: str, sections: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """The whole self-contained page; empty sections are left out.

    Every page has the script that sorts its tables; ``scripts`` names others of ``reports/assets``, without ``.js``.
    """
    folder = files("reports")
    template = Template(folder.joinpath("template.html").read_text(encoding="utf-8"))
    style = folder.joinpath("report.css").read_text(encoding="utf-8")
    body = '<main id="main">\n' + "\n".join(filter(None, sections)) + "\n</main>"
    # each in a scope of its own
    script = "\n".join(f"{{\n{asset(f'{name}.js')}}}" for name in ("page", *scripts))
    return template.substitute(title=escape(title), style=style, body=body, script=script)


def asset(name: str) -> str:
    """The text of a file of ``reports/assets``."""
    return files("reports").joinpath("assets", name).read_text(encoding="utf-8")
