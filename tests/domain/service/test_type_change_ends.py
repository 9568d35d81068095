"""A change of the instance type ends: on the new type, or on the one of before."""

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from tessera.domain.observed.snapshot import EngineReading, PodReading
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.scaling.state import TimestampedReplicas
from tests.builders import H100, LARGE, NOW, a_budget, a_node, a_spec
from tests.domain.service.test_type_by_load import (
    FOUR,
    LONG,
    TWO,
    LateStatus,
    fleet,
    hours,
    recorded,
    variants,
)
from tests.domain.variant_fleet import CHAT, VariantFleet

# A decision needs more hours.
SHORT_HISTORY = recorded(rate=1.5, prompt=1000.0, answer=2000.0, hours=3)


class _ReadFleet(VariantFleet):
    """Its engines are idle, and read in each cycle."""

    @override
    def cycle(self, seconds: float = 5) -> ServicePlan:
        if (readings := self.fields.get("readings")) is not None:
            at = NOW + self.now
            ready = [pod.ref for pod in self.pods.values() if pod.takes_requests]
            pods = dict.fromkeys(ready, PodReading(waiting=0.0, running=0.0, activity=0.0))
            engine = EngineReading(steps=9.0, scraped_at=at, awake=True)
            engines = dict.fromkeys(ready, engine)
            self.fields["readings"] = replace(readings, at=at, pods=pods, engines=engines)
        return super().cycle(seconds)


def _begun(cluster: VariantFleet) -> VariantFleet:
    """Let a change begin, whose pods are on no node yet."""
    cluster.fields = {**cluster.fields, "readings": LONG}
    cluster.cycle(5)
    assert variants(cluster) == {TWO, FOUR}
    _unbind(cluster)
    return cluster


def _unbind(cluster: VariantFleet) -> None:
    for ref, pod in cluster.pods.items():
        if pod.variant == FOUR:
            cluster.pods[ref] = replace(pod, node=None, bound=None, unschedulable="0/2")


def _forget(cluster: VariantFleet, how: str) -> None:
    """Let the operator restart before it reads the load, lose most of it, or not scale."""
    if how == "restart":
        cluster.memory, cluster.fields = PlanMemory(), {}
    elif how == "few hours":
        cluster.fields = {"readings": SHORT_HISTORY}
    elif how == "paused":
        scaling = {"minReplicas": 2, "maxReplicas": 16, "paused": {"by": "anna"}}
        cluster.service = replace(cluster.service, spec=a_spec(LARGE, scaling=scaling))


HOWS = ["restart", "few hours", "paused"]


@pytest.mark.parametrize("how", ["nothing", *HOWS[:2]])
def test_a_type_for_which_others_took_the_room_is_left_once(how: str) -> None:
    cluster = _begun(fleet(gpus=8))
    cluster.nodes = [replace(node, allocatable={"nvidia.com/gpu": 5}) for node in cluster.nodes]
    _forget(cluster, how)
    seen = []
    for _ in range(60):
        cluster.cycle(20)
        assert cluster.service.status.variant is not None
        seen.append(cluster.service.status.variant.name)
        assert sum(cluster.counts().values()) == 1
    assert seen.index(TWO) == seen.count(FOUR)
    assert cluster.created == 2


@pytest.mark.parametrize("how", HOWS)
def test_the_floor_serves_while_a_change_waits_for_devices(how: str) -> None:
    cluster = fleet(minimum=2)
    cluster.fields = {"readings": LONG}
    cluster.cycle(5)
    cluster.nodes = [a_node("h100", whole=4, product=H100, name=f"h100-{n}") for n in range(2)]
    two = [ref for ref, pod in cluster.pods.items() if pod.variant == TWO]
    for node, ref in enumerate(two):
        cluster.pods[ref] = replace(cluster.pods[ref], node=f"h100-{node}")
    _unbind(cluster)
    _forget(cluster, how)
    for _ in range(20):
        cluster.cycle(20)
        assert sum(cluster.counts().values()) == 2


@pytest.mark.parametrize("how", HOWS)
def test_a_change_whose_replicas_never_get_ready_is_taken_back_without_a_load(how: str) -> None:
    cluster = fleet(minimum=2)
    cluster.start = timedelta(days=9)
    _forget(_begun(cluster), how)
    assert hours(cluster, 2) == 2
    assert variants(cluster) == {TWO}


def test_a_new_leader_does_not_try_again_what_was_taken_back_for_a_day() -> None:
    cluster = fleet(minimum=2)
    cluster.start = timedelta(days=9)
    _begun(cluster)
    hours(cluster, 2)
    assert variants(cluster) == {TWO}
    created = cluster.created
    for _ in range(20):
        cluster.memory = PlanMemory()
        hours(cluster, 1)
    assert cluster.created == created


def test_a_change_is_taken_back_also_where_no_status_is_written() -> None:
    cluster = fleet(minimum=2, of=LateStatus)
    assert isinstance(cluster, LateStatus)
    cluster.start, cluster.every = timedelta(days=9), math.inf
    assert hours(_begun(cluster), 2) == 2
    assert variants(cluster) == {TWO}


@pytest.mark.parametrize("limit", ["gpus", "quota"])
def test_a_change_of_which_a_part_is_refused_is_taken_back(limit: str) -> None:
    cluster = fleet(minimum=2, of=_ReadFleet)
    fields: dict[str, Any] = {"readings": LONG}
    if limit == "gpus":
        fields["budgets"] = (a_budget(amount="9000.00", gpus="8"),)
    else:
        cluster.quota = 3
    cluster.fields = fields
    assert hours(cluster, 1) == 2
    assert variants(cluster) == {TWO, FOUR}
    assert hours(cluster, 0.5) == 2
    assert {each.variant: each.replicas for each in cluster.workloads.values()} == {TWO: 2}
    assert cluster.lost == []


def _with_floor(cluster: VariantFleet, replicas: int) -> None:
    scaling = {"minReplicas": replicas, "maxReplicas": 16}
    cluster.service = replace(cluster.service, spec=a_spec(LARGE, scaling=scaling))


def test_a_change_goes_on_as_long_as_replicas_get_ready() -> None:
    cluster = fleet(gpus=96, minimum=2)
    cluster.start, cluster.fields = timedelta(minutes=14), {"readings": LONG}
    cluster.cycle(5)
    most = 0
    for minute in range(130):
        if minute and minute % 12 == 0:
            _with_floor(cluster, min(10, 2 + minute // 12))
        cluster.cycle(60)
        gpus = [2 if pod.variant == TWO else 4 for pod in cluster.pods.values()]
        most = max(most, sum(gpus))
    assert variants(cluster) == {FOUR}
    assert most <= 48


def test_no_change_is_taken_back_to_a_type_without_room() -> None:
    cluster = fleet(gpus=16, minimum=2)
    cluster.fields = {"readings": LONG}
    cluster.cycle(5)
    _with_floor(cluster, 4)
    assert hours(cluster, 3) >= 2
    assert {each.variant: each.replicas for each in cluster.workloads.values()} == {TWO: 2, FOUR: 4}
    cluster.nodes.append(a_node("h100", whole=4, product=H100, name="h100-new"))
    hours(cluster, 0.5)
    assert variants(cluster) == {FOUR}


def test_a_service_that_sleeps_is_not_woken_for_another_type() -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 16, "idle": {"after": "5m"}}
    cluster = fleet(scaling=scaling)
    history = cluster.memory.scaling_history[CHAT]
    asleep = replace(history, decisions=(TimestampedReplicas(NOW + cluster.now, 0),))
    cluster.memory = replace(cluster.memory, scaling_history={CHAT: asleep})
    cluster.pods = {}
    cluster.workloads = {ref: replace(w, replicas=0) for ref, w in cluster.workloads.items()}
    cluster.fields = {"readings": LONG}
    cluster.run(60)
    assert not cluster.pods
