"""No schedule is cheaper than the bound, whether all are tried or an engine runs one."""

import math
import random

import pytest

from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.hindsight.bound import Bound, Supply, lower_bound
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.spot import SpotMarket
from tessera_lab.fleet.trace import Trace
from tests.lab.fleet.exact_optimum import LAST_SLOT, SLOT, least_cost, tiny_fleet
from tests.lab.fleet.loads import DENSE, replica, trace

PRICES = GpuPrices(on_demand=7.0, reserved=4.0, spot=2.0)
ON_DEMAND = Supply(prices=PRICES, reserved=False)
GOAL = AttainmentGoal()


def daily_load(seconds: int = 900, quiet: int = 30, busy: int = 90) -> Trace:
    """Return a load with a busy third in the middle, in arrivals per 10 s."""
    requests = []
    for begin in range(0, seconds, 10):
        count = busy if seconds / 3 <= begin < seconds * 2 / 3 else quiet
        requests += [(begin + 10 * each / count, 900, 150) for each in range(count)]
    return trace(requests, seconds=float(seconds))


def bound(supply: Supply, goal: AttainmentGoal = GOAL, ends_by: float = math.inf) -> Bound:
    return lower_bound(daily_load(), replica(DENSE), goal, supply, ends_by)


def check_random_fleets(count: int, seed: int) -> None:
    """Compare the bound with the optimum; one is close to the other on average."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    ratios = []
    for _ in range(count):
        fleet = tiny_fleet(rng)
        optimum = least_cost(fleet)
        ends_by = rng.choice([SLOT * LAST_SLOT, math.inf])
        if optimum < math.inf:
            least = lower_bound(fleet.trace, fleet.replica, fleet.goal, fleet.supply, ends_by)
            assert least.usd <= optimum, fleet
            ratios.append(least.usd / optimum)
    assert len(ratios) > 0.6 * count
    assert sum(ratios) / len(ratios) > 0.6


def test_no_schedule_of_a_tiny_fleet_is_cheaper_than_the_bound() -> None:
    check_random_fleets(150, seed=7)


@pytest.mark.full
def test_no_schedule_of_ten_thousand_tiny_fleets_is_cheaper_than_the_bound() -> None:
    check_random_fleets(10_000, seed=1)


@pytest.mark.parametrize("seed", range(4))
def test_no_engine_is_paid_for_less_than_the_bound(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - not a secret
    arrivals = sorted(rng.uniform(0, 50) for _ in range(400))
    load = trace([(at, rng.randint(1, 1500), rng.randint(1, 250)) for at in arrivals], seconds=50)
    model = replica(DENSE, seqs=rng.choice([4, 32]))
    ttfts, end = served(load, model)
    # The one replica is busy all of the time: the goal is what it attained.
    share = sum(ttft <= 1 for _, ttft in ttfts) / len(ttfts)
    goal = AttainmentGoal(share=share, window_share=0.0)
    assert goal.score(ttfts).sufficient
    least = lower_bound(load, model, goal, ON_DEMAND, end)
    assert 0.3 * end < least.replica_seconds <= end
    assert least.usd <= 7.0 * end / 3600


def served(load: Trace, model: ReplicaModel) -> tuple[list[tuple[float, float]], float]:
    """Return the arrivals and TTFTs on one engine, and when it ended."""
    limits = EngineLimits(
        max_model_len=model.max_model_len,
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        blocks=model.kv_tokens // 16,
    )
    timeline = Timeline(EngineCore(limits, model.step))
    done = []
    columns = zip(load.arrivals, load.input_tokens, load.output_tokens, strict=True)
    for number, (at, prompt, output) in enumerate(columns):
        done += timeline.advance(at)
        request = EngineRequest(id=number, prompt_tokens=prompt, output_tokens=output)
        assert timeline.submit(request, at) is None
    done += timeline.advance(math.inf)
    return [(each.arrived_at, each.ttft_seconds or 0.0) for each in done], timeline.now


def test_on_demand_alone_costs_the_work() -> None:
    least = bound(ON_DEMAND)
    assert least.usd == pytest.approx(7.0 * least.work_seconds / 3600, rel=1e-5)
    assert least.replica_seconds == pytest.approx(least.work_seconds, rel=1e-5)


def test_reserved_nodes_are_whole_and_paid_all_of_the_time() -> None:
    hours, least = 900 / 3600, bound(Supply(prices=PRICES), ends_by=900)
    extra = least.usd - least.reserved * 4.0 * hours
    assert least.reserved >= 1
    assert extra > 0
    # Reserved capacity of quiet times serves no busy time.
    assert least.usd > 1.02 * 4.0 * least.work_seconds / 3600
    assert bound(Supply(prices=PRICES), ends_by=math.inf).usd < least.usd


def test_a_paid_start_costs_a_fleet_that_has_to_grow() -> None:
    free, paid = bound(ON_DEMAND), bound(Supply(prices=PRICES, reserved=False, start_seconds=100))
    growth = paid.replica_seconds - free.replica_seconds
    assert 50 < growth < 500
    assert paid.usd == pytest.approx(7.0 * paid.replica_seconds / 3600)


def test_a_goal_that_allows_more_late_requests_is_cheaper() -> None:
    supply = Supply(prices=PRICES, reserved=False, start_seconds=100)
    strict, loose = (
        bound(supply, AttainmentGoal(share=share, window_share=1.0)) for share in (1.0, 0.6)
    )
    given_up = bound(supply, AttainmentGoal(share=0.6, window_share=0.5))
    assert given_up.usd <= loose.usd < strict.usd


def test_spot_nodes_are_used_where_they_can_be_had() -> None:
    capacity = ((0.0, 2), (450.0, 0), (550.0, 2))
    market = SpotMarket(capacity=capacity, preemptions=(), notice=0.0)
    mixed = bound(Supply(prices=PRICES, reserved=False, spot=market), ends_by=900)
    assert bound(ON_DEMAND).usd * 2 / 7 < mixed.usd < bound(ON_DEMAND).usd
    longer = SpotMarket(capacity=capacity, preemptions=(), notice=120.0)
    assert bound(Supply(prices=PRICES, reserved=False, spot=longer)).usd < mixed.usd


def test_what_is_always_there_is_paid_always() -> None:
    supply = Supply(prices=PRICES, reserved=False, min_replicas=3)
    least, free = bound(supply), bound(ON_DEMAND)
    assert least.work_seconds == free.work_seconds
    assert 1.1 * free.replica_seconds < least.replica_seconds
    assert least.replica_seconds >= 3 * 890
    assert least.usd == pytest.approx(7.0 * least.replica_seconds / 3600, rel=1e-5)


def test_a_replica_of_several_gpus_costs_as_many() -> None:
    single, double = bound(ON_DEMAND), bound(Supply(prices=PRICES, reserved=False, gpus=2))
    assert double.usd == pytest.approx(2 * single.usd)
    assert double.replica_seconds == single.replica_seconds
