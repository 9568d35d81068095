"""What a run has recorded is the same after a way through JSON."""

from pathlib import Path

import pytest

from demo import recorded

_RUN = Path(__file__).parent / "run.json"


def test_a_run_is_the_same_after_a_way_through_json() -> None:
    run = recorded.from_json(_RUN.read_text(encoding="utf-8"))
    assert recorded.from_json(recorded.to_json(run)) == run


@pytest.mark.parametrize("text", ["", "[]", '{"version": "0.2.0"}'])
def test_other_json_is_no_run(text: str) -> None:
    with pytest.raises(ValueError, match="RecordedRun"):
        recorded.from_json(text)
