"""SageServe and Chiron by the constants of their public re-implementation (arbiter.py)."""

import pytest

from tessera_lab.fleet.observation import Observation, Totals, total
from tests.policy_builders import a_policy, an_engine, an_observation


def used(at: float, usage: float, replicas: int, rate: float = 0.0) -> Observation:
    """Return a fleet that ended `rate` prompts of 1,150 tokens per second until now."""
    ended = int(rate * at)
    totals = Totals(finished=ended, prompt_tokens=1_150 * ended, output_tokens=250 * ended)
    return an_observation(at, [an_engine(kv_usage=usage)] * replicas, totals=totals)


@pytest.mark.parametrize(("usage", "desired"), [(0.51, 4), (0.5, 3), (0.25, 3), (0.24, 2)])
def test_sageserve_without_a_plan_follows_the_cache(usage: float, desired: int) -> None:
    assert a_policy("sageserve").decide(used(0, usage, 3)) == desired


def test_sageserve_waits_a_start_up_time_after_each_step() -> None:
    policy = a_policy("sageserve")
    path = [policy.decide(used(at, 0.6, 3)) for at in range(0, 136, 15)]
    assert path == [4, 3, 3, 3, 3, 3, 3, 3, 4, 3]


@pytest.mark.parametrize(
    ("usage", "replicas", "desired"),
    [
        # 60 per second and 10 % more, at 24.8 of a replica: the plan has 3.
        (0.6, 2, 3),
        (0.4, 2, 2),
        # On the plan: nothing but the override at 0.9.
        (0.6, 3, 3),
        (0.2, 3, 3),
        (0.91, 3, 4),
        (0.2, 5, 4),
        (0.3, 5, 5),
        (0.95, 5, 5),
    ],
)
def test_sageserve_carries_out_its_plan_as_the_cache_asks(
    usage: float, replicas: int, desired: int
) -> None:
    policy = a_policy("sageserve")
    for tick in range(240):
        policy.decide(used(15.0 * tick, 0.4, replicas, rate=60))
    assert policy.decide(used(3_600, usage, replicas, rate=60)) == desired


def test_sageserve_ends_with_its_plan() -> None:
    policy, replicas = a_policy("sageserve"), 1
    for tick in range(340):
        load = used(15.0 * tick, 0.4 if tick < 240 else 0.6, replicas, rate=60)
        replicas = total(policy.decide(load))
    assert replicas == 3


@pytest.mark.parametrize(("serving", "desired"), [(2, 4), (3, 4), (4, 6)])
def test_chiron_keeps_sixty_percent_of_instances_serving(serving: int, desired: int) -> None:
    engines = [an_engine(running=1)] * serving + [an_engine()] * (5 - serving)
    assert a_policy("chiron").decide(an_observation(0, engines)) == desired


def test_chiron_counts_the_instances_of_full_batches_if_packed() -> None:
    # 256 requests at once keep 50 ms: 5 x 50 fill one of five instances.
    engines = [an_engine(running=50)] * 5
    assert a_policy("chiron").decide(an_observation(0, engines)) == 6
    assert a_policy("chiron", packed=1.0).decide(an_observation(0, engines)) == 4


def test_chiron_waits_a_start_up_time_after_each_step() -> None:
    policy = a_policy("chiron")
    engines = [an_engine(running=1)] * 5
    path = [policy.decide(an_observation(at, engines)) for at in range(0, 136, 15)]
    assert path == [6, 5, 5, 5, 5, 5, 5, 5, 6, 5]
