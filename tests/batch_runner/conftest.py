from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_runner.harness import RunnerHarness


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[RunnerHarness]:
    """Create a claim and an API server, and start runners on them."""
    runner_harness = RunnerHarness(tmp_path)
    try:
        yield runner_harness
    finally:
        runner_harness.close()
