"""The floor of a service in pods: budgets, renamed pools and moves take nothing ready within it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.observed.snapshot import ForeignField, Ref
from tests.builders import NOW, a_budget, a_node, a_pod, a_pool, a_service, a_spec
from tests.domain.variant_fleet import VariantFleet

RESERVED = a_pool("reserved", "1.00")
BURST = a_pool("burst", "3.00", tier="OnDemand")
USED_UP: Mapping[str, Mapping[str, Any]] = {
    "window": {"amount": "0.01", "window": "Month"},
    "tier": {"limits": [{"window": "Day", "amount": "0.01", "tier": "OnDemand"}]},
    "gpus": {"amount": "9000.00", "gpus": "1"},
}


def of(floor: int) -> InferenceServiceSpec:
    return a_spec(scaling={"minReplicas": floor, "maxReplicas": 8})


def fleet(floor: int, reserved: int, burst: int, **fields: Any) -> VariantFleet:
    nodes = [a_node("reserved", whole=reserved), a_node("burst", whole=burst)]
    service = a_service(spec=of(floor))
    return VariantFleet(
        **{"service": service, "pools": (RESERVED, BURST), "nodes": nodes, **fields}
    )


def serving(cluster: VariantFleet) -> int:
    return sum(cluster.counts().values())


def watch(cluster: VariantFleet, seconds: float, floor: int) -> None:
    """Run cycles for so long, in each of which as many replicas serve as the floor has."""
    end = cluster.now.total_seconds() + seconds
    while cluster.now.total_seconds() < end:
        cluster.cycle()
        assert serving(cluster) >= floor, f"{cluster.counts()} at {cluster.now}"


@pytest.mark.parametrize("limit", USED_UP)
def test_a_used_up_budget_takes_no_ready_replica_for_a_cheaper_device(limit: str) -> None:
    cluster = fleet(1, 0, 1)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(**USED_UP[limit]),)}
    cluster.run(30)
    cluster.nodes[0] = a_node("reserved", whole=1)
    watch(cluster, 900, 1)
    assert cluster.lost == []


@pytest.mark.parametrize("limit", USED_UP)
def test_a_renamed_pool_keeps_its_replicas_while_a_budget_pays_for_no_other(limit: str) -> None:
    cluster = fleet(2, 0, 2)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(**USED_UP[limit]),)}
    cluster.run(30)
    renamed = replace(a_pool("other", "3.00", tier="OnDemand"), created=NOW)
    cluster.pools = (RESERVED, renamed)
    cluster.nodes[1] = a_node("other", whole=2, name="burst-0")
    watch(cluster, 900, 2)
    assert cluster.lost == []


@pytest.mark.parametrize("floor", [1, 2, 4])
def test_a_renamed_pool_whose_gpus_are_all_used_moves_one_replica_at_a_time(floor: int) -> None:
    cluster = fleet(floor, 0, floor)
    cluster.run(120)
    cluster.pools = (RESERVED, a_pool("other", "3.00", tier="OnDemand"))
    cluster.nodes[1] = a_node("other", whole=floor, name="burst-0")
    watch(cluster, 120 + 120 * floor, floor - 1)
    assert cluster.counts() == {"reserved": 0, "other": floor}
    assert cluster.lost == []


def test_foreign_pods_on_freed_devices_stop_a_renamed_pool_from_moving_below_the_floor() -> None:
    cluster = fleet(3, 0, 3)
    cluster.run(120)
    cluster.pools = (RESERVED, a_pool("other", "3.00", tier="OnDemand"))
    cluster.nodes[1] = a_node("other", whole=3, name="burst-0")
    while serving(cluster) == 3:
        cluster.cycle()
    bound = NOW + cluster.now
    taker = a_pod(
        "notebook", service="", node="burst-0", devices={"nvidia.com/gpu": 1}, bound=bound
    )
    cluster.pods[taker.ref] = taker
    watch(cluster, 1800, 2)


@pytest.mark.parametrize("pool", ["reserved", "burst"])
def test_what_others_write_on_one_of_several_deployments_takes_nothing_of_the_floor(
    pool: str,
) -> None:
    cluster = fleet(4, 2, 2)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 2}
    for generation in range(1, 60):
        ref = write(cluster, pool, 1, generation)
        cluster.cycle(15)
        assert cluster.workloads[ref].replicas == 2


def test_a_replica_that_stays_until_another_one_is_ready_stays_whoever_writes_less() -> None:
    cluster = fleet(1, 0, 1)
    cluster.run(120)
    cluster.nodes[0] = a_node("reserved", whole=1)
    while not any(each.variant.startswith("reserved") for each in cluster.workloads.values()):
        cluster.cycle()
    for generation in range(1, 10):
        ref = write(cluster, "burst", 0, generation)
        cluster.cycle()
        assert cluster.workloads[ref].replicas == 1
    watch(cluster, 300, 1)
    assert cluster.counts() == {"reserved": 1, "burst": 0}


def test_a_surge_above_the_floor_that_no_budget_pays_is_a_rollout_in_place() -> None:
    cluster = fleet(2, 0, 5, service=a_service(spec=fixed(3, 1024)))
    cluster.fields = {"budgets": (a_budget(amount="9000.00", gpus="3"),)}
    cluster.run(120)
    assert serving(cluster) == 3
    cluster.service = replace(cluster.service, spec=fixed(3, 2048))
    most, messages = 0, set[str]()
    for _ in range(180):
        service_plan = cluster.cycle()
        most = max(most, sum(pod.node is not None for pod in cluster.pods.values()))
        assert serving(cluster) >= 2
        messages |= {each.message for each in cluster.service.status.conditions}
    assert most == 3, "no further replica runs"
    assert any("the TenantBudget grants no further" in message for message in messages)
    assert not service_plan.variants[0].older
    assert serving(cluster) == 3


@pytest.mark.parametrize("limit", USED_UP)
def test_a_budget_takes_nothing_of_the_floor_for_a_rollout(limit: str) -> None:
    cluster = fleet(2, 0, 4)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(**USED_UP[limit]),)}
    cluster.service = replace(cluster.service, spec=with_context(2, 2048))
    watch(cluster, 900, 2)
    assert not cluster.plans[cluster.service.ref].variants[0].older


@pytest.mark.parametrize("limit", ["window", "tier"])
def test_no_replica_starts_elsewhere_for_a_rollout_that_a_budget_does_not_grant(limit: str) -> None:
    cluster = fleet(2, 2, 1)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(**USED_UP[limit]),)}
    cluster.service = replace(cluster.service, spec=with_context(2, 2048))
    for _ in range(180):
        cluster.cycle()
        assert serving(cluster) >= 1
        assert not any(pod.variant.startswith("burst") for pod in cluster.pods.values())
    assert cluster.counts() == {"reserved": 2, "burst": 0}
    assert not cluster.plans[cluster.service.ref].variants[0].older


def test_a_used_up_limit_of_another_tier_refuses_no_surge() -> None:
    cluster = fleet(2, 5, 0, service=a_service(spec=fixed(3, 1024)))
    cluster.run(120)
    limits = [
        {"window": "Day", "amount": "9000.00"},
        {"window": "Day", "amount": "0.01", "tier": "OnDemand"},
    ]
    cluster.fields = {"budgets": (a_budget(limits=limits),)}
    cluster.run(30)
    view = cluster.decide(cluster.config, cluster.snapshot(), cluster.memory).budgets[0]
    for window in view.state.current_windows:
        window.spent += 2 * window.limit if window.period.tier else 0
    [count] = cluster.plans[cluster.service.ref].variants
    assert view.state.has_room(count.choice.offer.tariff, timedelta(minutes=10))


def fixed(replicas: int, max_model_len: int) -> InferenceServiceSpec:
    """Return a spec with so many replicas, two of which are the floor."""
    return a_spec(
        replicas=replicas,
        scaling={"minReplicas": 2, "maxReplicas": 8},
        context={"maxModelLen": max_model_len},
    )


def test_a_surge_within_a_budget_starts_before_a_replica_leaves() -> None:
    cluster = fleet(2, 0, 4)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(amount="90000.00", gpus="3"),)}
    cluster.service = replace(cluster.service, spec=with_context(2, 2048))
    watch(cluster, 600, 2)
    assert not cluster.plans[cluster.service.ref].variants[0].older


def with_context(floor: int, max_model_len: int) -> InferenceServiceSpec:
    """Return a spec whose template has another context."""
    return a_spec(
        scaling={"minReplicas": floor, "maxReplicas": 8}, context={"maxModelLen": max_model_len}
    )


def write(cluster: VariantFleet, pool: str, replicas: int, generation: int) -> Ref:
    """Write the replicas of the Deployment on a pool as a HorizontalPodAutoscaler."""
    [ref] = [ref for ref, each in cluster.workloads.items() if each.variant.startswith(pool)]
    foreign = (ForeignField("kube-controller-manager", "spec.replicas"),)
    cluster.workloads[ref] = replace(
        cluster.workloads[ref], replicas=replicas, generation=generation, foreign_fields=foreign
    )
    return ref


def test_what_is_recommended_to_another_autoscaler_is_the_pods_of_the_split() -> None:
    """A whole GPU serves as much as several slices, and counts as one."""
    spec = a_spec(scaling={"mode": "External", "minReplicas": 1, "maxReplicas": 9}, replicas=3)
    nodes = [a_node("reserved", slices={"1g.10gb": 1}), a_node("burst", whole=3)]
    cluster = VariantFleet(service=a_service(spec=spec), pools=(RESERVED, BURST), nodes=nodes)
    scale = cluster.run(300).scale
    assert cluster.counts() == {"reserved": 1, "burst": 2}
    assert scale.recommended is not None
    assert scale.recommended.replicas > scale.recommended_pods == 3


def test_a_renamed_pool_whose_node_is_cordoned_keeps_its_replicas() -> None:
    cluster = fleet(3, 0, 3)
    cluster.run(120)
    cluster.pools = (RESERVED, a_pool("other", "3.00", tier="OnDemand"))
    cluster.nodes[1] = a_node("other", whole=3, name="burst-0", ready=False)
    watch(cluster, 600, 3)
    cluster.nodes[1] = a_node("other", whole=3, name="burst-0")
    watch(cluster, 600, 2)
    assert cluster.counts() == {"reserved": 0, "other": 3}


def test_of_several_pools_that_went_the_one_with_the_device_gives_way() -> None:
    slices = a_pool("slices", "1.00")
    cluster = fleet(3, 2, 0, pools=(RESERVED, slices))
    cluster.nodes[1] = a_node("slices", slices={"1g.10gb": 1})
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "slices": 1}
    cluster.pools = (a_pool("renamed", "1.00"),)
    cluster.nodes[1] = a_node("renamed", slices={"1g.10gb": 1}, name="slices-0")
    watch(cluster, 600, 2)
    assert serving(cluster) == 3


def test_what_stays_of_a_pool_that_went_is_ready_and_its_status_rests() -> None:
    cluster = fleet(2, 0, 2)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(**USED_UP["window"]),)}
    cluster.pools = (RESERVED, a_pool("other", "3.00", tier="OnDemand"))
    cluster.nodes[1] = a_node("other", whole=2, name="burst-0")
    statuses = set[str]()
    for index in range(60):
        cluster.cycle()
        conditions = cluster.service.status.conditions
        if index > 20:
            statuses.add(str([(each.type, each.status, each.message) for each in conditions]))
    assert len(statuses) == 1, "it is written again at rest"
    reasons = {each.type: each.reason for each in conditions}
    assert reasons["Progressing"] == "BudgetExhausted"
    assert reasons["Ready"] not in {"ScaledToZero", "BudgetExhausted"}


@pytest.mark.parametrize("floor", [1, 2, 3])
def test_a_successor_starts_in_another_pool_where_its_own_is_full(floor: int) -> None:
    """One more replica serves there until the rollout has ended: the floor holds throughout."""
    cluster = fleet(floor, floor, 1)
    cluster.run(120)
    assert cluster.counts() == {"reserved": floor, "burst": 0}
    cluster.service = replace(cluster.service, spec=with_context(floor, 2048))
    messages, most = set[str](), 0
    end = cluster.now.total_seconds() + 300 * floor
    while cluster.now.total_seconds() < end:
        cluster.cycle()
        assert serving(cluster) >= floor, f"{cluster.counts()} at {cluster.now}"
        most = max(most, len(cluster.pods))
        messages |= {each.message for each in cluster.service.status.conditions}
    assert any("one more replica on burst-1gpu at 3.00 USD per hour" in each for each in messages)
    assert most <= floor + 2
    assert cluster.counts() == {"reserved": floor, "burst": 0}
    assert not cluster.plans[cluster.service.ref].variants[0].older


def test_of_a_pool_that_went_no_more_replicas_stay_than_the_floor_has() -> None:
    cluster = fleet(3, 0, 3)
    cluster.run(120)
    cluster.fields = {"budgets": (a_budget(**USED_UP["window"]),)}
    cluster.pools = (RESERVED, a_pool("other", "3.00", tier="OnDemand"))
    cluster.nodes[1] = a_node("other", whole=3, name="burst-0")
    watch(cluster, 120, 3)
    cluster.service = replace(cluster.service, spec=of(1))
    watch(cluster, 300, 1)
    assert serving(cluster) == 1


def test_variants_with_a_free_device_are_replaced_first_and_serve_for_the_others() -> None:
    cluster = fleet(4, 2, 3)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 2}
    cluster.service = replace(cluster.service, spec=with_context(4, 2048))
    watch(cluster, 1200, 4)
    assert not any(each.older for each in cluster.plans[cluster.service.ref].variants)


def test_firm_nodes_that_cannot_come_keep_no_replica_of_a_pool_that_went() -> None:
    spot = a_pool("spot", "1.00", tier="Spot")
    spec = a_spec(
        scaling={"minReplicas": 1, "maxReplicas": 8},
        placement={"tiers": ["OnDemand", "Spot"]},
        **{"class": "Standard"},
    )
    cluster = fleet(1, 0, 1, service=a_service(spec=spec), pools=(BURST, spot))
    cluster.run(120)
    assert cluster.counts() == {"burst": 1, "spot": 0}
    cluster.pools = (spot,)
    cluster.nodes[0] = a_node("spot", whole=1)
    watch(cluster, 600, 1)
    assert serving(cluster) == 1
    assert cluster.counts() == {"spot": 1}
