"""Replicas among which a gateway chooses carry more than each of them alone."""

from dataclasses import replace
from statistics import mean, pvariance

import pytest

from tessera.domain.placement.checks import shape_of
from tessera.domain.sizing.scheduler_limits import Demand, sustained_load
from tessera_lab.fleet.generators import situation
from tessera_lab.fleet.scenarios.service import fleet_objects, sized
from tessera_lab.fleet.simulation import Simulation
from tests.lab.fleet.builders import Planned

SECONDS = 300.0


def predicted(replicas: int) -> float:
    """Return the requests per second and replica of the generators' lengths."""
    objects, trace = fleet_objects(), situation("steady", 10, SECONDS, seed=1)
    fit, slo, shape = objects.choice().fit, objects.spec.slo, shape_of(objects.spec)
    assert shape is not None
    prompt, answer = mean(trace.input_tokens), round(mean(trace.output_tokens))
    demand = Demand(
        shape=shape,
        precision=fit.precision,
        max_model_len=fit.max_model_len,
        input_tokens=round(prompt),
        output_tokens=answer,
        ttft=slo.ttft_p95,
        inter_token=slo.itl_p95,
        prompt_variation=pvariance(trace.input_tokens) / prompt**2,
    )
    load = sustained_load(
        demand,
        fit.step,
        fit.memory.kv_tokens,
        fit.limits,
        replicas=replicas,
        servers=replicas,
    )
    return load.tokens_per_second / answer


def in_time(rate: float, replicas: int) -> float:
    """Return the share of first tokens within the objective after the fleet has filled up."""
    trace = situation("steady", rate * replicas, SECONDS, seed=2)
    fleet = replace(sized(), initial_replicas=replicas)
    course = Simulation(trace, fleet, Planned((0, replicas))).run()
    late = [
        ttft > fleet.replica.ttft
        for arrival, ttft in zip(trace.arrivals, course.ttft, strict=True)
        if arrival > 60
    ]
    return 1 - mean(late)


@pytest.mark.parametrize("replicas", [1, 4])
def test_with_a_tenth_of_headroom_a_fleet_keeps_the_objective(replicas: int) -> None:
    rate = predicted(replicas)
    assert in_time(rate / 1.1, replicas) >= 0.95
    assert in_time(1.5 * rate, replicas) < 0.95


def test_four_replicas_carry_more_than_one_each() -> None:
    rate = predicted(4) / 1.1
    assert rate > 1.15 * predicted(1)
    assert in_time(rate, 4) - in_time(rate, 1) > 0.1
