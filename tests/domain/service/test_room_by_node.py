"""Room is counted by node, and what the pods of a floor wait for is room for no other service."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tessera.domain.hardware.pools import discover
from tessera.domain.observed.snapshot import Node, Pod, Ref
from tessera.domain.placement.candidates import free_replicas
from tessera.domain.placement.free_hardware import fragments_of, replicas_free_now
from tessera.domain.service.unclaimed import unclaimed_pods
from tests.builders import H100, LARGE, NOW, a_node, a_pod, a_pool, a_service, a_spec
from tests.domain.variant_fleet import CHAT, VariantFleet, pool_of

RESERVED = a_pool("reserved", "1.00")
BURST = a_pool("burst", "3.00", tier="OnDemand")
APP = Ref("team-a", "app")
GPU = "nvidia.com/gpu"


def a_job(node: str, gpus: int) -> Pod:
    return a_pod(node, service="job", node=node, bound=NOW, devices={GPU: gpus})


def a_fleet(*used: int) -> VariantFleet:
    """A service of two GPUs a replica, beside jobs with so many GPUs of each reserved node of 2."""
    names = [f"reserved-{index}" for index in range(len(used))]
    jobs = [a_job(name, gpus) for name, gpus in zip(names, used, strict=True) if gpus]
    return VariantFleet(
        service=a_service(spec=a_spec(LARGE, replicas=1)),
        pools=(RESERVED, BURST),
        nodes=[
            *(a_node("reserved", whole=2, name=name, product=H100) for name in names),
            a_node("burst", whole=2, product=H100),
        ],
        pods={job.ref: job for job in jobs},
    )


@pytest.mark.parametrize(
    ("used", "pool"), [((1, 1), "burst"), ((2, 0), "reserved"), ((1, 1, 0), "reserved")]
)
def test_free_gpus_of_two_nodes_are_no_room_for_a_replica_of_two(
    used: tuple[int, ...], pool: str
) -> None:
    cluster = a_fleet(*used)
    cluster.cycle(60)
    cluster.cycle(60)
    cluster.cycle(60)
    assert {pool_of(pod) for pod in cluster.pods.values() if pod.service == CHAT} == {pool}
    assert cluster.counts()[pool] == 1


def test_a_replica_of_two_moves_once_two_gpus_of_one_node_are_free() -> None:
    cluster = a_fleet(1, 1)
    for _ in range(8):
        cluster.cycle(60)
        assert all(pod.node for pod in cluster.pods.values())
    assert cluster.counts() == {"reserved": 0, "burst": 1}
    del cluster.pods[Ref("team-a", "reserved-0")]
    for _ in range(8):
        cluster.cycle(60)
    assert cluster.counts() == {"reserved": 1, "burst": 0}
    assert cluster.lost == []


def counted_and_free_now(
    nodes: Sequence[Node], pods: Sequence[Pod]
) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Return the free replicas of each number of GPUs, by the devices in use and by the nodes."""
    (view,) = discover([RESERVED], nodes, NOW.date())
    cluster = VariantFleet(service=a_service(), pools=(RESERVED,), nodes=list(nodes))
    cluster.pods = {pod.ref: pod for pod in pods}
    offers = {offer.hardware.devices: offer for offer in view.offers}
    used = Counter(unclaimed_pods(pods, (), (), nodes, (view,)).allocated)
    used.update(fragments_of((view,), pods))
    return (
        {size: max(0, free_replicas(offer, used)) for size, offer in offers.items()},
        {
            size: replicas_free_now(cluster.snapshot(), view, offer)
            for size, offer in offers.items()
        },
    )


@pytest.mark.parametrize(
    ("used", "free"),
    [
        ((0, 0), {1: 12, 2: 6, 4: 3, 8: 1}),
        ((1, 1), {1: 10, 2: 4, 4: 1, 8: 0}),
        ((4, 0), {1: 8, 2: 4, 4: 2, 8: 0}),
        ((3, 3), {1: 6, 2: 2, 4: 1, 8: 0}),
        ((8, 3), {1: 1, 2: 0, 4: 0, 8: 0}),
    ],
)
def test_both_counts_of_free_replicas_agree(used: tuple[int, int], free: dict[int, int]) -> None:
    nodes = [a_node("reserved", whole=gpus, name=f"n-{gpus}", product=H100) for gpus in (8, 4)]
    pods = [a_job(node.name, gpus) for node, gpus in zip(nodes, used, strict=True)]
    counted, now = counted_and_free_now(nodes, pods)
    assert now == free
    assert counted == free


def test_a_node_that_lacks_a_gpu_has_room_for_as_many_replicas_as_its_free_ones_make() -> None:
    nodes = [a_node("reserved", whole=7, name=name, product=H100) for name in ("a", "b")]
    counted, now = counted_and_free_now(nodes, [a_job("a", 1), a_job("b", 1)])
    assert counted == now == {1: 12, 2: 6, 4: 2}


@pytest.mark.parametrize(
    ("labels", "free"),
    [
        ({"nvidia.com/gpu.sharing-strategy": "time-slicing"}, {1: 0, 2: 0, 4: 0, 8: 0}),
        ({"nvidia.com/gpu.count": "4"}, {1: 4, 2: 2, 4: 1, 8: 0}),
    ],
)
def test_devices_that_a_node_does_not_offer_are_not_free(
    labels: Mapping[str, str], free: Mapping[int, int]
) -> None:
    nodes = [
        a_node("reserved", whole=8, name="full", product=H100),
        a_node("reserved", whole=8, name="other", product=H100, labels=labels),
    ]
    counted, now = counted_and_free_now(nodes, [a_job("full", 8)])
    assert counted == now == free


def test_a_service_that_grows_leaves_the_gpu_that_a_floor_waits_for() -> None:
    cluster = VariantFleet(
        service=a_service(spec=a_spec(replicas=2, placement={"pools": ["reserved"]})),
        others=[a_service("app", a_spec(replicas=1))],
        pools=(RESERVED, BURST),
        nodes=[a_node("reserved", whole=2), a_node("burst", whole=2)],
    )
    for _ in range(4):
        cluster.cycle(30)
    assert (cluster.counts(APP), cluster.counts()) == ({"reserved": 1, "burst": 0},) * 2
    cluster.nodes[0] = a_node("reserved", whole=3)
    (app,) = cluster.others
    cluster.others = [replace(app, spec=a_spec(replicas=2))]
    cluster.cycle()
    assert Counter(pool_of(pod) for pod in cluster.pods.values() if pod.service == APP) == {
        "reserved": 1,
        "burst": 1,
    }
