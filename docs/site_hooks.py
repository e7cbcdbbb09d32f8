"""What the site does to pages that GitHub shows as they are; called by mkdocs."""

from __future__ import annotations

import re
from typing import Any

from pymdownx.slugs import slugify

#: in a cell of a table GitHub wants a bar in code escaped, and shows it plain; Python-Markdown would show the backslash
_CODE = re.compile(r"`[^`\n]+`")
#: a link out of docs/, to a file that the site does not have
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#\s]+)[^)]*\)")


def on_config(config: Any) -> Any:
    """Anchors of headings as GitHub makes them, so that links hold in both places."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the repository instead of linking them, and unescape bars in code."""
    markdown = _CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)
    return _OUTSIDE.sub(lambda link: link[1] if link[1].strip("`") == link[2] else f"{link[1]} (`{link[2]}`)", markdown)
