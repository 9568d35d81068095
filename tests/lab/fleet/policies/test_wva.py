"""WVA's analyzers by the formulas and defaults of its documentation.

V1: docs/user-guide/saturation-analyzer.md. V2: internal/engines/analyzers/saturation_v2. The
queueing model: internal/engines/analyzers/queueingmodel/README.md.
"""

import math

import pytest

from tessera_lab.fleet.observation import EngineSample, Totals
from tessera_lab.fleet.policies.queueing import (
    START,
    QueueingModel,
    SloTarget,
    first_guess,
    inferred_slo,
    latencies,
    max_rate,
)
from tessera_lab.fleet.policies.series import LoadMeans
from tests.policy_builders import a_policy, an_engine, an_observation, replica_path


@pytest.mark.parametrize(
    ("engine", "replicas", "desired"),
    [
        # Spare cache 0.30 of 0.80 and queue 4 of 5: enough, but not for one replica less,
        # which would have 0.5 x 3 / 2.
        (an_engine(kv_usage=0.5, waiting=1), 3, 3),
        # Spare cache 0.09 is below 0.10.
        (an_engine(kv_usage=0.71), 3, 4),
        # Spare queue 2 is below 3.
        (an_engine(waiting=3), 3, 4),
        (an_engine(waiting=2), 3, 3),
        # Saturated replicas have nothing to spare.
        (an_engine(kv_usage=0.8), 3, 4),
        (an_engine(waiting=5), 3, 4),
    ],
)
def test_v1_adds_one_where_spare_capacity_is_short(
    engine: EngineSample, replicas: int, desired: int
) -> None:
    assert a_policy("wva-v1").decide(an_observation(0, [engine] * replicas)) == desired


def test_v1_removes_one_where_the_rest_has_enough() -> None:
    # Cache 0.4 x 3 / 2 leaves 0.2, queue 1 x 3 / 2 leaves 3.5; two replicas would have 0.8.
    path = replica_path(
        a_policy("wva-v1"), an_engine(kv_usage=0.4, waiting=1), start=3, seconds=900
    )
    assert path[:1] == [(240, 2)]


def test_v1_decides_nothing_while_a_replica_starts() -> None:
    policy = a_policy("wva-v1")
    full = an_engine(waiting=50)
    assert policy.decide(an_observation(0, [full] * 2)) == 3
    assert policy.decide(an_observation(15, [full] * 2, replicas=3)) == 3
    assert policy.decide(an_observation(105, [full] * 3)) == 4


def test_v1_sees_the_peak_of_a_minute() -> None:
    policy = a_policy("wva-v1")
    calm = [an_engine()] * 2
    # A starting replica forbids a decision on what the engines show.
    assert policy.decide(an_observation(0, [an_engine(waiting=9)] * 2, replicas=3)) == 3
    assert policy.decide(an_observation(15, calm, replicas=2)) == 3
    assert policy.decide(an_observation(30, calm, replicas=2)) == 3
    later = [policy.decide(an_observation(tick, calm)) for tick in range(45, 75, 15)]
    assert later == [3, 2]


def test_v1_goes_on_after_a_replica_that_it_did_not_get() -> None:
    policy = a_policy("wva-v1")
    full, idle = [an_engine(waiting=50)] * 2, [an_engine()] * 2
    assert policy.decide(an_observation(0, full)) == 3
    paths = [policy.decide(an_observation(15.0 * tick, idle)) for tick in range(1, 40)]
    assert paths[-1] == 1


def test_an_hpa_takes_one_more_of_ten_for_nothing() -> None:
    full = [an_engine(waiting=50)] * 10
    published = a_policy("wva-v1", max_replicas=32.0)
    assert published.decide(an_observation(0, full)) == 10
    exact = a_policy("wva-v1", max_replicas=32.0, tolerance=0.0)
    assert exact.decide(an_observation(0, full)) == 11


@pytest.mark.parametrize(
    ("engine", "replicas", "desired"),
    [
        # A replica holds min(0.8 x 448,000, 256 x (1,150 + 250 / 2)) = 326,400 tokens.
        # 600,000 / 0.85 is 53,082 more than two hold.
        (an_engine(kv_tokens=300_000), 2, 3),
        (an_engine(kv_tokens=270_000), 2, 2),
        # Beside a full queue the tokens in use are all that it holds: 2 x (200,000 + 5 x 1,150).
        (an_engine(kv_tokens=200_000, waiting=5), 2, 3),
        (an_engine(kv_tokens=200_000, waiting=4), 2, 2),
        (an_engine(kv_tokens=200_000, waiting=500), 2, 10),
    ],
)
def test_v2_adds_the_tokens_that_are_missing(
    engine: EngineSample, replicas: int, desired: int
) -> None:
    assert a_policy("wva-v2").decide(an_observation(0, [engine] * replicas)) == desired


def test_v2_removes_the_tokens_beyond_its_boundary() -> None:
    # 300,000 / 0.7 leaves 550,628 of 979,200: one replica.
    path = replica_path(a_policy("wva-v2"), an_engine(kv_tokens=100_000), start=3, seconds=240)
    assert path == [(240, 2)]


def test_v2_counts_replicas_that_start() -> None:
    engines = [an_engine(kv_tokens=300_000)] * 2
    assert a_policy("wva-v2").decide(an_observation(0, engines, replicas=3)) == 3


def test_v2_remembers_what_a_replica_held_beside_a_full_queue() -> None:
    policy = a_policy("wva-v2")
    policy.decide(an_observation(0, [an_engine(kv_tokens=100_000, waiting=5)]))
    # A capacity of 100,000 instead of 326,400: 180,000 / 0.85 needs one more than two.
    assert policy.decide(an_observation(60, [an_engine(kv_tokens=90_000)] * 2)) == 3


# 10 ms, 50 us per token computed, 0.5 us per token read.
LEARNED = (10e-3, 50e-6, 0.5e-6)


def test_latencies_follow_the_utilization() -> None:
    # 1,000 tokens in and 200 out take 50 us x 1,200 + 0.5 us x 201 x 1,100 = 170.55 ms, so two
    # per second are a utilization of 0.3411 and a step takes 10 / 0.6589 = 15.177 ms.
    ttft, itl = latencies(LEARNED, 2.0, 1_000, 200)
    assert ttft == pytest.approx(15.177e-3 + 50.5e-3, rel=1e-4)
    assert itl == pytest.approx(15.177e-3 + 0.05e-3 + 0.5e-6 * 1_100.5, rel=1e-4)


def test_the_multiplier_3_is_a_utilization_of_two_thirds() -> None:
    slo = inferred_slo(LEARNED, 3.0, 1_000, 200)
    rate = max_rate(LEARNED, slo, 1_000, 200)
    assert rate == pytest.approx(2 / 3 / 0.17055)
    assert latencies(LEARNED, rate, 1_000, 200)[0] == pytest.approx(slo.ttft)


def test_explicit_targets_bind_by_the_tighter() -> None:
    # A step of 20 ms for ITL is a utilization of 0.5; TTFT would allow 49.5 ms.
    for_token = 0.05e-3 + 0.5e-6 * 1_100.5
    slo = SloTarget(ttft=0.1, itl=20e-3 + for_token)
    assert max_rate(LEARNED, slo, 1_000, 200) == pytest.approx(0.5 / 0.17055)
    assert max_rate(LEARNED, SloTarget(ttft=0.05, itl=0.02), 1_000, 200) == 0


def test_the_first_sample_gives_the_first_parameters() -> None:
    # Alpha is 0.9 of ITL; what is impossible gives the defaults of 5 ms, 0.05 ms and 5e-5 ms.
    alpha, beta, gamma = first_guess(0.07, 0.012, 1_000, 200)
    assert alpha == pytest.approx(0.0108)
    assert (beta + gamma) * 1_000 == pytest.approx(0.07 - 0.0108)
    assert first_guess(0.005, 0.02, 1_000, 200) == START


def a_sample(rate: float) -> LoadMeans:
    ttft, itl = latencies(LEARNED, rate, 1_000, 200)
    return LoadMeans(rate=rate, input_tokens=1_000, output_tokens=200, ttft=ttft, itl=itl)


def test_the_filter_learns_the_capacity_from_mean_latencies() -> None:
    model = QueueingModel(SloTarget(ttft=1.0, itl=0.05))
    for tick in range(400):
        model.learn(a_sample(1.0 + tick % 5 * 0.8), ready=1)
    slo = SloTarget(ttft=0.09, itl=0.03)
    carried = model.max_rate(a_sample(2.0), slo, 3.0)
    assert carried == pytest.approx(max_rate(LEARNED, slo, 1_000, 200), rel=0.05)


def test_the_filter_rejects_an_outlier() -> None:
    model = QueueingModel(SloTarget(ttft=1.0, itl=0.05))
    for tick in range(100):
        model.learn(a_sample(1.0 + tick % 5 * 0.8), ready=1)
    before = model.parameters
    outlier = LoadMeans(rate=2.0, input_tokens=1_000, output_tokens=200, ttft=30.0, itl=0.5)
    model.learn(outlier, ready=1)
    assert model.parameters == before


def test_replicas_are_arrivals_over_what_one_carries() -> None:
    policy, arrived, totals = a_policy("wva-queueing"), 0, Totals()
    # Five rates, each for longer than the window; one replica carries 3.909 at a multiplier of 3.
    for tick in range(300):
        rate = (4, 8, 12, 16, 17)[tick // 5 % 5]
        arrived += 15 * rate
        totals = with_requests(totals, 15 * rate, latencies(LEARNED, rate / 4, 1_000, 200))
        engines = [an_engine()] * 4
        observation = an_observation(15.0 * tick, engines, arrived=arrived, totals=totals)
        desired = policy.decide(observation)
    assert desired == math.ceil(17 / 3.909) == 5


def test_no_request_is_no_decision() -> None:
    policy = a_policy("wva-queueing")
    assert policy.decide(an_observation(0, [an_engine()] * 5)) == 5
    assert policy.decide(an_observation(900, [an_engine()] * 5)) == 5


def with_requests(totals: Totals, requests: int, means: tuple[float, float]) -> Totals:
    ttft, itl = means
    return Totals(
        finished=totals.finished + requests,
        prompt_tokens=totals.prompt_tokens + 1_000 * requests,
        output_tokens=totals.output_tokens + 200 * requests,
        first_tokens=totals.first_tokens + requests,
        ttft_seconds=totals.ttft_seconds + ttft * requests,
        output_gaps=totals.output_gaps + 199 * requests,
        gap_seconds=totals.gap_seconds + 199 * itl * requests,
    )
