"""The real engine's environment and a model for it."""

import subprocess
from pathlib import Path

import pytest

from demo.engine import MAKE_MODEL, engine_environment


@pytest.fixture(scope="package")
def venv() -> Path:
    return engine_environment()


@pytest.fixture(scope="package")
def model(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a tiny model of random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run([str(venv / "bin" / "python"), str(MAKE_MODEL), str(folder)], check=True)
    return folder
