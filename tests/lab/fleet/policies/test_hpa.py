"""The HPA's algorithm by the numbers of its documentation, and the policies that configure it."""

import pytest

from tessera_lab.fleet.policies.hpa import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    HorizontalPodAutoscaler,
    average_value,
    external_value,
    pods_average,
    pods_behavior,
)
from tests.policy_builders import a_policy, an_engine, an_observation, replica_path


@pytest.mark.parametrize(
    ("total", "target", "replicas", "desired"),
    [
        # 320 waiting requests at a target of 50 per replica.
        (320, 50, 2, 7),
        (0, 50, 4, 0),
        # kubernetes.io: nothing changes while the ratio is within 0.1 of 1.
        (220, 50, 4, 4),
        (221, 50, 4, 5),
        (180, 50, 4, 4),
        (None, 50, 4, None),
    ],
)
def test_an_average_value_is_divided_by_its_target(
    total: float | None, target: float, replicas: int, desired: int | None
) -> None:
    assert average_value(total, target, replicas) == desired


@pytest.mark.parametrize(
    ("values", "target", "replicas", "desired"),
    [
        # kubernetes.io: twice the target doubles the replicas, half of it halves them.
        ([200] * 4, 100, 4, 8),
        ([50] * 4, 100, 4, 2),
        ([90] * 4, 75, 4, 5),
        ([], 75, 4, None),
        # Two of three at 100 %: with 0 for the third the mean is below the target.
        ([100, 100], 75, 3, 3),
        # A missing pod counts as the target on the way down: (2 x 10 + 75) / 225 of 3.
        ([10, 10], 75, 3, 2),
        # Up: 400 / 225 of 3, not the 8 of two pods without the third.
        ([200, 200], 75, 3, 6),
    ],
)
def test_pods_without_a_value_damp_the_change(
    values: list[float], target: float, replicas: int, desired: int | None
) -> None:
    assert pods_average(values, target, replicas) == desired


def test_a_value_multiplies_the_ready_replicas() -> None:
    starting = an_observation(0, [an_engine()] * 2, replicas=5)
    assert external_value(1.4, 0.7, starting) == 4
    assert external_value(0.75, 0.7, starting) == 5


def test_without_behavior_replicas_double_or_grow_by_four_per_15_seconds() -> None:
    hpa = HorizontalPodAutoscaler(up=DEFAULT_UP, down=DEFAULT_DOWN, bounds=(1, 100))
    replicas, path = 1, []
    for tick in range(5):
        replicas = hpa.decide(15.0 * tick, replicas, [60])
        path.append(replicas)
    assert path == [5, 10, 20, 40, 60]


def test_fewer_replicas_wait_for_the_largest_recommendation_of_five_minutes() -> None:
    hpa = HorizontalPodAutoscaler(up=DEFAULT_UP, down=DEFAULT_DOWN, bounds=(1, 100))
    replicas = [hpa.decide(15.0 * tick, 9, [9 if tick == 4 else 3]) for tick in range(26)]
    assert replicas.index(3) * 15 == 60 + 300


def test_an_unreadable_metric_blocks_fewer_replicas_but_not_more() -> None:
    hpa = HorizontalPodAutoscaler(up=DEFAULT_UP, down=pods_behavior(0, 10, 15), bounds=(1, 100))
    assert hpa.decide(0, 4, [None, 1]) == 4
    assert hpa.decide(15, 4, [None, 6]) == 6
    assert hpa.decide(30, 6, [None, None]) == 6
    assert hpa.decide(45, 6, [1, 1]) == 1


def test_the_documents_need_three_steps_from_2_to_8() -> None:
    # Window of 60 s, then 2 pods per 120 s: 3 steps, the last after 5 minutes.
    policy = a_policy("hpa-documents-busy")
    path = replica_path(policy, an_engine(waiting=400, busy=1.0), start=2, seconds=600)
    assert path == [(60, 4), (180, 6), (300, 8)]


def test_gpu_utilization_ratchets_up_and_stays_while_traffic_flows() -> None:
    # One request keeps a GPU busy, and 100 / 75 of any number is more.
    policy = a_policy("hpa-documents-busy", max_replicas=32.0)
    path = replica_path(policy, an_engine(running=1, busy=1.0), start=2, seconds=7200)
    assert path[-1][1] == 32
    assert [replicas for _, replicas in path] == sorted(replicas for _, replicas in path)
    silent = [an_engine()] * 32
    assert policy.decide(an_observation(7300, silent)) == 32
    assert policy.decide(an_observation(7300 + 300, silent)) == 2


def test_without_gpu_utilization_the_documents_never_remove_a_replica() -> None:
    policy = a_policy("hpa-documents-mig")
    assert replica_path(policy, an_engine(), start=6, seconds=7200) == []
    assert replica_path(policy, an_engine(waiting=100), start=6, seconds=600)[-1][1] == 8


def test_keda_as_llm_d_tunes_it_adds_one_per_180_seconds_and_removes_one_per_300() -> None:
    policy = a_policy("keda-llm-d")
    up = replica_path(policy, an_engine(kv_usage=0.95, waiting=1), start=1, seconds=400)
    assert up == [(0, 2), (180, 3), (360, 4)]
    policy = a_policy("keda-llm-d")
    down = replica_path(policy, an_engine(kv_usage=0.1), start=4, seconds=1000)
    assert down == [(300, 3), (600, 2), (900, 1)]


def test_either_metric_of_llm_d_is_enough() -> None:
    full_queue, full_cache = an_engine(waiting=3, kv_usage=0.1), an_engine(kv_usage=0.9)
    for engine in (full_queue, full_cache):
        assert a_policy("keda-llm-d").decide(an_observation(0, [engine] * 3)) == 4


@pytest.mark.parametrize(("threshold", "desired"), [(1, 10), (5, 8), (10, 5)])
def test_the_plain_keda_divides_the_queue(threshold: float, desired: int) -> None:
    # 40 wait at 5 replicas: at 1 the default limit of twice the replicas holds.
    policy = a_policy("keda-queue", threshold=threshold)
    assert policy.decide(an_observation(0, [an_engine(waiting=8)] * 5)) == desired


def test_keda_reads_an_empty_result_as_zero_and_the_hpa_as_missing() -> None:
    blind = [None, None, None]
    keda, hpa = a_policy("keda-queue"), a_policy("hpa-tuned")
    assert keda.decide(an_observation(0, blind)) == 3
    assert keda.decide(an_observation(301, blind)) == 1
    assert hpa.decide(an_observation(0, blind)) == 3
    assert hpa.decide(an_observation(301, blind)) == 3
