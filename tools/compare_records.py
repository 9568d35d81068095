"""Says what fleets, requests, calls and objects show otherwise than in another commit.

Both trees play all that is recorded (300 fleets, all requests, all calls of commands, objects and
broken ones), each with its own tests, and the first lines that differ are printed. It exits with 1
where something differs, and needs a commit that has `tests/play_records.py`.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from commits import checked_out
from environments import ROOT, say
from tests.text_records import differences


def _play(tree: Path, folder: Path) -> Mapping[str, str]:
    if not (tree / "tests/play_records.py").exists():
        sys.exit(f"{tree} has no tests/play_records.py: name a commit that has it")
    say(f"{tree}: fleets, requests, calls and objects are played")
    path = os.pathsep.join(str(tree / each) for each in ("operator", "e2e", "tools", ""))
    command = [sys.executable, "-m", "tests.play_records", str(folder)]
    subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": path}, check=True)
    return {
        str(file.relative_to(folder).with_suffix("")): file.read_text(encoding="utf-8")
        for file in sorted(folder.rglob("*.txt"))
    }


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit")
    parser.add_argument("--lines", type=int, default=200, help="at most so many (default: 200)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, checked_out(arguments.base) as tree:
        before = _play(tree, Path(folder) / "before")
        after = _play(ROOT, Path(folder) / "after")
    lines = list(itertools.islice(differences(before, after), arguments.lines))
    print("\n".join(lines) if lines else f"{len(after)} records show what they showed")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
