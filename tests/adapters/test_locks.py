import subprocess
import sys
from pathlib import Path

from tessera.adapters.locks import FileLocks


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    first, second = FileLocks(tmp_path), FileLocks(tmp_path)
    with first.hold("GPU-1") as acquired_first:
        assert acquired_first
        with second.hold("GPU-1") as acquired_second, second.hold("GPU-2") as acquired_other:
            assert (acquired_second, acquired_other) == (False, True)
    with second.hold("GPU-1") as acquired_second:
        assert acquired_second


def test_a_process_that_died_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from tessera.adapters.locks import FileLocks\n"
        "with FileLocks(pathlib.Path(sys.argv[1])).hold('GPU-1') as ours:\n"
        "    os._exit(not ours)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "operator")}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, check=False
    )
    assert ended.returncode == 0
    with FileLocks(tmp_path).hold("GPU-1") as acquired:
        assert acquired
