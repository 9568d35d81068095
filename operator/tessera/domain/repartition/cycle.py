"""The part of a reconcile cycle about layouts: the layout problem, and actions for every pool."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.mig import Mig, MigStatus
from tessera.api.pool_reasons import Discovered, LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.config import Config
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import FOREVER, Until, reused, reused_per_object, reused_until
from tessera.domain.layout.adoption import PlanAdoption, adopt
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.domain.layout.shares import TenantShare
from tessera.domain.mig_backends.agent import refresh_device_plugin, stale_devices
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.by_name import backend_of
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Pod, Snapshot
from tessera.domain.repartition.actions import PoolActions, PoolService
from tessera.domain.repartition.evictions import BlockedEviction, displaced_by_profile
from tessera.domain.repartition.rollout import RolloutInputs, advance_rollout
from tessera.domain.repartition.services import pool_services
from tessera.domain.repartition.window import closed_reason
from tessera.domain.service.proposal import Proposal
from tessera.domain.steps import Step, planner_error

_VALUES_OF_BACKEND = {
    "Agent": "mig.enabled, node.enabled and node.partition",
    "MigManager": "mig.enabled and mig.managerNamespace",
}


class FundedProposals(NamedTuple):
    """The proposals of all services, with what their tenants pay."""

    proposals: Mapping[Ref, Proposal]
    shares: Mapping[Ref, TenantShare]


class _PoolState(NamedTuple):
    view: PoolView
    mig: Mig
    nodes: tuple[MigNode, ...]
    backend: GeometryBackend
    services: tuple[PoolService, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repartitions:
    """The outcome of a cycle for all pools with `spec.mig`, by pool name."""

    layout_problem: LayoutProblem | None = None
    nodes: Mapping[str, tuple[MigNode, ...]] = field(default_factory=dict)
    actions: Mapping[str, PoolActions] = field(default_factory=dict)
    retired_layouts: frozenset[str] = frozenset()
    """NodeLayouts of silent agents where the installation runs no agents any more."""
    plugin_refreshes: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Labels of nodes that no rollout changes now, and whose device plugins offer old slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutMemory:
    """What earlier cycles learned about layouts."""

    solution: LayoutSolution | None = None
    """The last solution, perhaps of an older problem."""
    solver_error: str | None = None
    """Why there is no newer solution."""
    blocked_evictions: Mapping[Ref, BlockedEviction] = field(default_factory=dict)
    """Pods that could not be evicted when that was tried last."""
    write_errors: tuple[str, ...] = ()
    """Errors of the last cycle's writes for layouts."""
    repartitions: Repartitions = field(default_factory=Repartitions)
    """What the last cycle decided, for a pool or service whose planning raises."""


@reused
def _nodes_by_pool(
    views: Sequence[PoolView], nodes: Sequence[Node], layouts: Sequence[ObservedNodeLayout]
) -> Mapping[str, tuple[MigNode, ...]]:
    return {view.pool.name: mig_nodes(view, nodes, layouts) for view in views}


def _plugin_refreshes(
    snapshot: Snapshot, busy_nodes: Collection[str]
) -> Mapping[str, Mapping[str, str | None]]:
    """Return the labels that refresh device plugins, whatever became of the nodes' pools."""
    layouts = {layout.name: layout for layout in snapshot.layouts if layout.spec.gpus}
    if not layouts:
        return {}
    refreshes = {
        node.name: refresh_device_plugin(node.labels, digest, snapshot.at)
        for node in snapshot.nodes
        if node.name in layouts
        and node.name not in busy_nodes
        and (digest := _stale_devices(node.name, node, layouts[node.name])) is not None
    }
    return {name: labels for name, labels in refreshes.items() if labels}


@reused_per_object
def _stale_devices(_name: str, node: Node, layout: ObservedNodeLayout) -> str | None:
    return stale_devices(node, layout)


@reused
def _own_pods(pods: Sequence[Pod]) -> frozenset[Ref]:
    return frozenset(pod.ref for pod in pods if not pod.unmanaged)


@reused
def _device_pods(pods: Sequence[Pod]) -> Mapping[str, Sequence[Pod]]:
    """Return the pods that hold devices, by node."""
    pods_by_node = defaultdict[str, list[Pod]](list)
    for pod in pods:
        if pod.node is not None and pod.holds_devices:
            pods_by_node[pod.node].append(pod)
    return pods_by_node


def _repartition(
    config: Config,
    snapshot: Snapshot,
    memory: LayoutMemory,
    views: Sequence[PoolView],
    funded: FundedProposals,
) -> Repartitions:
    """Decide about the layouts of all pools with `spec.mig`.

    The planner solves the returned layout problem beside the cycles: its solution enters a later
    snapshot.
    """
    migs = {
        view.pool.name: view.pool.spec.mig
        for view in views
        if view.pool.spec is not None and view.pool.spec.mig is not None
    }
    if not migs:
        return Repartitions(plugin_refreshes=_plugin_refreshes(snapshot, ()))
    managed = {view.pool.name: view for view in views if view.pool.name in migs}
    nodes = _nodes_by_pool(tuple(managed.values()), snapshot.nodes, snapshot.layouts)
    backends = {name: backend_of(mig, nodes[name]) for name, mig in migs.items()}
    known_views = [view for view in managed.values() if view.product is not None]
    proposals = funded.proposals
    problem = layout_problem(
        known_views,
        nodes,
        {name: backend.capabilities for name, backend in backends.items()},
        proposals,
        snapshot,
        shares=funded.shares,
        gateways=config.gateways,
        previous=memory.repartitions.layout_problem,
    )
    actions = {}
    for name, view in managed.items():
        services = pool_services(snapshot, view, views, proposals, problem)
        state = _PoolState(view, migs[name], nodes[name], backends[name], services)
        actions[name] = pool_actions(config.mig_backends, snapshot, memory, state, problem)
    busy_nodes = {
        node for rollout in actions.values() for node in (*rollout.requests, *rollout.tainted_nodes)
    }
    return Repartitions(
        layout_problem=problem,
        nodes=nodes,
        actions=actions,
        retired_layouts=frozenset(
            layout.name
            for layout in snapshot.layouts
            if layout.silent_since is not None and not config.node_agents
        ),
        plugin_refreshes=_plugin_refreshes(snapshot, busy_nodes),
    )


def _pause_all(error: Exception, memory: LayoutMemory, views: Sequence[PoolView]) -> Repartitions:
    """Return a repartition that begins nothing; no service loses a slice."""
    managed = [view for view in views if view.pool.spec is not None and view.pool.spec.mig]
    return Repartitions(
        actions={view.pool.name: _planner_error_actions(error, memory, view) for view in managed},
    )


repartition = Step(
    _repartition,
    lambda error, _config, _snapshot, memory, views, _funded: _pause_all(error, memory, views),
)


def _planner_error_actions(error: Exception, memory: LayoutMemory, view: PoolView) -> PoolActions:
    """Return actions that keep the taints, and the displaced pods of the last cycle."""
    status = view.pool.status.mig
    last = memory.repartitions.actions.get(view.pool.name)
    message = planner_error(error, "acceleratorpool", view.pool.name)
    return PoolActions(
        verdict=StatusVerdict(LayoutReady.PLANNER_ERROR, message),
        status=status,
        tainted_nodes=status.busy_nodes if status else frozenset(),
        displaced=last.displaced if last is not None else frozenset(),
        draining=last.draining if last is not None else frozenset(),
    )


def _decide_actions(
    mig_backends: frozenset[str],
    snapshot: Snapshot,
    memory: LayoutMemory,
    state: _PoolState,
    problem: LayoutProblem,
) -> PoolActions:
    view, mig, nodes, backend, services = state
    if (blocker := _pool_blocker(mig_backends, view, mig)) is not None:
        return _paused_actions(blocker, view.pool.status.mig, state)
    adoption = adopt(view, memory.solution, problem, nodes, backend.capabilities, snapshot.at)
    status = view.pool.status.mig
    # A new plan is only written in this cycle: services choose their slices by the written plan,
    # so the rollout begins with the next one.
    if adoption.status.target != (status.target if status else None):
        return _start_plan(snapshot, adoption, state)
    inputs = RolloutInputs(
        pool=view.pool.name,
        mig=mig,
        status=adoption.status,
        nodes=nodes,
        services=services,
        backend=backend,
        own_pods=_own_pods(snapshot.pods),
        device_pods=_device_pods(snapshot.pods),
        blocked_evictions=memory.blocked_evictions,
        at=snapshot.at,
    )
    window_closed = closed_reason(mig.maintenance_window, snapshot.at)
    actions = _rollout_actions(view.pool.name, window_closed, inputs, at=snapshot.at)
    verdict = _verdict(memory, actions, adoption.verdict, nodes)
    if verdict.reason is LayoutReady.AS_PLANNED and adoption.crowded_gpus:
        verdict = replace(
            verdict,
            message=f"{verdict.message}; too few slices are free to empty and repartition "
            f"{counted(adoption.crowded_gpus, 'GPU')}",
        )
    # A skipped node does not have the planned layout, so the pool is not ready.
    inconsistency = _inconsistent_labels(nodes) if verdict.reason.is_true else None
    return replace(actions, verdict=inconsistency or verdict)


pool_actions = Step(
    _decide_actions,
    lambda error, _backends, _snapshot, memory, state, _problem: _planner_error_actions(
        error, memory, state.view
    ),
)


@reused_until
def _rollout_actions(
    _pool: str, _window_closed: str | None, inputs: RolloutInputs, *, at: datetime
) -> Until[PoolActions]:
    actions = advance_rollout(inputs)
    # Without a unit under way the time only matters to the maintenance window.
    is_under_way = (
        inputs.status.units
        or inputs.blocked_evictions
        or actions.requests
        or (actions.status and actions.status.units)
    )
    return Until(actions, at if is_under_way else FOREVER)


def _inconsistent_labels(nodes: Sequence[MigNode]) -> StatusVerdict[LayoutReady] | None:
    inconsistent = [node for node in nodes if node.inconsistency]
    if not inconsistent:
        return None
    message = f"Node/{inconsistent[0].name}: {inconsistent[0].inconsistency}"
    others = counted(len(inconsistent) - 1, "other node")
    more = f"; {others} as well" if len(inconsistent) > 1 else ""
    return StatusVerdict(LayoutReady.INCONSISTENT_LABELS, message + more)


def _start_plan(snapshot: Snapshot, adoption: PlanAdoption, state: _PoolState) -> PoolActions:
    plan = adoption.status.target
    if plan is not None:
        message = f"starting plan {plan.name} of {snapshot.at:%H:%M:%S}"
        verdict = StatusVerdict(LayoutReady.PLANNING, message)
    else:
        message = f"AcceleratorPool/{state.view.pool.name} has no layout plan"
        verdict = adoption.verdict or StatusVerdict(LayoutReady.PLANNING, message)
    return _paused_actions(_inconsistent_labels(state.nodes) or verdict, adoption.status, state)


def _paused_actions(
    verdict: StatusVerdict[LayoutReady], status: MigStatus | None, state: _PoolState
) -> PoolActions:
    """Return actions that keep taints and displaced pods as they are and begin nothing."""
    displaced, draining = displaced_by_profile(state.services)
    unit_nodes = status.busy_nodes if status else frozenset[str]()
    return PoolActions(
        verdict=verdict,
        status=status,
        tainted_nodes=unit_nodes & state.view.node_names,
        displaced=displaced,
        draining=draining,
    )


def _pool_blocker(
    mig_backends: frozenset[str], view: PoolView, mig: Mig
) -> StatusVerdict[LayoutReady] | None:
    """Return why the rollout of a pool has to pause, None when it may go on."""
    # A pool without devices goes on: they are absent while a device plugin restarts.
    if not view.discovered.reason.is_true and view.discovered.reason is not Discovered.NO_DEVICES:
        return StatusVerdict(LayoutReady.NOT_DISCOVERED, view.discovered.message)
    if mig.backend in mig_backends or (mig.mode == "Static" and not mig.layout):
        return None
    return StatusVerdict(
        LayoutReady.BACKEND_UNAVAILABLE,
        f"spec.mig.backend {mig.backend} is not installed, so the layout of "
        f"{counted(view.nodes, 'node')} stays as it is; set the chart values "
        f"{_VALUES_OF_BACKEND[mig.backend]}",
    )


def _verdict(
    memory: LayoutMemory,
    actions: PoolActions,
    plan_verdict: StatusVerdict[LayoutReady] | None,
    nodes: Sequence[MigNode],
) -> StatusVerdict[LayoutReady]:
    """Return the most urgent verdict: what blocks the rollout, then what the plan lacks."""
    for pod, blocked in sorted(memory.blocked_evictions.items()):
        if pod in actions.displaced:
            return StatusVerdict(
                LayoutReady.DISRUPTION_BUDGET,
                f"Pod/{pod} cannot be evicted since {blocked.since:%H:%M}: {blocked.message}; its "
                "PodDisruptionBudget must allow 1 disruption",
            )
    if memory.write_errors and (actions.requests or actions.tainted_nodes):
        remaining = len(memory.write_errors) - 1
        more = f"; and {remaining} more" if remaining else ""
        return StatusVerdict(LayoutReady.APPLY_FAILED, memory.write_errors[0] + more)
    if actions.verdict.reason is LayoutReady.PLANNING and memory.solver_error:
        return StatusVerdict(LayoutReady.PLANNING, memory.solver_error)
    reason, units = actions.verdict.reason, actions.status.units if actions.status else ()
    # Without a unit, services wait for slices, which the plan may not have for all of them.
    waiting = (
        reason.is_true
        or reason is LayoutReady.PLANNING
        or (reason in {LayoutReady.REPARTITIONING, LayoutReady.INSUFFICIENT_CAPACITY} and not units)
    )
    verdict = plan_verdict if waiting and plan_verdict is not None else actions.verdict
    whole_gpus = sum(node.whole_gpus for node in nodes)
    if waiting and whole_gpus and not any(node.gpus or node.inconsistency for node in nodes):
        return StatusVerdict(
            LayoutReady.MIG_MODE_DISABLED,
            f"MIG mode is disabled on {counted(whole_gpus, 'GPU')}, used whole; to partition them, "
            "drain the nodes and enable MIG mode (nvidia-smi -mig 1, or the label "
            "nvidia.com/mig.config=all-enabled)",
        )
    return verdict
