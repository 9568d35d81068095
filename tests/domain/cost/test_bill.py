"""The bill: it sums to what the nodes cost, to the nano-unit, whatever happened in between."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from tessera.domain.cost.bill import LINE_LIFETIME, Bill, accrue
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.hardware.device import sized_profiles, slice_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.pools import discover
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.money import price_on
from tessera.domain.observed.snapshot import Node, Pod, Pool, Readings, Ref, Snapshot
from tests.builders import A100, H100, NOW, a_node, a_pod, a_pool, at, dollars, readings_of
from tests.domain.service.test_variants import fleet
from tests.properties import examples

HOUR = timedelta(hours=1)
MIG = "nvidia.com/mig-"
# A price that every weight divides: 1g.10gb costs 0.15 an hour, 3g.40gb 0.52.
GPU = "1.12"


def charge(bill: Bill, snapshot: Snapshot) -> Bill:
    return accrue(bill, snapshot, discover(snapshot.pools, snapshot.nodes, snapshot.at.date()))


def bill_after(
    hours: float, *, pods: Sequence[Pod] = (), bill: Bill | None = None, **fields: Any
) -> Bill:
    """The bill of some hours in which the fleet was as it is seen at their end."""
    begin = (bill.as_of if bill else None) or NOW
    fleet: dict[str, Any] = {
        "at": begin + hours * HOUR,
        "pools": (a_pool(per_gpu_hour=GPU),),
        "nodes": (a_node(slices={"1g.10gb": 7}),),
        "pods": tuple(pods),
        **fields,
    }
    return charge(bill or Bill(as_of=NOW), Snapshot(**fleet))


def a_loaded_pod(name: str = "chat-0", profile: str = "1g.10gb", **fields: Any) -> Pod:
    """Build a loaded replica that used one device all the time."""
    resource = "nvidia.com/gpu" if profile == "whole" else MIG + profile
    defaults: dict[str, Any] = {
        "node": "a100-0",
        "devices": {resource: 1},
        "bound": at(-60),
        "ready_since": at(-60),
    }
    return a_pod(name, **{**defaults, **fields})


def line(state: CostState, profile: str = "1g.10gb", service: str = "chat") -> CostLine:
    owned = {"namespace": "team-a", "service": service} if service else {}
    return CostLine(currency="USD", pool="a100", profile=profile, state=state, **owned)


def states(bill: Bill) -> Mapping[CostState, int]:
    totals: Counter[CostState] = Counter()
    for cost_line, nanos in bill.lines.items():
        totals[cost_line.state] += nanos
    return {state: nanos for state, nanos in totals.items() if nanos}


def total(bill: Bill) -> int:
    return sum(bill.lines.values())


def test_a_pod_that_ended_by_a_clock_ahead_is_not_charged_on() -> None:
    bill = bill_after(1, pods=[a_loaded_pod(ended=NOW + 9 * HOUR, terminating=True)])
    assert not any(line.state.allocated for line in bill.lines)


def test_a_node_whose_charge_raises_costs_as_idle_and_the_others_as_without_it() -> None:
    class Devices(dict[str, int]):
        @override
        def items(self) -> Any:
            raise OverflowError("cannot convert float infinity to integer")

    nodes = tuple(a_node(slices={"1g.10gb": 7}, name=f"a100-{index}") for index in range(2))
    good = a_loaded_pod("good-0", node="a100-1")
    bill = bill_after(1, nodes=nodes, pods=[good, a_loaded_pod(devices=Devices())])
    assert bill.lines == bill_after(1, nodes=nodes, pods=[good]).lines


def test_services_whose_names_change_for_ever_share_one_line_after_the_first_500() -> None:
    bill = bill_after(0.001)
    for index in range(510):
        service = Ref("team-a", f"x{index:03}")
        bill = bill_after(0.001, bill=bill, pods=[a_loaded_pod(service=service)])
    named = {cost_line.service for cost_line in bill.lines if cost_line.namespace}
    assert len(named - {""}) == 500
    assert "" in named
    assert total(bill) == sum(bill_after(0.001 * 511).lines.values())


def test_the_first_cycle_charges_nothing_and_begins_to_count() -> None:
    bill = charge(Bill(), Snapshot(at=NOW, pools=(a_pool(),), nodes=(a_node(whole=1),)))
    assert (bill.as_of, bill.since, bill.lines) == (NOW, NOW, {})


def test_a_bill_that_knows_until_when_it_was_charged_charges_from_there() -> None:
    bill = bill_after(2, nodes=(a_node(whole=1),))
    assert (bill.since, bill.as_of, total(bill)) == (NOW, NOW + 2 * HOUR, dollars("2.24"))


def test_time_that_goes_back_charges_nothing_and_is_charged_once() -> None:
    first = bill_after(1)
    back = bill_after(-0.5, bill=first)
    assert back == first
    again = bill_after(1, bill=back)
    assert (again.since, total(again)) == (NOW, dollars("2.24"))


def test_a_free_layout_is_cold_and_its_rest_is_stranded() -> None:
    assert bill_after(1).lines == {
        line(CostState.COLD_IDLE, service=""): dollars("1.05"),
        line(CostState.STRANDED, "", ""): dollars("0.07"),
    }


def test_a_replica_pays_by_the_weight_of_its_slice() -> None:
    bill = bill_after(
        1, pods=(a_loaded_pod(profile="3g.40gb"),), nodes=(a_node(slices={"3g.40gb": 2}),)
    )
    assert bill.lines == {
        line(CostState.WARM_IDLE, "3g.40gb"): dollars("0.52"),
        line(CostState.COLD_IDLE, "3g.40gb", ""): dollars("0.52"),
        line(CostState.STRANDED, "", ""): dollars("0.08"),
    }


def test_an_unmanaged_pod_is_billed_to_its_namespace() -> None:
    bill = bill_after(1, pods=(a_loaded_pod(service=""),))
    notebook = line(CostState.UNMANAGED, service="")._replace(namespace="team-a")
    assert bill.lines == {
        notebook: dollars("0.15"),
        line(CostState.COLD_IDLE, service=""): dollars("0.90"),
        line(CostState.STRANDED, "", ""): dollars("0.07"),
    }


def test_whole_gpus_cost_one_each_and_strand_nothing() -> None:
    pod = a_loaded_pod(profile="whole", devices={"nvidia.com/gpu": 2})
    bill = bill_after(1, pods=(pod,), nodes=(a_node(whole=4),))
    assert bill.lines == {
        line(CostState.WARM_IDLE, "whole"): dollars("2.24"),
        line(CostState.COLD_IDLE, "whole", ""): dollars("2.24"),
    }


@pytest.mark.parametrize(
    ("running", "age", "expected"),
    [
        (3.0, 0, CostState.SERVING),
        (0.0, 0, CostState.WARM_IDLE),
        (None, 0, CostState.WARM_IDLE),
        (3.0, 31, CostState.WARM_IDLE),
    ],
)
def test_a_replica_serves_while_it_works_on_requests(
    running: float | None, age: float, expected: CostState
) -> None:
    pods = (a_loaded_pod(),)
    readings = replace(readings_of(pods, running=running), at=at(20 - age))
    bill = bill_after(20 / 3600, pods=pods, readings=readings)
    assert bill.lines[line(expected)] > 0
    assert len([cost_line for cost_line in bill.lines if cost_line.service]) == 1


def test_a_reading_says_nothing_of_a_time_long_before_it() -> None:
    pods = (a_loaded_pod(),)
    bill = bill_after(1, pods=pods, readings=replace(readings_of(pods, running=1.0), at=at(3600)))
    assert bill.lines[line(CostState.WARM_IDLE)] == 119 * bill.lines[line(CostState.SERVING)]


def test_a_replica_loads_until_it_was_ready() -> None:
    bill = bill_after(1, pods=(a_loaded_pod(ready_since=at(900)),))
    assert bill.lines[line(CostState.WARM_IDLE)] == 3 * bill.lines[line(CostState.LOADING)]


def test_a_draining_replica_stays_loaded_and_a_broken_one_loads() -> None:
    bill = bill_after(
        1,
        pods=(
            a_loaded_pod("drains", ready_since=None, containers_ready=True),
            a_loaded_pod("broken", ready_since=None, containers_ready=False),
        ),
    )
    assert bill.lines[line(CostState.WARM_IDLE)] == bill.lines[line(CostState.LOADING)] > 0


def test_pods_cost_from_their_bind_to_their_end_and_hand_over_the_same_slice() -> None:
    first = a_loaded_pod("first", "7g.80gb", service="old", ended=at(900), terminating=True)
    second = a_loaded_pod("second", "7g.80gb", bound=at(1800), ready_since=at(1800))
    bill = bill_after(1, pods=(second, first), nodes=(a_node(slices={"7g.80gb": 1}),))
    assert bill.lines == {
        line(CostState.WARM_IDLE, "7g.80gb", "old"): dollars("0.28"),
        line(CostState.WARM_IDLE, "7g.80gb"): dollars("0.56"),
        line(CostState.COLD_IDLE, "7g.80gb", ""): dollars("0.28"),
    }


def test_a_pod_that_waits_for_a_node_costs_nothing() -> None:
    bill = bill_after(1, pods=(a_loaded_pod(node=None, bound=None),))
    assert not [cost_line for cost_line in bill.lines if cost_line.service]


def test_a_node_that_is_not_ready_costs_too_and_its_pods_still_hold_their_slices() -> None:
    not_ready = replace(a_node(slices={"1g.10gb": 7}, ready=False), allocatable={})
    bill = bill_after(1, pods=(a_loaded_pod(),), nodes=(not_ready,))
    assert states(bill) == {
        CostState.WARM_IDLE: dollars("0.15"),
        CostState.STRANDED: dollars("0.97"),
    }


def test_more_claims_than_a_node_has_never_cost_more_than_the_node() -> None:
    pods = tuple(a_loaded_pod(f"chat-{index:02d}", bound=at(index - 60)) for index in range(9))
    assert states(bill_after(1, pods=pods)) == {CostState.WARM_IDLE: dollars(GPU)}


def test_a_span_over_midnight_is_split_where_the_price_changes() -> None:
    prices = [
        {"from": date(2026, 1, 1), "perGPUHour": "2"},
        {"from": date(2026, 11, 21), "perGPUHour": "3"},
    ]
    bill = bill_after(24, pools=(a_pool(prices=prices),), nodes=(a_node(whole=1),))
    assert total(bill) == dollars("60")


def test_days_before_the_first_price_cost_nothing() -> None:
    prices = [{"from": date(2026, 11, 21), "perGPUHour": "3"}]
    bill = bill_after(24, pools=(a_pool(prices=prices),), nodes=(a_node(whole=1),))
    assert total(bill) == dollars("36")


def test_every_currency_and_pool_has_its_own_lines() -> None:
    prices = [{"from": date(2026, 1, 1), "perGPUHour": "5", "currency": "EUR"}]
    bill = bill_after(
        1,
        pools=(a_pool(per_gpu_hour="2"), a_pool("h100", prices=prices)),
        nodes=(a_node(whole=1), a_node("h100", whole=1, product=H100)),
    )
    sums: Counter[tuple[str, str]] = Counter()
    for cost_line, nanos in bill.lines.items():
        sums[cost_line.currency, cost_line.pool] += nanos
    assert sums == {("USD", "a100"): dollars("2"), ("EUR", "h100"): dollars("5")}


def test_a_node_that_two_pools_claim_costs_once_in_the_first() -> None:
    twin = a_pool("a100-twin", nodeSelector={"pool": "a100"}, per_gpu_hour="9")
    bill = bill_after(1, pools=(twin, a_pool(per_gpu_hour=GPU)), nodes=(a_node(whole=1),))
    assert {cost_line.pool: nanos for cost_line, nanos in bill.lines.items()} == {
        "a100": dollars(GPU)
    }


def test_a_node_of_no_pool_or_without_gpus_costs_nothing_here() -> None:
    bare = a_node(name="bare", labels={"nvidia.com/gpu.count": "0"})
    assert bill_after(1, nodes=(a_node("elsewhere", whole=8), bare)).lines == {}


@pytest.mark.parametrize(("count", "gpus"), [("8", 8), ("", 3), ("many", 3), ("\u0663", 3)])
def test_a_node_without_a_usable_label_has_as_many_gpus_as_its_offer_needs(
    count: str, gpus: int
) -> None:
    node = a_node(whole=1, slices={"3g.40gb": 2, "4g.40gb": 1})
    node = replace(node, labels={**node.labels, "nvidia.com/gpu.count": count})
    assert total(bill_after(1, nodes=(node,))) == gpus * dollars(GPU)


def test_a_slice_of_an_unknown_product_costs_as_the_smallest_of_its_name() -> None:
    bill = bill_after(1, nodes=(a_node(slices={"1g.10gb": 3}, product="NVIDIA-Z900"),))
    known = bill_after(1, nodes=(a_node(slices={"1g.10gb": 3}),))
    assert states(bill) == states(known)


def test_what_does_not_fill_a_nano_unit_is_carried_on() -> None:
    bill = Bill(as_of=NOW)
    for _ in range(60):
        bill = bill_after(1 / 60, bill=bill, pools=(a_pool(per_gpu_hour="0.000000001"),))
    assert total(bill) == 1


def test_a_line_ends_a_day_after_its_last_charge_and_its_rounding_is_not_lost() -> None:
    price = a_pool(per_gpu_hour="0.000000003")
    bill = bill_after(0.5, pods=(a_loaded_pod(),), pools=(price,))
    services = {line for line in bill.lines if line.service}
    assert services
    day = bill_after(LINE_LIFETIME / HOUR, bill=bill, pools=(price,), nodes=())
    assert services <= day.lines.keys()
    ended = bill_after(0.5, bill=day, pools=(price,), nodes=())
    assert not services & (ended.lines.keys() | ended.charged_at.keys())
    assert sum(ended.remainders.values()) == sum(bill.remainders.values())


def test_every_weight_is_a_whole_number_of_the_unit_that_is_counted_in() -> None:
    weights = [
        billing_weight(hardware) * 112
        for product in products().values()
        for gi_profile in sized_profiles(product)
        if (hardware := slice_hardware(product, gi_profile.name)) is not None
    ]
    assert len(weights) > 40
    assert all(abs(weight - round(weight)) < Decimal("1e-20") for weight in weights)


# What holds of any course of events. A course is simulated from a seed: nodes come, fail and go,
# replicas are bound to free devices, become ready, work, drain and end, and prices change.

LAYOUTS: tuple[Mapping[str, int], ...] = (
    {"1g.10gb": 7},
    {"3g.40gb": 1, "1g.10gb": 4},
    {"3g.40gb": 2},
    {"2g.20gb": 3, "1g.10gb": 1},
    {"4g.40gb": 1, "3g.40gb": 1},
    {},
)


class RandomFleet:
    """A fleet that changes at random; `go` moves it on to a moment."""

    def __init__(self, seed: int, services: int, nodes: int, pools: Sequence[Pool]) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a seeded course, no secret
        self.pools = tuple(pools)
        self.services = [Ref(f"team-{index % 5}", f"svc-{index}") for index in range(services)]
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self._running: dict[Ref, float] = {}
        self._numbers = itertools.count()
        for _ in range(nodes):
            self._add_node()

    def _add_node(self) -> None:
        number, rng = next(self._numbers), self._random
        pool, product = rng.choice([("a100", A100), ("h100", H100)])
        layout = rng.choice(LAYOUTS)
        whole = rng.randint(0, 3) if layout else rng.randint(1, 8)
        name = f"node-{number}"
        self.nodes[name] = a_node(pool, layout, whole=whole, product=product, name=name)

    def advance(self, begin: datetime, end: datetime) -> Snapshot:
        rng = self._random
        if rng.random() < 0.05:
            self._add_node()
        if rng.random() < 0.03 and len(self.nodes) > 1:
            node = rng.choice(sorted(self.nodes))
            del self.nodes[node]
            self.pods = {key: pod for key, pod in self.pods.items() if pod.node != node}
        if rng.random() < 0.05:
            name = rng.choice(sorted(self.nodes))
            self.nodes[name] = replace(
                self.nodes[name], schedulable=not self.nodes[name].schedulable
            )
        for _ in range(rng.randint(0, 6)):
            rng.choice((self._add_replica, self._add_replica, self._end_replica))(
                begin + (end - begin) * rng.random(), end
            )
        for key, pod in self.pods.items():
            if pod.ready_since is None and not pod.terminating and rng.random() < 0.4:
                ready = max(pod.bound or begin, begin + (end - begin) * rng.random())
                self.pods[key] = replace(pod, ready_since=ready, containers_ready=True)
        return self._snapshot(end)

    def _add_replica(self, moment: datetime, _: datetime) -> None:
        rng, number = self._random, next(self._numbers)
        free = [(name, resource) for name in sorted(self.nodes) for resource in self._free(name)]
        node, resource = rng.choice(free) if free and rng.random() < 0.95 else (None, "")
        # Without a name it is an unmanaged pod.
        service = Ref("team-0", "") if rng.random() < 0.2 else rng.choice(self.services)
        pod = replace(
            a_pod(f"pod-{number}", ready_since=None, containers_ready=False, created=moment),
            ref=Ref(service.namespace, f"pod-{number}"),
            service=service,
        )
        if node is not None:
            pod = replace(pod, node=node, devices={resource: 1}, bound=moment)
        self.pods[pod.ref.name] = pod

    def _free(self, name: str) -> list[str]:
        used_devices = Counter(
            resource
            for pod in self.pods.values()
            if pod.node == name and pod.ended is None
            for resource in pod.devices
        )
        offered = self.nodes[name].allocatable.items()
        return [resource for resource, count in sorted(offered) if count > used_devices[resource]]

    def _end_replica(self, moment: datetime, end: datetime) -> None:
        alive = [key for key, pod in self.pods.items() if pod.ended is None]
        if not alive:
            return
        key = self._random.choice(alive)
        chance = self._random.random()
        if chance < 0.4:
            ended = min(end, max(moment, self.pods[key].ready_since or moment))
            self.pods[key] = replace(self.pods[key], ended=ended, terminating=True)
        elif chance < 0.7:
            self.pods[key] = replace(self.pods[key], terminating=True, ready_since=None)
        else:
            del self.pods[key]

    def _snapshot(self, moment: datetime) -> Snapshot:
        pods = tuple(self.pods.values())
        choices = [
            None,
            Readings(at=moment, problem="away"),
            readings_of(pods, running=self._random.choice([None, 0.0, 2.0])),
        ]
        readings = self._random.choice(choices)
        if readings is not None:
            readings = replace(readings, at=moment - timedelta(seconds=self._random.randint(0, 40)))
        nodes = tuple(self.nodes.values())
        return Snapshot(at=moment, pools=self.pools, nodes=nodes, pods=pods, readings=readings)


def moments(pick: random.Random, end: datetime, longest: float) -> Iterator[datetime]:
    """Turns at odd moments."""
    moment = NOW
    while moment < end:
        moment += timedelta(microseconds=pick.randint(1, int(longest * 1e6)))
        yield moment


def two_pools(pick: random.Random, currency: str = "USD") -> tuple[Pool, ...]:
    """Prices with nine digits that change at midnight, or begin only then."""

    def price(day: int) -> dict[str, object]:
        amount = Decimal(pick.randint(0, 9 * 10**9)).scaleb(-9)
        return {"from": date(2026, 11, day), "perGPUHour": f"{amount:f}", "currency": currency}

    return (
        a_pool(prices=[price(1), price(21), price(22)]),
        a_pool("h100", prices=[price(pick.choice([2, 21])), price(22)]),
    )


def node_bill(snapshot: Snapshot, begin: datetime) -> Fraction:
    """Return what the nodes cost in a span, in nano-units, by exact fractions."""
    cost = Fraction(0)
    for node in snapshot.nodes:
        (pool,) = (
            candidate for candidate in snapshot.pools if candidate.name == node.labels["pool"]
        )
        assert pool.spec is not None
        gpus, moment = int(node.labels["nvidia.com/gpu.count"]), begin
        while moment < snapshot.at:
            day = (moment + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            until = min(day, snapshot.at)
            price = price_on(pool.spec.prices, moment.date())
            hours = Fraction((until - moment) // timedelta(microseconds=1), 3600 * 10**6)
            cost += Fraction(price.per_gpu_hour if price else 0) * 10**9 * gpus * hours
            moment = until
    return cost


def by_pool(bill: Bill) -> Counter[str]:
    sums: Counter[str] = Counter()
    for cost_line, nanos in bill.lines.items():
        sums[cost_line.pool] += nanos
    return sums


def of_pool(snapshot: Snapshot, pool: str) -> Snapshot:
    nodes = tuple(node for node in snapshot.nodes if node.labels["pool"] == pool)
    return replace(snapshot, nodes=nodes)


def play(fleet: RandomFleet, cycles: Iterable[datetime]) -> tuple[Bill, Mapping[str, Fraction]]:
    """Return the final bill and the cost of the nodes by pool; check every cycle on the way."""
    bill, begin = Bill(as_of=NOW), NOW
    costs = dict.fromkeys(("a100", "h100"), Fraction(0))
    for moment in cycles:
        snapshot = fleet.advance(begin, moment)
        before, bill = bill, charge(bill, snapshot)
        for pool in costs:
            costs[pool] += node_bill(of_pool(snapshot, pool), begin)
        assert all(
            nanos >= before.lines.get(cost_line, 0) for cost_line, nanos in bill.lines.items()
        )
        begin = moment
    return bill, costs


@settings(max_examples=examples(15))
@given(st.integers(0, 10**9))
def test_the_bill_of_a_random_day_of_fifty_services_sums_exactly(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    fleet = RandomFleet(seed, services=50, nodes=12, pools=two_pools(rng))
    cycles = [*moments(rng, NOW + timedelta(hours=23), 1200), NOW + timedelta(days=1)]
    bill, costs = play(fleet, cycles)
    assert {pool: by_pool(bill).get(pool, 0) for pool in costs} == {
        pool: cost.numerator // cost.denominator for pool, cost in costs.items()
    }
    assert all(nanos >= 0 for nanos in bill.lines.values())
    assert {cost_line.state for cost_line in bill.lines} == set(CostState)


@settings(max_examples=examples(40))
@given(st.integers(0, 10**9), st.integers(1, 60))
@example(4972, 54)  # a line is charged again in the cycle in which it would end
@example(3273, 46)  # the stranded cost would end in the cycle in which another line ends
def test_any_random_fleet_sums_exactly_in_every_cycle(seed: int, cycles: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    fleet = RandomFleet(seed, services=4, nodes=2, pools=two_pools(rng))
    bill, begin, cost, ended = Bill(as_of=NOW), NOW, Counter[str](), Counter[str]()
    exact = dict.fromkeys(("a100", "h100"), Fraction(0))
    for moment in itertools.islice(moments(rng, NOW + timedelta(days=9), 4000), cycles):
        snapshot = fleet.advance(begin, moment)
        previous, bill = bill, charge(bill, snapshot)
        for line in previous.lines.keys() - bill.lines.keys():
            ended[line.pool] += previous.lines[line]
        for pool in exact:
            exact[pool] += node_bill(of_pool(snapshot, pool), begin)
            cost[pool] = int(exact[pool])
        assert by_pool(bill) + ended == +cost
        begin = moment


@settings(max_examples=examples(40))
@given(st.integers(0, 10**9))
def test_the_order_of_what_is_seen_is_irrelevant(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    fleet = RandomFleet(seed, services=4, nodes=3, pools=two_pools(rng))
    bill = mixed_bill = Bill(as_of=NOW)
    begin = NOW
    for moment in itertools.islice(moments(rng, NOW + timedelta(days=9), 4000), 20):
        snapshot = fleet.advance(begin, moment)
        bill = charge(bill, snapshot)
        mixed = replace(
            snapshot,
            pools=tuple(rng.sample(snapshot.pools, len(snapshot.pools))),
            nodes=tuple(rng.sample(snapshot.nodes, len(snapshot.nodes))),
            pods=tuple(rng.sample(snapshot.pods, len(snapshot.pods))),
        )
        views = discover(mixed.pools, mixed.nodes, moment.date())
        mixed_bill = accrue(mixed_bill, mixed, tuple(reversed(views)))
        assert bill == mixed_bill
        begin = moment


def observed_pods(pods: Iterable[Pod], moment: datetime) -> tuple[Pod, ...]:
    """Return pods with known times as they are observed at a moment."""
    return tuple(
        replace(
            pod,
            ready_since=pod.ready_since if pod.ready_since and pod.ready_since <= moment else None,
            containers_ready=pod.ready_since is not None and pod.ready_since <= moment,
            ended=pod.ended if pod.ended and pod.ended <= moment else None,
        )
        for pod in pods
        if pod.bound is not None and pod.bound <= moment
    )


pod_times_lists = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200)).map(sorted),
    max_size=6,
)


@settings(max_examples=examples(100))
@given(pod_times_lists, st.sets(st.integers(1, 199_999_999), max_size=30), st.integers(1, 10**10))
def test_more_cycles_move_no_line_by_more_than_the_stated_rounding(
    pod_times: list[list[int]], cycles: set[int], nanos: int
) -> None:
    pods = [
        a_loaded_pod(
            f"p-{index}",
            service=f"s-{index % 3}",
            bound=at(bound),
            ready_since=at(ready),
            ended=at(ended),
        )
        for index, (bound, ready, ended) in enumerate(pod_times)
    ]
    pools = (a_pool(per_gpu_hour=f"{Decimal(nanos).scaleb(-9):f}"),)
    nodes = (a_node(slices={"1g.10gb": 7}),)

    def bill_of(cycles: Iterable[float]) -> Bill:
        bill = Bill(as_of=NOW)
        for moment in map(at, cycles):
            snapshot = Snapshot(
                at=moment, pools=pools, nodes=nodes, pods=observed_pods(pods, moment)
            )
            bill = charge(bill, snapshot)
        return bill

    coarse, fine = bill_of([200]), bill_of([*sorted(cycle / 1e6 for cycle in cycles), 200])
    names = coarse.lines.keys() | fine.lines.keys()
    assert total(coarse) == total(fine)
    for name in names:
        exact = [
            Fraction(bill.lines.get(name, 0))
            + Fraction(bill.remainders.get(name, 0), 112 * 3600 * 10**6)
            for bill in (coarse, fine)
        ]
        assert exact[0] == exact[1]
        assert abs(coarse.lines.get(name, 0) - fine.lines.get(name, 0)) < 2 * len(names)


def test_no_line_drifts_from_its_exact_value_in_thousands_of_cycles() -> None:
    """Rounding every cycle alone would lose up to a nano-unit per cycle and line."""
    slices = {"3g.40gb": 1, "1g.10gb": 4}
    pods = [a_loaded_pod(f"p-{index}", service=f"s-{index}") for index in range(4)]
    pools = (a_pool(per_gpu_hour="1.790000001"),)
    node: Node = a_node(slices=slices)
    bill = Bill(as_of=NOW)
    views = discover(pools, (node,), NOW.date())
    for cycle in range(1, 5001):
        moment = NOW + cycle * timedelta(seconds=5, microseconds=137)
        bill = accrue(bill, Snapshot(at=moment, nodes=(node,), pods=tuple(pods)), views)
    off = [Fraction(due, 112 * 3600 * 10**6) for due in bill.remainders.values()]
    assert len(off) == 5
    assert max(map(abs, off)) < 2


def test_a_service_in_two_pools_pays_each_device_by_the_price_of_its_pool() -> None:
    cluster = fleet(3, reserved=2, burst=1)
    cluster.run(120)
    cluster.now += HOUR
    bill = charge(Bill(as_of=NOW + cluster.now - HOUR), cluster.snapshot())
    paid = {line.pool: nanos for line, nanos in bill.lines.items() if line.service == "chat"}
    assert paid == {"reserved": dollars("2.00"), "burst": dollars("3.00")}
