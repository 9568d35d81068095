"""CPU time of a reconcile over a fleet whose GPUs are partitioned as planned: `make bench-layouts`.

What plans layouts is measured alone, with all that a reconcile remembers of the one before: first
nothing changes, then every GPU differs from its plan, a few nodes are being repartitioned, and in
every reconcile one node reports something new; at last every slice has a replica, so that nothing
can begin. The last line is `BENCH {json}`.
"""

import itertools
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from figures import benchmark
from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.mig import Assignment, GpuTarget, MigPlan, MigStatus, NodeTarget
from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus, ObservedGpu, ObservedSlice
from tessera.domain.config import Config
from tessera.domain.hardware.pools import discover
from tessera.domain.incremental import Incremental
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutSolution, PoolLayout
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.names import deployment_name
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tests.builders import (
    A100,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    readings_of,
)
from tests.layout_builders import proposals_of

GPUS = 8
REPLICAS = 5
SEATS = 7
RECONCILES = 30
PERIOD = timedelta(seconds=5)
VARIANT = "a100-1g-10gb"
CURRENT = tuple(f"1g.10gb@{start}" for start in range(SEATS))
OTHER = ("3g.40gb@4", "2g.20gb@0", "1g.10gb@2", "1g.10gb@3")


def _target(nodes: int, services: int, replicas: int, tiles: tuple[str, ...]) -> MigPlan:
    gpus = tuple(GpuTarget(gpu=gpu, slices=tiles) for gpu in range(GPUS))
    nothing = Decimal(0)
    return MigPlan(
        name="plan-1",
        at=datetime.fromtimestamp(0, UTC),
        gpus_before=nodes * GPUS,
        gpus_after=nodes * GPUS,
        per_hour_before=nothing,
        per_hour_after=nothing,
        lower_bound=nothing,
        gap=nothing,
        services=tuple(
            Assignment(
                service=f"team-a/chat-{at:03}",
                profile="1g.10gb",
                replicas=replicas,
                previous_profile="1g.10gb",
            )
            for at in range(services)
        ),
        nodes=tuple(NodeTarget(node=_node(at), gpus=gpus) for at in range(nodes)),
    )


def _node(at: int) -> str:
    return f"node-{at:03}"


def _fleet(
    nodes: int, services: int, tiles: tuple[str, ...] | None, replicas: int = REPLICAS
) -> Snapshot:
    """Replicas are spread over the nodes in turn; without `tiles` Tessera plans no layouts."""
    names = [f"chat-{at:03}" for at in range(services)]
    seats = itertools.product(range(GPUS), range(SEATS), range(nodes))
    pods, on = [], {}
    for at, (gpu, seat, node) in zip(range(services * replicas), seats, strict=False):
        name = names[at % services]
        ref = f"{deployment_name(name, VARIANT)}-{at}"
        on[node, gpu, seat] = f"team-a/{ref}"
        pods.append(
            a_pod(
                ref,
                name,
                VARIANT,
                node=_node(node),
                devices={"nvidia.com/mig-1g.10gb": 1},
                containers_ready=True,
                serving=True,
            )
        )
    pool = a_pool()
    if tiles:
        pool = a_pool(mig={"backend": "Agent", "maxConcurrent": 4})
        status = MigStatus(target=_target(nodes, services, replicas, tiles))
        pool = replace(pool, status=AcceleratorPoolStatus(mig=status))
    return a_snapshot(
        *(
            a_service(name, a_spec(replicas=replicas, placement={"mig": "Auto"} if tiles else {}))
            for name in names
        ),
        pools=(pool,),
        nodes=tuple(
            replace(
                a_node(slices={"1g.10gb": GPUS * SEATS}, partitioned=GPUS, name=_node(at)),
            )
            for at in range(nodes)
        ),
        layouts=tuple(_layout(at, on) for at in range(nodes)) if tiles else (),
        pods=tuple(pods),
        workloads=tuple(a_workload(replicas, name, VARIANT) for name in names),
        readings=readings_of(pods, waiting=0.0, running=1.0, activity=0.5),
    )


def _layout(node: int, on: dict[tuple[int, int, int], str]) -> ObservedNodeLayout:
    gpus = tuple(
        ObservedGpu(
            index=gpu,
            uuid=f"GPU-{node}-{gpu}",
            product=A100,
            memory_mib=81_920,
            mode="Enabled",
            slices=tuple(
                ObservedSlice(
                    profile="1g.10gb",
                    start=seat,
                    pods=(on[node, gpu, seat],) if (node, gpu, seat) in on else (),
                )
                for seat in range(SEATS)
            ),
        )
        for gpu in range(GPUS)
    )
    return ObservedNodeLayout(
        name=_node(node),
        generation=1,
        spec=NodeLayoutSpec(),
        status=NodeLayoutStatus(partitioning_enabled=True, gpus=gpus),
    )


def _next_snapshot(
    snapshot: Snapshot, memory: PlanMemory, fleet_plan: Plan
) -> tuple[Snapshot, PlanMemory]:
    """Return the snapshot of the next reconcile, with what the last one wrote."""
    at = snapshot.at + PERIOD
    (pool,) = snapshot.pools
    actions = fleet_plan.repartitions.actions.get(pool.name)
    if actions is not None and actions.status != pool.status.mig:
        pool = replace(pool, status=pool.status.model_copy(update={"mig": actions.status}))
    problem = fleet_plan.repartitions.layout_problem
    target = actions.status.target if actions is not None and actions.status is not None else None
    solved = memory.layouts.solution
    if problem is not None and solved is None and target is not None:
        solved = LayoutSolution(problem=problem, pools={pool.name: PoolLayout(plan=target)})
    tainted = actions.tainted_nodes if actions is not None else frozenset[str]()
    nodes = tuple(_with_taint(node, node.name in tainted) for node in snapshot.nodes)
    layouts = snapshot.layouts
    if actions is not None and actions.requests:
        nodes = tuple(_with_labels(node, actions.requests.get(node.name)) for node in nodes)
        layouts = tuple(
            _with_request(layout, actions.requests.get(layout.name)) for layout in layouts
        )
    same = all(new is old for new, old in zip(nodes, snapshot.nodes, strict=True))
    readings = snapshot.readings and replace(snapshot.readings, at=at)
    pools = snapshot.pools if pool is snapshot.pools[0] else (pool,)
    memory = memory.after(fleet_plan)
    return replace(
        snapshot,
        at=at,
        readings=readings,
        pools=pools,
        nodes=snapshot.nodes if same else nodes,
        layouts=layouts,
    ), replace(memory, layouts=replace(memory.layouts, solution=solved))


def _with_labels(node: Node, request: BackendRequest | None) -> Node:
    if request is None or not request.labels:
        return node
    changed = {**node.labels, **request.labels}
    return replace(node, labels={name: text for name, text in changed.items() if text is not None})


def _with_request(layout: ObservedNodeLayout, request: BackendRequest | None) -> ObservedNodeLayout:
    if request is None or request.layout_spec is None or request.layout_spec == layout.spec:
        return layout
    return replace(layout, spec=request.layout_spec, generation=layout.generation + 1)


def _with_taint(node: Node, tainted: bool) -> Node:
    taints = frozenset({TAINT}) if tainted else frozenset[str]()
    return node if node.taints == taints else replace(node, taints=taints)


def _with_new_process(snapshot: Snapshot, index: int) -> Snapshot:
    """One agent saw another process."""
    at = index % len(snapshot.layouts)
    layouts = list(snapshot.layouts)
    status = layouts[at].status or NodeLayoutStatus()
    gpu = status.gpus[0]
    slices = (gpu.slices[0].model_copy(update={"processes": index}), *gpu.slices[1:])
    gpus = (gpu.model_copy(update={"slices": slices}), *status.gpus[1:])
    layouts[at] = replace(layouts[at], status=status.model_copy(update={"gpus": gpus}))
    return replace(snapshot, layouts=tuple(layouts))


def _reconcile_times(snapshot: Snapshot, *, news: bool) -> list[float]:
    """Return the CPU milliseconds of each reconcile."""
    config, memory, incremental, spent = Config(), PlanMemory(), Incremental(), []
    for index in range(RECONCILES + 5):
        begun = time.process_time()
        fleet_plan = incremental.run(plan, config, snapshot, memory)
        spent.append((time.process_time() - begun) * 1e3)
        snapshot, memory = _next_snapshot(snapshot, memory, fleet_plan)
        if news:
            snapshot = _with_new_process(snapshot, index)
    return spent


def _problem_time(snapshot: Snapshot) -> float:
    """Return the CPU milliseconds of a new layout problem, the median of five."""
    views, spent = discover(snapshot.pools, snapshot.nodes, snapshot.at.date()), []
    drafts = proposals_of(snapshot)
    nodes_by_pool = {
        view.pool.name: mig_nodes(view, snapshot.nodes, snapshot.layouts) for view in views
    }
    capabilities = {view.pool.name: AgentBackend().capabilities for view in views}
    for _ in range(5):
        begun = time.process_time()
        layout_problem(views, nodes_by_pool, capabilities, drafts, snapshot)
        spent.append((time.process_time() - begun) * 1e3)
    return round(statistics.median(spent), 2)


def measure(nodes: int = 125, services: int = 400) -> dict[str, float]:
    """Measure cycles of a fleet, from no layouts to full GPUs."""
    figures = {}
    every = -(-nodes * GPUS * SEATS // services)
    for name, tiles, replicas, news in (
        ("reconcile_without", None, REPLICAS, False),
        ("layout_reconcile_settled", CURRENT, REPLICAS, False),
        ("layout_reconcile_news", CURRENT, REPLICAS, True),
        ("layout_reconcile_working", OTHER, REPLICAS, True),
        ("layout_reconcile_full", OTHER, every, True),
    ):
        spent = _reconcile_times(_fleet(nodes, services, tiles, replicas), news=news)
        figures[f"{name}_ms"] = round(statistics.median(spent[5:]), 2)
        figures[f"{name}_ms_max"] = round(max(spent[5:]), 2)
        figures[f"{name}_ms_first"] = round(spent[0], 2)
    figures["problem_ms"] = _problem_time(_fleet(nodes, services, CURRENT))
    return figures


if __name__ == "__main__":
    benchmark(measure, 28, short={"nodes": 2, "services": 4})
