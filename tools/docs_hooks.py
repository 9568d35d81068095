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


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    return _without_links_outside(markdown, DOCS / page.file.src_uri)


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
