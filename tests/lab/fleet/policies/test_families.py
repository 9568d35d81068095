"""What every policy keeps to, whatever it sees."""

import random

import pytest

from tessera_lab.fleet.observation import EngineSample, Observation, Policy, Totals, total
from tessera_lab.fleet.policies.families import FAMILIES
from tests.policy_builders import A_REPLICA, a_policy


def a_course(seed: int, interval: float, ticks: int) -> list[Observation]:
    """Return what a fleet may show: waves, silence, starts and missing metrics."""
    source = random.Random(seed)  # noqa: S311 - a test needs no secrets
    observations, totals, arrived, ready = [], Totals(), 0, 4
    for tick in range(ticks):
        calm = tick % 20 < 5
        ready = max(0, min(20, ready + source.choice((-1, 0, 0, 1))))
        requests = 0 if calm else int(source.expovariate(1 / 40))
        lengths = [
            (source.choice((1, 30, 900, 20_000)), source.choice((1, 40, 700)))
            for _ in range(requests)
        ]
        prompts = sum(length for length, _ in lengths)
        outputs = sum(length for _, length in lengths)
        arrived += requests
        totals = Totals(
            finished=totals.finished + requests,
            prompt_tokens=totals.prompt_tokens + prompts,
            output_tokens=totals.output_tokens + outputs,
            first_tokens=totals.first_tokens + requests,
            ttft_seconds=totals.ttft_seconds + requests * source.random() * 3,
            output_gaps=totals.output_gaps + max(0, outputs - requests),
            gap_seconds=totals.gap_seconds + outputs * source.random() * 0.04,
        )
        engines = tuple(
            None if source.random() < 0.1 or tick % 50 > 45 else _an_engine(source, calm)
            for _ in range(ready)
        )
        observations.append(
            Observation(
                at=tick * interval,
                replicas=ready + source.choice((0, 0, 1, 3)),
                ready=ready,
                scraped_at=max(0.0, tick * interval - 5),
                engines=engines,
                totals=totals,
                in_flight=0 if calm else source.randrange(400),
                queued=0 if ready else 5,
                arrived=arrived,
                finished_lengths=tuple(lengths),
            )
        )
    return observations


def _an_engine(source: random.Random, calm: bool) -> EngineSample:
    if calm:
        return EngineSample(running=0, waiting=0)
    usage = source.random()
    return EngineSample(
        running=source.randrange(200),
        waiting=source.choice((0, 0, 3, 60)),
        waiting_tokens=source.choice((0, 0, 2_000, 90_000)),
        kv_tokens=int(usage * A_REPLICA.kv_tokens),
        kv_usage=usage,
        busy=source.random(),
    )


def decisions(policy: Policy, seed: int = 0, ticks: int = 300) -> list[int]:
    course = a_course(seed, policy.interval, ticks)
    return [total(policy.decide(observation)) for observation in course]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_whole_and_repeatable(name: str, seed: int) -> None:
    path = decisions(a_policy(name), seed)
    assert all(type(replicas) is int and 0 <= replicas <= 100_000 for replicas in path)
    assert path == decisions(a_policy(name), seed)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_point_of_the_grid_makes_a_policy(name: str) -> None:
    family = FAMILIES[name]
    assert len(family.grid) >= 30
    assert len({tuple(sorted(point.items())) for point in family.grid}) == len(family.grid)
    for point in family.grid:
        assert set(point) <= set(family.published)
        policy = family.create(family.published | point, A_REPLICA)
        assert all(replicas >= 0 for replicas in decisions(policy, ticks=3))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_any_engine_and_any_request_a_policy_still_decides(name: str) -> None:
    policy = a_policy(name)
    for tick in range(20):
        at = tick * policy.interval
        nothing = Observation(at=at, replicas=0, ready=0, scraped_at=at)
        assert total(policy.decide(nothing)) >= 0


def test_static_replicas_stay() -> None:
    assert set(decisions(a_policy("static", replicas=7.0))) == {7}
