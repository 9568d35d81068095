"""Two faults during a batch: its rows come out once or not at all, and the end is right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault_sequences.batch_player import batch_sequence
from tests.fault_sequences.known import UNSOLVED_BATCHES

SEQUENCES = 200
SHORT = (2, 4, 5)
_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_SECONDS = 300


def _case(seed: int) -> object:
    marks: list[pytest.MarkDecorator] = []
    if seed not in SHORT:
        marks += [pytest.mark.full, pytest.mark.long]
    if reason := UNSOLVED_BATCHES.get(seed):
        marks.append(pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True))
    return pytest.param(seed, id=batch_sequence(seed).name, marks=marks)


@pytest.mark.parametrize("seed", [_case(seed) for seed in range(1, SEQUENCES + 1)])
def test_a_batch_with_two_faults_publishes_every_row_once_or_nothing(seed: int) -> None:
    # A process of its own: runners that are killed in it are never finalized.
    command = [sys.executable, "-m", "tests.fault_sequences.batch_player", str(seed)]
    player = subprocess.run(
        command,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": "operator:e2e:tools:."},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    again = f"again: PYTHONPATH=operator:e2e:tools:. .venv/bin/python {' '.join(command[1:])} -v"
    assert player.returncode == 0, f"{player.stdout}{player.stderr}{again}"
