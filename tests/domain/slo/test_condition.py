"""The condition SLOMet, and the status from which it follows."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import Slo
from tessera.api.reasons import SLOMet
from tessera.api.service_status import SloStatus
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.slo.condition import next_slo_status, percent, slo_verdict
from tessera.domain.slo.measurement import measure_slo
from tests.builders import NOW, a_pod, at
from tests.domain.slo.latencies import a_histogram, engine_latency, gateway_latency, of_engines

DEFAULT = Slo()
# Both targets are edges of the engines' buckets.
EXACT = Slo.model_validate({"itlP95": "50ms"})
PODS = (a_pod("chat-0", ready_since=at(-600)),)


def judged(
    latency: ServiceLatency | None,
    current: SloStatus | None = None,
    slo: Slo = EXACT,
    minutes: float = 0,
) -> SloStatus | None:
    return next_slo_status(slo, latency, PODS, current, NOW + timedelta(minutes=minutes))


def status_of(latency: ServiceLatency, slo: Slo = EXACT) -> SloStatus:
    status = judged(latency, slo=slo)
    assert status is not None
    return status


@pytest.mark.parametrize(
    ("latency", "reason", "attained"),
    [
        (of_engines(ttft=0.972), SLOMet.MET, "97.2 %"),
        (of_engines(ttft=0.95), SLOMet.MET, "95.0 %"),
        (of_engines(ttft=0.94), SLOMet.MISSED, "94.0 %"),
        (of_engines(slow=0.9), SLOMet.MISSED, "90.0 %"),
        (of_engines(ttft=0.5, requests=19), SLOMet.NO_TRAFFIC, None),
    ],
)
def test_both_objectives_must_be_met_by_95_percent(
    latency: ServiceLatency, reason: SLOMet, attained: str | None
) -> None:
    status = judged(latency)
    assert (status.attained if status else None) == attained
    assert slo_verdict(status).reason is reason


@pytest.mark.parametrize(
    ("fast", "slow", "reason", "attained"),
    [
        (0.4, 0.99, SLOMet.BUCKET_TOO_WIDE, "~58.8 %"),
        (0.96, 0.99, SLOMet.MET, "~96.9 %"),
        (0.4, 0.9, SLOMet.MISSED, "~56.0 %"),
    ],
)
def test_a_target_between_two_edges_is_judged_by_what_is_certain(
    fast: float, slow: float, reason: SLOMet, attained: str
) -> None:
    status = status_of(of_engines(fast=fast, slow=slow), DEFAULT)
    assert (status.reason, status.attained) == (reason, attained)
    advises_streams = "through the gateway as streams" in slo_verdict(status).message
    assert advises_streams is (reason is SLOMet.BUCKET_TOO_WIDE)


def test_gateways_count_at_the_target_and_decide_where_they_saw_most_requests() -> None:
    engines = engine_latency(fast=0.4, slow=0.99, requests=400)
    through = ServiceLatency(engines=(engines,), gateway=gateway_latency(itl=0.96, ttft=0.97))
    status = status_of(through, DEFAULT)
    assert status.reason == SLOMet.MET
    assert status.itl is not None
    assert (status.itl.source, str(status.itl.attained)) == ("Gateway", "0.96")
    beside = replace(through, gateway=gateway_latency(itl=0.96, requests=150))
    assert status_of(beside, DEFAULT).reason == SLOMet.BUCKET_TOO_WIDE


def test_requests_that_wait_too_long_for_their_first_token_are_missed() -> None:
    waiting = gateway_latency(overdue=100)
    status = status_of(ServiceLatency(engines=(engine_latency(),), gateway=waiting))
    assert (status.reason, status.attained) == (SLOMet.MISSED, "75.0 %")
    # A request a second arrives: of 101 that wait in engines, 100 came before the last second.
    full = replace(engine_latency(), waiting=101.0)
    status = status_of(ServiceLatency(engines=(full,)))
    assert (status.reason, status.attained) == (SLOMet.MISSED, "75.0 %")


def test_a_service_whose_requests_all_wait_misses_its_objective() -> None:
    status = status_of(ServiceLatency(gateway=gateway_latency(requests=0, overdue=50)))
    assert (status.reason, status.attained) == (SLOMet.MISSED, "0.0 %")


def test_contradictory_counts_and_missing_series_are_said() -> None:
    falling = a_histogram(300, at_500=0.9, at_1000=0.2)
    contradictory = ServiceLatency(engines=(replace(engine_latency(), ttft=falling),))
    failed = status_of(contradictory)
    assert failed.reason == SLOMet.FAILED_GET_METRICS
    assert judged(contradictory, failed, minutes=30) is failed
    met, later = status_of(of_engines()), NOW + timedelta(minutes=10)
    lost = next_slo_status(EXACT, None, PODS, met, later)
    assert lost is not None
    assert lost.reason == SLOMet.FAILED_GET_METRICS
    # Engines that are new have no series yet, and those that were never scraped no verdict.
    young = (a_pod("chat-0", ready_since=later - timedelta(minutes=1)),)
    asleep = [next_slo_status(EXACT, None, pods, met, later) for pods in (young, ())]
    assert [status.reason for status in asleep if status] == [SLOMet.NO_TRAFFIC] * 2
    assert judged(None) is None
    assert judged(None, asleep[0], minutes=30) is asleep[0]


def test_a_status_stays_five_minutes_and_then_until_a_share_moves_far() -> None:
    status = status_of(of_engines(ttft=0.972))
    assert judged(of_engines(ttft=0.88), status, minutes=4) is status
    assert judged(of_engines(ttft=0.98), status, minutes=60) is status
    moved = judged(of_engines(ttft=0.99), status, minutes=60)
    assert moved is not None
    assert moved.attained == "99.0 %"
    missed = judged(of_engines(ttft=0.94), status, minutes=5)
    assert missed is not None
    assert missed.reason == SLOMet.MISSED


def test_an_interpolated_share_is_written_when_it_moves_by_half_of_what_is_uncertain() -> None:
    status = status_of(of_engines(fast=0.4, slow=1.0), DEFAULT)
    assert status.attained == "~59.2 %"
    near = of_engines(fast=0.8, slow=1.0)
    assert judged(near, status, slo=DEFAULT, minutes=10) is status
    far = judged(of_engines(fast=0.9, slow=1.0), status, slo=DEFAULT, minutes=10)
    assert far is not None
    assert far.attained == "~93.2 %"


def test_a_missed_objective_is_met_again_somewhat_above_the_goal() -> None:
    missed = status_of(of_engines(ttft=0.945))
    assert judged(of_engines(ttft=0.952), missed, minutes=10) is missed
    met = judged(of_engines(ttft=0.956), missed, minutes=10)
    assert met is not None
    assert met.reason == SLOMet.MET


def test_few_requests_change_nothing_and_none_at_all_end_the_verdict() -> None:
    status = status_of(of_engines(ttft=0.9))
    assert judged(of_engines(ttft=1.0, requests=19), status, minutes=10) is status
    idle = judged(of_engines(requests=0), status, minutes=10)
    assert idle is not None
    assert (idle.reason, idle.attained) == (SLOMet.NO_TRAFFIC, None)
    assert judged(of_engines(requests=0), idle, minutes=20) is idle
    failed = judged(None, status, minutes=10)
    assert failed is not None
    few = judged(of_engines(requests=5), failed, minutes=20)
    assert few is not None
    assert few.reason == SLOMet.NO_TRAFFIC


def test_other_objectives_are_judged_at_once() -> None:
    status = status_of(of_engines(slow=0.9))
    looser = judged(of_engines(slow=0.9), status, slo=Slo.model_validate({"itlP95": "75ms"}))
    assert looser is not status


def test_the_message_says_shares_counts_and_who_counted() -> None:
    message = slo_verdict(status_of(of_engines(ttft=0.972, slow=0.9))).message
    assert message.startswith(
        "TTFT within 1s: 97.2 % of 300 requests at the engine; ITL within 50ms: 90.0 % of 30000 "
        "tokens at the engine. The goal is 95 %, in the 5 minutes until "
    )
    wide = slo_verdict(status_of(of_engines(fast=0.4), DEFAULT)).message
    assert "ITL within 33ms: between 40.0 % and 100.0 % of 30000 tokens" in wide
    assert "an edge of the engines' buckets" in wide


def test_a_share_that_falls_far_is_written_after_a_minute() -> None:
    """Seen: 93 % in the status while 22 % were in time."""
    status = status_of(of_engines(ttft=0.932))
    assert judged(of_engines(ttft=0.5), status, minutes=0.9) is status
    fallen = judged(of_engines(ttft=0.5), status, minutes=1)
    assert fallen is not None
    assert (fallen.attained, fallen.reason) == ("50.0 %", SLOMet.MISSED)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_writes_are_a_minute_apart_and_five_where_a_share_moves_little(shares: list[float]) -> None:
    status, written = judged(of_engines(ttft=shares[0])), [(0.0, shares[0])]
    for reading, share in enumerate(shares[1:], 1):
        changed = judged(of_engines(ttft=share), status, minutes=reading / 2)
        if changed is not status:
            written.append((reading / 2, share))
        status = changed
    for (earlier, before), (later, after) in pairwise(written):
        assert later - earlier >= (1 if abs(after - before) > 0.1 else 5)


@given(st.lists(st.floats(0.963, 0.981), min_size=1, max_size=30))
def test_a_share_that_varies_by_a_point_around_that_of_the_status_writes_nothing(
    shares: list[float],
) -> None:
    status = status_of(of_engines(ttft=0.972))
    for number, share in enumerate(shares, 1):
        assert judged(of_engines(ttft=share), status, minutes=number * 10) is status


def test_a_share_is_rounded_down() -> None:
    assert [percent(share) for share in (1.0, 0.9996, 0.972, 0.0)] == [
        *("100.0 %", "99.9 %", "97.2 %", "0.0 %"),
    ]


def test_what_each_objective_attains_is_measured_together() -> None:
    measurement = measure_slo(DEFAULT, of_engines(ttft=0.9, fast=0.4, slow=0.9))
    ttft, itl = measurement.ttft.attained, measurement.itl.attained
    assert ttft is not None
    assert itl is not None
    assert ttft.is_exact
    assert (ttft.share, itl.lower_share, itl.upper_share) == (0.9, 0.4, 0.9)
