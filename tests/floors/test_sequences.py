"""Random sequences of what meets: floors hold, the end is clean or named, at the least cost."""

import pytest

from tests.floors.known import UNSOLVED
from tests.floors.player import FloorPlay

SEQUENCES = 1000
# Of the short run: the first ones.
SHORT = 30


def _case(seed: int) -> object:
    marks: list[pytest.MarkDecorator] = []
    if seed > SHORT:
        marks += [pytest.mark.full, pytest.mark.long]
    if reason := UNSOLVED.get(seed):
        marks.append(pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True))
    return pytest.param(seed, marks=marks)


@pytest.mark.parametrize("seed", [_case(seed) for seed in range(1, SEQUENCES + 1)])
async def test_whatever_meets_the_floors_hold_and_the_end_is_clean_or_named(
    seed: int, request: pytest.FixtureRequest
) -> None:
    play = FloorPlay(seed)
    verdict = await play.run()
    command = f".venv/bin/pytest --full '{request.node.nodeid}'"
    text = "\n".join([*verdict.findings[:5], f"again: {command}", *play.log])
    assert verdict.is_clean, text
