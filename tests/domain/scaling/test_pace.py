"""Replicas are given more or less than predicted, by the first tokens that came in time."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tessera.api.inference_service import Slo
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.scaling.policies.capacity.pace import (
    LEAST,
    MOST,
    Pace,
    next_pace,
    ttft_shares,
)
from tessera.domain.scaling.state import TtftShares
from tests.builders import NOW, at

SLO = Slo(ttft_p95=timedelta(seconds=1))


def histogram(total: float, in_time: float, early: float) -> LatencyHistogram:
    return LatencyHistogram(total=total, at_most=((0.5, early), (1.0, in_time)))


def play(in_time: float, early: float, use: float = 0.9, minutes: float = 10) -> float:
    """Return the factor after equal readings each half minute."""
    pace = Pace()
    for index in range(int(minutes * 2) + 1):
        pace = next_pace(pace, TtftShares(at(30 * index), in_time, early), use)
    return pace.factor


@pytest.mark.parametrize(
    ("in_time", "early", "use", "factor"),
    [
        # Two minutes at 2 %.
        (1.0, 0.99, 0.9, 1.02**2),
        # Neither early enough nor late.
        (0.98, 0.90, 0.9, 1.0),
        # Replicas with little to do say nothing.
        (1.0, 1.0, 0.5, 1.0),
        (0.90, 0.80, 0.9, 0.9),
        # Late requests count also where replicas have little to do.
        (0.90, 0.96, 0.1, 0.9),
    ],
)
def test_the_factor_follows_what_came_in_time(
    in_time: float, early: float, use: float, factor: float
) -> None:
    assert play(in_time, early, use, minutes=2) == pytest.approx(factor)


def test_the_factor_has_bounds_and_falls_faster_than_it_rises() -> None:
    assert play(1.0, 1.0, minutes=240) == MOST
    assert play(0.0, 0.0, minutes=60) == LEAST
    risen = next_pace(Pace(1.05, NOW), TtftShares(at(60), 1.0, 1.0), use=1.0)
    fallen = next_pace(Pace(1.05, NOW), TtftShares(at(60), 0.9, 0.9), use=1.0)
    assert risen.factor - 1.05 < 1.05 - fallen.factor


def test_above_the_prediction_the_factor_rises_slowly() -> None:
    factors = [play(1.0, 1.0, minutes=minutes) for minutes in (3, 30, 60)]
    assert factors == [pytest.approx(1.05 * 1.001**minutes, rel=1e-3) for minutes in (3, 30, 60)]


def test_a_factor_at_which_some_came_late_is_not_tried_again_soon() -> None:
    pace, late = Pace(MOST, NOW, limit=MOST), {5, 6}
    highest = []
    for minute in range(1, 121):
        share = 0.9 if minute in late else 1.0
        pace = next_pace(pace, TtftShares(at(60 * minute), share, share), use=0.9)
        highest.append(pace.factor)
    assert highest[3] == MOST
    # It rises quickly to a tenth below it, and then by a thousandth a minute.
    assert highest[30] == pytest.approx(0.9 * MOST, rel=0.03)
    assert highest[90] == pytest.approx(highest[60] * 1.001**30)


def test_what_came_late_before_the_factor_fell_counts_once() -> None:
    pace, factors = Pace(1.0, NOW), []
    for second in range(30, 1000, 30):
        pace = next_pace(pace, TtftShares(at(second), 0.5, 0.5), use=1.0)
        factors.append(round(pace.factor, 4))
    assert factors[:12] == [0.9] * 12
    assert factors[12:24] == [0.81] * 12


def test_a_reading_counts_once_and_a_long_gap_as_a_minute() -> None:
    early = TtftShares(at(30), 1.0, 1.0)
    pace = next_pace(Pace(1.0, NOW), early, use=1.0)
    assert next_pace(pace, early, use=1.0) == pace
    assert next_pace(pace, None, use=1.0) == pace
    after_gap = next_pace(Pace(1.0, NOW), replace(early, read_at=at(3600)), use=1.0)
    assert after_gap.factor == pytest.approx(1.02)
    # The first reading has no time before it.
    assert next_pace(Pace(), early, use=1.0) == Pace(1.0, at(30))


def test_what_is_late_while_replicas_are_missing_changes_nothing() -> None:
    late = TtftShares(at(390), 0.5, 0.5)
    pace = Pace(1.03, at(360), changed_at=at(60))
    assert next_pace(pace, late, use=1.0).factor == 1.03
    # Six minutes later none of what is counted came then.
    assert next_pace(pace, replace(late, read_at=at(420)), use=1.0).factor < 1.03
    early = replace(late, in_time=1.0, early=1.0)
    assert next_pace(pace, early, use=1.0).factor > 1.03


def test_replicas_that_are_missing_between_two_readings_count() -> None:
    first, second, last = (TtftShares(at(seconds), 0.9, 0.8) for seconds in (0, 30, 360))
    pace = next_pace(Pace(), first, use=0.9)
    assert next_pace(pace, second, use=0.9).factor == 0.9
    pace = next_pace(pace, first, use=0.9, missing=True)
    assert next_pace(pace, second, use=0.9).factor == 1.0
    assert next_pace(pace, last, use=0.9).factor == 0.9


@pytest.mark.parametrize(
    ("late", "slow", "falls"),
    [
        (0.039, 0.0, False),
        (0.041, 0.0, True),
        # Prompts that take too long by themselves leave less for what waits.
        (0.047, 0.04, False),
        (0.049, 0.04, True),
        # They use up the whole budget: no number of replicas keeps the objective.
        (0.2, 0.2, False),
        (0.2, 0.19, True),
    ],
)
def test_what_no_replica_can_mend_lowers_nothing(late: float, slow: float, falls: bool) -> None:
    shares = TtftShares(at(60), 1 - late, early=0.5, slow=slow)
    assert (next_pace(Pace(1.0, NOW), shares, use=0.9).factor < 1) is falls


def test_requests_with_slow_prompts_may_miss_half_of_the_objective() -> None:
    early = TtftShares(at(60), in_time=0.96, early=0.9, slow=0.04, half_slow=0.06)
    assert next_pace(Pace(0.9, NOW), early, use=0.9).factor > 0.9
    assert next_pace(Pace(0.9, NOW), replace(early, half_slow=0.04), use=0.9).factor == 0.9


@pytest.mark.parametrize(("slow", "factor"), [(0.0, 1.02), (0.009, 1.02), (0.011, 1.0)])
def test_more_than_predicted_is_tried_while_slow_prompts_leave_a_budget(
    slow: float, factor: float
) -> None:
    early = TtftShares(at(60), in_time=1 - slow, early=1 - slow, slow=slow, half_slow=slow)
    assert next_pace(Pace(1.0, NOW), early, use=0.9).factor == pytest.approx(factor)


def test_prompts_that_engines_read_too_slowly_are_counted_by_their_edges() -> None:
    gateway = GatewayLatency(ttft=histogram(200, 190, 180))
    engines = (EngineLatency(prefill=histogram(150, 147, 141)), EngineLatency(variant="b"))
    shares = ttft_shares(SLO, ServiceLatency(engines=engines, gateway=gateway), NOW)
    assert shares is not None
    assert (shares.slow, shares.half_slow) == pytest.approx((0.02, 0.06))
    # Without an edge at the objective only what is beyond the next one is certain.
    coarse = LatencyHistogram(total=100, at_most=((0.3, 50.0), (1.5, 90.0)))
    latency = ServiceLatency(engines=(EngineLatency(prefill=coarse),), gateway=gateway)
    shares = ttft_shares(SLO, latency, NOW)
    assert shares is not None
    assert (shares.slow, shares.half_slow) == pytest.approx((0.1, 0.1))


def test_the_shares_are_those_of_gateways_that_see_most_requests() -> None:
    gateway = GatewayLatency(ttft=histogram(200, 190, 180), overdue=0)
    assert ttft_shares(SLO, ServiceLatency(gateway=gateway), NOW) == TtftShares(NOW, 0.95, 0.9)
    waiting = replace(gateway, overdue=50)
    overdue = ttft_shares(SLO, ServiceLatency(gateway=waiting), NOW)
    assert overdue is not None
    assert overdue.in_time == pytest.approx(190 / 250)


@pytest.mark.parametrize(
    "latency",
    [
        None,
        ServiceLatency(),
        ServiceLatency(engines=(EngineLatency(ttft=histogram(200, 190, 180)),)),
        ServiceLatency(gateway=GatewayLatency(ttft=histogram(10, 10, 10))),
        # Clients that do not come through the gateway.
        ServiceLatency(
            engines=(EngineLatency(ttft=histogram(900, 800, 700)),),
            gateway=GatewayLatency(ttft=histogram(100, 100, 100)),
        ),
        # A larger edge with a smaller count contradicts itself.
        ServiceLatency(gateway=GatewayLatency(ttft=histogram(200, 100, 180))),
    ],
)
def test_what_gateways_do_not_show_is_not_known(latency: ServiceLatency | None) -> None:
    assert ttft_shares(SLO, latency, NOW) is None


def test_half_an_objective_between_two_edges_counts_what_is_certain() -> None:
    wide = LatencyHistogram(total=200, at_most=((0.25, 100.0), (1.0, 200.0)))
    shares = ttft_shares(SLO, ServiceLatency(gateway=GatewayLatency(ttft=wide)), NOW)
    assert shares == TtftShares(NOW, 1.0, 0.5)
