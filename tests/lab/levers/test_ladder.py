"""Each lever alone, in order, and out of the whole."""

import pytest

from tessera_lab.engine.setup import EngineSetup, KvCache
from tessera_lab.levers.advice import advise
from tessera_lab.levers.ladder import Ladder, climb
from tessera_lab.levers.lever import LeverId
from tessera_lab.levers.setups import Obstacle
from tests.lab.levers.cases import A100, CASE, costs_of

# A fleet of hundreds, so that no factor is that of whole replicas.
DEMAND = ((3600.0, 1000.0), (3600.0, 1000.0))


def rate(setup: EngineSetup) -> float:
    """Return requests per second: fp8 is worth 1.5 times, a prefix cache 1.25, drafts cost."""
    result = 8.0 * (1.5 if setup.precision == "fp8" else 1.2 if setup.precision else 1.0)
    result *= 0.5 if setup.speculation is not None else 1.0
    return result * (1.25 if setup.prefix_cache else 1.0)


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    prices = {A100: CASE.prices[A100]}
    return climb(costs_of(rate, demand=DEMAND, prices=prices, small=None))


def factors(ladder: Ladder, lever: LeverId) -> tuple[float | None, float | None, float | None]:
    rung = next(rung for rung in ladder.rungs if rung.lever is lever)
    return tuple(
        None if each is None else round(each, 2) for each in (rung.alone, rung.here, rung.last)
    )  # type: ignore[return-value]


def test_a_lever_is_worth_the_cost_before_it_over_the_cost_after_it(ladder: Ladder) -> None:
    assert factors(ladder, LeverId.QUANTIZATION)[:2] == pytest.approx((1.5, 1.5), rel=0.01)
    assert factors(ladder, LeverId.PREFIX_CACHE)[:2] == (1.25, 1.25)


def test_the_ladder_begins_at_plain_vllm_for_the_peak(ladder: Ladder) -> None:
    setup = ladder.baseline.setup
    assert (setup.static_batch, setup.kv_cache) == (None, KvCache.PAGED)
    assert (setup.precision, setup.prefix_cache) == (None, False)
    assert ladder.baseline.mean_replicas == ladder.baseline.peak_replicas == 125


def test_a_lever_that_costs_more_is_left_out_with_the_reason(ladder: Ladder) -> None:
    rung = next(rung for rung in ladder.rungs if rung.lever is LeverId.SPECULATION)
    assert not rung.used
    assert rung.note == "it costs 99% more here"
    assert rung.last is None


def test_a_lever_that_changes_nothing_stays(ladder: Ladder) -> None:
    rung = next(rung for rung in ladder.rungs if rung.lever is LeverId.SCALING)
    assert rung.used
    assert rung.note == "it changes nothing here"


def test_files_of_4_bits_take_the_place_of_fp8_only_where_they_save(ladder: Ladder) -> None:
    rung = next(rung for rung in ladder.rungs if rung.lever is LeverId.INT4_FILES)
    assert (rung.used, rung.alone and round(rung.alone, 1)) == (False, 1.2)
    assert ladder.stack.setup.precision == "fp8"


def test_what_cannot_be_computed_says_why_and_changes_nothing(ladder: Ladder) -> None:
    rung = next(rung for rung in ladder.rungs if rung.lever is LeverId.ROUTING)
    assert (rung.obstacle, rung.here, rung.used) == (Obstacle.NO_SMALL_MODEL, None, False)
    assert rung.month is ladder.rungs[-1].month


def test_the_whole_is_the_product_only_where_no_lever_takes_from_another(ladder: Ladder) -> None:
    fixed = ladder.product / ladder.reached
    # All levers but those of prices and spot nodes are independent here.
    assert 1.0 < fixed < 1.2
    assert ladder.reached_today < ladder.reached


def test_the_last_factor_is_the_cost_of_the_whole_without_a_lever(ladder: Ladder) -> None:
    assert factors(ladder, LeverId.QUANTIZATION)[2] == pytest.approx(1.5, rel=0.02)


def test_a_lever_by_which_the_slo_is_kept_is_used_though_it_costs() -> None:
    def slow(setup: EngineSetup) -> float:
        return 1.0 if setup.precision is None else 0.5

    ladder = climb(costs_of(slow, lambda setup: setup.precision == "fp8", demand=DEMAND))
    rung = next(rung for rung in ladder.rungs if rung.lever is LeverId.QUANTIZATION)
    assert (rung.used, rung.note) == (True, "the SLO is kept from here on")


def test_a_lever_that_breaks_the_slo_is_left_out_though_it_saves() -> None:
    ladder = climb(costs_of(rate, lambda setup: setup.precision is None, demand=DEMAND))
    rung = next(rung for rung in ladder.rungs if rung.lever is LeverId.QUANTIZATION)
    assert not rung.used
    assert rung.note == "it would miss the SLO here"


def test_orders_of_the_sources_end_where_their_levers_end(ladder: Ladder) -> None:
    steps = ladder.orders["engineering"]
    # Without a small model nothing is routed.
    assert [step.lever for step in steps] == [
        LeverId.QUANTIZATION,
        LeverId.PREFIX_CACHE,
        LeverId.SPECULATION,
    ]
    costs = [step.month.usd for step in steps]
    assert ladder.baseline.usd > costs[0] > costs[1] < costs[2]


def test_advice_starts_from_the_fleet_as_it_is() -> None:
    costs = costs_of(rate, demand=DEMAND, small=None)
    advice = advise(costs, {LeverId.PREFIX_CACHE, LeverId.SCALING}, seed=1)
    assert advice.worth[LeverId.PREFIX_CACHE] == pytest.approx(advice.present.usd / 4, rel=0.01)
    assert advice.savings[LeverId.QUANTIZATION] == pytest.approx(advice.present.usd / 3, rel=0.02)
    assert advice.savings[LeverId.SPECULATION] < 0
    assert LeverId.SPECULATION not in {row.lever for row in advice.ranking.rows}
    assert {each.lever: each.obstacle for each in advice.unknown} == {
        "prompt-compression": Obstacle.NEEDS_EVALUATION,
        "distillation": Obstacle.NEEDS_EVALUATION,
        LeverId.ROUTING: Obstacle.NO_SMALL_MODEL,
    }


def test_advice_proposes_nothing_that_breaks_a_kept_slo() -> None:
    costs = costs_of(rate, lambda setup: setup.precision is None, demand=DEMAND)
    advice = advise(costs, frozenset(), seed=1)
    assert LeverId.QUANTIZATION not in advice.savings
    assert Obstacle.MISSES_SLO in {each.obstacle for each in advice.unknown}
