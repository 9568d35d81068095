"""Fixtures and options for all tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, list[Any]], None]:
    """Compare objects with `tests/golden/<name>.yaml`; `--update-golden` writes it."""

    def compare(name: str, objects: list[Any]) -> None:
        path = GOLDEN / f"{name}.yaml"
        text = yaml.safe_dump_all(objects, sort_keys=False, width=100)
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: --update-golden"

    return compare
