"""Whatever fails: what engines got is paid, once, and nothing above what was reserved."""

from dataclasses import replace

import pytest

from tessera.domain.usage.charge import Charge, EngineWork, WorkEnd, charge
from tests.gateway.settle.failures import (
    KINDS,
    ChargeFigures,
    Rule,
    figures_of_gateway,
    figures_of_rule,
)


def wrong(figures: ChargeFigures) -> tuple[int, int, int]:
    return (
        figures.unpaid_engine_tokens,
        figures.charged_twice,
        figures.charged_above_reservation,
    )


def test_ten_thousand_failures_are_charged_once_and_in_full() -> None:
    figures = figures_of_rule(10_000)
    assert (wrong(figures), figures.failures) == ((0, 0, 0), 10_000)
    assert figures.kinds == set(KINDS)


def test_two_hundred_failures_at_a_gateway_are_charged_once_and_in_full() -> None:
    figures = figures_of_gateway(200)
    assert wrong(figures) == (0, 0, 0)
    # Those of a gateway that ends count as killed and as drained.
    assert figures.failures == 200 + 200 // len(KINDS)
    assert figures.kinds == set(KINDS)


def free_failures(work: EngineWork) -> Charge:
    return charge(work) if work.delivered or work.end is WorkEnd.ANSWER else Charge(0, 0, 0)


def by_what_came(work: EngineWork) -> Charge:
    return charge(replace(work, unseen=0))


def by_engine(work: EngineWork) -> Charge:
    return charge(work)._replace(input=charge(work).input * work.engines)


def without_bounds(work: EngineWork) -> Charge:
    return charge(replace(work, most_input=10**12, most_output=10**12))


def of_any_end(work: EngineWork) -> Charge:
    return charge(replace(work, end=WorkEnd.REQUEST))


@pytest.mark.parametrize(
    ("rule", "noticed"),
    [
        (free_failures, (True, False, False)),
        (by_what_came, (True, False, False)),
        (by_engine, (False, True, True)),
        (without_bounds, (False, True, True)),
        (of_any_end, (False, True, False)),
    ],
)
def test_the_figures_notice_wrong_rules(rule: Rule, noticed: tuple[bool, bool, bool]) -> None:
    figures = wrong(figures_of_rule(1000, rule=rule))
    assert tuple(map(bool, figures)) == noticed
