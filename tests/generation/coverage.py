"""Counts the leaves and states that were driven: the last line of a run, also with workers.

A plugin of pytest, as `tests/hostile/score.py`: tests record a property, and their sum is printed.
"""

from typing import cast

import pytest

PROPERTY = "generated states"
_total = [0, 0, 0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties if report.when == "call" else ():
        if name == PROPERTY:
            counts = cast(tuple[int, int, int], value)
            _total[:] = [total + count for total, count in zip(_total, counts, strict=True)]


def pytest_unconfigure(config: pytest.Config) -> None:
    driven, every, states = _total
    if every and not hasattr(config, "workerinput"):
        print(f"generation: {driven} of {every} fields driven, {states} states")  # noqa: T201
