from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tessera_lab.claims.claim import Claim, ClaimSet
from tessera_lab.claims.verdict import (
    ClaimResult,
    ClaimVerdict,
    Conditions,
    ScenarioError,
    ScenarioResult,
    judge,
)
from tests.lab.claims.test_claim import A_CLAIM


def verdict_of(
    speed: Callable[[float], float], vary: Mapping[str, Any] | None = None, **changes: Any
) -> ClaimResult:
    """Judge a claim of 2 to 3 times, whose figure is a function of the batch."""
    claim = Claim.model_validate(A_CLAIM | {"vary": vary} | changes)

    def scenario(conditions: Conditions) -> ScenarioResult:
        return ScenarioResult({"speed": speed(conditions.number("batch"))})

    return judge(claim, ClaimSet(loads={}, claims=(claim,)), scenario)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [(1.79, "NotMet"), (1.8, "Met"), (2.5, "Met"), (3.3, "Met"), (3.31, "NotMet")],
)
def test_a_figure_meets_a_claim_within_its_range_widened_by_the_tolerance(
    figure: float, verdict: str
) -> None:
    assert verdict_of(lambda _: figure).verdict == verdict


def test_a_range_without_an_end_is_met_by_all_beyond() -> None:
    ranges = [{"name": "speed", "unit": "x", "low": 2, "high": None}]
    assert verdict_of(lambda _: 1e6, figures=ranges).verdict is ClaimVerdict.MET
    assert verdict_of(lambda _: 1.0, figures=ranges).verdict is ClaimVerdict.NOT_MET


SPAN = {"condition": "batch", "label": "requests", "least": 1, "most": 64}


@pytest.mark.parametrize(
    ("speed", "verdict", "part"),
    [
        (lambda _: 2.5, "Met", None),
        (lambda _: 9.0, "NotMet", None),
        # Holds at the stated batch of 8, up to 33.
        (lambda batch: 2.0 + (batch - 1) / 25, "MetOnlyUnder", (1, 33, 33)),
        # Too much at 8; comes into the range and leaves it again.
        (lambda batch: 40 / batch, "MetOnlyUnder", (13, 22, 13)),
        # Too little up to 50.
        (lambda batch: 2.5 if batch >= 50 else 1.0, "MetOnlyUnder", (50, 64, 50)),
        # Steps over the range.
        (lambda batch: 9.0 if batch < 30 else 1.0, "NotMet", None),
    ],
)
def test_the_part_of_the_span_that_holds_is_bisected(
    speed: Callable[[float], float], verdict: str, part: tuple[int, int, int] | None
) -> None:
    result = verdict_of(speed, SPAN)
    assert result.verdict == verdict
    holding = result.part and (result.part.low, result.part.high, result.part.nearest)
    assert holding == part


def test_a_fraction_is_bisected_to_a_small_share_of_its_span() -> None:
    result = verdict_of(
        lambda share: 2.5 if share < 0.7 else 9.0,
        {"condition": "batch", "label": "requests", "least": 0.0, "most": 1.0},
        conditions={"batch": 0.5},
    )
    assert result.part is not None
    assert 0.69 <= result.part.high < 0.7
    assert result.part.figures == {"speed": 2.5}


def test_a_scenario_that_cannot_run_gives_its_reason_and_no_figure() -> None:
    def speed(batch: float) -> float:
        if batch >= 8:
            raise ScenarioError("The model does not fit.")
        return 2.5

    result = verdict_of(speed)
    assert (result.verdict, result.reason) == ("NotRun", "The model does not fit.")
    assert not result.figures
    # Where it runs under the stated conditions, an end without a figure does not hold.
    part = verdict_of(speed, SPAN, conditions={"batch": 4}).part
    assert part is not None
    assert (part.low, part.high) == (1, 7)


def test_without_a_scenario_or_with_a_blocker_a_claim_is_not_run() -> None:
    claim = Claim.model_validate(A_CLAIM)
    claims = ClaimSet(loads={}, claims=(claim,))
    assert judge(claim, claims, None).verdict is ClaimVerdict.NOT_RUN
    result = verdict_of(lambda _: 2.5, blocker="There is nothing to time.")
    assert (result.verdict, result.reason) == ("NotRun", "There is nothing to time.")
