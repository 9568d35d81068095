"""Other commits of this repository beside the working tree."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environments import ROOT


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Check a commit out in a folder for a while; SystemExit without one of this name."""
    git = ("git", "-C", str(ROOT), "worktree")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        add = (*git, "add", "--quiet", "--detach", str(tree), commit)
        if subprocess.run(add, check=False).returncode:
            sys.exit(f"{commit!r} cannot be checked out: name a commit that git log shows")
        try:
            yield tree
        finally:
            subprocess.run((*git, "remove", "--force", str(tree)), check=True)
