"""CPU time of a turn over a fleet whose GPUs are cut as planned: `make bench-layouts`.

What plans layouts is measured alone, with all that a turn remembers of the one before: first
nothing changes, then every GPU differs from its plan, a few nodes are in work, and in every turn
one node tells something new; at last every slice has a replica, so that nothing can begin. The
last line is `BENCH {json}`.
"""

import argparse
import itertools
import json
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.mig import Assignment, GpuTarget, MigPlan, MigStatus, NodeTarget
from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus, ObservedGpu, ObservedSlice
from tessera.domain.config import Config
from tessera.domain.hardware.pools import discover
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutSolution, PoolLayout
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.names import deployment_name
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Snapshot
from tessera.domain.plan import Plan, PlanCache, PlanMemory, plan
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
from tests.layout_builders import drafts_of

GPUS = 8
REPLICAS = 5
SEATS = 7
TURNS = 30
PERIOD = timedelta(seconds=5)
VARIANT = "a100-1g-10gb"
THERE = tuple(f"1g.10gb@{start}" for start in range(SEATS))
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
    """Replicas are dealt out over the nodes one after the other; without `tiles` nothing is cut
    by Tessera."""
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
                a_node(slices={"1g.10gb": GPUS * SEATS}, cut=GPUS, name=_node(at)),
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


def _next(snapshot: Snapshot, memory: PlanMemory, told: Plan) -> tuple[Snapshot, PlanMemory]:
    """A turn later, with what the last one wrote down."""
    at = snapshot.at + PERIOD
    (pool,) = snapshot.pools
    orders = told.repartitions.actions.get(pool.name)
    if orders is not None and orders.status != pool.status.mig:
        pool = replace(pool, status=pool.status.model_copy(update={"mig": orders.status}))
    asked = told.repartitions.layout_problem
    target = orders.status.target if orders is not None and orders.status is not None else None
    solved = memory.layouts.solution
    if asked is not None and solved is None and target is not None:
        solved = LayoutSolution(problem=asked, pools={pool.name: PoolLayout(plan=target)})
    tainted = orders.tainted_nodes if orders is not None else frozenset[str]()
    nodes = tuple(_tainted(node, node.name in tainted) for node in snapshot.nodes)
    layouts = snapshot.layouts
    if orders is not None and orders.requests:
        nodes = tuple(_labelled(node, orders.requests.get(node.name)) for node in nodes)
        layouts = tuple(_asked(one, orders.requests.get(one.name)) for one in layouts)
    same = all(new is old for new, old in zip(nodes, snapshot.nodes, strict=True))
    readings = snapshot.readings and replace(snapshot.readings, at=at)
    pools = snapshot.pools if pool is snapshot.pools[0] else (pool,)
    memory = memory.after(told)
    return replace(
        snapshot,
        at=at,
        readings=readings,
        pools=pools,
        nodes=snapshot.nodes if same else nodes,
        layouts=layouts,
    ), replace(memory, layouts=replace(memory.layouts, solution=solved))


def _labelled(node: Node, ask: BackendRequest | None) -> Node:
    if ask is None or not ask.labels:
        return node
    changed = {**node.labels, **ask.labels}
    return replace(node, labels={name: text for name, text in changed.items() if text is not None})


def _asked(layout: ObservedNodeLayout, ask: BackendRequest | None) -> ObservedNodeLayout:
    if ask is None or ask.layout_spec is None or ask.layout_spec == layout.spec:
        return layout
    return replace(layout, spec=ask.layout_spec, generation=layout.generation + 1)


def _tainted(node: Node, wanted: bool) -> Node:
    taints = frozenset({TAINT}) if wanted else frozenset[str]()
    return node if node.taints == taints else replace(node, taints=taints)


def _news(snapshot: Snapshot, turn: int) -> Snapshot:
    """One agent saw another process."""
    at = turn % len(snapshot.layouts)
    layouts = list(snapshot.layouts)
    status = layouts[at].status or NodeLayoutStatus()
    seen = status.gpus[0]
    slices = (seen.slices[0].model_copy(update={"processes": turn}), *seen.slices[1:])
    gpus = (seen.model_copy(update={"slices": slices}), *status.gpus[1:])
    layouts[at] = replace(layouts[at], status=status.model_copy(update={"gpus": gpus}))
    return replace(snapshot, layouts=tuple(layouts))


def _turns(snapshot: Snapshot, *, news: bool) -> list[float]:
    """CPU milliseconds of each turn."""
    config, memory, kept, spent = Config(), PlanMemory(), PlanCache(), []
    for turn in range(TURNS + 5):
        begun = time.process_time()
        told = plan(config, snapshot, memory, kept)
        spent.append((time.process_time() - begun) * 1e3)
        snapshot, memory = _next(snapshot, memory, told)
        if news:
            snapshot = _news(snapshot, turn)
    return spent


def _question(snapshot: Snapshot) -> float:
    """CPU milliseconds of a question of which nothing is known yet, the median of five."""
    views, spent = discover(snapshot.pools, snapshot.nodes, snapshot.at.date()), []
    drafts = drafts_of(snapshot)
    there = {view.pool.name: mig_nodes(view, snapshot.nodes, snapshot.layouts) for view in views}
    can = {view.pool.name: AgentBackend().capabilities for view in views}
    for _ in range(5):
        begun = time.process_time()
        layout_problem(views, there, can, drafts, snapshot)
        spent.append((time.process_time() - begun) * 1e3)
    return round(statistics.median(spent), 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench_layouts")
    parser.add_argument("--nodes", type=int, default=125)
    parser.add_argument("--services", type=int, default=400)
    chosen = parser.parse_args()
    found = {}
    every = -(-chosen.nodes * GPUS * SEATS // chosen.services)
    for name, tiles, replicas, news in (
        ("turn_without", None, REPLICAS, False),
        ("layout_turn_settled", THERE, REPLICAS, False),
        ("layout_turn_news", THERE, REPLICAS, True),
        ("layout_turn_working", OTHER, REPLICAS, True),
        ("layout_turn_full", OTHER, every, True),
    ):
        spent = _turns(_fleet(chosen.nodes, chosen.services, tiles, replicas), news=news)
        found[f"{name}_ms"] = round(statistics.median(spent[5:]), 2)
        found[f"{name}_ms_max"] = round(max(spent[5:]), 2)
        found[f"{name}_ms_first"] = round(spent[0], 2)
    found["question_ms"] = _question(_fleet(chosen.nodes, chosen.services, THERE))
    for name, value in found.items():
        print(f"{name:>28} {value}")
    print(f"BENCH {json.dumps(found)}")


if __name__ == "__main__":
    main()
