"""A service on several pools: reserved first, on-demand above it, back when there is room."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.meta import find_condition
from tessera.api.reasons import Ready, VariantReason
from tessera.api.ref import Ref
from tessera.api.variant_status import MAX_VARIANTS
from tessera.domain.names import deployment_name
from tessera.resources.children import service_manifests
from tests.builders import a_node, a_pod, a_pool, a_service, a_spec
from tests.domain.variant_fleet import VariantFleet
from tests.properties import examples

RESERVED = a_pool("reserved", "1.00")
BURST = a_pool("burst", "3.00", tier="OnDemand")


def fleet(replicas: int, reserved: int, burst: int) -> VariantFleet:
    """A service with so many replicas on pools with so many GPUs."""
    return VariantFleet(
        service=a_service(spec=a_spec(replicas=replicas)),
        pools=(RESERVED, BURST),
        nodes=[a_node("reserved", whole=reserved), a_node("burst", whole=burst)],
    )


def resized(cluster: VariantFleet, replicas: int) -> None:
    cluster.service = replace(cluster.service, spec=a_spec(replicas=replicas))


def test_what_a_full_reserved_pool_cannot_take_runs_on_demand_and_comes_back() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 0}
    assert len(cluster.workloads) == 1
    resized(cluster, 4)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 2}
    resized(cluster, 3)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 1}
    cluster.nodes[0] = a_node("reserved", whole=3)
    cluster.run(1800)
    assert cluster.counts() == {"reserved": 3, "burst": 0}
    assert len(cluster.workloads) == 1
    assert cluster.lost == []


def test_a_service_starts_on_both_where_neither_has_room_for_all() -> None:
    cluster = fleet(5, reserved=2, burst=3)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 3}


@st.composite
def courses(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Wanted replicas, GPUs of both pools, and for how many seconds that stays."""
    step = st.tuples(
        st.integers(1, 5), st.integers(0, 4), st.integers(0, 5), st.sampled_from((20, 90, 400))
    )
    return draw(st.lists(step, min_size=1, max_size=6))


@given(course=courses())
@settings(max_examples=examples(8))
def test_capacity_that_runs_stays_while_replicas_move(
    course: list[tuple[int, int, int, int]],
) -> None:
    cluster = fleet(1, reserved=2, burst=2)
    for wanted, reserved, burst, seconds in course:
        resized(cluster, wanted)
        _resize_pool(cluster, "reserved", reserved)
        _resize_pool(cluster, "burst", burst)
        end = cluster.now + timedelta(seconds=seconds)
        while cluster.now < end:
            before = sum(cluster.counts().values())
            cluster.cycle()
            assert sum(cluster.counts().values()) >= min(before, wanted)
    for _ in range(120):
        cluster.cycle(30)
    total = sum(node.allocatable.get("nvidia.com/gpu", 0) for node in cluster.nodes)
    room = cluster.nodes[0].allocatable.get("nvidia.com/gpu", 0)
    counts = cluster.counts()
    assert sum(counts.values()) == min(wanted, total)
    assert counts["reserved"] == min(wanted, room)
    assert cluster.lost == []


def _resize_pool(cluster: VariantFleet, pool: str, gpus: int) -> None:
    """Set the GPUs of a pool; those that pods hold stay."""
    index = ("reserved", "burst").index(pool)
    used = sum(pod.node == f"{pool}-0" for pod in cluster.pods.values())
    cluster.nodes[index] = a_node(pool, whole=max(gpus, used))


SPOT = a_pool("spot", "0.50", tier="Spot")


def standard_fleet() -> VariantFleet:
    """Four replicas of class Standard, of which two are its floor, with room everywhere."""
    spec = a_spec(
        **{"class": "Standard"},
        placement={"tiers": ["Reserved", "OnDemand", "Spot"]},
        scaling={"minReplicas": 2, "maxReplicas": 4},
        replicas=4,
    )
    return VariantFleet(
        service=a_service(spec=spec),
        pools=(RESERVED, BURST, SPOT),
        nodes=[a_node("reserved", whole=1), a_node("burst", whole=4), a_node("spot", whole=4)],
    )


def test_a_standard_service_uses_spot_above_its_floor_alone() -> None:
    cluster = standard_fleet()
    cluster.run(120)
    assert cluster.counts() == {"reserved": 1, "burst": 1, "spot": 2}


def test_a_spot_notice_is_answered_at_once_by_replicas_elsewhere() -> None:
    cluster = standard_fleet()
    cluster.run(120)
    reclaimed = replace(
        cluster.nodes[2],
        taints=frozenset({"aws-node-termination-handler/spot-itn"}),
        schedulable=False,
    )
    cluster.nodes[2] = reclaimed
    cluster.cycle()
    assert all(pod.draining_since for pod in cluster.pods.values() if pod.node == "spot-0")
    cluster.run(70)
    assert cluster.counts() == {"reserved": 1, "burst": 3, "spot": 0}


def test_a_new_template_is_rolled_out_one_variant_after_the_other() -> None:
    """Each variant has one Deployment of it in the end, and one replica at a time is away."""
    cluster = fleet(4, reserved=2, burst=2)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 2}
    cluster.service = replace(
        cluster.service, spec=a_spec(replicas=4, context={"maxModelLen": 2048}), generation=2
    )
    first = cluster.cycle()
    assert [variant.waits for variant in first.variants] == [False, True]
    kinds = [manifest.kind.kind for manifest in service_manifests(first)]
    assert kinds.count("Deployment") == 1
    begun = list[str]()
    end = cluster.now + timedelta(seconds=1200)
    while cluster.now < end:
        cluster.cycle()
        assert sum(cluster.counts().values()) >= 3
        new = {pod.variant for pod in cluster.pods.values() if pod.template_digest}
        begun += sorted(new - set(begun))
        mixed = {
            pod.variant
            for pod in cluster.pods.values()
            if pod.variant in new and not pod.template_digest
        }
        assert len(mixed) <= 1
    assert begun == ["reserved-1gpu", "burst-1gpu"]
    assert cluster.counts() == {"reserved": 2, "burst": 2}
    digests = {workload.template_digest for workload in cluster.workloads.values()}
    assert (len(cluster.workloads), "" in digests) == (2, False)
    assert cluster.lost == []


def test_replicas_are_not_replaced_by_equal_ones_when_their_pool_comes_back() -> None:
    """Also where the status describes the variant that the service was to move to."""
    cluster = fleet(2, reserved=2, burst=2)
    cluster.run(120)
    pods = set(cluster.pods)
    cluster.pools = (BURST,)
    cluster.run(30)
    cluster.pools = (RESERVED, BURST)
    cluster.run(300)
    assert set(cluster.pods) == pods
    replicas = {each.variant: each.replicas for each in cluster.workloads.values()}
    assert replicas == {"reserved-1gpu": 2, "burst-1gpu": 0}


def test_replicas_of_a_deleted_pool_stay_until_others_serve() -> None:
    cluster = fleet(3, reserved=1, burst=2)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 1, "burst": 2}
    spare = a_pool("spare", "5.00", tier="OnDemand")
    cluster.pools = (RESERVED, spare)
    cluster.nodes.append(a_node("spare", whole=1))
    cluster.run(300)
    assert cluster.counts() == {"reserved": 1, "spare": 1, "burst": 1}
    *_, former = cluster.service.status.variants or ()
    assert (former.name, former.reason) == ("burst-1gpu", VariantReason.NOT_OFFERED)
    assert (former.desired_replicas, former.replicas, former.ready_replicas) == (0, 1, 1)
    assert cluster.lost == []
    cluster.nodes[-1] = a_node("spare", whole=2)
    former_ref = Ref("team-a", deployment_name("chat", "burst-1gpu"))
    while former_ref in cluster.workloads:
        assert sum(cluster.counts().values()) >= 3
        cluster.cycle()
    cluster.cycle()
    assert cluster.counts() == {"reserved": 1, "spare": 2}
    names = [variant.name for variant in cluster.service.status.variants or ()]
    assert names == ["reserved-1gpu", "spare-1gpu"]


def test_a_deleted_pool_of_the_reference_variant_is_said_too() -> None:
    cluster = fleet(3, reserved=2, burst=3)
    cluster.run(120)
    cluster.pools = (BURST,)
    cluster.cycle()
    variants = cluster.service.status.variants or ()
    assert [(variant.name, variant.reason) for variant in variants] == [
        ("burst-1gpu", VariantReason.CHEAPER_FULL),
        ("reserved-1gpu", VariantReason.NOT_OFFERED),
    ]
    cluster.run(120)
    assert cluster.counts() == {"burst": 3}
    assert cluster.service.status.variants is None


def test_a_service_that_names_a_deleted_pool_keeps_its_replicas_there_and_their_number() -> None:
    """Also where its reference variant has none."""
    cluster = fleet(2, reserved=1, burst=0)
    foreign = a_pod("guest", node="reserved-0", devices={"nvidia.com/gpu": 1})
    cluster.pods[foreign.ref] = replace(foreign, service=Ref("team-a", ""), variant="")
    spec = a_spec(replicas=2, placement={"pools": ["reserved", "burst"]})
    cluster.service = replace(cluster.service, spec=spec)
    cluster.run(30)
    cluster.nodes[1] = a_node("burst", whole=2)
    cluster.run(120)
    assert cluster.counts()["burst"] == 2
    assert cluster.service.status.variant is not None
    assert cluster.service.status.variant.pool == "reserved"
    cluster.pools = (RESERVED,)
    cluster.run(120)
    assert cluster.counts()["burst"] == 2
    status = cluster.service.status
    assert status.scaling is not None
    assert status.scaling.desired_replicas == 2
    ready = find_condition(status.conditions, "Ready")
    assert ready is not None
    assert ready.reason == Ready.PROBE_PENDING


def test_why_a_variant_changed_is_said_until_it_changes_again() -> None:
    """Its status may be written many cycles later."""
    cluster = fleet(4, reserved=2, burst=4)
    cluster.run(120)
    status = cluster.service.status.model_copy(update={"variants": None})
    cluster.service = replace(cluster.service, status=status)
    service_plan = cluster.cycle()
    reasons = {
        variant.choice.offer.pool: variant.change and variant.change.reason
        for variant in service_plan.variants
    }
    assert reasons == {"reserved": "LeastCost", "burst": "CheaperFull"}


def test_replicas_on_a_cordoned_node_take_no_room_of_the_others() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.run(120)
    cordoned = replace(cluster.nodes[0], schedulable=False)
    cluster.nodes = [cordoned, *cluster.nodes[1:], replace(a_node("reserved", whole=2), name="new")]
    resized(cluster, 4)
    cluster.run(120)
    assert cluster.counts() == {"reserved": 4, "burst": 0}


def test_a_service_uses_no_more_pools_than_its_status_has_room_for() -> None:
    names = [f"p{index}" for index in range(MAX_VARIANTS + 4)]
    cluster = VariantFleet(
        service=a_service(spec=a_spec(replicas=len(names))),
        pools=[a_pool(name, "1.00") for name in names],
        nodes=[a_node(name, whole=1) for name in names],
    )
    cluster.run(90)
    assert len(cluster.service.status.variants or ()) == MAX_VARIANTS
    assert sum(cluster.counts().values()) == MAX_VARIANTS
