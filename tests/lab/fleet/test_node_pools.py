"""Pools of several tiers: each replica is on a node of its own pool, and is paid by its tier."""

import math
from dataclasses import replace

import pytest

from tessera.api.ref import Ref
from tessera_lab.fleet.course import Course, cost, node_counts
from tessera_lab.fleet.disturbance import CALM, Disturbance
from tessera_lab.fleet.model import NodePool, PoolHardware, Purchase, Router, Tier
from tessera_lab.fleet.observation import Decision, Observation
from tessera_lab.fleet.policies.product import ProductPolicy, WholeGpuPool
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tests.lab.fleet.builders import LIMITS, REPLICA, STEP, Planned, a_fleet, a_trace, steady

PRICES = GpuPrices(on_demand=3.6, reserved=1.8, spot=0.9)
RESERVED = NodePool(name="reserved", tier=Tier.RESERVED, nodes=2)
ON_DEMAND = NodePool(name="on-demand", tier=Tier.ON_DEMAND)
A100 = "NVIDIA-A100-SXM4-80GB"
SPEC = {
    "model": {"uri": "hf://Qwen/Qwen3-14B"},
    "slo": {"ttftP95": "1s", "itlP95": "50ms"},
    "context": {"typicalInputTokens": 1000, "typicalOutputTokens": 200, "maxModelLen": 8192},
    "scaling": {"minReplicas": 2, "maxReplicas": 8},
}
SLOW = NodePool(name="on-demand", tier=Tier.ON_DEMAND, start_seconds=300)


def spaced(begin: int, end: int, rate: int) -> list[float]:
    """Return arrivals at equal intervals."""
    return [begin + index / rate for index in range((end - begin) * rate)]


def on(reserved: int, on_demand: int = 0) -> Decision:
    """Return a decision for both pools."""
    return {"reserved": reserved, "on-demand": on_demand}


def a_course(
    *decisions: tuple[float, Decision],
    pools: tuple[NodePool, ...] = (RESERVED, ON_DEMAND),
    seconds: float = 600,
    initial: int = 1,
    disturbance: Disturbance = CALM,
) -> tuple[Course, Planned]:
    """Play decisions under a load that one replica carries."""
    policy = Planned(*decisions)
    fleet = a_fleet(pools=pools, initial_replicas=initial)
    return Simulation(steady(1, seconds), fleet, policy, disturbance=disturbance).run(), policy


def nodes_at(policy: Planned, at: float) -> list[tuple[str, float | None]]:
    """Return pool and moment of binding of the replicas that do not drain."""
    observation = next(each for each in policy.observations if each.at == at)
    return [
        (each.pool, each.bound_at) for each in observation.statuses if each.draining_since is None
    ]


def test_each_replica_runs_on_its_pool_and_is_paid_by_its_tier() -> None:
    course, policy = a_course((0, on(1)), (100, on(2, 1)), (400, on(2)))
    assert nodes_at(policy, 395) == [("reserved", 0), ("reserved", 100), ("on-demand", 100)]
    burst = [each for each in course.lifetimes if each.tier is Tier.ON_DEMAND]
    assert [each.begin for each in burst] == [100]
    assert burst[0].end == pytest.approx(400, abs=6)
    expected = (2 * course.paid_seconds * 1.8 + (burst[0].end - 100) * 3.6) / 3600
    assert cost(course, PRICES, Purchase(reserved=2)) == pytest.approx(expected)
    assert (course.changes, course.broken_streams) == (2, 0)


def test_the_first_replicas_are_on_the_first_pools() -> None:
    _, policy = a_course((0, on(2, 1)), initial=3)
    assert nodes_at(policy, 5) == [("reserved", 0), ("reserved", 0), ("on-demand", 0)]


def test_a_replica_without_a_node_waits_until_one_is_drained() -> None:
    # The third replica finds no node until the streams of a drained one have ended.
    course, policy = a_course((0, on(2)), (50, on(3)), (400, on(2)), initial=2)
    assert nodes_at(policy, 395) == [("reserved", 0), ("reserved", 0), ("reserved", None)]
    assert nodes_at(policy, 405) == [("reserved", 0), ("reserved", 0)]
    assert len(course.lifetimes) == 2
    assert course.longest_wait == 345


def test_a_replica_that_drains_serves_again_when_it_is_wanted() -> None:
    trace = a_trace([(9.5, 100, 2000), (9.6, 100, 2000), (20.0, 100, 10), (20.1, 100, 10)], 60)
    policy = Planned((0, on(2)), (10, on(1)), (15, on(2)))
    fleet = a_fleet(pools=(RESERVED, ON_DEMAND), initial_replicas=2)
    course = Simulation(trace, fleet, policy).run()
    assert {each.at: each.ready for each in policy.observations}[15] == 1
    assert {each.at: each.ready for each in policy.observations}[20] == 2
    assert len(course.lifetimes) == 2


def test_a_node_is_paid_from_its_boot_and_its_replica_starts_once_it_is_there() -> None:
    course, policy = a_course((0, on(1)), (50, on(1, 1)), pools=(RESERVED, SLOW))
    assert nodes_at(policy, 345) == [("reserved", 0), ("on-demand", None)]
    assert nodes_at(policy, 355) == [("reserved", 0), ("on-demand", 350)]
    ready = [each.at for each in policy.observations if each.ready == 2]
    assert ready[0] == 370
    assert [each.begin for each in course.lifetimes if each.tier is Tier.ON_DEMAND] == [50]


def test_a_node_that_is_withdrawn_before_it_comes_is_paid_until_then() -> None:
    course, _ = a_course(
        (0, on(1)),
        (50, on(1, 1)),
        (200, on(1)),
        pools=(RESERVED, SLOW),
    )
    burst = [each for each in course.lifetimes if each.tier is Tier.ON_DEMAND]
    assert [(each.begin, each.end) for each in burst] == [(50, 200)]


@pytest.mark.parametrize(
    ("decision", "pools", "full", "waits"),
    [
        # It waits for a reserved node, and one could be had on demand, for all the time or not.
        (on(3), (RESERVED, SLOW), None, True),
        (on(3), (RESERVED, SLOW), "on-demand", False),
        # It waits for a node that starts, beside a reserved one that is free or used by others.
        (on(1, 1), (RESERVED, SLOW), None, True),
        (on(1, 1), (RESERVED, SLOW), "reserved", False),
        (on(2, 1), (RESERVED, SLOW), None, False),
        (on(2, 1), (RESERVED, ON_DEMAND), None, False),
    ],
)
def test_a_wait_counts_only_while_another_pool_has_a_node_for_it(
    decision: Decision, pools: tuple[NodePool, ...], full: str | None, waits: bool
) -> None:
    disturbance = Disturbance(full_pools=((1, math.inf),), full_pool=full) if full else CALM
    course, _ = a_course(
        (0, on(1)), (10, decision), pools=pools, seconds=200, disturbance=disturbance
    )
    assert course.longest_wait == (190 if waits else 0)


def test_a_pool_that_refused_a_node_is_not_known_to_have_one() -> None:
    full = Disturbance(full_pools=((1, 100),), full_pool="on-demand")
    decisions = ((0, on(2)), (10, on(2, 1)), (50, on(3)), (150, on(2, 1)), (160, on(3, 1)))
    course, _ = a_course(*decisions, initial=2, seconds=200, disturbance=full)
    # From 160 s on, when a node had come again.
    assert course.longest_wait == 40


def test_others_use_the_free_nodes_of_a_full_pool_for_a_while() -> None:
    full = Disturbance(full_pools=((100, 400),), full_pool="reserved")
    _, policy = a_course((0, on(1)), (200, on(2, 1)), disturbance=full)
    foreign = {each.at: each.foreign for each in policy.observations}
    assert (foreign[95], foreign[100], foreign[400]) == (
        {"reserved": 0},
        {"reserved": 1},
        {"reserved": 0},
    )
    assert nodes_at(policy, 395) == [("reserved", 0), ("reserved", None), ("on-demand", 200)]
    assert ("reserved", 400) in nodes_at(policy, 405)


class Recorded:
    """The product's policy, and its decisions by their moments."""

    def __init__(self, policy: ProductPolicy) -> None:
        self._policy = policy
        self.interval, self.scrape = policy.interval, policy.scrape
        self.decisions: list[tuple[float, Decision]] = []

    def decide(self, observation: Observation) -> Decision:
        decision = self._policy.decide(observation)
        self.decisions.append((observation.at, decision))
        return decision


def test_the_operator_uses_reserved_nodes_first_and_others_for_a_burst() -> None:
    # Two replicas carry what comes before and after the burst.
    reserved = WholeGpuPool(
        name="reserved", product=A100, price="2.16", nodes=1, gpus=2, tier=Tier.RESERVED
    )
    others = WholeGpuPool(
        name="on-demand", product=A100, price="3.43", nodes=0, gpus=1, max_nodes=8, start_seconds=60
    )
    objects = others.beside(reserved.objects(Ref("lab", "chat"), SPEC))
    fleet = replace(
        sized_fleet(objects.spec, objects.choice().fit),
        router=Router.GATEWAY,
        initial_replicas=2,
        pools=(RESERVED, replace(ON_DEMAND, start_seconds=60)),
    )
    arrivals = [*spaced(0, 200, 2), *spaced(200, 500, 10), *spaced(500, 1800, 1)]
    trace = a_trace([(arrival, 1000, 200) for arrival in arrivals], 1800)
    policy = Recorded(ProductPolicy(objects))
    course = Simulation(trace, fleet, policy).run()
    ordered = [at for at, decision in policy.decisions if decision != on(2)]
    begins, ends = zip(
        *((each.begin, each.end) for each in course.lifetimes if each.tier is Tier.ON_DEMAND),
        strict=True,
    )
    assert 200 < ordered[0] < 300
    assert min(begins) == ordered[0]
    assert max(ends) < 1500
    assert policy.decisions[-1][1] == on(2)
    assert len(course.lifetimes) == len(begins) + 2
    assert (course.longest_wait, course.broken_streams) == (0, 0)


def test_replicas_of_two_kinds_run_side_by_side_and_are_paid_by_their_gpus() -> None:
    fast = PoolHardware(replica=REPLICA, limits=LIMITS, step=STEP.scaled(0.5, "Measured"), size=2)
    pairs = replace(ON_DEMAND, hardware=fast)
    course, policy = a_course(
        (0, on(1)), (100, on(1, 1)), (300, on(0, 1)), pools=(RESERVED, pairs), seconds=600
    )
    assert nodes_at(policy, 200) == [("reserved", 0), ("on-demand", 100)]
    assert nodes_at(policy, 400) == [("on-demand", 100)]
    (pair,) = [each for each in course.lifetimes if each.tier is Tier.ON_DEMAND]
    assert cost(course, PRICES, Purchase()) == pytest.approx(
        2 * (pair.end - pair.begin) * 3.6 / 3600
    )
    assert max(count for *_, count in node_counts(course.lifetimes)) == 3
    # Its engine has the steps of its own type.
    before, after = ([course.ttft[at] for at in span] for span in (range(90), range(400, 590)))
    assert max(after) < 0.6 * min(before)
    assert course.broken_streams == 0
