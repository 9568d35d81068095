"""What is recommended to reserve, and that the prices it names change it."""

import re
from dataclasses import replace

import pytest

from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.explain.explain import explain
from tessera.domain.planning.plan import plan
from tessera.domain.reporting.decision import Decision
from tests.builders import a_node, a_pool
from tests.domain.service.test_variants import fleet
from tests.domain.variant_fleet import CHAT, VariantFleet

HOUR = 3600.0
DAY = LoadCurve(((7 * HOUR, 2), (10 * HOUR, 3), (5 * HOUR, 5), (2 * HOUR, 8)))


def bursting(price: str = "1.00", reserved: int = 2) -> VariantFleet:
    """Two replicas where reserved devices have this price, and on-demand ones 3.00 USD."""
    cluster = fleet(2, reserved=reserved, burst=4)
    cluster.pools = (a_pool("reserved", price), cluster.pools[1])
    cluster.run(90)
    return cluster


def mix_of(cluster: VariantFleet, curve: LoadCurve | None = DAY) -> Decision | None:
    snapshot = cluster.snapshot()
    fleet_plan = plan(cluster.config, snapshot, cluster.memory)
    decisions = explain(snapshot, fleet_plan, CHAT, curve=curve)
    return next((decision for decision in decisions if decision.topic == "mix"), None)


def test_what_is_needed_for_longer_than_it_costs_of_one_on_demand_is_worth_reserving() -> None:
    decision = mix_of(bursting())
    assert decision is not None
    assert decision.reason == "ReserveMore"
    # 3 at 1.00, and above them at 3.00 2 for 5 hours and 5 for 2; with 2 also 1 for 17 hours.
    assert dict(decision.numbers) == {
        "replicas needed": "3.54 on average, 8 at most",
        "price per replica": "1.0000 USD per hour reserved, 3.0000 USD on demand",
        "reserved now": "2 reserved replicas, 2 in use and 0 free, which others may use: 6.6250 "
        "USD per hour",
        "recommended": "3 reserved replicas: 5.5000 USD per hour",
    }
    assert decision.message == (
        "the load of the last 1.0 days costs least with 3 reserved replicas: 5.5000 USD per hour "
        "with what it needs above them on demand, 1.1250 USD less than with the 2 that it may use "
        "now"
    )


def test_devices_that_are_free_are_reserved_already() -> None:
    as_needed, more = mix_of(bursting(reserved=3)), mix_of(bursting(reserved=6))
    assert as_needed is not None
    assert more is not None
    assert as_needed.reason == "ReservedAsNeeded"
    assert as_needed.message.endswith(
        "costs least with the 3 reserved replicas that it may use now: 5.5000 USD per hour with "
        "what it needs above them on demand"
    )
    assert more.reason == "ReserveFewer"
    assert "2 in use and 4 free" in dict(more.numbers)["reserved now"]


@pytest.mark.parametrize(("way", "step"), [("below", -0.0001), ("above", 0.0001)])
@pytest.mark.parametrize("price", ["0.2345", "1.00", "2.60"])
def test_another_price_pays_for_as_many_as_it_says(way: str, step: float, price: str) -> None:
    decision = mix_of(bursting(price))
    assert decision is not None
    pattern = rf"reserved price {way} ([\d.]+) USD .* would pay for (\d+ reserved replicas?)"
    match = next(filter(None, (re.search(pattern, each) for each in decision.would_change)), None)
    if match is None:
        # All are reserved, or none at all.
        assert dict(decision.numbers)["recommended"].startswith("8 " if way == "below" else "0 ")
        return
    beyond, within = (
        mix_of(bursting(f"{float(match[1]) + change:.4f}")) for change in (step, -2 * step)
    )
    assert beyond is not None
    assert within is not None
    assert dict(beyond.numbers)["recommended"].startswith(f"{match[2]}:")
    count = dict(decision.numbers)["recommended"].partition(":")[0]
    assert dict(within.numbers)["recommended"].startswith(f"{count}:")


def test_more_load_pays_for_one_more_where_it_says() -> None:
    decision = mix_of(bursting())
    assert decision is not None
    assert decision.would_change[0] == (
        "a load that needs 4 replicas or more for over 33.3% of the time (now 29.2%) would pay "
        "for 1 more reserved replica"
    )
    busier = mix_of(bursting(), replace(DAY, spans=(*DAY.spans, (2 * HOUR, 4))))
    assert busier is not None
    assert dict(busier.numbers)["recommended"].startswith("4 reserved replicas:")


def test_nothing_is_recommended_without_the_load_of_a_day() -> None:
    cluster = bursting()
    assert mix_of(cluster, None) is None
    assert mix_of(cluster, LoadCurve(((23.9 * HOUR, 2),))) is None


def test_nothing_is_recommended_without_both_tiers_of_its_hardware() -> None:
    cluster = bursting()
    cluster.nodes[1] = a_node("burst", whole=4, product="NVIDIA-H100-80GB-HBM3")
    assert mix_of(cluster) is None
    alone = bursting()
    alone.pools = alone.pools[:1]
    assert mix_of(alone) is None
