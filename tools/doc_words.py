"""Checks that README and the pages stay as short as one reads them.

`python tools/doc_words.py` prints each group that has too many words and exits with 1 if there is
any; `--figures` prints the words of all groups instead. Words are counted as `wc -w` does, so
code blocks and the bars of tables count too.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# At most so many words by group; pages of docs/reference are generated, and looked up, not read.
BOUNDS = {
    "README": 900,
    "docs without the reference": 118_000,
    "claims": 5_000,
    "tasks": 51_200,
    "benchmarks and ladders": 6_000,
}
_BENCHMARKS = ("benchmarks.md", "ladders.md", "ladders-history.md")


def count(root: Path) -> Mapping[str, int]:
    """Return the words of each group; a page that does not exist has none."""
    docs = root / "docs"
    words = {
        path.relative_to(docs): len(path.read_text(encoding="utf-8").split())
        for path in docs.rglob("*.md")
    }
    readme = root / "README.md"
    return {
        "README": len(readme.read_text(encoding="utf-8").split()) if readme.exists() else 0,
        "docs without the reference": sum(
            number for path, number in words.items() if path.parts[0] != "reference"
        ),
        "claims": sum(number for path, number in words.items() if path.parts[0] == "claims"),
        "tasks": sum(number for path, number in words.items() if path.parts[0] == "tasks"),
        "benchmarks and ladders": sum(words.get(Path(name), 0) for name in _BENCHMARKS),
    }


def violations(root: Path) -> list[str]:
    """Return one line for each group with more words than its bound."""
    return [
        f"{group}: {number:,} words, at most {BOUNDS[group]:,}"
        for group, number in count(root).items()
        if number > BOUNDS[group]
    ]


def main() -> None:
    """Print violations or figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", action="store_true")
    if parser.parse_args().figures:
        for group, number in count(ROOT).items():
            print(f"{group:28}{number:8,} of {BOUNDS[group]:,}")
        return
    wrong = violations(ROOT)
    for violation in wrong:
        print(f"doc_words: {violation}: cut what other pages or the reference say")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
