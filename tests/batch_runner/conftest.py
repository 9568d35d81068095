from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_runner.running import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A claim, an API server and room for runners."""
    found = Stage(tmp_path)
    try:
        yield found
    finally:
        found.close()
