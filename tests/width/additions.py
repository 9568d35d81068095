"""What will enter the product, each in the few files that `docs/architecture.md` names for it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT

Edits = Mapping[str, str]
"""What stands instead of a text, by that text, which a file has once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Files that are new, and edits of others, by their paths below `operator/tessera`."""

    new: Mapping[str, str]
    edits: Mapping[str, Edits]
    check: str
    """The module that asserts, in a process of the copy, what follows from it."""

    @property
    def files(self) -> int:
        """Return how many files of the product it needs."""
        return len(self.new) + len(self.edits)


def check_in_copy(addition: Addition, folder: Path) -> subprocess.CompletedProcess[str]:
    """Copy the product, add to it, and run the check there."""
    product = folder / "operator"
    shutil.copytree(ROOT / "operator", product, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in addition.new.items():
        target = product / "tessera" / path
        assert not target.exists(), path
        target.write_text(text, encoding="utf-8")
    for path, edits in addition.edits.items():
        target = product / "tessera" / path
        text = target.read_text(encoding="utf-8")
        for old, new in edits.items():
            assert text.count(old) == 1, (path, old)
            text = text.replace(old, new)
        target.write_text(text, encoding="utf-8")
    path = os.pathsep.join(map(str, (product, ROOT / "e2e", ROOT / "tools", ROOT)))
    return subprocess.run(
        [sys.executable, "-m", addition.check],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
