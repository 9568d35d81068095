"""What turns remember of layouts saves time and changes nothing."""

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
from tessera.domain.layout.problem import LayoutSolution, PoolLayout
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.snapshot import InFlight, Node, Pod, Snapshot
from tessera.domain.plan import Plan, PlanCache, PlanMemory
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
from tests.layout_builders import a_planned_pool, a_wishing, with_status

NODES = ("a100-0", "a100-1", "a100-2")
NAMES = ("chat", "code")
SMALL = ("1g.10gb@0", "1g.10gb@1", "1g.10gb@2", "1g.10gb@3")
MIXED = ("1g.10gb@0", "1g.10gb@1", "3g.40gb@4")
LARGE = ("3g.40gb@0", "3g.40gb@4")
WAYS = (SMALL, MIXED, LARGE)
WINDOW = {"start": "00:00", "end": "12:01"}
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a turn finds that the one before did not."""

    passed: int
    name: str
    node: int
    way: int
    change: str


def a_target(way: int) -> MigPlan:
    nothing = Decimal(0)
    tiles = WAYS[way]
    return MigPlan(
        name=f"plan-{way}",
        at=datetime.fromtimestamp(0, UTC),
        gpus_before=6,
        gpus_after=6,
        per_hour_before=nothing,
        per_hour_after=nothing,
        lower_bound=nothing,
        gap=nothing,
        services=tuple(
            Assignment(service=f"team-a/{name}", profile=tiles[0].partition("@")[0], replicas=2)
            for name in NAMES
        ),
        nodes=tuple(
            NodeTarget(node=name, gpus=tuple(GpuTarget(gpu=gpu, slices=tiles) for gpu in range(2)))
            for name in NODES
        ),
    )


def a_layout(name: str, tiles: tuple[str, ...], pods: tuple[Pod, ...] = ()) -> ObservedNodeLayout:
    """Replicas of the node sit on its first slices."""
    here = iter([f"{pod.ref.namespace}/{pod.ref.name}" for pod in pods if pod.node == name])
    gpus = tuple(
        ObservedGpu(
            index=gpu,
            uuid=f"GPU-{name}-{gpu}",
            product=A100,
            memory_mib=81_920,
            mode="Enabled",
            slices=tuple(
                ObservedSlice(profile=profile, start=int(start), pods=tuple(filter(None, (held,))))
                for tile in tiles
                for profile, _, start in (tile.partition("@"),)
                for held in (next(here, None),)
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


def begun(backend: str) -> Snapshot:
    pods = tuple(pod for name in NAMES for pod in pods_of(name, 2))
    return a_snapshot(
        *(a_wishing(name, replicas=2) for name in NAMES),
        pools=(a_planned_pool(mig={"backend": backend}),),
        nodes=tuple(a_node(slices={"1g.10gb": 8}, cut=2, name=name) for name in NODES),
        layouts=tuple(a_layout(name, SMALL, pods) for name in NODES),
        pods=pods,
        workloads=tuple(a_workload(2, name) for name in NAMES),
        readings=readings_of(pods, waiting=0.0, running=1.0, activity=0.5),
    )


def cut(old: Snapshot, step: Step) -> Fields:
    """Whatever was asked for, the node shows these slices now."""
    name, tiles = NODES[step.node], WAYS[step.way]
    slices = {
        profile: 2 * sum(tile.startswith(f"{profile}@") for tile in tiles)
        for profile in {tile.partition("@")[0] for tile in tiles}
    }
    return {
        "layouts": tuple(
            replace(a_layout(name, tiles, old.pods), spec=one.spec, generation=one.generation + 1)
            if one.name == name
            else one
            for one in old.layouts
        ),
        "nodes": tuple(
            replace(a_node(slices=slices, cut=2, name=name), taints=one.taints)
            if one.name == name
            else one
            for one in old.nodes
        ),
    }


def silent(old: Snapshot, step: Step) -> Fields:
    """An agent goes away."""
    return {"layouts": tuple(one for one in old.layouts if one.name != NODES[step.node])}


def pods(old: Snapshot, step: Step) -> Fields:
    others = [pod for pod in old.pods if pod.service.name != step.name]
    works = [one for one in old.workloads if one.service.name != step.name]
    return {
        "pods": (*others, *pods_of(step.name, step.node + 1)),
        "workloads": (*works, a_workload(step.node + 1, step.name)),
    }


def drains(old: Snapshot, step: Step) -> Fields:
    return {
        "pods": tuple(
            replace(pod, draining_since=at(step.passed)) if pod.service.name == step.name else pod
            for pod in old.pods
        ),
        "in_flight": {
            pod.ref: InFlight(old.at + timedelta(seconds=30), step.way) for pod in old.pods
        },
    }


def window(old: Snapshot, step: Step) -> Fields:
    (pool,) = old.pools
    assert pool.spec
    spec = pool.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec["mig"].pop("maintenanceWindow", None)
    if step.way:
        spec["mig"]["maintenanceWindow"] = WINDOW
    return {"pools": (replace(pool, spec=AcceleratorPoolSpec.model_validate(spec)),)}


def node(old: Snapshot, step: Step) -> Fields:
    return {
        "nodes": tuple(
            replace(one, schedulable=not one.schedulable) if one.name == NODES[step.node] else one
            for one in old.nodes
        )
    }


def load(old: Snapshot, step: Step) -> Fields:
    told = readings_of(old.pods, waiting=0.0, running=float(step.way * 40), activity=0.5)
    return {"readings": replace(told, at=old.at)}


def service(old: Snapshot, step: Step) -> Fields:
    changed = a_wishing(step.name, replicas=1 + step.way)
    return {
        "services": tuple(changed if one.ref.name == step.name else one for one in old.services)
    }


CHANGES: dict[str, Callable[[Snapshot, Step], Fields]] = {
    "nothing": lambda *_: {},
    "cut": cut,
    "silent": silent,
    "pods": pods,
    "drains": drains,
    "window": window,
    "node": node,
    "load": load,
    "service": service,
    "solved": lambda *_: {},
}

steps = st.builds(
    Step,
    passed=st.sampled_from((1, 5, 45, 400)),
    name=st.sampled_from(NAMES),
    node=st.integers(0, 2),
    way=st.integers(0, 2),
    change=st.sampled_from(("nothing", "nothing", "nothing", "solved", "cut", *sorted(CHANGES))),
)


def _labelled(node: Node, ask: BackendRequest | None) -> Node:
    changed = {**node.labels, **(ask.labels if ask else {})}
    labels = {name: text for name, text in changed.items() if text is not None}
    return node if labels == node.labels else replace(node, labels=labels)


def _asked(layout: ObservedNodeLayout, ask: BackendRequest | None) -> ObservedNodeLayout:
    if ask is None or ask.layout_spec is None or ask.layout_spec == layout.spec:
        return layout
    return replace(layout, spec=ask.layout_spec, generation=layout.generation + 1)


def after(old: Snapshot, told: Plan, step: Step) -> Snapshot:
    """What the turn wrote, and what happened then."""
    orders = told.repartitions.actions["a100"]
    written = with_status(old, orders.status) if orders.status else old
    if written.pools == old.pools:
        written = old
    if orders.requests:
        written = replace(
            written,
            nodes=tuple(_labelled(one, orders.requests.get(one.name)) for one in written.nodes),
            layouts=tuple(_asked(one, orders.requests.get(one.name)) for one in written.layouts),
        )
    nodes = tuple(
        one
        if (TAINT in one.taints) == (one.name in orders.tainted_nodes)
        else replace(one, taints=frozenset({TAINT} if one.name in orders.tainted_nodes else ()))
        for one in written.nodes
    )
    same = all(a is b for a, b in zip(nodes, written.nodes, strict=True))
    moment = old.at + timedelta(seconds=step.passed)
    new = replace(
        written,
        at=moment,
        nodes=written.nodes if same else nodes,
        readings=old.readings and replace(old.readings, at=moment),
    )
    if _solved(told, step) is not None:
        return new
    return replace(new, **CHANGES[step.change](new, step))


def remembered(old: PlanMemory, told: Plan, step: Step) -> PlanMemory:
    memory, solution = old.after(told), _solved(told, step)
    if solution is None:
        return memory
    return replace(memory, layouts=replace(memory.layouts, solution=solution))


def _solved(told: Plan, step: Step) -> LayoutSolution | None:
    asked = told.repartitions.layout_problem
    if step.change != "solved" or asked is None:
        return None
    return LayoutSolution(problem=asked, pools={"a100": PoolLayout(plan=a_target(step.way))})


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(("Agent", "MigManager")), st.lists(steps, min_size=4, max_size=25))
def test_with_layouts_a_kept_plan_decides_as_one_that_remembers_nothing(
    backend: str, course: list[Step]
) -> None:
    kept, plain, quick = PlanCache(), begun(backend), begun(backend)
    plain_memory = quick_memory = NO_MEMORY
    for step in course:
        slow = plan_of(plain, memory=plain_memory)
        fast = plan_of(quick, memory=quick_memory, cache=kept)
        assert fast.repartitions == slow.repartitions
        for ref, allotment in fast.service_plans.items():
            assert allotment.drain == slow.service_plans[ref].drain
            assert allotment.previous_deployments == slow.service_plans[ref].previous_deployments
            assert allotment.placement == slow.service_plans[ref].placement
        plain, quick = after(plain, slow, step), after(quick, fast, step)
        plain_memory = remembered(plain_memory, slow, step)
        quick_memory = remembered(quick_memory, fast, step)


def settled() -> tuple[Snapshot, PlanMemory, PlanCache, Plan]:
    kept, snapshot, memory = PlanCache(), begun("Agent"), NO_MEMORY
    course = ("nothing", "solved", "nothing", "nothing", "nothing", "nothing")
    for change in course:
        told = plan_of(snapshot, memory=memory, cache=kept)
        step = Step(passed=5, name="chat", node=0, way=0, change=change)
        snapshot, memory = after(snapshot, told, step), remembered(memory, told, step)
    return snapshot, memory, kept, told


def test_an_unchanged_fleet_asks_the_very_same_and_is_ordered_the_very_same() -> None:
    snapshot, memory, kept, told = settled()
    before = told.repartitions
    later = replace(snapshot, at=snapshot.at + timedelta(seconds=5))
    found = plan_of(later, memory=memory, cache=kept).repartitions
    assert found.layout_problem is before.layout_problem
    assert found.nodes is before.nodes
    assert found.actions["a100"].status is before.actions["a100"].status


def test_one_node_that_changes_leaves_the_others_as_they_were() -> None:
    snapshot, memory, kept, told = settled()
    step = Step(passed=5, name="chat", node=1, way=1, change="cut")
    found = plan_of(after(snapshot, told, step), memory=memory, cache=kept).repartitions.nodes[
        "a100"
    ]
    before = told.repartitions.nodes["a100"]
    assert [one is other for one, other in zip(found, before, strict=True)] == [True, False, True]
