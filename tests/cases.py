"""Cases of a test that wait for `--full`."""

from typing import Any

import pytest


def full(*cases: Any) -> list[Any]:
    """Mark further cases of what a push runs for others; a tuple has a value for each argument."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)
        for case in cases
    ]
