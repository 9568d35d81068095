"""Counts the files of the product that a range of commits edits outside the rooms of what it adds.

`python tools/width.py BASE [ROOM ...]` names what changed since the commit BASE, but for the rooms:
folders and modules below `operator/tessera`, such as `domain/routes` or `api/model_route.py`. New
files count apart, since a list that is kept in many places shows in the others.
"""

import argparse
import subprocess

from environments import ROOT

_PRODUCT = "operator/tessera/"


def changed(base: str, kind: str) -> list[str]:
    """Return the files of the product that were added (`A`) or modified (`M`) since a commit."""
    command = ("git", "diff", "--name-only", f"--diff-filter={kind}", "-M", base, "--", _PRODUCT)
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [path.removeprefix(_PRODUCT) for path in done.stdout.split()]


def main() -> None:
    """Print the files outside, and how many there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit before the first one of the range")
    parser.add_argument("rooms", nargs="*", help="folders and modules that are not counted")
    arguments = parser.parse_args()
    rooms = tuple(arguments.rooms)
    for kind, words in (("A", "new"), ("M", "existing")):
        outside = [path for path in changed(arguments.base, kind) if not path.startswith(rooms)]
        print(f"{len(outside)} {words} files of the product outside", *outside, sep="\n  ")


if __name__ == "__main__":
    main()
