"""What will enter costs the files that `docs/architecture.md` names, and no list elsewhere.

Each addition is planted in a copy of the product, where a process asserts what follows from it.
"""

from pathlib import Path

import pytest

from tests.width.additions import Addition, check_in_copy
from tests.width.memo import MEMO
from tests.width.region import REGION

ADDITIONS = {"kind": (MEMO, 6), "dimension": (REGION, 2)}


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_needs_few_files(name: str, tmp_path: Path) -> None:
    addition: Addition
    addition, most = ADDITIONS[name]
    assert addition.files <= most
    checked = check_in_copy(addition, tmp_path)
    assert checked.returncode == 0, checked.stderr[-4000:]
