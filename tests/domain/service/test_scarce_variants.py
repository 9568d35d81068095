"""Several variants with less than they need: floors stay, nothing that serves is lost."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Condition, find_condition
from tessera.api.reasons import PlacementReason, ScalingReason
from tessera.domain.observed.snapshot import Node, Ref
from tests.builders import A100, H100, NOW, a_budget, a_node, a_pool, a_service, a_spec
from tests.domain.variant_fleet import CHAT, VariantFleet, pool_of

RESERVED = a_pool("reserved", "1.00")
BURST = a_pool("burst", "3.00", tier="OnDemand")
CODE = Ref("team-a", "code")


def fleet(reserved: int, burst: int, **fields: Any) -> VariantFleet:
    """One service of 3 replicas, of which one is its floor."""
    return VariantFleet(
        **{
            "service": a_service(spec=of(3)),
            "pools": (RESERVED, BURST),
            "nodes": [a_node("reserved", whole=reserved), a_node("burst", whole=burst)],
            **fields,
        }
    )


def of(replicas: int, floor: int = 1) -> InferenceServiceSpec:
    return a_spec(replicas=replicas, scaling={"minReplicas": floor, "maxReplicas": 8})


def placed_of(cluster: VariantFleet, ref: Ref = CHAT) -> Condition:
    services = (cluster.service, *cluster.others)
    status = next(service.status for service in services if service.ref == ref)
    condition = find_condition(status.conditions, "Placed")
    assert condition is not None
    return condition


def watched(cluster: VariantFleet, seconds: float, holds: Callable[[], bool]) -> None:
    """Run cycles for so long, in each of which something must hold."""
    end = cluster.now.total_seconds() + seconds
    while cluster.now.total_seconds() < end:
        cluster.cycle()
        assert holds(), f"not at {cluster.now}: {cluster.counts()}"


@pytest.mark.parametrize("pool", ["reserved", "burst"])
def test_two_services_that_want_the_last_device_keep_what_they_have_and_one_gets_it(
    pool: str,
) -> None:
    devices = {"reserved": 2, "burst": 2}
    cluster = fleet(**devices, others=[a_service("code", of(2))])
    cluster.service = replace(cluster.service, spec=of(2))
    cluster.run(180)
    before = [cluster.counts(), cluster.counts(CODE)]
    assert [sum(counts.values()) for counts in before] == [2, 2]
    cluster.service = replace(cluster.service, spec=of(3))
    (other,) = cluster.others
    cluster.others = [replace(other, spec=of(3))]
    cluster.run(120)
    cluster.nodes[list(devices).index(pool)] = a_node(pool, whole=devices[pool] + 1)
    watched(
        cluster,
        900,
        lambda: min(sum(cluster.counts(ref).values()) for ref in (CHAT, CODE)) >= 2,
    )
    after = {ref: sum(cluster.counts(ref).values()) for ref in (CHAT, CODE)}
    assert sorted(after.values()) == [2, 3]
    assert cluster.lost == []
    (loser,) = (ref for ref, count in after.items() if count == 2)
    assert placed_of(cluster, loser).reason == PlacementReason.UNSCHEDULABLE
    assert placed_of(cluster, loser).message.startswith(
        "spec.placement.pools: 1 of 3 replicas unschedulable"
    )


def test_all_on_demand_nodes_gone_at_once_cost_no_other_replica() -> None:
    cluster = fleet(reserved=1, burst=3)
    cluster.run(180)
    assert cluster.counts() == {"reserved": 1, "burst": 2}
    node = cluster.nodes.pop()
    for ref in [ref for ref, pod in cluster.pods.items() if pod.node == node.name]:
        del cluster.pods[ref]
    watched(cluster, 600, lambda: cluster.counts()["reserved"] == 1)
    assert placed_of(cluster).reason == PlacementReason.UNSCHEDULABLE
    assert "2 of 3 replicas unschedulable" in placed_of(cluster).message
    cluster.nodes.append(node)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 1, "burst": 2}
    assert cluster.lost == []


def test_a_budget_that_pays_for_the_cheap_variant_alone_buys_that_and_says_so() -> None:
    # Of an hour the floor takes 2 USD, and 10 minutes on demand would cost 0.50 USD more.
    budget = a_budget(amount="2.30", window="Hour")
    cluster = fleet(reserved=2, burst=3, fields={"budgets": (budget,)})
    cluster.service = a_service(spec=of(3, floor=2))
    cluster.run(90)
    watched(cluster, 600, lambda: cluster.counts() == {"reserved": 2, "burst": 0})
    assert {pool_of(pod) for pod in cluster.pods.values()} == {"reserved"}
    scale = cluster.plans[CHAT].scale
    assert scale.reason is ScalingReason.BUDGET_EXHAUSTED
    assert "hour limit 2.30 USD" in scale.message
    cluster.nodes[0] = a_node("reserved", whole=3)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 3, "burst": 0}
    assert cluster.lost == []


@pytest.mark.parametrize(
    ("node", "counts", "words"),
    [
        (a_node("new", whole=1, name="new-0"), {"reserved": 1, "new": 1, "burst": 1}, "count 1"),
        (
            a_node("new", whole=8, product=H100, name="new-0"),
            {"reserved": 1, "new": 2, "burst": 0},
            "the nodes of the pool have NVIDIA-H100",
        ),
        (
            a_node("new", {"1g.10gb": 7}, name="new-0"),
            {"reserved": 1, "new": 2, "burst": 0},
            "count 1",
        ),
    ],
    ids=["fewer-gpus", "other-product", "slices"],
)
def test_nodes_that_arrive_other_than_their_template_are_named_and_cost_no_replica(
    node: Node, counts: Mapping[str, int], words: str
) -> None:
    template = {"product": A100, "gpus": 8, "maxNodes": 2, "expectedStart": "60s"}
    new = replace(a_pool("new", "2.00", tier="OnDemand", nodeTemplate=template), created=NOW)
    cluster = fleet(reserved=1, burst=2, pools=(RESERVED, new, BURST))
    cluster.run(65)
    cluster.nodes.append(replace(node, created=NOW + cluster.now))
    serving = sum(cluster.counts().values())
    assert serving >= 1
    said = set[str]()

    def holds() -> bool:
        view = cluster.memory.pools[1]
        said.update((view.accepted.message, str(view.nodes_provisioned)))
        return sum(cluster.counts().values()) >= serving

    watched(cluster, 900, holds)
    assert cluster.counts() == counts
    assert any(words in message for message in said)
    assert cluster.lost == []


@pytest.mark.parametrize("grown", ["reserved", "burst"])
def test_a_service_that_is_not_accepted_holds_devices_where_its_replicas_are(grown: str) -> None:
    """A typo in one service leaves the free devices of each pool to the others."""
    code = a_service("code", spec=of(1))
    cluster = fleet(1, 2, service=a_service(spec=of(2, 2)), others=[code])
    cluster.run(300)
    assert sum(cluster.counts().values()) == 2
    typo = a_spec(engine={"extraArgs": ["--crash"]}, scaling={"minReplicas": 2, "maxReplicas": 8})
    cluster.service = replace(cluster.service, spec=typo)
    reserved, burst = (2, 2) if grown == "reserved" else (1, 3)
    cluster.nodes = [a_node("reserved", whole=reserved), a_node("burst", whole=burst)]
    cluster.run(60)
    cluster.others = [replace(cluster.others[0], spec=of(2, 2))]
    cluster.run(600)
    assert sum(cluster.counts(CODE).values()) == 2
    assert sum(cluster.counts().values()) == 2
