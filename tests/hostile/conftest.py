"""Counts the scenes and their differences: the last line of `make hostile`."""

from collections.abc import Iterator
from typing import cast

import pytest

from tests.hostile.twin import SCORE

_PROPERTY = "hostile"
_totals = [0, 0]


@pytest.fixture(autouse=True)
def counted_scenes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Note in the report of a test how many scenes it played, and their differences."""
    before = SCORE.scenes, len(SCORE.differences)
    yield
    played = SCORE.scenes - before[0], len(SCORE.differences) - before[1]
    request.node.user_properties.append((_PROPERTY, played))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties if report.when == "teardown" else ():
        if name == _PROPERTY:
            scenes, differences = cast(tuple[int, int], value)
            _totals[0] += scenes
            _totals[1] += differences


def pytest_unconfigure(config: pytest.Config) -> None:
    if _totals[0] and not hasattr(config, "workerinput"):
        print(f"hostile: {_totals[0]} scenes, {_totals[1]} differences")  # noqa: T201
