"""A month's cost with a set of levers, by hand."""

from typing import Any

import pytest

from tessera_lab.engine.setup import DEFAULT_MAX_NUM_BATCHED_TOKENS, EngineSetup, KvCache
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.ladder import MonthlyCosts
from tessera_lab.levers.lever import LeverId
from tessera_lab.levers.replica_rate import LoadSample, ReplicaRate
from tessera_lab.levers.setups import LeverUnavailableError, Obstacle
from tests.lab.levers.cases import A100, CASE, HOURS, costs_of

# Every replica of the model carries 5 requests per second, of the small one 8.
SMALL = CASE.small


def rate(setup: EngineSetup) -> float:
    return 8.0 if setup.shape == SMALL else 5.0


COSTS = costs_of(rate)
CASES: dict[str, tuple[set[LeverId], float]] = {
    # 30 requests per second need 6 replicas, all the time.
    "the peak is paid all the time": (set(), 6 * 4.0 * HOURS),
    # Each span has a neighbor with 30, for which replicas start ahead.
    "replicas come before they are needed": ({LeverId.SCALING}, 6 * 4.0 * HOURS),
    "what is always needed is reserved": ({LeverId.PRICE_MIX}, 6 * 2.4 * HOURS + 2 * 10),
    "half of the requests are answered from a cache": (
        {LeverId.RESPONSE_CACHE},
        3 * 4.0 * HOURS + 16 * 10,
    ),
    # 24 per second are served, and 4 of 20 on spot replicas that are full, of 6.25 each.
    "batches take full replicas on spot nodes": (
        {LeverId.SPOT_BATCH},
        5 * 4.0 * HOURS + 4 / 6.25 * 1.8 / 0.9 * HOURS,
    ),
}


@pytest.mark.parametrize(("levers", "usd"), CASES.values(), ids=CASES.keys())
def test_a_month_costs_what_its_replicas_cost(levers: set[LeverId], usd: float) -> None:
    assert COSTS.month(levers).usd == pytest.approx(usd)


def test_scaling_follows_the_demand_one_span_ahead() -> None:
    demand = tuple((3600.0, float(rate)) for rate in (10, 10, 30, 10))
    month = costs_of(rate, demand=demand).month({LeverId.SCALING})
    assert month.mean_replicas == (2 + 6 + 6 + 2) / 4
    assert month.peak_replicas == 6


def test_no_service_has_fewer_than_its_minimum() -> None:
    month = costs_of(rate, min_replicas=9).month({LeverId.SCALING})
    assert (month.mean_replicas, month.peak_replicas) == (9, 9)


def test_routing_gives_a_share_to_the_small_model_on_its_own_replicas() -> None:
    month = COSTS.month({LeverId.ROUTING})
    # 18 of 30 per second on 4 replicas, 12 on 2 small ones.
    assert month.peak_replicas == 4 + 2
    assert month.operation == 24 * 10
    assert 4 * 4.0 * HOURS < month.gpus < 6 * 4.0 * HOURS


def test_a_route_blends_the_prices_of_both_models_at_full_use() -> None:
    # 4 USD an hour for 5 and, on a slice of half a GPU, 8 requests per second of 100 tokens.
    small, large = 2 / (8 * 100 * 3600) * 1e6, 4 / (5 * 100 * 3600) * 1e6
    rows = {row.share: row.price for row in COSTS.routing_blends({LeverId.ROUTING})}
    assert rows[0.5] == pytest.approx((small + large) / 2)
    assert rows[0.95] == pytest.approx(0.95 * small + 0.05 * large)
    assert costs_of(rate, small=None).routing_blends(set()) == ()


def test_a_slice_costs_its_part_of_a_gpu_that_has_as_many_as_fit() -> None:
    month = COSTS.month({LeverId.MIG})
    profile = month.setup.hardware.profile
    instances = {"1g.20gb": 4, "2g.20gb": 3, "3g.40gb": 2}
    assert profile in instances
    assert month.gpus == pytest.approx(6 * 4.0 / instances[profile] * HOURS)


def test_the_price_of_a_million_tokens_counts_all_answers() -> None:
    month = COSTS.month({LeverId.RESPONSE_CACHE})
    assert month.million_tokens == pytest.approx(20 * 100 * HOURS * 3600 / 1e6)
    assert month.usd_per_million == pytest.approx(month.usd / month.million_tokens)


LACKING: dict[LeverId, tuple[dict[str, Any], Obstacle]] = {
    LeverId.PREFIX_CACHE: (
        {"load": LoadSample(name="plain", requests=CASE.load.requests)},
        Obstacle.NO_PREFIXES,
    ),
    LeverId.RIGHT_SIZE: ({"prices": {A100: CASE.prices[A100]}}, Obstacle.ONE_PRODUCT),
    LeverId.SPECULATION: ({"draft": None}, Obstacle.NO_DRAFT_MODEL),
    LeverId.ROUTING: ({"small": None}, Obstacle.NO_SMALL_MODEL),
    LeverId.QUANTIZATION: ({"precision": "fp8"}, Obstacle.NO_FIT),
    LeverId.PRICE_MIX: (
        {"prices": {A100: GpuPrices(on_demand=4.0, reserved=4.0, spot=4.0)}},
        Obstacle.NO_TIER,
    ),
}


@pytest.mark.parametrize("lever", LACKING)
def test_a_lever_without_what_it_needs_is_not_computed(lever: LeverId) -> None:
    changes, obstacle = LACKING[lever]
    with pytest.raises(LeverUnavailableError) as caught:
        costs_of(rate, **changes).month({lever})
    assert caught.value.obstacle is obstacle


@pytest.mark.parametrize(("engine_rate", "chosen"), [(3.0, True), (1.0, False)])
def test_where_the_slo_limits_the_load_the_limits_that_carry_more_count(
    engine_rate: float, chosen: bool
) -> None:
    def measure(setup: EngineSetup) -> ReplicaRate:
        is_default = setup.max_num_batched_tokens == DEFAULT_MAX_NUM_BATCHED_TOKENS
        rate = engine_rate if is_default else 2.0
        return ReplicaRate(rate=rate, saturated=10.0, keeps_slo=True, ttft=1.0, tpot=0.01)

    month = MonthlyCosts(CASE, measure).month(frozenset())
    assert month.replica.rate == max(engine_rate, 2.0)
    limits = month.setup.max_num_batched_tokens
    assert (limits == DEFAULT_MAX_NUM_BATCHED_TOKENS) is chosen


def test_a_static_batch_has_no_more_requests_than_the_kv_cache_holds() -> None:
    month = costs_of(rate, static_batches=True, max_model_len=100_000).month(set())
    assert 1 <= (month.setup.static_batch or 0) < 8
    setup = costs_of(rate, static_batches=True).month(set()).setup
    assert (setup.static_batch, setup.kv_cache) == (8, KvCache.CONTIGUOUS)
    assert COSTS.month(set()).setup.static_batch is None


def test_assumptions_have_the_shares_of_their_sources() -> None:
    assumed = LeverAssumptions()
    assert (assumed.hit_share, assumed.small_share, assumed.wasted) == (0.34, 0.5, 0.1)
