"""What is lost, vanishes or is written by somebody while the instance type of a service changes."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from tessera.api.service_status import InferenceServiceStatus, OtherTypeStatus
from tessera.domain.observed.snapshot import Pod
from tessera.domain.planning.plan import PlanMemory
from tests.builders import H100, NOW, a_node, a_pool
from tests.domain.service.test_type_by_load import FOUR, LONG, SHORT, TWO, fleet, hours, variants
from tests.domain.variant_fleet import VariantFleet

NEVER = timedelta(days=9)
RESTARTS = pytest.mark.parametrize("restarts", [False, True])


class _OtherPool(VariantFleet):
    """No replica of its second pool gets ready."""

    @override
    def _gets_ready(self, pod: Pod, at: Any) -> bool:
        return not pod.variant.startswith("b100") and super()._gets_ready(pod, at)


def _replicas(cluster: VariantFleet) -> Mapping[str, int]:
    return {workload.variant: workload.replicas for workload in cluster.workloads.values()}


def _served(cluster: VariantFleet) -> int:
    return sum(cluster.counts().values())


def _with_others(cluster: VariantFleet, *types: Mapping[str, str]) -> VariantFleet:
    """Let somebody write what is known of other types, which a new leader reads."""
    wire = cluster.service.status.model_dump(mode="json", by_alias=True)
    wire["scaling"]["otherTypes"] = list(types)
    status = InferenceServiceStatus.model_validate(wire)
    cluster.service = replace(cluster.service, status=status)
    cluster.memory = PlanMemory()
    return cluster


def _others(cluster: VariantFleet) -> tuple[OtherTypeStatus, ...] | None:
    scaling = cluster.service.status.scaling
    return scaling.other_types if scaling is not None else None


@RESTARTS
@pytest.mark.parametrize("lost", [1, 2])
def test_a_replica_that_is_lost_while_the_new_type_never_gets_ready_comes_again(
    lost: int, restarts: bool
) -> None:
    cluster = fleet(minimum=2)
    cluster.fields = {"readings": LONG}
    cluster.cycle(20)
    assert variants(cluster) == {TWO, FOUR}
    for ref, pod in list(cluster.pods.items()):
        if pod.variant == FOUR:
            cluster.pods[ref] = replace(pod, bound=NOW + NEVER)
    for ref in [ref for ref, pod in cluster.pods.items() if pod.variant == TWO][:lost]:
        del cluster.pods[ref]
    served = []
    for _ in range(40):
        if restarts:
            cluster.memory = PlanMemory()
        cluster.cycle(30)
        served.append(_served(cluster))
    assert served[10:] == [2] * 30


@RESTARTS
@pytest.mark.parametrize("cycles", [1, 3])
def test_a_load_that_turns_during_a_change_moves_a_new_service_back_once(
    cycles: int, restarts: bool
) -> None:
    cluster = fleet(minimum=2)
    cluster.fields = {"readings": LONG}
    for _ in range(cycles):
        cluster.cycle(20)
    cluster.fields = {"readings": SHORT}
    for _ in range(120):
        if restarts:
            cluster.memory = PlanMemory()
        cluster.cycle(20)
        assert _served(cluster) >= 2
    assert variants(cluster) == {TWO}
    assert cluster.created <= 8


def test_a_type_that_is_not_offered_any_more_is_left_for_as_many_replicas_as_before() -> None:
    cluster = fleet(minimum=2)
    cluster.start = NEVER
    cluster.fields = {"readings": LONG}
    cluster.cycle(20)
    left = (ref for ref, pod in cluster.pods.items() if pod.variant == TWO)
    nodes = {ref: f"h100-{number}" for number, ref in enumerate(left)}
    for ref, pod in list(cluster.pods.items()):
        waits = {"node": None, "bound": None, "unschedulable": "0/2"}
        cluster.pods[ref] = replace(pod, **({"node": nodes[ref]} if ref in nodes else waits))
    cluster.nodes = [replace(node, allocatable={"nvidia.com/gpu": 3}) for node in cluster.nodes]
    for _ in range(60):
        cluster.cycle(20)
        assert _served(cluster) >= 2
    assert _replicas(cluster) == {TWO: 2}


@pytest.mark.parametrize("price", ["1.00", "2.00"])
def test_a_change_stays_in_its_pool(price: str) -> None:
    cluster = fleet(minimum=2, of=_OtherPool)
    cluster.pools = (*cluster.pools, a_pool("b100", price))
    cluster.nodes.append(a_node("b100", whole=8, product=H100, name="b100-0"))
    cluster.fields = {"readings": LONG}
    for _ in range(60):
        cluster.cycle(60)
    assert _replicas(cluster) == {FOUR: 2}


HOSTILE = {
    "far": {"name": FOUR, "takenBackAt": "9999-12-31T23:59:59Z"},
    "far, of none": {"name": "none", "takenBackAt": "9999-12-31T23:59:59Z"},
    "years ahead": {"name": FOUR, "takenBackAt": "2090-12-31T23:59:59Z"},
    "without a zone": {"name": FOUR, "takenBackAt": "2026-01-01T00:00:00"},
    "long ago": {"name": FOUR, "takenBackAt": "0001-01-01T00:00:00+14:00"},
    "slow": {"name": "h100-1gpu", "slowness": "999999999999999.999999999"},
    "fast": {"name": FOUR, "slowness": "0.000000001"},
    "empty": {"name": ""},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_somebody_wrote_of_other_types_stops_nothing(case: str) -> None:
    cluster = fleet(minimum=2)
    cluster.fields = {"readings": LONG}
    _with_others(cluster, HOSTILE[case])
    for number in range(40):
        cluster.cycle(20)
        accepted = {each.type: each.reason for each in cluster.service.status.conditions}
        assert accepted["Accepted"] == "Valid"
        assert _served(cluster) >= 2
        if number % 3 == 0:
            cluster.memory = PlanMemory()
    assert variants(cluster) == {FOUR}


def test_types_that_are_gone_do_not_push_out_what_was_taken_back() -> None:
    cluster = fleet(minimum=2)
    cluster.start = NEVER
    _with_others(cluster, *({"name": f"a{each}-2gpu", "slowness": "1.5"} for each in range(8)))
    cluster.fields = {"readings": LONG}
    cluster.cycle(20)
    hours(cluster, 2)
    created = cluster.created
    for _ in range(5):
        cluster.memory = PlanMemory()
        hours(cluster, 1)
    assert cluster.created == created


@pytest.mark.parametrize("lacking", ["pools", "nodes"])
def test_what_was_taken_back_is_known_after_a_time_without_hardware(lacking: str) -> None:
    cluster = fleet(minimum=2)
    cluster.start = NEVER
    cluster.fields = {"readings": LONG}
    cluster.cycle(20)
    hours(cluster, 2)
    known, created = _others(cluster), cluster.created
    assert known
    assert variants(cluster) == {TWO}
    pools, nodes = cluster.pools, cluster.nodes
    if lacking == "pools":
        cluster.pools = ()
    else:
        cluster.nodes = []
    cluster.cycle(20)
    assert _others(cluster) == known
    cluster.memory = PlanMemory()
    cluster.cycle(20)
    cluster.pools, cluster.nodes = pools, nodes
    for _ in range(20):
        cluster.cycle(20)
    assert cluster.created == created
