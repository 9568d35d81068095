"""Surge where capacity is free, else in place; chosen once per rollout, and reported."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tessera.domain.observed.snapshot import Pod, Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tests.builders import (
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    compute_service_plan,
    plan_of,
)

CHAT = Ref("team-a", "chat")
OLD = (a_pod("chat-0"), a_pod("chat-1"))


def fleet(slices: int, pods: tuple[Pod, ...], *others: Any, **workload: Any) -> Snapshot:
    """Two wanted replicas on so many slices."""
    return a_snapshot(
        a_service(spec=a_spec(replicas=2)),
        *others,
        nodes=(a_node(slices={"1g.10gb": slices}),),
        pods=pods,
        workloads=(a_workload(2, **workload),),
    )


def new(name: str = "chat-2", **fields: Any) -> Pod:
    return a_pod(name, **{"template": "two", "created": at(-1), **fields})


def starting(name: str = "chat-2", **fields: Any) -> Pod:
    return new(name, **{"containers_ready": False, "ready_since": None, "serving": None, **fields})


def waiting(created: float) -> Pod:
    return starting(unschedulable="0/1 nodes are available", created=at(created))


def progressing_condition(snapshot: Snapshot) -> tuple[str, str]:
    status = service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)
    progressing = next(
        condition for condition in status.conditions if condition.type == "Progressing"
    )
    return progressing.reason, progressing.message


def surge(snapshot: Snapshot) -> bool:
    got: ServicePlan = compute_service_plan(snapshot)
    return got.variants[0].surge


def test_the_surge_pod_itself_does_not_end_the_surge() -> None:
    """With capacity for exactly one more, the new replica takes it."""
    assert surge(fleet(3, OLD))
    assert surge(fleet(3, (*OLD, starting()), rollout_complete=False))
    assert surge(fleet(3, (*OLD, new()), rollout_complete=False))


def test_a_settled_fleet_beside_its_last_leaving_replica_may_surge_again() -> None:
    done = (new("chat-2"), new("chat-3"), a_pod("chat-0", terminating=True))
    assert surge(fleet(3, done))


def test_a_rollout_in_place_goes_on_in_place_when_room_appears() -> None:
    snapshot = fleet(7, (OLD[0], starting()), rollout_complete=False, surge=False)
    assert not surge(snapshot)
    reason, message = progressing_condition(snapshot)
    assert reason == "RollingOut"
    assert message.startswith("0 of 2 replicas updated, 1 old; in place")
    assert "no free 1g.10gb" in message


def test_a_rollout_with_surge_says_so() -> None:
    reason, message = progressing_condition(fleet(3, (*OLD, new()), rollout_complete=False))
    assert reason == "RollingOut"
    assert message.startswith("1 of 2 replicas updated, 2 old; a new replica starts before")
    assert "1 free 1g.10gb" in message


def test_a_full_pool_is_rolled_in_place_and_says_so_before_the_first_pod_is_new() -> None:
    snapshot = fleet(2, OLD, rollout_complete=False, surge=False)
    assert not surge(snapshot)
    assert "in place" in progressing_condition(snapshot)[1]


def test_the_only_replica_is_rolled_in_place_until_its_successor_is_ready() -> None:
    """No two replicas ever exist, so the old one counts while it stops."""
    service = a_service(spec=a_spec(replicas=1))
    stopping = a_snapshot(
        service,
        nodes=(a_node(slices={"1g.10gb": 1}),),
        pods=(a_pod("chat-0", terminating=True), starting()),
        workloads=(a_workload(1, surge=False),),
    )
    reason, message = progressing_condition(stopping)
    assert (reason, message[:36]) == ("RollingOut", "0 of 1 replica updated, 0 old; in pl")
    status = service_status(stopping, plan_of(stopping).service_plans[CHAT], None, None)
    reported = replace(stopping, services=(replace(service, status=status),), pods=(starting(),))
    assert progressing_condition(reported)[0] == "RollingOut"
    ended = replace(reported, pods=(new(),))
    assert progressing_condition(ended)[0] == "RolloutComplete"


def test_a_replica_that_restarts_with_its_own_template_is_no_rollout() -> None:
    pods = (a_pod("chat-0", terminating=True), OLD[1], starting(template=OLD[1].template))
    assert progressing_condition(fleet(3, pods))[0] == "Starting"


def test_another_service_that_takes_the_capacity_does_not_stop_a_surge() -> None:
    other = a_service("other", a_spec(replicas=1))
    assert surge(fleet(3, (*OLD, new()), other, rollout_complete=False))


def test_a_new_replica_that_finds_no_device_for_long_makes_the_rollout_go_on_in_place() -> None:
    assert surge(fleet(3, (*OLD, waiting(-30)), rollout_complete=False))
    assert not surge(fleet(3, (*OLD, waiting(-90)), rollout_complete=False))


def test_it_waits_as_long_as_an_own_replica_still_gives_its_device_back() -> None:
    drained = (a_pod("chat-0", terminating=True), OLD[1], new("chat-2"))
    third = waiting(-90)
    snapshot = fleet(3, (*drained[1:], drained[0], third), rollout_complete=False)
    assert surge(snapshot)


STEP_SECONDS = 20
DRAIN_STEPS = 4


@dataclass(slots=True)
class SimulatedDeployment:
    """What controller, scheduler and kubelet do with a rollout, in steps."""

    wanted: int
    slices: int
    surge: bool = True
    step: int = 0
    pods: dict[str, Pod] = field(default_factory=dict)
    deleted_at: dict[str, int] = field(default_factory=dict)

    def snapshot(self) -> Snapshot:
        done = all(pod.template == "two" for pod in self.alive())
        return a_snapshot(
            a_service(spec=a_spec(replicas=self.wanted)),
            at=at(self.step * STEP_SECONDS),
            nodes=(a_node(slices={"1g.10gb": self.slices}),),
            pods=tuple(self.pods.values()),
            workloads=(a_workload(self.wanted, rollout_complete=done, surge=self.surge),),
        )

    def alive(self, template: str | None = None) -> list[Pod]:
        alive = [pod for pod in self.pods.values() if not pod.terminating]
        return [pod for pod in alive if template in (None, pod.template)]

    def advance(self) -> None:
        self.step += 1
        for name in [name for name, step in self.deleted_at.items() if step <= self.step]:
            del self.pods[name], self.deleted_at[name]
        for name, pod in self.pods.items():
            if not pod.terminating and not pod.unschedulable:
                self.pods[name] = replace(
                    pod, containers_ready=True, serving=True, ready_since=at(0)
                )
        for pod in [pod for pod in self.alive() if pod.unschedulable]:
            if sum(not other.unschedulable for other in self.pods.values()) < self.slices:
                self.pods[pod.ref.name] = replace(pod, unschedulable=None)
        self._scale_up()
        self._scale_down()

    def _scale_up(self) -> None:
        surge_count = self.wanted + int(self.surge) - len(self.alive())
        for _ in range(min(surge_count, self.wanted - len(self.alive("two")))):
            name = f"new-{self.step}-{len(self.pods)}"
            self.pods[name] = starting(
                name, unschedulable="0/1 nodes", created=at(self.step * STEP_SECONDS)
            )

    def _scale_down(self) -> None:
        available = sum(pod.ready_since is not None for pod in self.alive())
        spare = available - self.wanted + int(not self.surge)
        for pod in self.alive("one")[: max(0, spare)]:
            self.pods[pod.ref.name] = replace(pod, terminating=True, ready_since=None)
            self.deleted_at[pod.ref.name] = self.step + DRAIN_STEPS


@pytest.mark.parametrize("wanted", [1, 2, 4])
@pytest.mark.parametrize("spare", [0, 1, 3])
def test_a_whole_rollout_goes_in_one_manner_and_keeps_its_replicas(wanted: int, spare: int) -> None:
    fleet = SimulatedDeployment(wanted=wanted, slices=wanted + spare)
    fleet.pods = {f"old-{index}": a_pod(f"old-{index}") for index in range(wanted)}
    fleet.surge = surge(replace(fleet.snapshot(), workloads=(a_workload(wanted),)))
    manners, ready = {fleet.surge}, wanted
    while fleet.alive("one") or len(fleet.alive("two")) < wanted:
        fleet.advance()
        fleet.surge = surge(fleet.snapshot())
        manners.add(fleet.surge)
        ready = min(ready, sum(pod.ready_since is not None for pod in fleet.alive()))
        assert fleet.step < 40 * wanted
    assert manners == {spare > 0}
    assert ready == wanted - (spare == 0)
