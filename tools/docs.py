"""Builds the documentation site strictly, or serves it: `python tools/docs.py build|serve`."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from environments import ROOT, environment

ADDRESS = "127.0.0.1:8100"
# What a browser would fetch from another host by itself.
_FOREIGN = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*\shref=[\"']?(?:https?:)?//[^\"'\s>]+"
)


def main() -> None:
    """Exit with 1 on a broken link, a page outside the menu, or anything from another host."""
    parser = argparse.ArgumentParser(prog="docs", description=__doc__)
    parser.add_argument("command", choices=("build", "serve"))
    if parser.parse_args().command == "serve":
        sys.exit(_mkdocs(ROOT, "serve", "--dev-addr", ADDRESS).returncode)
    if faults := build(ROOT):
        sys.exit(f"docs: {faults}")
    print("docs: site/ is built, no broken link, nothing from other hosts")


def build(root: Path) -> str:
    """Build the site of a copy of the repository; what is wrong with it, or nothing."""
    done = _mkdocs(root, "build", "--clean", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        # mkdocs counts warnings only where it may print them, so it may always print.
        return f"mkdocs ended with {done.returncode}:\n{done.stdout.decode()}"
    site = root / "site"
    tags = [
        f"{page.relative_to(site)}: {tag}"
        for page in sorted(site.rglob("*.html"))
        for tag in _FOREIGN.findall(page.read_text(encoding="utf-8"))
    ]
    return "fetched from other hosts:\n" + "\n".join(tags) if tags else ""


def _mkdocs(
    root: Path, *arguments: str, stdout: int | None = None, stderr: int | None = None
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [str(environment("docs") / "bin" / "mkdocs"), *arguments, "--strict"],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
        stdout=stdout,
        stderr=stderr,
    )


if __name__ == "__main__":
    main()
