"""Pools whose GPUs are partitioned by plan, with defaults."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tessera.api.mig import MigStatus
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.layout.adoption import PlanAdoption, adopt
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.domain.mig.gpu_models import gpu_models
from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.snapshot import Node, ObservedService, Pool, Ref, Snapshot
from tessera.domain.scaling.autoscale import ScalingHistory
from tessera.domain.service.proposal import Proposal, objects_by_service, propose
from tests.builders import NOW, a_node, a_pool, a_service, a_snapshot, a_spec

BOARD = gpu_models()["A100-80GB"]
AGENT = Capabilities(pinned_starts=True, sibling_safe=True, knows_pods=True)
MANAGER = Capabilities(pinned_starts=False, sibling_safe=False, knows_pods=True)


def a_planned_pool(name: str = "a100", mode: str = "Auto", **fields: Any) -> Pool:
    mig = {"mode": mode, **fields.pop("mig", {})}
    return a_pool(name, mig=mig, **fields)


def a_wishing(name: str = "chat", uri: str | None = None, **fields: Any) -> ObservedService:
    """Build a service whose slices are planned."""
    placement = {"mig": "Auto", **fields.pop("placement", {})}
    given = {"uri": uri} if uri else {}
    return a_service(name, a_spec(**given, placement=placement, **fields))


def a_card(index: int, *tiles: str, fault: str | None = None) -> MigGpu:
    """Build a GPU from instances as `3g.40gb@4=team-a/chat-0`, or `3g.40gb@4` without a pod."""
    instances = []
    for text in tiles:
        placement, _, pod = text.partition("=")
        profile, _, start = placement.partition("@")
        holders = (Ref(*pod.split("/")),) if pod else ()
        instances.append(
            GpuInstance(placement=SlicePlacement(int(start), profile), holders=holders)
        )
    instances.sort(key=lambda tile: tile.placement)
    return MigGpu(index=index, uuid=f"GPU-{index}", instances=tuple(instances), fault=fault)


def a_ground(*cards: MigGpu, name: str = "a100-0", **fields: Any) -> MigNode:
    return MigNode(
        **{
            "name": name,
            "gpu_model": BOARD,
            "ready": True,
            "gpus": cards,
            "reports_pods": True,
            "can_partition": True,
            **fields,
        }
    )


def empty(count: int, name: str = "a100-0", **fields: Any) -> MigNode:
    """Build a node with GPUs in MIG mode without instances."""
    return a_ground(*(a_card(index) for index in range(count)), name=name, **fields)


def node_of(ground: MigNode, pool: str = "a100") -> Node:
    slices: dict[str, int] = {}
    for card in ground.gpus:
        for tile in card.instances:
            slices[tile.placement.profile] = slices.get(tile.placement.profile, 0) + 1
    node = a_node(pool, slices, whole=ground.whole_gpus, name=ground.name, ready=ground.ready)
    count = str(ground.whole_gpus + len(ground.gpus))
    return replace(node, labels={**node.labels, "nvidia.com/gpu.count": count})


def a_fleet(
    *services: ObservedService,
    pools: Sequence[Pool] = (),
    grounds: Sequence[MigNode],
    **fields: Any,
) -> Snapshot:
    return a_snapshot(
        *services,
        pools=tuple(pools) or (a_planned_pool(),),
        nodes=tuple(node_of(ground) for ground in grounds),
        **fields,
    )


def views_of(snapshot: Snapshot) -> tuple[PoolView, ...]:
    return discover(snapshot.pools, snapshot.nodes, NOW.date())


def drafts_of(snapshot: Snapshot) -> Mapping[Ref, Proposal]:
    """Propose as a cycle does."""
    current_objects = objects_by_service(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.model_jobs
    )
    views = views_of(snapshot)
    return {
        service.ref: propose(
            snapshot,
            service,
            current_objects[service.ref].in_order,
            views,
            Counter(),
            ScalingHistory(),
        )
        for service in snapshot.services
    }


def asked(
    snapshot: Snapshot, grounds: Sequence[MigNode], can: Capabilities = AGENT, pool: str = "a100"
) -> LayoutProblem:
    """Return the layout problem of a fleet with one pool."""
    views = views_of(snapshot)
    return layout_problem(views, {pool: grounds}, {pool: can}, drafts_of(snapshot), snapshot)


def adopted(
    snapshot: Snapshot, grounds: Sequence[MigNode], can: Capabilities = AGENT, pool: str = "a100"
) -> PlanAdoption:
    """Adopt the plan of a pool whose problem is solved at once."""
    view = next(view for view in views_of(snapshot) if view.pool.name == pool)
    return adopt(view, solve(asked(snapshot, grounds, can, pool)), grounds, can, NOW)


def with_status(snapshot: Snapshot, status: MigStatus) -> Snapshot:
    """Return the snapshot after the status was written."""
    pools = tuple(
        replace(pool, status=pool.status.model_copy(update={"mig": status}))
        for pool in snapshot.pools
    )
    return replace(snapshot, pools=pools)
