"""What the site needs beyond the pages: mkdocs calls these functions, see `hooks` in `mkdocs.yml`.

The pages are read in the repository too, where links may lead to any file; the site has only docs/.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
log = logging.getLogger("mkdocs.hooks.tessera")

_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
# A block without a language that begins with a command.
_COMMANDS = re.compile(
    r'<div class="language-text highlight">'
    r"(?=<pre><span></span><code>(?:\.venv/bin/)?(?:helm|kubectl|make|tessera|curl) )"
)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    return _without_links_outside(markdown, DOCS / page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """The HTML of a page, in which commands wrap and what they print does not."""
    return _COMMANDS.sub('<div class="language-sh highlight">', html)


def _without_links_outside(markdown: str, page: Path) -> str:
    """Links that leave docs/ become the path of their file; they must lead somewhere."""

    def shown(link: re.Match[str]) -> str:
        text, target = link.groups()
        file = Path(os.path.normpath(page.parent / target))
        if file.is_relative_to(DOCS):
            return link[0]
        if not file.exists():
            log.warning("%s: no file %s", page.relative_to(DOCS), target)
        path = f"`{file.relative_to(ROOT)}`"
        return path if text.strip("`") in path else f"{text} ({path})"

    return _LINK.sub(shown, markdown)
