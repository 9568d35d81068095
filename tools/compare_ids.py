"""Compares the tests of `make test` and `make test-e2e` with those of another commit.

`compare_ids.py COMMIT` exits with 1 where one of its tests is in neither of the two, or where a
test is in both.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from commits import checked_out
from environments import ROOT
from tests.parts import E2E, TEST

SHOWN = 20


def main() -> int:
    """Print what is missing, what is in both, and how many are new."""
    commit = sys.argv[1]
    with checked_out(commit) as tree:
        before = _test_ids(tree)
    test, e2e = (_test_ids(ROOT, "--part", part) for part in (TEST, E2E))
    missing, double, new = before - test - e2e, test & e2e, (test | e2e) - before
    print(f"{len(before)} tests at {commit}; make test: {len(test)}, make test-e2e: {len(e2e)}")
    for what, ids in (("missing", missing), ("in both", double), ("new", new)):
        print(f"{len(ids)} {what}", *sorted(ids)[:SHOWN], sep="\n  ")
    return bool(missing or double)


def _test_ids(root: Path, *options: str) -> set[str]:
    """Return the ids that a push of a checkout collects."""
    pytest = [str(ROOT / ".venv" / "bin" / "pytest"), "-p", "no:xdist", "-p", "no:cacheprovider"]
    command: Sequence[str] = [*pytest, "--collect-only", "-q", *options]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"compare_ids: {root} does not collect:\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        )
    return {line for line in done.stdout.splitlines() if "::" in line}


if __name__ == "__main__":
    sys.exit(main())
