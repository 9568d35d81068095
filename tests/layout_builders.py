"""Pools whose GPUs are partitioned by plan, with defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from tessera.api.mig import MigStatus
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.layout.adoption import PlanAdoption, adopt
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.snapshot import Node, ObservedService, Pool, Ref, Snapshot
from tessera.domain.scaling.load import service_readings, usable_readings
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service.current_objects import objects_by_service
from tessera.domain.service.proposal import Proposal, ProposalInputs, propose
from tessera.domain.service.variant_counts import Devices, Room
from tests.builders import NOW, a_node, a_pool, a_service, a_snapshot, a_spec

GPU_MODEL = gpu_models()["A100-80GB"]
AGENT = Capabilities(pinned_starts=True, sibling_safe=True, knows_pods=True)
MANAGER = Capabilities(pinned_starts=False, sibling_safe=False, knows_pods=True)


def a_planned_pool(name: str = "a100", mode: str = "Auto", **fields: Any) -> Pool:
    mig = {"mode": mode, **fields.pop("mig", {})}
    return a_pool(name, mig=mig, **fields)


def a_mig_service(name: str = "chat", uri: str | None = None, **fields: Any) -> ObservedService:
    """Build a service whose slices are planned."""
    placement = {"mig": "Auto", **fields.pop("placement", {})}
    given = {"uri": uri} if uri else {}
    return a_service(name, a_spec(**given, placement=placement, **fields))


def a_mig_gpu(index: int, *positions: str, fault: str | None = None) -> MigGpu:
    """Build a GPU with instances at `3g.40gb@4=team-a/chat-0`, or `3g.40gb@4` without a pod."""
    instances = []
    for text in positions:
        position, _, pod = text.partition("=")
        profile, _, start = position.partition("@")
        holders = (Ref(*pod.split("/")),) if pod else ()
        instances.append(
            GpuInstance(placement=SlicePlacement(int(start), profile), holders=holders)
        )
    instances.sort(key=lambda instance: instance.placement)
    return MigGpu(index=index, uuid=f"GPU-{index}", instances=tuple(instances), fault=fault)


def a_mig_node(*gpus: MigGpu, name: str = "a100-0", **fields: Any) -> MigNode:
    return MigNode(
        **{
            "name": name,
            "gpu_model": GPU_MODEL,
            "ready": True,
            "gpus": gpus,
            "reports_pods": True,
            "can_partition": True,
            **fields,
        }
    )


def an_empty_node(count: int, name: str = "a100-0", **fields: Any) -> MigNode:
    """Build a node with GPUs in MIG mode without instances."""
    return a_mig_node(*(a_mig_gpu(index) for index in range(count)), name=name, **fields)


def kubernetes_node(mig_node: MigNode, pool: str = "a100") -> Node:
    slices: dict[str, int] = {}
    for gpu in mig_node.gpus:
        for instance in gpu.instances:
            slices[instance.placement.profile] = slices.get(instance.placement.profile, 0) + 1
    node = a_node(pool, slices, whole=mig_node.whole_gpus, name=mig_node.name, ready=mig_node.ready)
    count = str(mig_node.whole_gpus + len(mig_node.gpus))
    return replace(node, labels={**node.labels, "nvidia.com/gpu.count": count})


def a_fleet(
    *services: ObservedService,
    pools: Sequence[Pool] = (),
    mig_nodes: Sequence[MigNode],
    **fields: Any,
) -> Snapshot:
    return a_snapshot(
        *services,
        pools=tuple(pools) or (a_planned_pool(),),
        nodes=tuple(kubernetes_node(mig_node) for mig_node in mig_nodes),
        **fields,
    )


def views_of(snapshot: Snapshot) -> tuple[PoolView, ...]:
    return discover(snapshot.pools, snapshot.nodes, NOW.date())


def proposals_of(snapshot: Snapshot, *, gateways: bool = False) -> Mapping[Ref, Proposal]:
    """Propose as a cycle does."""
    current_objects = objects_by_service(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.model_jobs
    )
    views = views_of(snapshot)
    usable = usable_readings(snapshot.readings, snapshot.at)
    return {
        service.ref: propose(
            service.ref,
            ProposalInputs(
                service,
                current_objects[service.ref],
                views,
                service_readings(
                    snapshot.readings, usable, service.ref, current_objects[service.ref].pods
                ),
                snapshot.demand_of(service.ref),
                gateways,
                None,
            ),
            at=snapshot.at,
            memory=ScalingHistory(),
            room=Room(used=Devices(), held=Devices(), pools={}),
        )
        for service in snapshot.services
    }


def layout_problem_of(
    snapshot: Snapshot,
    mig_nodes: Sequence[MigNode],
    can: Capabilities = AGENT,
    pool: str = "a100",
    *,
    gateways: bool = False,
) -> LayoutProblem:
    """Return the layout problem of a fleet with one pool."""
    return layout_problem(
        views_of(snapshot),
        {pool: mig_nodes},
        {pool: can},
        proposals_of(snapshot, gateways=gateways),
        snapshot,
        gateways=gateways,
    )


def adopt_plan(
    snapshot: Snapshot,
    mig_nodes: Sequence[MigNode],
    can: Capabilities = AGENT,
    pool: str = "a100",
    *,
    at: datetime = NOW,
) -> PlanAdoption:
    """Adopt the plan of a pool whose problem is solved at once."""
    view = next(view for view in views_of(snapshot) if view.pool.name == pool)
    problem = layout_problem_of(snapshot, mig_nodes, can, pool)
    return adopt(view, solve(problem), problem, mig_nodes, can, at)


def with_status(snapshot: Snapshot, status: MigStatus) -> Snapshot:
    """Return the snapshot after the status was written."""
    pools = tuple(
        replace(pool, status=pool.status.model_copy(update={"mig": status}))
        for pool in snapshot.pools
    )
    return replace(snapshot, pools=pools)
