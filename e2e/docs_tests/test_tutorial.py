"""The tutorial, followed to the letter from an empty machine."""

import pytest

from demo.stage import ROOT
from docs_tests.blocks import steps
from docs_tests.reader import Reader

PAGE = "docs/tutorial.md"


@pytest.mark.world
@pytest.mark.usefixtures("tally")
def test_the_tutorial_leads_from_an_empty_machine_to_its_end(reader: Reader) -> None:
    reader.follow(PAGE, steps((ROOT / PAGE).read_text(encoding="utf-8")))
    assert reader.ran
