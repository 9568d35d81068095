"""Builds the documentation site strictly, or serves it: `python tools/docs.py build|serve`."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from environments import ROOT, environment

SITE = ROOT / "site"
ADDRESS = "127.0.0.1:8100"
_FOREIGN = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*\shref=[\"']?(?:https?:)?//[^\"'\s>]+"
)
"""What a browser would fetch from another host by itself."""


def main() -> None:
    """Exit with 1 on a broken link, a page outside the menu, or anything from another host."""
    parser = argparse.ArgumentParser(prog="docs", description=__doc__)
    parser.add_argument("command", choices=("build", "serve"))
    serving = parser.parse_args().command == "serve"
    mkdocs = [str(environment("docs") / "bin" / "mkdocs")]
    mkdocs += ["serve", "--dev-addr", ADDRESS] if serving else ["build", "--clean"]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*mkdocs, "--strict", "--quiet"], cwd=ROOT, env=quiet, check=False)
    if done.returncode:
        sys.exit(f"docs: mkdocs ended with {done.returncode}")
    pages = sorted(SITE.rglob("*.html"))
    if found := [f"{page.relative_to(SITE)}: {what}" for page in pages for what in foreign(page)]:
        sys.exit("docs: fetched from other hosts:\n" + "\n".join(found))
    print(f"docs: {len(pages)} pages in {SITE}, no broken link, nothing from other hosts")


def foreign(page: Path) -> list[str]:
    """Tags of a page that make a browser ask another host."""
    return _FOREIGN.findall(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
