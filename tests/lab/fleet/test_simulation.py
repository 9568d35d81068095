"""A simulated fleet serves every request, and pays for what it ran."""

import math
import random
from dataclasses import replace

import pytest

from tessera.domain.cost.bill import Bill, accrue
from tessera.domain.hardware.pools import discover
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.fleet.course import Lifetime, best_reservation, cost
from tessera_lab.fleet.disturbance import Disturbance
from tessera_lab.fleet.model import Purchase, Router, StartUp, Tier
from tessera_lab.fleet.observation import Observation
from tessera_lab.fleet.policies.product import WholeGpuPool
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.spot import Preemption, SpotMarket
from tests.builders import a_pod, at
from tests.lab.fleet.builders import LIMITS, REPLICA, STEP, Planned, a_fleet, a_trace, steady

PRICES = GpuPrices(on_demand=3.6, reserved=1.8, spot=0.9)


def random_requests(count: int, seconds: float, seed: int) -> list[tuple[float, int, int]]:
    rng = random.Random(seed)  # noqa: S311 - not a secret
    arrivals = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [(arrival, rng.randrange(1, 900), rng.randrange(1, 120)) for arrival in arrivals]


def test_one_replica_is_the_engine_machine_on_its_timeline() -> None:
    requests = random_requests(300, 60, seed=3)
    course = Simulation(a_trace(requests, 60), a_fleet(), Planned((0, 1))).run()

    timeline, served = Timeline(EngineCore(LIMITS, STEP)), []
    for number, (arrival, prompt, output) in enumerate(requests):
        served += timeline.advance(arrival)
        request = EngineRequest(id=number, prompt_tokens=prompt, output_tokens=output)
        timeline.submit(request, arrival)
    served += timeline.advance(math.inf)
    expected = {each.request.id: each.ttft_seconds for each in served}
    assert [expected[number] for number in range(300)] == pytest.approx(list(course.ttft))


@pytest.mark.parametrize("router", Router)
def test_every_request_is_served_under_changing_counts(router: Router) -> None:
    trace = a_trace(random_requests(2000, 300, seed=5), 300)
    policy = Planned((0, 2), (60, 5), (120, 1), (180, 4), (240, 2))
    course = Simulation(trace, a_fleet(initial_replicas=2, router=router), policy).run()
    assert all(math.isfinite(ttft) and ttft > 0 for ttft in course.ttft)
    assert (course.broken_streams, course.refused, course.changes) == (0, 0, 4)


def test_behind_the_gateway_only_the_excess_of_an_overload_is_late() -> None:
    # For three minutes a little more than one replica carries.
    trace = steady(rate=22.0, seconds=300)
    policy = ((0.0, 1), (180.0, 2))
    late = {}
    for router in (Router.GATEWAY, Router.LEAST_TTFT):
        course = Simulation(trace, a_fleet(router=router), Planned(*policy)).run()
        assert course.refused == 0
        late[router] = sum(ttft > REPLICA.ttft for ttft in course.ttft) / len(trace)
    assert late[Router.GATEWAY] < 0.03
    assert late[Router.LEAST_TTFT] > 0.4


def test_a_fleet_costs_what_its_bill_allocates() -> None:
    trace = a_trace(random_requests(2000, 300, seed=5), 300)
    policy = Planned((0, 2), (60, 5), (120, 1), (180, 4), (240, 2))
    course = Simulation(trace, a_fleet(initial_replicas=2), policy).run()
    objects = WholeGpuPool(
        name="h100", product="NVIDIA-H100-80GB-HBM3", price=str(PRICES.on_demand), nodes=1
    ).objects(Ref("lab", "chat"), {"model": {"uri": "hf://Qwen/Qwen3-8B"}})
    bill = Bill(as_of=at(0))
    for minute in range(1, math.ceil(course.paid_seconds / 60) + 2):
        before, now = at(60 * (minute - 1)), at(60 * minute)
        pods = [
            a_pod(
                f"chat-{number}",
                node=objects.nodes[0].name,
                devices={"nvidia.com/gpu": 1},
                bound=at(lifetime.begin),
                ended=at(lifetime.end) if at(lifetime.end) <= now else None,
            )
            for number, lifetime in enumerate(course.lifetimes)
            if at(lifetime.begin) < now and at(lifetime.end) > before
        ]
        snapshot = Snapshot(at=now, pools=objects.pools, nodes=objects.nodes, pods=tuple(pods))
        views = discover(snapshot.pools, snapshot.nodes, now.date())
        bill = accrue(bill, snapshot, views)
    charged = sum(nanos for line, nanos in bill.lines.items() if line.namespace) / 1e9
    assert charged == pytest.approx(cost(course, PRICES, Purchase()), rel=1e-6)
    assert course.changes == 4


def test_equal_input_gives_equal_output() -> None:
    trace = a_trace(random_requests(3000, 120, seed=7), 120)
    fleet = a_fleet(initial_replicas=2, start_up=StartUp(low=5, mode=10, high=30))
    policy = ((0.0, 2), (30.0, 4), (90.0, 1))
    first = Simulation(trace, fleet, Planned(*policy), seed=9).run()
    second = Simulation(trace, fleet, Planned(*policy), seed=9).run()
    other = Simulation(trace, fleet, Planned(*policy), seed=10).run()
    assert (first.ttft, first.lifetimes) == (second.ttft, second.lifetimes)
    assert first.ttft != other.ttft


@pytest.mark.parametrize(
    ("objective", "slow", "half_slow"), [(1.0, 0, 0), (0.4, 0, 5), (0.2, 5, 5)]
)
def test_what_waits_is_late_and_only_a_long_prompt_is_slow(
    objective: float, slow: int, half_slow: int
) -> None:
    # Each prompt is read in 8 steps, a little more than 200 ms, one after the other.
    trace = a_trace([(1.0, 4000, 2)] * 5, 60)
    policy = Planned((0, 1))
    replica = replace(REPLICA, ttft=objective)
    course = Simulation(trace, a_fleet(replica=replica), policy).run()
    totals = policy.observations[-1].totals
    assert totals.in_time == sum(ttft <= objective for ttft in course.ttft) < 5
    assert (totals.slow_prefills, totals.half_slow_prefills) == (slow, half_slow)


def test_a_replica_is_paid_from_its_order_until_it_is_drained() -> None:
    trace = a_trace([(1.0, 100, 10), (99.0, 100, 10)], 100)
    course = Simulation(trace, a_fleet(), Planned((0, 1), (10, 2), (50, 1))).run()
    spans = sorted((each.begin, each.end) for each in course.lifetimes)
    assert spans == [(0.0, pytest.approx(100.0, abs=1)), (10.0, 50.0)]
    assert cost(course, PRICES, Purchase()) == pytest.approx(0.1 + 0.04, rel=0.01)


def test_a_drained_replica_finishes_its_stream_and_is_paid_until_then() -> None:
    # 200 tokens take more than 2 s; both replicas get one of the streams.
    trace = a_trace([(9.5, 100, 200), (9.6, 100, 200)], 60)
    fleet = a_fleet(initial_replicas=2)
    course = Simulation(trace, fleet, Planned((0, 2), (10, 1))).run()
    assert course.broken_streams == 0
    shortest = min(course.lifetimes, key=lambda each: each.end)
    assert 11 < shortest.end < 13


def test_what_outlasts_the_drain_timeout_is_a_broken_stream() -> None:
    trace = a_trace([(9.5, 100, 2000), (9.6, 100, 2000)], 60)
    fleet = a_fleet(initial_replicas=2, drain_timeout=5)
    course = Simulation(trace, fleet, Planned((0, 2), (10, 1))).run()
    assert course.broken_streams == 1
    assert min(each.end for each in course.lifetimes) == pytest.approx(15)


def test_requests_wait_at_the_gateway_until_a_replica_is_ready() -> None:
    trace = a_trace([(1.0, 100, 10)], 60)
    fleet = a_fleet(initial_replicas=0, min_replicas=0)
    policy = Planned((0, 0), (5, 1))
    course = Simulation(trace, fleet, policy).run()
    # Ordered at 5 s, ready at 25 s.
    assert course.ttft[0] == pytest.approx(24, abs=0.1)
    assert [(each.queued, each.in_flight) for each in policy.observations[:2]] == [(1, 1), (1, 1)]


def test_reserved_nodes_are_used_first_and_paid_all_the_time() -> None:
    trace = steady(1, 100)
    fleet = a_fleet(initial_replicas=1, purchase=Purchase(reserved=2))
    course = Simulation(trace, fleet, Planned((0, 1), (10, 3), (60, 1))).run()
    tiers = [each.tier for each in course.lifetimes]
    assert sorted(tiers) == [Tier.ON_DEMAND, Tier.RESERVED, Tier.RESERVED]
    on_demand = next(each for each in course.lifetimes if each.tier is Tier.ON_DEMAND)
    expected = (2 * course.paid_seconds * 1.8 + (on_demand.end - on_demand.begin) * 3.6) / 3600
    assert cost(course, PRICES, fleet.purchase) == pytest.approx(expected)


def test_the_best_reservation_is_that_of_runs_with_each_number() -> None:
    trace = steady(1, 100)
    policy = ((0.0, 1), (10.0, 4), (60.0, 2))
    without = Simulation(trace, a_fleet(), Planned(*policy)).run()
    by_number = {}
    for reserved in range(6):
        fleet = a_fleet(purchase=Purchase(reserved=reserved))
        by_number[reserved] = cost(
            Simulation(trace, fleet, Planned(*policy)).run(), PRICES, fleet.purchase
        )
    reserved, usd = best_reservation(without, PRICES)
    assert usd == pytest.approx(min(by_number.values()))
    assert by_number[reserved] == pytest.approx(usd)


def test_a_held_node_starts_a_replica_sooner_and_is_paid() -> None:
    trace = steady(1, 100)
    asleep = StartUp(low=4, mode=4, high=4)
    fleet = a_fleet(initial_replicas=2, held_start_up=asleep, node_hold=30)
    policy = Planned((0, 2), (10, 1), (30, 2))
    course = Simulation(trace, fleet, policy).run()
    ready = [each.at for each in policy.observations if each.ready == 2 and each.at > 20]
    assert ready[0] == 35
    total = sum(each.end - each.begin for each in course.lifetimes)
    assert total == pytest.approx(200, abs=2)


def test_metrics_are_as_old_as_their_scrape() -> None:
    policy = Planned((0, 1))
    Simulation(steady(5, 60), a_fleet(), policy).run()
    assert {(each.at, each.scraped_at) for each in policy.observations} >= {
        (10, 0.0),
        (15, 15),
        (25, 15),
        (30, 30),
    }
    late = Planned((0, 1))
    Simulation(steady(5, 60), a_fleet(), late, disturbance=Disturbance(metrics_delay=20)).run()
    assert {each.at: each.scraped_at for each in late.observations}[50] == 30


def test_a_dead_node_takes_its_streams_and_is_replaced() -> None:
    policy = Planned((0, 2))
    trace = steady(20, 100)
    died = Disturbance(dead_nodes=(30.0,))
    course = Simulation(trace, a_fleet(initial_replicas=2), policy, disturbance=died).run()
    assert course.lost_streams > 0
    assert course.broken_streams == 0
    assert {each.at: each.ready for each in policy.observations}[45] == 1
    assert policy.observations[-1].ready == 2


def test_nothing_starts_while_the_pool_is_full() -> None:
    policy = Planned((0, 1), (10, 3))
    full = Disturbance(full_pools=((0, 50),))
    Simulation(steady(2, 100), a_fleet(), policy, disturbance=full).run()
    nodes = {each.at: [status.bound_at for status in each.statuses] for each in policy.observations}
    assert (nodes[45], nodes[60]) == ([0, None, None], [0, 50, 50])


SPOT = SpotMarket(
    capacity=((0.0, 2), (40.0, 0)),
    preemptions=(Preemption(at=50.0, first=0, nodes=1),),
    notice=10.0,
)


def test_spot_nodes_replace_those_on_demand_and_fall_back_to_them() -> None:
    fleet = a_fleet(initial_replicas=1, purchase=Purchase(reserved=1, spot=True))
    policy = Planned((0, 1), (5, 2))
    course = Simulation(steady(2, 100), fleet, policy, spot=SPOT).run()
    spans = {
        tier: [(each.begin, each.end) for each in course.lifetimes if each.tier is tier]
        for tier in Tier
    }
    # On demand until the spot node is ready, and again after it was taken back.
    assert [begin for begin, _ in spans[Tier.SPOT]] == [5]
    assert spans[Tier.SPOT][0][1] == pytest.approx(40, abs=6)
    assert [begin for begin, _ in spans[Tier.ON_DEMAND]] == [5, 40]
    assert spans[Tier.ON_DEMAND][0][1] == pytest.approx(25, abs=6)


class Holding:
    """Orders what is ordered."""

    interval, scrape = 5.0, 15.0

    def decide(self, observation: Observation) -> int:
        return observation.replicas


def test_a_policy_that_holds_keeps_its_replicas_whatever_befalls_the_nodes() -> None:
    spot = a_fleet(initial_replicas=2, purchase=Purchase(spot=True))
    market = SpotMarket(capacity=((0.0, 9),), preemptions=SPOT.preemptions, notice=10.0)
    runs = (
        Simulation(steady(2, 120), spot, Holding(), spot=market),
        Simulation(
            steady(2, 120),
            a_fleet(initial_replicas=2),
            Holding(),
            disturbance=Disturbance(dead_nodes=(30.0,), full_pools=((25, 60),)),
        ),
    )
    for simulation in runs:
        samples = simulation.run().samples
        assert {sample.desired for sample in samples} == {2}
        assert samples[-1].ready >= 2


def test_an_interrupt_keeps_what_was_simulated() -> None:
    def stop(seconds: float) -> None:
        if seconds >= 60:
            raise KeyboardInterrupt

    course = Simulation(steady(2, 300), a_fleet(), Planned((0, 1))).run(progress=stop)
    assert course.interrupted
    assert course.seconds == 60
    assert sum(math.isfinite(ttft) for ttft in course.ttft) == 121
    assert [(each.begin, each.tier) for each in course.lifetimes] == [(0.0, Tier.ON_DEMAND)]


def test_lifetimes_sum_to_the_replica_seconds() -> None:
    lifetimes = [Lifetime(Tier.ON_DEMAND, 0, 10), Lifetime(Tier.SPOT, 5, 7)]
    course = Simulation(steady(1, 20), a_fleet(), Planned((0, 1))).run()
    course.lifetimes = lifetimes
    assert course.replica_seconds == 12
