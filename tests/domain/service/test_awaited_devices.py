"""What the pods of a floor wait for is kept for them for a while, and counts once."""

from collections import Counter
from dataclasses import dataclass, replace

from typing_extensions import override

from tessera.domain.hardware.pools import discover
from tessera.domain.observed.snapshot import Pod, Ref
from tessera.domain.service.current_objects import CurrentObjects
from tessera.domain.service.proposals import (
    AWAITED_TIME,
    awaited_devices,
    is_awaited_by_others,
)
from tests.builders import a_node, a_pool, a_service, a_spec
from tests.domain.variant_fleet import CHAT, VariantFleet, pool_of

APP = Ref("team-a", "app")


@dataclass
class ReservedGpus(VariantFleet):
    """GPUs of a reserved pool and of a dearer one, and pods of a service that find no node."""

    barred: Ref | None = None

    @override
    def _free_node(self, pod: Pod) -> str | None:
        return None if pod.service == self.barred else super()._free_node(pod)

    def grow(self, name: str) -> None:
        grown = [self.service, *self.others]
        self.service, *self.others = (
            replace(each, spec=a_spec(replicas=2)) if each.ref.name == name else each
            for each in grown
        )

    def pools_of(self, service: Ref) -> Counter[str]:
        return Counter(pool_of(pod) for pod in self.pods.values() if pod.service == service)


def a_fleet(barred: str) -> ReservedGpus:
    """Two services with a GPU each, of which one waits for another on a full pool."""
    floor = a_spec(replicas=2, placement={"pools": ["reserved"]})
    specs = {"chat": a_spec(replicas=1), "app": a_spec(replicas=1), barred: floor}
    cluster = ReservedGpus(
        service=a_service(spec=specs["chat"]),
        others=[a_service("app", specs["app"])],
        pools=(
            a_pool("reserved", "1.00"),
            a_pool("burst", "3.00", tier="OnDemand"),
        ),
        nodes=[a_node("reserved", whole=2), a_node("burst", whole=2)],
    )
    for _ in range(4):
        cluster.cycle(30)
    return cluster


def test_a_gpu_is_not_kept_for_ever_for_a_pod_that_finds_no_node() -> None:
    cluster = a_fleet("chat")
    cluster.barred = CHAT
    cluster.nodes[0] = a_node("reserved", whole=3)
    cluster.grow("app")
    cluster.cycle(60)
    assert cluster.pools_of(APP) == {"reserved": 1, "burst": 1}
    for _ in range(20):
        cluster.cycle(60)
    assert cluster.pools_of(APP) == {"reserved": 2}
    assert cluster.lost == []


def test_the_device_of_a_pod_that_leaves_is_for_its_successor() -> None:
    """Where a rollout replaces a pod in place, its device does not count twice."""
    cluster = a_fleet("chat")
    bound, waiting = sorted(
        (pod for pod in cluster.pods.values() if pod.service == CHAT), key=lambda pod: not pod.node
    )
    leaving = replace(bound, ref=Ref("team-a", "leaving"), terminating=True)
    for pods, expected in (((bound, waiting), 1), ((bound, waiting, leaving), 0)):
        awaited = awaited_devices(
            CHAT,
            cluster.service,
            CurrentObjects(pods=pods),
            {"reserved-0": "reserved"},
            at=waiting.created,
        )
        assert awaited.total() == expected


def test_a_service_says_that_a_free_gpu_is_kept_for_another() -> None:
    cluster = a_fleet("chat")
    cluster.barred = CHAT
    cluster.nodes[0] = a_node("reserved", whole=3)
    snapshot = cluster.snapshot()
    (view,) = discover(cluster.pools[:1], cluster.nodes, snapshot.at.date())
    offer = next(each for each in view.offers if each.hardware.devices == 1)
    assert is_awaited_by_others(snapshot, APP, offer)
    assert not is_awaited_by_others(snapshot, CHAT, offer)
    later = replace(snapshot, at=snapshot.at + AWAITED_TIME)
    assert not is_awaited_by_others(later, APP, offer)
