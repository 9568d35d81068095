"""How often spot nodes are taken: what is counted, the rate of it, and what spot then costs."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.accelerator_pool import MAX_PREEMPTIONS, NodePreemption, SpotStatus
from tessera.api.reasons import VariantReason
from tessera.domain.config import Config
from tessera.domain.explain.explain import explain
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import Node, Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.preemptions import WINDOW, preemption_rate
from tessera.domain.placement.variant_cost import NOTICE, effective_price
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.status.pool import pool_status
from tests.builders import NOW, a_node, a_pool, a_service, a_snapshot, a_spec, at, plan_of
from tests.domain.placement.test_split import ON_DEMAND, SPOT, D, S, pods_of, split
from tests.domain.variant_fleet import CHAT, VariantFleet

START = timedelta(seconds=120)
TAKEN = frozenset({"aws-node-termination-handler/spot-itn"})


def preempted(rate: str) -> HardwareChoice:
    """The spot variant with so many preemptions per node and hour."""
    return replace(SPOT, offer=replace(SPOT.offer, preemptions_per_hour=Decimal(rate)))


def a_preemption(node: str, created: float, taken: float) -> NodePreemption:
    return NodePreemption(node=node, created_at=at(created), at=at(taken))


# F13 of the catalogue: 1.05 USD with 10 and 20 % waste.
@pytest.mark.parametrize(("wasted", "price"), [(0.1, "1.1667"), (0.2, "1.3125"), (0.7, "3.5000")])
def test_the_effective_price_is_that_of_the_catalogue(wasted: float, price: str) -> None:
    rate = Decimal(wasted) * 3600 / int((START + NOTICE).total_seconds())
    choice = preempted(str(rate))
    hourly = choice.offer.hourly.times(Decimal("0.525"))
    choice = replace(choice, offer=replace(choice.offer, comparison_price=hourly))
    assert effective_price(choice, START).formatted(4) == f"{price} USD"


def test_a_replacement_that_waits_for_a_node_wastes_its_start_too() -> None:
    choice = preempted("3")
    assert effective_price(choice, timedelta(minutes=18)) == choice.offer.hourly.times(Decimal(100))
    assert effective_price(choice, timedelta(minutes=8)) == choice.offer.hourly.times(Decimal(2))
    assert effective_price(SPOT, timedelta(minutes=8)) == SPOT.offer.comparison_price


def test_spot_that_is_taken_all_the_time_comes_after_on_demand_and_is_left() -> None:
    taken = preempted("12")
    assert split(4, pods_of(ON_DEMAND, free=9), pods_of(preempted("9"), free=9)).replicas[S] == 4
    variants = pods_of(ON_DEMAND, free=9), pods_of(taken, free=9)
    result = split(4, *variants)
    assert result.replicas == {D: 4, S: 0}
    running = pods_of(ON_DEMAND, free=9), pods_of(taken, 1, free=9)
    first = split(1, *running)
    assert first.replicas == {D: 0, S: 1}
    moved = split(1, *running, seconds=(first.until - NOW).total_seconds(), memory=first.memory)
    (change, *_) = moved.changes
    assert moved.replicas == {D: 1, S: 1}, "one starts before the other stops"
    assert change.reason == VariantReason.MOVED_TO_CHEAPER
    full = split(2, pods_of(ON_DEMAND, 1), pods_of(taken, free=9))
    assert full.changes[0].message.endswith(
        "2.00 USD per hour each, which count as 10.00 USD with 12 preemptions per node and hour"
    )


@given(
    rate=st.decimals(0, 60, places=2),
    start=st.integers(10, 900),
    wanted=st.integers(1, 6),
    spot=st.integers(0, 6),
    on_demand=st.integers(0, 6),
)
def test_new_capacity_is_never_at_a_higher_effective_price_than_elsewhere(
    rate: Decimal, start: int, wanted: int, spot: int, on_demand: int
) -> None:
    choices = {S: preempted(str(rate)), D: ON_DEMAND}
    span = timedelta(seconds=start)
    room = {S: spot, D: on_demand}
    variants = [pods_of(choices[name], free=room[name], start=span) for name in (D, S)]
    replicas = split(wanted, *variants).replicas
    prices = {name: effective_price(choice, span).nanos for name, choice in choices.items()}
    for name, other in ((S, D), (D, S)):
        if replicas[name] > 0 and prices[name] > prices[other]:
            assert replicas[other] >= room[other], "the cheaper one is full"


@given(st.lists(st.sampled_from(("9.90", "10", "10.10")), min_size=1, max_size=60))
def test_a_rate_that_changes_a_little_about_the_price_of_on_demand_moves_nothing(
    rates: list[str],
) -> None:
    # 10 preemptions of 4 minutes waste two thirds: 2 USD count as 6, like on demand.
    result = split(1, pods_of(ON_DEMAND, free=1), pods_of(preempted("10"), 1, free=1))
    for index, rate in enumerate(rates, 1):
        variants = pods_of(ON_DEMAND, free=1), pods_of(preempted(rate), 1, free=1)
        result = split(1, *variants, seconds=60 * index, memory=result.memory)
        assert result.replicas == {D: 0, S: 1}


def test_the_rate_is_of_the_time_that_nodes_existed_within_a_day() -> None:
    day = WINDOW.total_seconds()
    # One hour counts as if observed before.
    assert preemption_rate([a_preemption("a", 0, 3600)], [], at(3600)) == Decimal("0.50")
    assert preemption_rate([a_preemption("a", 0, 3600)], [at(0)] * 2, at(3600)) == Decimal("0.25")
    # Nodes that are older than a day count for a day.
    assert preemption_rate([a_preemption("a", -9 * day, 0)], [at(-99 * day)], NOW) == Decimal(
        "0.02"
    )
    many = [a_preemption(f"n{index}", 60 * index, 60 * index + 60) for index in range(40)]
    latest = many[-MAX_PREEMPTIONS:]
    # 15 of them in 15 minutes after the oldest known one.
    assert preemption_rate(latest, [], latest[-1].at) == Decimal("12.00")


class Spot(VariantFleet):
    """A Standard service above its floor, with nodes for one replica each."""

    def __init__(self, spot: int = 2) -> None:
        spec = a_spec(
            **{"class": "Standard"},
            placement={"tiers": ["OnDemand", "Spot"]},
            scaling={"minReplicas": 1, "maxReplicas": 3},
            replicas=3,
        )
        self.incremental = Incremental()
        super().__init__(
            service=a_service(spec=spec),
            pools=(a_pool("burst", "3.00", tier="OnDemand"), a_pool("spot", tier="Spot")),
            nodes=[a_new_node("burst", index) for index in range(3)]
            + [a_new_node("spot", index) for index in range(spot)],
            decide=self._decide,
        )

    def _decide(self, config: Config, snapshot: Snapshot, memory: PlanMemory) -> Plan:
        decision = plan(config, snapshot, memory)
        reused = self.incremental.run(plan, config, snapshot, memory)
        assert reused.pools == decision.pools
        assert reused.service_plans == decision.service_plans
        return decision

    def take(self) -> int:
        """Take the spot nodes that are used, and have others come; return how many."""
        used = {pod.node for pod in self.pods.values()}
        taken = [node for node in self.nodes if node.name in used and node.labels["pool"] == "spot"]
        for node in taken:
            index = self.nodes.index(node)
            self.nodes[index] = replace(node, taints=TAKEN, schedulable=False)
        self.cycle()
        for node in taken:
            self.nodes = [each for each in self.nodes if each.name != node.name]
            for ref in [ref for ref, pod in self.pods.items() if pod.node == node.name]:
                del self.pods[ref]
            self.created += 1
            self.nodes.append(a_new_node("spot", 100 + self.created, self.now.total_seconds()))
        return len(taken)


def a_new_node(pool: str, index: int, created: float = 0) -> Node:
    return replace(a_node(pool, whole=1, name=f"{pool}-{index}"), created=at(created))


def test_a_spot_pool_that_is_taken_all_the_time_is_left_and_tried_again_later() -> None:
    cluster = Spot(4)
    cluster.start = timedelta(minutes=10)
    cluster.run(700)
    rates: list[Decimal] = []
    while cluster.counts() == {"burst": 1, "spot": 2} and len(rates) < 9:
        cluster.take()
        view = cluster.memory.pools[1]
        assert view.spot is not None
        rates.append(view.spot.preemptions_per_node_hour)
        cluster.run(700)
    assert cluster.counts() == {"burst": 3, "spot": 0}
    # 10 minutes of start and 2 of notice: from 5 / 3 preemptions on 2 USD count as 3.
    assert len(rates) > 1
    assert rates[-2] < Decimal(5) / 3 < rates[-1]
    assert pool_status(view, None, NOW).spot == view.spot

    snapshot = cluster.snapshot()
    explained = explain(snapshot, plan(cluster.config, snapshot, cluster.memory), CHAT)
    numbers = next(decision for decision in explained if decision.topic == "variants").numbers
    assert ("", "compared as 3.1250 USD: 1.80 preemptions per node and hour") in numbers

    cluster.now += WINDOW
    for _ in range(200):
        cluster.cycle(30)
    assert cluster.counts() == {"burst": 1, "spot": 2}


def test_what_is_no_preemption_and_what_was_counted_is_not_counted_again() -> None:
    cluster = Spot(3)
    cluster.run(120)
    pool = cluster.pools[1]

    def recent() -> list[str]:
        status = cluster.memory.pools[1].spot
        return [each.node for each in status.recent] if status is not None else []

    used = sorted(
        {pod.node for pod in cluster.pods.values() if pod.node and pod.node.startswith("spot")}
    )
    unused = next(node for node in cluster.nodes if node.name not in used)
    by_name = {node.name: node for node in cluster.nodes}
    cluster.nodes = [
        replace(node, taints=TAKEN, schedulable=False)
        if node.name == used[0] or node is unused
        else replace(node, schedulable=False)
        for node in by_name.values()
    ]
    cluster.run(60)
    assert recent() == [used[0]], "an unused node and a cordoned one are none"

    # Another leader has the status alone.
    status = pool_status(cluster.memory.pools[1], None, NOW)
    observed = a_snapshot(
        pools=(replace(pool, status=status),), nodes=tuple(cluster.nodes), at=NOW + cluster.now
    )
    (view,) = plan_of(observed).pools
    assert view.spot == status.spot
    later = replace(observed, at=NOW + cluster.now + WINDOW)
    assert plan_of(later).pools[0].spot is None


def test_a_status_of_another_tier_counts_for_nothing() -> None:
    status = SpotStatus(
        preemptions_per_node_hour=Decimal(9),
        measured_at=at(-60),
        recent=(a_preemption("a", -3600, -60),),
    )
    pool = a_pool("burst", tier="OnDemand")
    pool = replace(pool, status=pool.status.model_copy(update={"spot": status}))
    (view,) = plan_of(a_snapshot(pools=(pool,), nodes=(a_node("burst", whole=1),))).pools
    assert view.spot is None
    assert all(offer.preemptions_per_hour == 0 for offer in view.offers)
