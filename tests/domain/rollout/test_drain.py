"""Replicas leave emptiest first, and none before its streams have ended."""

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.observed.snapshot import InFlight, Pod, PodReading, Readings, Ref
from tessera.domain.rollout.drain import DRAINED_DELETION_COST, Displacement, DrainPlan, plan_drain
from tests.builders import NOW, a_pod, a_snapshot, a_workload, at

LIMIT = timedelta(seconds=60)


def plan_of_drain(
    pods: list[Pod], wanted: int, replicas: int | None = None, **fields: Any
) -> DrainPlan:
    snapshot = a_snapshot(**fields)
    return plan_drain(snapshot, a_workload(replicas or len(pods)), wanted, pods, LIMIT)


def busy(requests: dict[str, float]) -> Readings:
    return Readings(
        at=NOW,
        pods={
            Ref("team-a", name): PodReading(waiting=0.0, running=count)
            for name, count in requests.items()
        },
    )


def names(refs: tuple[Ref, ...]) -> list[str]:
    return [ref.name for ref in refs]


def test_the_emptiest_replica_leaves() -> None:
    pods = [a_pod("a"), a_pod("b"), a_pod("c")]
    plan = plan_of_drain(pods, 2, readings=busy({"a": 4, "b": 1, "c": 9}))
    assert (names(plan.draining), plan.replicas) == (["b"], 3)


def test_of_replicas_about_as_empty_the_one_leaves_whose_cache_saves_least() -> None:
    pods = [a_pod(name, created=at(-age)) for age, name in enumerate("abcd")]
    loads = {"a": (5, 900.0), "b": (4, 2000.0), "c": (6, 300.0), "d": (9, 0.0)}
    readings = Readings(
        at=NOW,
        pods={
            Ref("team-a", name): PodReading(waiting=0, running=running, cached=cached)
            for name, (running, cached) in loads.items()
        },
    )
    assert names(plan_of_drain(pods, 3, readings=readings).draining) == ["c"]
    assert names(plan_of_drain(pods, 2, readings=readings).draining) == ["c", "a"]


def test_a_replica_that_cannot_be_read_counts_as_the_fullest() -> None:
    plan = plan_of_drain([a_pod("a"), a_pod("b")], 1, readings=busy({"b": 50}))
    assert names(plan.draining) == ["b"]


def test_the_deployment_shrinks_only_when_the_leaving_replica_is_empty_and_marked() -> None:
    leaving = a_pod("a", serving=False, draining_since=at(-10), ready_since=None)
    empty = {leaving.ref: InFlight(at(-1), 0)}
    full = {leaving.ref: InFlight(at(-1), 3)}
    marked = a_pod(
        "a",
        serving=False,
        draining_since=at(-10),
        ready_since=None,
        deletion_cost=DRAINED_DELETION_COST,
    )
    others = [a_pod("b"), a_pod("c")]
    assert plan_of_drain([leaving, *others], 2, in_flight=full).drained == ()
    assert names(plan_of_drain([leaving, *others], 2, in_flight=empty).drained) == ["a"]
    assert plan_of_drain([leaving, *others], 2, in_flight=empty).replicas == 3
    assert plan_of_drain([marked, *others], 2, in_flight=empty).replicas == 2


def test_an_answer_from_before_the_gate_closed_proves_nothing() -> None:
    leaving = a_pod("a", serving=False, draining_since=at(-1), ready_since=None)
    early = {leaving.ref: InFlight(at(0), 0)}
    assert plan_of_drain([leaving, a_pod("b")], 1, in_flight=early).drained == ()


def test_out_of_time_a_replica_leaves_with_its_streams() -> None:
    leaving = a_pod("a", serving=False, draining_since=at(-61), ready_since=None)
    full = {leaving.ref: InFlight(at(-1), 3)}
    assert names(plan_of_drain([leaving, a_pod("b")], 1, in_flight=full).drained) == ["a"]


def test_a_replica_that_is_not_up_may_go_at_once() -> None:
    starting = a_pod("z", containers_ready=False, ready_since=None)
    plan = plan_of_drain([a_pod("a"), starting], 1, readings=busy({"a": 0}))
    assert (names(plan.draining), names(plan.drained)) == (["z"], ["z"])


def test_a_replica_that_never_served_goes_first_and_at_once() -> None:
    by_hand = a_pod("z", serving=None, ready_since=None)
    plan = plan_of_drain([a_pod("a"), by_hand], 1, readings=busy({"a": 0, "z": 9}))
    assert (names(plan.draining), names(plan.drained)) == (["z"], ["z"])


def test_a_draining_replica_goes_on_draining() -> None:
    leaving = a_pod("a", serving=False, draining_since=at(-5), ready_since=None)
    plan = plan_of_drain([leaving, a_pod("b")], 1, readings=busy({"a": 30, "b": 0}))
    assert names(plan.draining) == ["a"]


def test_no_replica_drains_when_the_load_is_back() -> None:
    leaving = a_pod("a", serving=False, draining_since=at(-5), ready_since=None)
    assert plan_of_drain([leaving, a_pod("b")], 2) == DrainPlan(replicas=2)


def test_between_scale_down_and_the_end_of_the_pod_no_replica_returns() -> None:
    leaving = a_pod(
        "a",
        serving=False,
        draining_since=at(-10),
        ready_since=None,
        deletion_cost=DRAINED_DELETION_COST,
    )
    empty = {leaving.ref: InFlight(at(-1), 0)}
    plan = plan_of_drain([leaving, a_pod("b")], 1, replicas=1, in_flight=empty)
    assert (names(plan.draining), plan.replicas) == (["a"], 1)


def test_while_a_template_rolls_out_its_controller_chooses() -> None:
    plan = plan_of_drain([a_pod("a"), a_pod("b", template="two")], 1)
    assert plan == DrainPlan(replicas=1)


pods = st.lists(
    st.builds(
        a_pod,
        st.uuids().map(str),
        containers_ready=st.booleans(),
        draining_since=st.one_of(st.none(), st.integers(-90, 0).map(at)),
        deletion_cost=st.sampled_from([0, DRAINED_DELETION_COST]),
    ),
    max_size=8,
)


@given(observed_pods=pods, wanted=st.integers(0, 8))
def test_never_fewer_replicas_than_wanted_and_never_more_leave_than_are_too_many(
    observed_pods: list[Pod], wanted: int
) -> None:
    plan = plan_of_drain(observed_pods, wanted)
    assert plan.replicas >= min(wanted, len(observed_pods))
    assert len(plan.draining) == max(0, len(observed_pods) - wanted)
    assert set(plan.drained) <= set(plan.draining)


def displaced_from(pods: list[Pod], *displaced: str, leaving: tuple[str, ...] = ()) -> Displacement:
    return Displacement(
        frozenset(pod.ref for pod in pods if pod.ref.name in displaced),
        frozenset(pod.ref for pod in pods if pod.ref.name in leaving),
    )


def test_a_replica_whose_slice_goes_is_replaced_before_it_leaves() -> None:
    pods = [a_pod("a"), a_pod("b")]
    plan = plan_drain(
        a_snapshot(), a_workload(2), 2, pods, LIMIT, displacement=displaced_from(pods, "a")
    )
    assert plan == DrainPlan(replicas=3)


def test_once_replaced_it_takes_no_more_requests_and_its_place_is_kept_until_it_went() -> None:
    pods = [a_pod("a"), a_pod("b"), a_pod("c")]
    displacement = displaced_from(pods, "a", leaving=("a",))
    plan = plan_drain(a_snapshot(), a_workload(3), 2, pods, LIMIT, displacement=displacement)
    assert (names(plan.draining), plan.replicas, plan.drained) == (["a"], 3, ())


def test_other_replicas_drain_as_usual_beside_a_displaced_one() -> None:
    pods = [a_pod("a"), a_pod("b"), a_pod("c")]
    displacement = displaced_from(pods, "a")
    plan = plan_drain(
        a_snapshot(readings=busy({"b": 3})),
        a_workload(3),
        1,
        pods,
        LIMIT,
        displacement=displacement,
    )
    assert (names(plan.draining), plan.replicas) == (["b"], 3)


def test_one_that_went_already_is_not_replaced_twice() -> None:
    pods = [a_pod("a", terminating=True, ready_since=None), a_pod("b"), a_pod("c")]
    plan = plan_drain(
        a_snapshot(), a_workload(3), 2, pods, LIMIT, displacement=displaced_from(pods, "a")
    )
    assert plan == DrainPlan(replicas=2)


def test_during_a_rollout_no_ready_replica_is_given_up_by_scaling_down() -> None:
    old, new = a_pod("old", template="1"), a_pod("new", template="2", ready_since=None)
    assert plan_of_drain([old, new], wanted=1).replicas == 2
    ready = a_pod("new", template="2")
    assert plan_of_drain([old, ready], wanted=1).replicas == 1


def test_a_replica_on_a_dead_node_leaves_before_one_that_serves() -> None:
    """Of its pod Kubernetes changes the condition Ready alone."""
    dead = a_pod("a", ready_since=None, containers_ready=True, serving=True, created=at(-500))
    plan = plan_of_drain([dead, a_pod("b"), a_pod("c")], 2, readings=busy({"b": 0, "c": 0}))
    assert names(plan.draining) == ["a"]
