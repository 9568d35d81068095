"""The environment that `python -m world env` prints for a terminal."""

import os
import subprocess
import sys
from pathlib import Path

from environments import ROOT


def test_without_a_world_a_terminal_reaches_no_cluster_at_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "world", "env"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT / 'e2e'}:{ROOT / 'operator'}",
            "XDG_CACHE_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "export KUBECONFIG=/dev/null\n"
    assert "no world is ready" in done.stderr
