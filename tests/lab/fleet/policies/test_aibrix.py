"""AIBrix: the rule of its APA (algorithm/apa.go) and the sum of its optimizer."""

import math
from dataclasses import replace

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.fleet.observation import total
from tessera_lab.fleet.policies.profile import max_concurrency, max_request_rate
from tests.policy_builders import A_REPLICA, a_policy, an_engine, an_observation


@pytest.mark.parametrize(
    ("usage", "replicas", "desired"),
    [
        (0.55, 4, 4),
        (0.6, 4, 5),
        (0.75, 4, 6),
        # Never more than twice.
        (1.0, 3, 6),
        (1.0, 7, 8),
    ],
)
def test_apa_multiplies_by_the_ratio_beyond_its_tolerance(
    usage: float, replicas: int, desired: int
) -> None:
    policy = a_policy("aibrix-apa")
    observation = an_observation(0, [an_engine(kv_usage=usage)] * replicas)
    assert policy.decide(observation) == desired


def test_apa_halves_at_most_and_only_after_five_minutes() -> None:
    policy = a_policy("aibrix-apa")
    busy, idle = [an_engine(kv_usage=0.5)] * 8, [an_engine(kv_usage=0.05)] * 8
    assert policy.decide(an_observation(0, busy)) == 8
    # The mean of its window follows the use within 60 s.
    path = {at: policy.decide(an_observation(at, idle)) for at in range(60, 401, 10)}
    assert path[290] == 8
    assert path[400] == 4


def test_apa_orders_again_while_pods_start_unless_guarded() -> None:
    starting = an_observation(0, [an_engine(kv_usage=0.9)] * 2, replicas=4)
    assert a_policy("aibrix-apa").decide(starting) == 8
    assert a_policy("aibrix-apa", pending_guard=1.0).decide(starting) == 4


def test_the_optimizer_adds_the_shares_of_all_buckets() -> None:
    policy = a_policy("aibrix-optimizer", max_replicas=32.0)
    slo = (A_REPLICA.ttft, A_REPLICA.itl)
    short = max_request_rate(A_REPLICA, 1024, 256, slo)
    long = max_request_rate(A_REPLICA, 8192, 512, slo)
    # Lengths fall into the nearest power of 2. Of 64 per second that arrive, half have ended.
    ended = [(1_000, 250)] * 300 + [(9_000, 500)] * 20
    for tick in range(60):
        observation = an_observation(
            10.0 * tick, [an_engine()] * 4, arrived=640 * tick, finished_lengths=ended
        )
        desired = policy.decide(observation)
    assert desired == math.ceil(60 / short + 4 / long) == 4


def test_the_optimizer_forgets_lengths_that_are_older_than_its_window() -> None:
    policy = a_policy("aibrix-optimizer", max_replicas=32.0)
    engines = [an_engine()] * 4
    path = []
    for tick in range(120):
        ended = [(9_000, 500) if tick < 10 else (1_000, 250)] * 100
        observation = an_observation(
            10.0 * tick, engines, arrived=200 * tick, finished_lengths=ended
        )
        path.append(total(policy.decide(observation)))
    # 20 per second are 7.8 replicas of long requests, and one of short ones; half goes at once.
    assert max(path) == 8
    assert path[-1] == 2


# 10 ms and 0.1 ms per token, nothing else.
PLAIN = replace(
    A_REPLICA,
    step=StepTime(
        weights=0.01, kv_token=0.0, token=1e-4, unoverlapped=1.0, sequence=0.0, fixed=0.0
    ),
)


def test_a_replica_carries_what_keeps_its_itl() -> None:
    # Each of 50 requests adds its own token and one of a prompt: 10 ms + 100 x 0.1 ms = 20 ms.
    assert max_concurrency(PLAIN, 10, 10, (1.0, 0.02)) == 50
    assert max_request_rate(PLAIN, 10, 10, (1.0, 0.02)) == pytest.approx(50 / (10 * 0.02))


def test_a_replica_carries_what_keeps_its_ttft() -> None:
    # A prompt behind r tokens of others, beside r decodes: 10 ms + (2 r + 10) x 0.1 ms.
    assert max_concurrency(PLAIN, 10, 10, (0.0171, 0.02)) == 30


def test_the_kv_cache_and_the_sequences_bound_a_replica() -> None:
    assert max_concurrency(replace(PLAIN, kv_tokens=300), 10, 10, (9.0, 9.0)) == 20
    assert max_concurrency(replace(PLAIN, max_num_seqs=7), 10, 10, (9.0, 9.0)) == 7


def test_a_replica_that_keeps_no_slo_serves_one_request_at_a_time() -> None:
    rate = max_request_rate(PLAIN, 10, 10, (0.001, 0.001))
    assert rate == pytest.approx(1 / (10 * 0.0102))
