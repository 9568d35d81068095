"""Objects of the API server become the values that they became, broken ones too.

They stand in `recorded/`, which `--update-golden` writes. `make compare-records` shows what differs
from another tree.
"""

from pathlib import Path

import pytest

from tests.adapters.recorded_objects import object_texts
from tests.text_records import check_texts

_TEXTS = Path(__file__).parent / "recorded"


async def test_what_is_made_of_objects_stays(pytestconfig: pytest.Config) -> None:
    check_texts(_TEXTS, await object_texts(), pytestconfig)
