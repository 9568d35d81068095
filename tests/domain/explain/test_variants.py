"""What is explained of several variants, and that what it says would change them does so."""

import re
from dataclasses import replace

from tessera.domain.explain.explain import explain
from tessera.domain.planning.plan import plan
from tessera.domain.reporting.decision import Decision
from tests.builders import a_budget, a_node
from tests.domain.service.test_variants import fleet, resized, standard_fleet
from tests.domain.variant_fleet import CHAT, VariantFleet


def decisions(cluster: VariantFleet) -> dict[str, Decision]:
    snapshot = cluster.snapshot()
    explained = explain(snapshot, plan(cluster.config, snapshot, cluster.memory), CHAT)
    return {decision.topic: decision for decision in explained}


def bursting() -> VariantFleet:
    """Two replicas on reserved devices, and two above them on demand."""
    cluster = fleet(2, reserved=2, burst=4)
    cluster.run(90)
    resized(cluster, 4)
    cluster.run(90)
    return cluster


def test_each_variant_is_explained_with_its_pods_price_and_reason() -> None:
    decision = decisions(bursting())["variants"]
    assert decision.reason == "CheaperFull"
    assert decision.message == (
        "2 replicas on reserved-1gpu at 1.00 USD per hour, 2 replicas on burst-1gpu at 3.00 USD "
        "per hour"
    )
    numbers = dict(decision.numbers)
    assert numbers["burst-1gpu"] == "2 of 2 replicas ready, OnDemand at 3.0000 USD per hour each"
    assert numbers["total price"] == "8.0000 USD per hour for 4 replicas"
    assert dict(decisions(bursting())["placed"].numbers)["total price"] == numbers["total price"]


def test_replicas_of_a_deleted_pool_are_explained_with_their_last_price() -> None:
    cluster = bursting()
    cluster.pools = cluster.pools[:1]
    cluster.cycle()
    decision = decisions(cluster)["variants"]
    assert decision.reason == "NotOffered"
    numbers = dict(decision.numbers)
    assert numbers["burst-1gpu"] == "2 of 0 replicas ready, OnDemand at 3.0000 USD per hour each"


def test_a_replica_moves_once_there_was_room_for_as_long_as_it_says() -> None:
    cluster = bursting()
    hint = next(each for each in decisions(cluster)["variants"].would_change if "for " in each)
    devices, seconds = map(int, re.findall(r"with (\d+) more .* for (\d+) s", hint)[0])
    cluster.nodes[0] = a_node("reserved", whole=2 + devices)
    cluster.run(seconds)
    assert len(cluster.pods) == 4
    cluster.run(10)
    assert len(cluster.pods) == 5, "the replica that replaces one starts first"


def test_the_next_replica_runs_where_it_says() -> None:
    cluster = bursting()
    hints = decisions(cluster)["variants"].would_change
    assert hints[0] == "1 replica more would run on burst-1gpu at 3.0000 USD per hour"
    assert hints[1].startswith("with 1 more free whole GPU in reserved, 1 replica more would run")
    resized(cluster, 5)
    cluster.run(90)
    assert cluster.counts() == {"reserved": 2, "burst": 3}


def test_the_floor_that_runs_on_demand_is_not_said_to_move_to_spot() -> None:
    cluster = standard_fleet()
    cluster.run(120)
    assert cluster.counts()["burst"] == 1
    hints = decisions(cluster)["variants"].would_change
    assert any("of burst-1gpu would move to 1 replica of reserved-1gpu" in hint for hint in hints)
    assert not any("of burst-1gpu would move to 1 replica of spot-1gpu" in hint for hint in hints)


def test_one_variant_says_where_further_replicas_run_and_has_no_topic_of_its_own() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.run(90)
    explained = decisions(cluster)
    assert "variants" not in explained
    why = {option.name: option.message for option in explained["placed"].alternatives}
    assert why["reserved-1gpu"] == "chosen"
    assert why["burst-1gpu"] == "costs more, so it takes replicas where reserved-1gpu is full"


def test_a_budget_says_what_the_next_replica_costs_on_its_variant() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.fields["budgets"] = (a_budget(amount="1.50"),)
    cluster.run(90)
    resized(cluster, 3)
    cluster.cycle()
    hint = decisions(cluster)["budget"].would_change[0]
    assert hint.endswith("would cover 1 more replica on burst-1gpu for 10 minutes")
    amount = re.findall(r"amount of ([\d.]+) USD", hint)[0]
    cluster.fields["budgets"] = (a_budget(amount=amount),)
    cluster.cycle()
    assert len(cluster.pods) == 3


def test_replicas_that_a_budget_refuses_are_not_said_to_start() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.fields["budgets"] = (a_budget(amount="1.70"),)
    cluster.run(90)
    resized(cluster, 4)
    cluster.cycle()
    (_, burst) = cluster.service.status.variants or ()
    assert (burst.desired_replicas, burst.reason) == (1, "BudgetExhausted")
    assert (burst.message or "").startswith("1 of 2 replicas at 3.00 USD per hour each are granted")


def test_free_hardware_of_another_speed_is_not_used_without_the_gateway_and_it_says_so() -> None:
    cluster = fleet(2, reserved=2, burst=0)
    cluster.nodes[1] = a_node("burst", whole=4, product="NVIDIA-H100-80GB-HBM3")
    cluster.config = replace(cluster.config, gateways=False)
    cluster.run(90)
    resized(cluster, 4)
    cluster.run(30)
    message = decisions(cluster)["placed"].message
    assert "whole GPU of AcceleratorPool/burst is free, but a replica of burst-1gpu" in message
    assert "without the gateway both get as many requests" in message


def test_hardware_of_no_replica_is_not_shown_as_in_use() -> None:
    cluster = fleet(2, reserved=0, burst=2)
    cluster.run(90)
    cluster.nodes[0] = a_node("reserved", whole=2)
    cluster.run(600)
    assert cluster.counts() == {"reserved": 2, "burst": 0}
    explained = decisions(cluster)
    assert explained["variants"].message == "2 replicas on reserved-1gpu at 1.00 USD per hour"
    assert "replicas on reserved-1gpu at 1.00 USD per hour;" in explained["placed"].message
