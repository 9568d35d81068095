"""Each pod template has its Deployment: a rollout moves counts, and keeps its replicas."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.meta import Condition
from tessera.api.service_status import InferenceServiceStatus
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Pod, Ref, Snapshot, Workload
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.strategy import is_rolling_out, replaces_in_place, rollout_progress
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.status.service import service_status
from tests.builders import (
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)
from tests.domain.variant_fleet import VariantFleet

CHAT = Ref("team-a", "chat")
OLD = (a_pod("chat-0"), a_pod("chat-1"))
FIRST, SECOND, BAD, FIX = 1024, 2048, 3072, 4096
"""Values of `maxModelLen`, each of which makes a pod template."""


def new(name: str = "chat-2", **fields: Any) -> Pod:
    return a_pod(name, **{"template": "two", "created": at(-1), **fields})


def starting(name: str = "chat-2", **fields: Any) -> Pod:
    return new(name, **{"containers_ready": False, "ready_since": None, "serving": None, **fields})


def progressing_condition(snapshot: Snapshot) -> tuple[str, str]:
    status = service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)
    progressing = next(
        condition for condition in status.conditions if condition.type == "Progressing"
    )
    return progressing.reason, progressing.message


class Rollout:
    """A service on whole GPUs of one node, which edits of `maxModelLen` roll out."""

    def __init__(self, wanted: int, spare: int, **fields: Any) -> None:
        self.wanted = wanted
        self.fleet = VariantFleet(
            service=a_service(spec=_spec(wanted, FIRST)),
            pools=(a_pool(),),
            nodes=[a_node(whole=wanted + spare)],
            start=timedelta(seconds=20),
            is_broken=_is_bad,
            **{"stop": timedelta(seconds=20), **fields},
        )
        self.fleet.run(120)
        assert self.serving == wanted
        self.least = wanted
        """The fewest Ready replicas since the last edit."""

    def edit(self, length: int) -> None:
        service = self.fleet.service
        spec = _spec(self.wanted, length)
        self.fleet.service = replace(service, spec=spec, generation=service.generation + 1)
        self.least = self.serving

    @property
    def serving(self) -> int:
        return self.fleet.counts()["a100"]

    @property
    def lengths(self) -> list[int]:
        """`maxModelLen` of each pod that exists."""
        pods = [pod for pod in self.fleet.pods.values() if pod.service == CHAT]
        return sorted(self.length_of(pod) for pod in pods)

    @property
    def replicas(self) -> dict[int, int]:
        """The replicas of each Deployment, by its `maxModelLen`."""
        workloads = self.fleet.workloads.values()
        return {_length(each): each.replicas for each in workloads if each.service == CHAT}

    def length_of(self, pod: Pod) -> int:
        """Return `maxModelLen` of a replica."""
        workloads = self.fleet.workloads.values()
        own = [each for each in workloads if each.service == CHAT]
        return _length(next(e for e in own if e.template_digest == pod.template_digest))

    def cycles(self, seconds: float) -> Iterator[ServicePlan]:
        """Run for so long, with what holds in every cycle."""
        end = self.fleet.now + timedelta(seconds=seconds)
        while self.fleet.now < end:
            yield self.fleet.cycle()
            self.least = min(self.least, self.serving)
            assert self._staying <= self.wanted + 1
            assert self.fleet.lost == []

    @property
    def _staying(self) -> int:
        """Count the replicas of all Deployments, without those that are chosen to leave."""
        pods = self.fleet.pods.values()
        leaving = [pod for pod in pods if pod.draining_since is not None and not pod.terminating]
        return sum(self.replicas.values()) - len(leaving)

    def run(self, seconds: float) -> ServicePlan:
        *_, last = self.cycles(seconds)
        return last

    def add_foreign(self, name: str = "guest") -> Pod:
        """Add a pod that is not of Tessera, which waits for a device."""
        pod = a_pod(
            name,
            service="",
            variant="",
            ready_since=None,
            created=self.fleet.snapshot().at,
            devices={"nvidia.com/gpu": 1},
            unschedulable="0/1 nodes are available",
        )
        self.fleet.pods[pod.ref] = replace(pod, service=Ref("team-a", ""))
        return pod

    def status(self) -> tuple[str | None, str | None]:
        """Return the digests of the complete and of the withdrawn template."""
        (templates,) = self.fleet.service.status.templates
        return templates.complete, templates.withdrawn


def _spec(wanted: int, length: int) -> Any:
    return a_spec(replicas=wanted, context={"maxModelLen": length})


def _is_bad(record: PodTemplateVersionStatus | None) -> bool:
    return record is not None and record.effective_values.max_model_len == BAD


def _length(workload: Workload) -> int:
    assert workload.record is not None
    return workload.record.effective_values.max_model_len


@pytest.mark.parametrize("wanted", [1, 2, 4])
@pytest.mark.parametrize("spare", [0, 1, 3])
def test_a_whole_rollout_goes_in_one_manner_and_keeps_its_replicas(wanted: int, spare: int) -> None:
    rollout = Rollout(wanted, spare)
    rollout.edit(SECOND)
    manners = {
        service_plan.variants[0].surge
        for service_plan in rollout.cycles(400 * wanted)
        if service_plan.variants[0].older
    }
    assert manners == {spare > 0}
    assert rollout.lengths == [SECOND] * wanted
    assert rollout.replicas == {SECOND: wanted}
    assert rollout.least == wanted - (spare == 0)


@pytest.mark.parametrize("wanted", [1, 2, 4])
@pytest.mark.parametrize("spare", [0, 1])
def test_no_replica_of_the_older_template_comes_back_while_a_new_one_starts(
    wanted: int, spare: int
) -> None:
    """It would wait for a device, for which a cluster autoscaler starts a node."""
    rollout = Rollout(wanted, spare)
    old = set(rollout.fleet.pods)
    rollout.edit(SECOND)
    for _ in rollout.cycles(400 * wanted):
        later = [pod for ref, pod in rollout.fleet.pods.items() if ref not in old]
        assert {rollout.length_of(pod) for pod in later} <= {SECOND}


@pytest.mark.parametrize("spare", [0, 1])
def test_a_second_rollout_follows_the_first_one(spare: int) -> None:
    rollout = Rollout(2, spare)
    for length in (SECOND, FIX, FIRST):
        rollout.edit(length)
        rollout.run(600)
        assert rollout.replicas == {length: 2}
        assert rollout.lengths == [length] * 2
        assert rollout.least == 2 - (spare == 0)


@pytest.mark.parametrize("pause", [70, 105, 150])
@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_an_edit_in_the_middle_of_a_rollout_replaces_replicas_of_both_templates(
    wanted: int, spare: int, pause: float
) -> None:
    rollout = Rollout(wanted, spare)
    rollout.edit(SECOND)
    rollout.run(pause)
    rollout.edit(FIX)
    rollout.least = wanted
    rollout.run(500 * wanted)
    assert rollout.lengths == [FIX] * wanted
    assert rollout.replicas == {FIX: wanted}
    assert rollout.least >= wanted - (spare == 0)


@pytest.mark.parametrize("spare", [0, 1])
def test_the_whole_rollout_counts_no_more_than_there_are_devices_for_it(spare: int) -> None:
    """In place nothing waits for a device that no replica of its own is to give back."""
    rollout = Rollout(3, spare)
    rollout.edit(SECOND)
    for _ in rollout.cycles(900):
        bound = sum(pod.node is not None for pod in rollout.fleet.pods.values())
        assert bound <= 3 + spare
        waiting = [pod for pod in rollout.fleet.pods.values() if pod.node is None]
        assert len(waiting) <= 1


@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_a_template_that_gets_never_ready_costs_no_more_than_a_step_and_a_fix_rolls(
    wanted: int, spare: int
) -> None:
    rollout = Rollout(wanted, spare)
    rollout.edit(BAD)
    rollout.run(300)
    assert rollout.least == wanted - (spare == 0)
    rollout.edit(FIX)
    rollout.run(500 * wanted)
    assert rollout.least >= wanted - (spare == 0)
    assert rollout.lengths == [FIX] * wanted
    assert rollout.replicas == {FIX: wanted}


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("wanted", [1, 2])
def test_who_takes_a_bad_edit_back_has_the_replicas_of_before(wanted: int, spare: int) -> None:
    """Those that serve are not replaced by others of the same template."""
    rollout = Rollout(wanted, spare)
    first = {ref for ref, pod in rollout.fleet.pods.items() if pod.takes_requests}
    rollout.edit(BAD)
    rollout.run(120)
    unreplaced = first & rollout.fleet.pods.keys()
    rollout.edit(FIRST)
    rollout.run(300)
    assert rollout.least == wanted - (spare == 0)
    assert rollout.lengths == [FIRST] * wanted
    assert rollout.replicas == {FIRST: wanted}
    assert unreplaced <= rollout.fleet.pods.keys()
    assert len(unreplaced) == wanted - (spare == 0)


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("wanted", [1, 2])
def test_a_bad_template_that_nobody_fixes_gives_its_devices_back(wanted: int, spare: int) -> None:
    rollout = Rollout(wanted, spare)
    complete, _ = rollout.status()
    rollout.edit(BAD)
    begun = rollout.fleet.now
    withdrawn_after = None
    for service_plan in rollout.cycles(1500):
        (variant,) = service_plan.variants
        if variant.is_withdrawn and withdrawn_after is None:
            withdrawn_after = rollout.fleet.now - begun
        if withdrawn_after is not None:
            assert variant.is_withdrawn
            since = rollout.fleet.now - begun - withdrawn_after
            assert variant.replicas == 0 or since <= timedelta(seconds=15)
    assert withdrawn_after is not None
    assert START_TOLERANCE < withdrawn_after < START_TOLERANCE + timedelta(seconds=300)
    assert rollout.lengths == [FIRST] * wanted
    assert rollout.serving == wanted
    assert rollout.replicas == {FIRST: wanted, BAD: 0}
    assert rollout.status() == (complete, variant.template.digest)
    rollout.fleet.memory = type(rollout.fleet.memory)()
    assert rollout.run(100).variants[0].is_withdrawn, "the next leader tries it again"
    rollout.edit(FIX)
    rollout.run(500 * wanted)
    assert rollout.replicas == {FIX: wanted}
    assert rollout.lengths == [FIX] * wanted
    assert rollout.status() == (service_digest(rollout), None)


def service_digest(rollout: Rollout) -> str:
    return rollout.fleet.plans[CHAT].variants[0].template.digest


def test_a_quota_that_refuses_the_further_pod_makes_the_rollout_go_on_in_place() -> None:
    rollout = Rollout(2, 1, quota=2)
    rollout.edit(SECOND)
    manners = [plan.variants[0].surge for plan in rollout.cycles(900) if plan.variants[0].older]
    assert not all(manners)
    assert rollout.lengths == [SECOND] * 2
    assert rollout.least == 1


def test_the_only_replica_of_a_full_quota_is_replaced_too() -> None:
    rollout = Rollout(1, 1, quota=1)
    rollout.edit(SECOND)
    rollout.run(600)
    assert rollout.lengths == [SECOND]


def test_a_foreign_pod_that_waits_for_the_device_gets_none_of_a_rollout_in_place() -> None:
    """It would take the device that a replica gives back for its successor."""
    rollout = Rollout(2, 0)
    guest = rollout.add_foreign()
    rollout.edit(SECOND)
    for service_plan in rollout.cycles(600):
        assert service_plan.drain.draining == ()
    assert rollout.least == 2
    assert rollout.fleet.pods[guest.ref].node is None
    assert rollout.lengths.count(FIRST) == 2
    del rollout.fleet.pods[guest.ref]
    rollout.run(900)
    assert rollout.lengths == [SECOND] * 2
    assert rollout.least == 1


def test_a_pod_that_waits_for_a_device_of_another_pool_stops_no_rollout() -> None:
    rollout = Rollout(2, 0)
    guest = rollout.add_foreign()
    rollout.fleet.pods[guest.ref] = replace(
        rollout.fleet.pods[guest.ref], node_selector=(("pool", "other"),)
    )
    rollout.edit(SECOND)
    # Its scheduler would not bind it here.
    rollout.fleet.pods = {**rollout.fleet.pods, guest.ref: rollout.fleet.pods.pop(guest.ref)}
    next(iter(rollout.cycles(5)))
    drained = [plan.drain.draining for plan in rollout.cycles(60)]
    assert any(drained), "a replica leaves for its successor"


def test_a_thief_of_the_device_stops_the_rollout_at_one_replica_fewer() -> None:
    """With a foreign pod on the device of one replica the others are not replaced."""
    rollout = Rollout(3, 0)
    rollout.edit(SECOND)
    for _ in rollout.cycles(300):
        if any(pod.terminating for pod in rollout.fleet.pods.values()):
            break
    waiting = [ref for ref, pod in rollout.fleet.pods.items() if pod.node is None]
    guest = rollout.add_foreign()
    # The scheduler takes the guest first.
    rollout.fleet.pods = {guest.ref: rollout.fleet.pods.pop(guest.ref), **rollout.fleet.pods}
    rollout.run(600)
    assert rollout.fleet.pods[guest.ref].node is not None
    assert rollout.least == 2
    assert rollout.serving == 2
    del rollout.fleet.pods[guest.ref]
    rollout.run(1500)
    assert waiting
    assert rollout.lengths == [SECOND] * 3
    assert rollout.least >= 2


def test_a_replica_that_fails_in_the_middle_of_a_rollout_stops_no_further_one() -> None:
    rollout = Rollout(4, 0)
    rollout.edit(SECOND)
    rollout.run(60)
    ref = next(ref for ref, pod in rollout.fleet.pods.items() if pod.takes_requests)
    rollout.fleet.pods[ref] = replace(
        rollout.fleet.pods[ref], ready_since=None, containers_ready=False
    )
    before = rollout.serving
    rollout.least = before
    rollout.run(15)
    assert rollout.least >= min(before, 2)
    rollout.run(2000)
    assert rollout.lengths == [SECOND] * 4


def fleet(slices: int, pods: tuple[Pod, ...], *others: Any, **workload: Any) -> Snapshot:
    """Two wanted replicas on so many slices, of a Deployment that an older Tessera edited."""
    return a_snapshot(
        a_service(spec=a_spec(replicas=2)),
        *others,
        nodes=(a_node(slices={"1g.10gb": slices}),),
        pods=pods,
        workloads=(a_workload(2, **workload),),
    )


@pytest.mark.parametrize("slices", [2, 3])
def test_a_deployment_that_an_older_tessera_edited_ends_its_own_rollout(slices: int) -> None:
    snapshot = fleet(slices, (OLD[0], starting()), rollout_complete=False)
    (variant,) = plan_of(snapshot).service_plans[CHAT].variants
    assert variant.rolls_in_place is (slices == 2)
    assert (variant.older, variant.replicas) == ((), 2)
    settled = fleet(slices, (new("chat-2"), new("chat-3")))
    assert not plan_of(settled).service_plans[CHAT].variants[0].rolls_in_place


def test_a_rollout_with_surge_says_so() -> None:
    reason, message = progressing_condition(fleet(3, (*OLD, new()), rollout_complete=False))
    assert reason == "RollingOut"
    assert message.startswith("1 of 2 replicas updated, 2 old; a new replica starts before")
    assert "1 free 1g.10gb" in message


@pytest.mark.parametrize(("spare", "manner"), [(0, "in place"), (1, "a new replica starts")])
@pytest.mark.parametrize("wanted", [1, 2])
def test_a_rollout_says_how_it_goes_before_its_first_replica_exists(
    wanted: int, spare: int, manner: str
) -> None:
    rollout = Rollout(wanted, spare)
    rollout.edit(SECOND)
    rollout.run(5)
    assert manner in _progressing(rollout).message


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("wanted", [1, 2])
def test_a_rollout_is_reported_until_its_last_replica_is_ready(wanted: int, spare: int) -> None:
    rollout = Rollout(wanted, spare)
    rollout.edit(SECOND)
    manner = "a new replica starts before" if spare else "in place"
    said = list[Condition]()
    for _ in rollout.cycles(400 * wanted):
        condition = _progressing(rollout)
        if [condition.reason, condition.message] not in [[e.reason, e.message] for e in said[-1:]]:
            said.append(condition)
    reasons = [each.reason for each in said]
    rolling = [each.message for each in said if each.reason == "RollingOut"]
    assert rolling[0].startswith(f"0 of {counted(wanted, 'replica')} updated")
    assert all(manner in message for message in rolling)
    first = reasons.index("RollingOut")
    assert set(reasons[first:-1]) <= {"RollingOut", "Draining"}
    assert reasons[-1] == "RolloutComplete"


def _progressing(rollout: Rollout) -> Condition:
    conditions = rollout.fleet.service.status.conditions
    return next(each for each in conditions if each.type == "Progressing")


def test_a_replica_that_restarts_with_its_own_template_is_no_rollout() -> None:
    pods = (a_pod("chat-0", terminating=True), OLD[1], starting(template=OLD[1].template))
    assert progressing_condition(fleet(3, pods))[0] == "Starting"


def test_another_service_that_takes_the_capacity_does_not_end_a_step_with_surge() -> None:
    """The new replica has the device: it gets ready before an old one leaves."""
    rollout = Rollout(2, 1)
    rollout.edit(SECOND)
    rollout.run(10)
    assert [pod.node for pod in rollout.fleet.pods.values()] == ["a100-0"] * 3
    rollout.fleet.others.append(a_service("other", a_spec(replicas=1)))
    for service_plan in rollout.cycles(600):
        if rollout.lengths.count(SECOND) and not _serving_of(rollout, SECOND):
            assert service_plan.drain.draining == ()
            assert rollout.least == 2
    assert rollout.lengths == [SECOND] * 2
    assert rollout.least >= 1


def _serving_of(rollout: Rollout, length: int) -> int:
    pods = [pod for pod in rollout.fleet.pods.values() if pod.service == CHAT]
    return sum(pod.takes_requests and rollout.length_of(pod) == length for pod in pods)


def test_a_rollout_with_surge_waits_for_a_replica_that_gives_its_device_back_for_long() -> None:
    """It does not go on in place, although its new replica waits for longer than a minute."""
    rollout = Rollout(3, 1, stop=timedelta(seconds=150))
    rollout.edit(SECOND)
    manners = [plan.variants[0].surge for plan in rollout.cycles(1500) if plan.variants[0].older]
    assert all(manners)
    assert rollout.lengths == [SECOND] * 3
    assert rollout.least == 3


def test_a_new_replica_that_finds_no_device_for_long_makes_the_rollout_go_on_in_place() -> None:
    """What is free by the numbers may be of no use to it, such as on a node without memory."""
    rollout = Rollout(2, 1)
    rollout.edit(SECOND)
    free = rollout.fleet.nodes[0]
    full = replace(free, allocatable={"nvidia.com/gpu": 2})
    plans = list[ServicePlan]()
    end = rollout.fleet.now + timedelta(seconds=900)
    while rollout.fleet.now < end:
        rollout.fleet.nodes[0] = free
        snapshot = rollout.fleet.snapshot()
        assert snapshot.nodes[0] is free
        plans.append(_cycle_with_scheduler_of(rollout.fleet, full))
        rollout.least = min(rollout.least, rollout.serving)
    assert plans[1].variants[0].surge
    assert rollout.lengths == [SECOND] * 2
    assert rollout.least == 1


def _cycle_with_scheduler_of(fleet: VariantFleet, node: Any) -> ServicePlan:
    """Run a cycle of which the scheduler sees another node than the plan."""
    decide = fleet.decide

    def decide_and_swap(*arguments: Any) -> Any:
        decision = decide(*arguments)
        fleet.nodes[0] = node
        return decision

    fleet.decide = decide_and_swap
    try:
        return fleet.cycle()
    finally:
        fleet.decide = decide


@pytest.mark.parametrize("wanted", [1, 2])
def test_a_bad_template_is_withdrawn_although_the_status_was_lost(wanted: int) -> None:
    rollout = Rollout(wanted, 1)
    rollout.edit(BAD)
    rollout.run(60)
    rollout.fleet.service = replace(rollout.fleet.service, status=InferenceServiceStatus())
    rollout.run(1500)
    assert rollout.lengths == [FIRST] * wanted
    rollout.edit(FIX)
    rollout.run(500 * wanted)
    assert rollout.lengths == [FIX] * wanted


def test_no_replica_leaves_for_a_device_of_a_cordoned_node() -> None:
    rollout = Rollout(1, 0)
    rollout.fleet.nodes = [a_node(whole=1, ready=False)]
    rollout.edit(SECOND)
    rollout.run(300)
    assert rollout.least == 1
    conditions = rollout.fleet.service.status.conditions
    [progressing] = [each for each in conditions if each.type == "Progressing"]
    assert progressing.reason == "WaitingForDevice"
    assert "no successor can be bound to Node/a100-0 (cordoned" in progressing.message
    rollout.fleet.nodes = [a_node(whole=1)]
    rollout.run(300)
    assert rollout.lengths == [SECOND]


def test_a_replica_on_a_usable_node_leaves_before_one_on_a_cordoned_node() -> None:
    rollout = Rollout(2, 0)
    first, second = sorted(rollout.fleet.pods)
    rollout.fleet.nodes = [a_node(whole=1, ready=False), a_node(whole=1, name="a100-1")]
    rollout.fleet.pods[second] = replace(rollout.fleet.pods[second], node="a100-1")
    rollout.edit(SECOND)
    rollout.run(600)
    assert rollout.least == 1
    assert first in rollout.fleet.pods
    assert rollout.lengths == [FIRST, SECOND, SECOND]
    assert rollout.serving == 2


def test_a_pod_that_its_kubelet_evicted_holds_up_no_rollout() -> None:
    rollout = Rollout(2, 1)
    evicted, *_ = rollout.fleet.pods.values()
    at_eviction = rollout.fleet.snapshot().at
    ended: dict[str, Any] = {
        "ref": Ref("team-a", "chat-0"),
        "uid": "uid-evicted",
        "ready_since": None,
    }
    ended |= {"ended": at_eviction, "terminating": True, "containers_ready": False}
    rollout.fleet.pods[Ref("team-a", "chat-0")] = replace(evicted, **ended)
    rollout.edit(SECOND)
    rollout.run(600)
    assert rollout.replicas == {SECOND: 2}
    status = rollout.fleet.service.status
    assert "RolloutComplete" in {each.reason for each in status.conditions}


def test_replicas_of_two_variants_are_no_rollout_of_each_other() -> None:
    other: dict[str, Any] = {"variant": "b200-1gpu", "template": "another", "created": at(-30)}
    pods = [a_pod("chat-0"), a_pod("chat-1", **other), a_pod("chat-2", ready_since=None)]
    assert not is_rolling_out(pods)
    assert not replaces_in_place(pods)
    newer = new("chat-3")
    assert is_rolling_out([*pods, newer])
    assert replaces_in_place([*pods, newer])
    assert rollout_progress([*pods, newer]) == (2, 2)
