"""Commands print what they printed: a new frame of reports changes no byte.

What each call prints stands in `recorded/`, which `--update-golden` writes. `make compare-records`
shows what differs from another tree.
"""

import sys
from pathlib import Path

import pytest

from tests.cli.recorded_calls import COLUMNS, call_texts
from tests.text_records import check_texts

_TEXTS = Path(__file__).parent / "recorded"


async def test_what_commands_print_stays(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", COLUMNS)
    monkeypatch.setattr(sys, "argv", ["tessera"])
    check_texts(_TEXTS, await call_texts(tmp_path), pytestconfig)
