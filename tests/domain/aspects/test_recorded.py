"""What is read of 300 generated fleets is what it was: a recut changes nothing that is seen.

The first twenty stand in `recorded/` as text, and a digest of each in `recorded.json`;
`--update-golden` writes those that are played. `make compare-records` shows what differs.
"""

import hashlib
import json
from pathlib import Path

import pytest

from tests.domain.aspects.measured_fleet import KINDS, SEQUENCES, MeasuredFleet, as_json, fleet_text
from tests.text_records import check_texts

# Of the short run: the first ones.
SHORT = 40
AS_TEXT = 20
_RECORDED = Path(__file__).parent / "recorded.json"
_TEXTS = Path(__file__).parent / "recorded"
_GROUP = 10


def _digests(seed: int) -> dict[str, str]:
    record = MeasuredFleet(seed).play()
    return {kind: hashlib.sha256(as_json(record[kind]).encode()).hexdigest()[:16] for kind in KINDS}


def _case(first: int) -> object:
    marks = [] if first <= SHORT else [pytest.mark.full, pytest.mark.long]
    return pytest.param(first, marks=marks)


@pytest.mark.parametrize("first", [_case(seed) for seed in range(1, SEQUENCES + 1, _GROUP)])
def test_what_is_read_of_measured_fleets_stays(first: int, pytestconfig: pytest.Config) -> None:
    played = {str(seed): _digests(seed) for seed in range(first, first + _GROUP)}
    recorded = json.loads(_RECORDED.read_text(encoding="utf-8")) if _RECORDED.exists() else {}
    if pytestconfig.getoption("--update-golden"):
        merged = recorded | played
        lines = [f'"{seed}": {json.dumps(merged[seed])}' for seed in sorted(merged, key=int)]
        _RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    assert played == {seed: recorded.get(seed) for seed in played}


def test_what_is_read_of_some_fleets_stays_as_text(pytestconfig: pytest.Config) -> None:
    texts = {f"{seed:02}": fleet_text(seed) for seed in range(1, AS_TEXT + 1)}
    check_texts(_TEXTS, texts, pytestconfig)
