"""Dynamo's planner by its rules: planner/core/{load,throughput}_scaling.py and its forecasts."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.fleet.observation import EngineSample, Totals
from tessera_lab.fleet.policies.profile import max_request_rate
from tessera_lab.fleet.policies.series import (
    AutoregressiveForecast,
    ConstantForecast,
    Forecaster,
    TrendForecast,
)
from tests.policy_builders import A_REPLICA, a_policy, an_engine, an_observation

# A step takes 10 ms and 0.1 ms per token; prompts and outputs have 100.
PLAIN = replace(
    A_REPLICA,
    step=StepTime(
        weights=0.01, kv_token=0.0, token=1e-4, unoverlapped=1.0, sequence=0.0, fixed=0.0
    ),
    input_tokens=100,
    output_tokens=100,
)
# 10 ms + 0.1 ms x (6,000 + 100) is beyond the 500 ms of TTFT.
LATE = an_engine(waiting=60, waiting_tokens=6_000)
# 2 x 201 tokens beside 10 ms are beyond the 50 ms of ITL.
SLOW = an_engine(running=200)
IDLE = an_engine()


@pytest.mark.parametrize(
    ("engines", "desired"),
    [
        ([LATE, LATE], 3),
        ([SLOW, SLOW], 3),
        # Only when all engines exceed: one that does not is enough to wait.
        ([LATE, IDLE], 2),
        ([SLOW, IDLE], 2),
        # All must exceed the same objective.
        ([LATE, SLOW], 2),
        ([IDLE, IDLE], 1),
        ([IDLE], 1),
        ([LATE], 2),
    ],
)
def test_load_scaling_steps_where_all_engines_agree(
    engines: Sequence[EngineSample], desired: int
) -> None:
    assert a_policy("dynamo-load", PLAIN).decide(an_observation(5, engines)) == desired


@pytest.mark.parametrize(
    ("engine", "desired"),
    [
        # Of two engines the rest gets twice the queue: 380 ms of (500 - 20) x 80 % = 384 ms.
        (an_engine(waiting_tokens=1_900), 1),
        (an_engine(waiting_tokens=1_930), 2),
        # Twice the cache must fit in 448,000 tokens.
        (an_engine(kv_tokens=223_999), 1),
        (an_engine(kv_tokens=224_000), 2),
        # Twice 74 running requests and one: 10 ms + 2 x 149 x 0.1 ms is below 80 % of 50 ms.
        (an_engine(running=74), 1),
        (an_engine(running=75), 2),
    ],
)
def test_load_scaling_removes_one_only_if_the_rest_carries_its_load(
    engine: EngineSample, desired: int
) -> None:
    assert a_policy("dynamo-load", PLAIN).decide(an_observation(5, [engine] * 2)) == desired


@pytest.mark.parametrize("name", ["dynamo-load", "dynamo-default"])
def test_the_planner_only_observes_while_a_replica_starts_or_is_silent(name: str) -> None:
    policy = a_policy(name, PLAIN)
    full = an_engine(waiting_tokens=500_000)
    assert policy.decide(an_observation(5, [full] * 2, replicas=3)) == 3
    assert policy.decide(an_observation(10, [full, None])) == 2
    assert policy.decide(an_observation(15, [full] * 2)) == 3


@pytest.mark.parametrize(
    ("used", "queued", "desired"),
    [
        # More than 100 % of the cache in use and queued on any engine; less than 60 % on all.
        ((0.7, 0.9), (0.0, 0.2), 3),
        ((0.7, 0.9), (0.0, 0.1), 2),
        ((0.5, 0.59), (0.0, 0.0), 1),
        ((0.5, 0.61), (0.0, 0.0), 2),
    ],
)
def test_the_default_target_has_thresholds_of_the_cache(
    used: tuple[float, float], queued: tuple[float, float], desired: int
) -> None:
    engines = [
        an_engine(kv_tokens=int(use * 448_000), waiting_tokens=int(queue * 448_000))
        for use, queue in zip(used, queued, strict=True)
    ]
    assert a_policy("dynamo-default").decide(an_observation(5, engines)) == desired


def test_throughput_scaling_divides_the_demand_by_an_engine() -> None:
    # 200 requests at once take steps of 50 ms, so 200 / (100 x 50 ms) = 40 per second.
    assert max_request_rate(PLAIN, 100, 100, (0.5, 0.05)) == pytest.approx(40)
    policy = a_policy("dynamo-throughput", PLAIN)
    assert policy.decide(an_observation(0, [IDLE] * 4)) == 4
    assert policy.decide(an_observation(180, [IDLE] * 4, arrived=18_000)) == 3
    assert policy.decide(an_observation(360, [IDLE] * 4, arrived=18_000 + 180 * 121)) == 4


def test_throughput_scaling_uses_the_lengths_of_the_interval() -> None:
    policy = a_policy("dynamo-throughput", PLAIN)
    totals = Totals(finished=10, prompt_tokens=4_000, output_tokens=1_000)
    rate = max_request_rate(PLAIN, 400, 100, (0.5, 0.05))
    desired = policy.decide(an_observation(180, [IDLE], arrived=18_000, totals=totals))
    assert desired == -(-100 // rate)
    assert rate < 40


def test_throughput_is_the_floor_of_load() -> None:
    policy = a_policy("dynamo-both", PLAIN)
    assert policy.decide(an_observation(175, [IDLE] * 4, arrived=17_500)) == 3
    assert policy.decide(an_observation(180, [IDLE] * 3, arrived=18_000)) == 3
    assert policy.decide(an_observation(185, [LATE] * 3, arrived=18_500)) == 4
    # Without any arrival in the next interval the floor falls to 1.
    assert policy.decide(an_observation(361, [IDLE] * 4, arrived=18_500)) == 3
    assert policy.decide(an_observation(541, [IDLE] * 3, arrived=18_500)) == 2


def test_the_budget_is_eight() -> None:
    assert a_policy("dynamo-load", PLAIN).decide(an_observation(5, [LATE] * 8)) == 8


def with_values(forecast: Forecaster, *values: float) -> Forecaster:
    for value in values:
        forecast.add(value)
    return forecast


def test_forecasts_go_on_as_the_values_went() -> None:
    assert with_values(ConstantForecast(), 3, 5).next(2) == [5, 5]
    # Each change is half of the change before: 16, 8, 4, 2, 1, then 0.5 and 0.25.
    assert with_values(AutoregressiveForecast(), 0, 16, 24, 28, 30, 31).next(2) == [31.5, 31.75]
    assert with_values(AutoregressiveForecast(), 7).next() == [7]
    # A gain of 21 / 31 on the level and of 10 / 31 on the trend, with noises 1, 0.1 and 10.
    assert with_values(TrendForecast(), 10, 20).next() == pytest.approx([20])
    line = with_values(TrendForecast(), *range(0, 1_000, 10))
    assert line.next(2) == pytest.approx([1_000, 1_010], rel=1e-3)


def test_no_forecast_is_below_zero() -> None:
    for forecast in (AutoregressiveForecast(), TrendForecast()):
        assert min(with_values(forecast, *range(900, 0, -100)).next(50)) == 0
