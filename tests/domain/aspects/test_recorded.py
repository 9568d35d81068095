"""What is read of 300 generated fleets is what it was: a recut changes nothing that is seen.

A digest of each sequence is in `recorded.json`. `--update-golden` writes those that are played; to
see what differs between two trees, write both and compare them:
`.venv/bin/python -m tests.domain.aspects.test_recorded FIRST LAST FOLDER`.
"""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from tests.domain.aspects.measured_fleet import KINDS, MeasuredFleet, as_json

SEQUENCES = 300
# Of the short run: the first ones.
SHORT = 40
_RECORDED = Path(__file__).parent / "recorded.json"
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


def _write(first: int, last: int, folder: Path) -> None:
    """Write what is read of sequences, each kind in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, last + 1):
        for kind, record in MeasuredFleet(seed).play().items():
            (folder / f"{seed}-{kind}.json").write_text(as_json(record), encoding="utf-8")


if __name__ == "__main__":
    _write(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
