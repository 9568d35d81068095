"""Layouts that are planned incrementally are the same."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.mig import Assignment, GpuTarget, MigPlan, NodeTarget
from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus, ObservedGpu, ObservedSlice
from tessera.domain.incremental import Incremental
from tessera.domain.layout.problem import LayoutSolution, PoolLayout
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.snapshot import InFlight, Node, Pod, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tests.builders import (
    A100,
    NO_MEMORY,
    a_node,
    a_pod,
    a_snapshot,
    a_workload,
    at,
    plan_of,
    readings_of,
)
from tests.layout_builders import a_mig_service, a_planned_pool, with_status
from tests.properties import examples

NODES = ("a100-0", "a100-1", "a100-2")
NAMES = ("chat", "code")
SMALL = ("1g.10gb@0", "1g.10gb@1", "1g.10gb@2", "1g.10gb@3")
MIXED = ("1g.10gb@0", "1g.10gb@1", "3g.40gb@4")
LARGE = ("3g.40gb@0", "3g.40gb@4")
SLICE_SETS = (SMALL, MIXED, LARGE)
WINDOW = {"start": "00:00", "end": "12:01"}
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStep:
    """What changes in the pool between two cycles."""

    passed: int
    name: str
    node: int
    slice_set: int
    change: str


def a_target(slice_set: int) -> MigPlan:
    nothing = Decimal(0)
    slices = SLICE_SETS[slice_set]
    return MigPlan(
        name=f"plan-{slice_set}",
        at=datetime.fromtimestamp(0, UTC),
        gpus_before=6,
        gpus_after=6,
        per_hour_before=nothing,
        per_hour_after=nothing,
        lower_bound=nothing,
        gap=nothing,
        services=tuple(
            Assignment(service=f"team-a/{name}", profile=slices[0].partition("@")[0], replicas=2)
            for name in NAMES
        ),
        nodes=tuple(
            NodeTarget(node=name, gpus=tuple(GpuTarget(gpu=gpu, slices=slices) for gpu in range(2)))
            for name in NODES
        ),
    )


def a_layout(name: str, slices: tuple[str, ...], pods: tuple[Pod, ...] = ()) -> ObservedNodeLayout:
    """Build a layout whose first slices the node's replicas use."""
    pod_names = iter([f"{pod.ref.namespace}/{pod.ref.name}" for pod in pods if pod.node == name])
    gpus = tuple(
        ObservedGpu(
            index=gpu,
            uuid=f"GPU-{name}-{gpu}",
            product=A100,
            memory_mib=81_920,
            mode="Enabled",
            slices=tuple(
                ObservedSlice(
                    profile=profile, start=int(start), pods=tuple(filter(None, (pod_name,)))
                )
                for slice_name in slices
                for profile, _, start in (slice_name.partition("@"),)
                for pod_name in (next(pod_names, None),)
            ),
        )
        for gpu in range(2)
    )
    status = NodeLayoutStatus(partitioning_enabled=True, gpus=gpus)
    return ObservedNodeLayout(name=name, generation=1, spec=NodeLayoutSpec(), status=status)


def pods_of(name: str, count: int) -> list[Pod]:
    return [
        a_pod(
            f"{name}-{index}",
            name,
            node=NODES[index % 3],
            devices={"nvidia.com/mig-1g.10gb": 1},
            containers_ready=True,
            serving=True,
        )
        for index in range(count)
    ]


def initial_snapshot(backend: str) -> Snapshot:
    pods = tuple(pod for name in NAMES for pod in pods_of(name, 2))
    return a_snapshot(
        *(a_mig_service(name, replicas=2) for name in NAMES),
        pools=(a_planned_pool(mig={"backend": backend}),),
        nodes=tuple(a_node(slices={"1g.10gb": 8}, partitioned=2, name=name) for name in NODES),
        layouts=tuple(a_layout(name, SMALL, pods) for name in NODES),
        pods=pods,
        workloads=tuple(a_workload(2, name) for name in NAMES),
        readings=readings_of(pods, waiting=0.0, running=1.0, activity=0.5),
    )


def change_slices(old: Snapshot, step: PoolStep) -> Fields:
    """Let the node show these slices, whatever was requested."""
    name, slice_names = NODES[step.node], SLICE_SETS[step.slice_set]
    slices = {
        profile: 2 * sum(tile.startswith(f"{profile}@") for tile in slice_names)
        for profile in {slice_name.partition("@")[0] for slice_name in slice_names}
    }
    return {
        "layouts": tuple(
            replace(
                a_layout(name, slice_names, old.pods),
                spec=layout.spec,
                generation=layout.generation + 1,
            )
            if layout.name == name
            else layout
            for layout in old.layouts
        ),
        "nodes": tuple(
            replace(a_node(slices=slices, partitioned=2, name=name), taints=node.taints)
            if node.name == name
            else node
            for node in old.nodes
        ),
    }


def remove_layout(old: Snapshot, step: PoolStep) -> Fields:
    """Remove the NodeLayout of an agent."""
    return {"layouts": tuple(layout for layout in old.layouts if layout.name != NODES[step.node])}


def change_pods(old: Snapshot, step: PoolStep) -> Fields:
    other_pods = [pod for pod in old.pods if pod.service.name != step.name]
    other_workloads = [workload for workload in old.workloads if workload.service.name != step.name]
    return {
        "pods": (*other_pods, *pods_of(step.name, step.node + 1)),
        "workloads": (*other_workloads, a_workload(step.node + 1, step.name)),
    }


def drain_pods(old: Snapshot, step: PoolStep) -> Fields:
    return {
        "pods": tuple(
            replace(pod, draining_since=at(step.passed)) if pod.service.name == step.name else pod
            for pod in old.pods
        ),
        "in_flight": {
            pod.ref: InFlight(old.at + timedelta(seconds=30), step.slice_set) for pod in old.pods
        },
    }


def change_window(old: Snapshot, step: PoolStep) -> Fields:
    (pool,) = old.pools
    assert pool.spec
    spec = pool.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec["mig"].pop("maintenanceWindow", None)
    if step.slice_set:
        spec["mig"]["maintenanceWindow"] = WINDOW
    return {"pools": (replace(pool, spec=AcceleratorPoolSpec.model_validate(spec)),)}


def toggle_node(old: Snapshot, step: PoolStep) -> Fields:
    return {
        "nodes": tuple(
            replace(node, schedulable=not node.schedulable)
            if node.name == NODES[step.node]
            else node
            for node in old.nodes
        )
    }


def change_load(old: Snapshot, step: PoolStep) -> Fields:
    readings = readings_of(old.pods, waiting=0.0, running=float(step.slice_set * 40), activity=0.5)
    return {"readings": replace(readings, at=old.at)}


def change_service(old: Snapshot, step: PoolStep) -> Fields:
    changed = a_mig_service(step.name, replicas=1 + step.slice_set)
    return {
        "services": tuple(
            changed if service.ref.name == step.name else service for service in old.services
        )
    }


CHANGES: dict[str, Callable[[Snapshot, PoolStep], Fields]] = {
    "nothing": lambda *_: {},
    "slices": change_slices,
    "no layout": remove_layout,
    "pods": change_pods,
    "drains": drain_pods,
    "window": change_window,
    "node": toggle_node,
    "load": change_load,
    "service": change_service,
    "solved": lambda *_: {},
}

steps = st.builds(
    PoolStep,
    passed=st.sampled_from((1, 5, 45, 400)),
    name=st.sampled_from(NAMES),
    node=st.integers(0, 2),
    slice_set=st.integers(0, 2),
    change=st.sampled_from(("nothing", "nothing", "nothing", "solved", "slices", *sorted(CHANGES))),
)


def _labelled(node: Node, request: BackendRequest | None) -> Node:
    changed = {**node.labels, **(request.labels if request else {})}
    labels = {name: text for name, text in changed.items() if text is not None}
    return node if labels == node.labels else replace(node, labels=labels)


def _with_layout_spec(
    layout: ObservedNodeLayout, request: BackendRequest | None
) -> ObservedNodeLayout:
    if request is None or request.layout_spec is None or request.layout_spec == layout.spec:
        return layout
    return replace(layout, spec=request.layout_spec, generation=layout.generation + 1)


def next_snapshot(old: Snapshot, decision: Plan, step: PoolStep) -> Snapshot:
    """Return the fleet after the writes of the cycle and the step."""
    actions = decision.repartitions.actions["a100"]
    written = with_status(old, actions.status) if actions.status else old
    if written.pools == old.pools:
        written = old
    if actions.requests:
        written = replace(
            written,
            nodes=tuple(_labelled(node, actions.requests.get(node.name)) for node in written.nodes),
            layouts=tuple(
                _with_layout_spec(layout, actions.requests.get(layout.name))
                for layout in written.layouts
            ),
        )
    nodes = tuple(
        node
        if (TAINT in node.taints) == (node.name in actions.tainted_nodes)
        else replace(node, taints=frozenset({TAINT} if node.name in actions.tainted_nodes else ()))
        for node in written.nodes
    )
    same = all(a is b for a, b in zip(nodes, written.nodes, strict=True))
    moment = old.at + timedelta(seconds=step.passed)
    new = replace(
        written,
        at=moment,
        nodes=written.nodes if same else nodes,
        readings=old.readings and replace(old.readings, at=moment),
    )
    if _solved(decision, step) is not None:
        return new
    return replace(new, **CHANGES[step.change](new, step))


def next_memory(old: PlanMemory, decision: Plan, step: PoolStep) -> PlanMemory:
    memory, solution = old.after(decision), _solved(decision, step)
    if solution is None:
        return memory
    return replace(memory, layouts=replace(memory.layouts, solution=solution))


def _solved(decision: Plan, step: PoolStep) -> LayoutSolution | None:
    problem = decision.repartitions.layout_problem
    if step.change != "solved" or problem is None:
        return None
    return LayoutSolution(
        problem=problem, pools={"a100": PoolLayout(plan=a_target(step.slice_set))}
    )


@settings(max_examples=examples(30), deadline=None)
@given(st.sampled_from(("Agent", "MigManager")), st.lists(steps, min_size=4, max_size=25))
def test_with_layouts_an_incremental_plan_equals_a_plain_one(
    backend: str, sequence: list[PoolStep]
) -> None:
    incremental, plain, quick = Incremental(), initial_snapshot(backend), initial_snapshot(backend)
    plain_memory = quick_memory = NO_MEMORY
    for step in sequence:
        slow = plan_of(plain, memory=plain_memory)
        fast = plan_of(quick, memory=quick_memory, incremental=incremental)
        assert fast.repartitions == slow.repartitions
        for ref, service_plan in fast.service_plans.items():
            assert service_plan.drain == slow.service_plans[ref].drain
            assert service_plan.previous_deployments == slow.service_plans[ref].previous_deployments
            assert service_plan.placement == slow.service_plans[ref].placement
        plain, quick = next_snapshot(plain, slow, step), next_snapshot(quick, fast, step)
        plain_memory = next_memory(plain_memory, slow, step)
        quick_memory = next_memory(quick_memory, fast, step)


def settle_fleet() -> tuple[Snapshot, PlanMemory, Incremental, Plan]:
    incremental, snapshot, memory = Incremental(), initial_snapshot("Agent"), NO_MEMORY
    sequence = ("nothing", "solved", "nothing", "nothing", "nothing", "nothing")
    for change in sequence:
        decision = plan_of(snapshot, memory=memory, incremental=incremental)
        step = PoolStep(passed=5, name="chat", node=0, slice_set=0, change=change)
        snapshot, memory = (
            next_snapshot(snapshot, decision, step),
            next_memory(memory, decision, step),
        )
    return snapshot, memory, incremental, decision


def test_an_unchanged_fleet_gets_the_very_same_problem_and_actions() -> None:
    snapshot, memory, incremental, decision = settle_fleet()
    before = decision.repartitions
    later = replace(snapshot, at=snapshot.at + timedelta(seconds=5))
    repartitions = plan_of(later, memory=memory, incremental=incremental).repartitions
    assert repartitions.layout_problem is before.layout_problem
    assert repartitions.nodes is before.nodes
    assert repartitions.actions["a100"].status is before.actions["a100"].status


def test_one_node_that_changes_leaves_the_others_as_they_were() -> None:
    snapshot, memory, incremental, decision = settle_fleet()
    step = PoolStep(passed=5, name="chat", node=1, slice_set=1, change="slices")
    nodes = plan_of(
        next_snapshot(snapshot, decision, step), memory=memory, incremental=incremental
    ).repartitions.nodes["a100"]
    before = decision.repartitions.nodes["a100"]
    assert [node is previous for node, previous in zip(nodes, before, strict=True)] == [
        True,
        False,
        True,
    ]
