"""Which displaced pods may drain while their Deployments roll out, and which serve again."""

from dataclasses import replace

import pytest

from tessera.api.ref import Ref
from tessera.domain.repartition.actions import PoolService, Replica
from tessera.domain.repartition.capacity import PoolCapacity
from tessera.domain.repartition.evictions import pods_to_drain

CHAT = Ref("team", "chat")


def a_replica(name: str, *, draining: bool = False, can_return: bool = False) -> Replica:
    return Replica(
        pod=Ref("team", name),
        uid=name,
        node="n0",
        profile="7g.80gb",
        ready=not draining,
        draining=draining,
        drained=False,
        can_return=can_return,
    )


def a_service(*replicas: Replica, floor: int = 1) -> PoolService:
    return PoolService(
        ref=CHAT,
        replicas=replicas,
        min_capacity=float(floor),
        capacity={"7g.80gb": 1.0},
        planned={"7g.80gb": floor},
    )


def drained(service: PoolService, *displaced: str, overdue: bool = False) -> set[str]:
    pods = {Ref("team", name) for name in displaced}
    leaving = pods_to_drain(
        PoolCapacity((), (service,), {}),
        pods,
        {},
        ready=pods,
        on_removed_slices=pods,
        overdue=pods if overdue else (),
    )
    return {pod.name for pod in leaving}


def test_no_replica_begins_to_drain_while_its_deployment_may_take_the_other_one() -> None:
    service = a_service(a_replica("old"), a_replica("surge"))
    assert drained(service, "surge") == {"surge"}
    assert drained(replace(service, is_rolling_out=True), "surge") == set()


def test_a_rollout_that_never_ends_holds_up_a_repartition_for_a_while() -> None:
    service = replace(a_service(a_replica("old"), a_replica("surge")), is_rolling_out=True)
    assert drained(service, "surge", overdue=True) == {"surge"}


@pytest.mark.parametrize(
    ("can_return", "leaves"), [(True, set[str]()), (False, {"leaves"})], ids=["ready", "broken"]
)
def test_a_draining_replica_serves_again_when_the_one_it_relied_on_is_lost(
    can_return: bool, leaves: set[str]
) -> None:
    leaving = a_replica("leaves", draining=True, can_return=can_return)
    assert drained(a_service(leaving, a_replica("stays")), "leaves") == {"leaves"}
    assert drained(a_service(leaving), "leaves") == leaves


def test_of_two_draining_replicas_as_many_serve_again_as_the_floor_lacks() -> None:
    leaving = [a_replica(name, draining=True, can_return=True) for name in ("x", "y")]
    assert drained(a_service(*leaving, a_replica("stays"), floor=2), "x", "y") == {"y"}
