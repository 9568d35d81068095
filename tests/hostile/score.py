"""Counts the scenes of the hostile-tenant suite and their differences: its last line.

A plugin of pytest, since the scenes of the in-memory cluster and those of the world count together,
and may be played by other workers.
"""

from dataclasses import dataclass
from typing import cast

import pytest

_PROPERTY = "hostile"


@dataclass(slots=True)
class Score:
    """Scenes that were compared, and differences that they found."""

    scenes: int = 0
    differences: int = 0

    def add(self, differences: int) -> None:
        self.scenes += 1
        self.differences += differences


SCORE = Score()
_total = Score()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Move what was counted into the report of the test."""
    if SCORE.scenes:
        item.user_properties.append((_PROPERTY, (SCORE.scenes, SCORE.differences)))
        SCORE.scenes = SCORE.differences = 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties if report.when == "teardown" else ():
        if name == _PROPERTY:
            scenes, differences = cast(tuple[int, int], value)
            _total.scenes += scenes
            _total.differences += differences


def pytest_unconfigure(config: pytest.Config) -> None:
    if _total.scenes and not hasattr(config, "workerinput"):
        print(f"hostile: {_total.scenes} scenes, {_total.differences} differences")  # noqa: T201
