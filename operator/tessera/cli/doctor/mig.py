"""Checks of pools with MIG layouts: their condition, their nodes and their backend."""

import json
from collections.abc import Iterator, Sequence

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.api.mig import Mig
from tessera.api.pool_reasons import LayoutReady
from tessera.api.text import counted, first_names
from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import CheckContext, Finding, ok, problem, warning
from tessera.cli.errors import DeniedError
from tessera.cli.installation import operator_deployments, operator_variables
from tessera.cli.pool_layouts import PoolSnapshot
from tessera.domain.hardware.gpu_layouts import SlicePlacement, format_placement
from tessera.domain.hardware.pools import discover
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.names import MIG_CONFIG
from tessera.resources.api_resources import PODS

_ENABLED = "TESSERA_MIG_ENABLED"
_MANAGER_SELECTOR = "app=nvidia-mig-manager"
# The configuration of NVIDIA's GPU operator.
_CLUSTER_POLICIES = ApiResource(
    group="nvidia.com",
    version="v1",
    kind="ClusterPolicy",
    namespaced=False,
    verbs=(),
)
# Reasons that pass by themselves, or wait for a maintenance window or an approval.
_TRANSIENT_REASONS = (
    LayoutReady.PLANNING,
    LayoutReady.AWAITING_APPROVAL,
    LayoutReady.OUTSIDE_MAINTENANCE_WINDOW,
    LayoutReady.REPARTITIONING,
)


async def check_layouts(context: CheckContext) -> Sequence[Finding]:
    """Check the condition, the nodes and the backend of every pool with spec.mig."""
    pools = await context.pools()
    if not any(pool.spec is not None and pool.spec.mig is not None for pool in pools):
        return []
    nodes = await context.nodes()
    node_layouts = [
        wire.parse_layout(body) for body in await context.reader.list_objects(NODE_LAYOUTS)
    ]
    findings = [*await _check_permissions(context)]
    for view in discover(pools, nodes, context.at.date()):
        pool = PoolSnapshot(view=view, nodes=mig_nodes(view, nodes, node_layouts))
        if pool.mig is None:
            continue
        name = f"layouts {pool.name}"
        faults = [
            *_node_faults(name, pool.nodes),
            *await _backend_faults(context, name, pool.mig, pool.nodes),
        ]
        findings += [*faults, *_condition_findings(name, pool, healthy=not faults)]
    return findings


async def _check_permissions(context: CheckContext) -> Sequence[Finding]:
    """Check that the chart grants the operator the permissions to partition GPUs."""
    try:
        operators = await operator_deployments(context.reader)
    except DeniedError:
        # Another check reports missing permissions of the user.
        return ()
    if any(_ENABLED in variables for _, variables in operator_variables(operators)):
        return ()
    message = "the operator has no permission to partition GPUs"
    fix = "helm upgrade --reuse-values --set mig.enabled=true"
    return [problem("layouts", message, fix)] if operators else ()


def _condition_findings(name: str, pool: PoolSnapshot, *, healthy: bool) -> Iterator[Finding]:
    """Yield a finding of the pool's condition; beside faults only if it is a problem as well."""
    condition = pool.layout_condition
    if condition is None:
        yield warning(name, "no operator has reported the layouts", "see operator")
        return
    message = f"{condition.reason}: {condition.message}"
    if condition.status == "False" and condition.reason not in _TRANSIENT_REASONS:
        yield problem(name, message, f"tessera plan {pool.name}")
    elif healthy:
        yield ok(name, message)


def _node_faults(name: str, mig_nodes: Sequence[MigNode]) -> Iterator[Finding]:
    """Yield faults of nodes and GPUs, and GPU instances without a MIG device."""
    if mig_nodes and not any(mig_node.gpus or mig_node.inconsistency for mig_node in mig_nodes):
        fix = "run nvidia-smi -mig 1 on a node; Tessera never changes the mode"
        yield problem(name, "no GPU is in MIG mode", fix)
    for mig_node in mig_nodes:
        command = f"kubectl get nodelayouts {mig_node.name} -o yaml"
        if mig_node.inconsistency is not None:
            fix = f"kubectl describe node {mig_node.name}; Tessera skips the node until then"
            yield problem(name, f"{mig_node.name}: {mig_node.inconsistency}", fix)
        for mig_gpu in mig_node.gpus:
            if mig_gpu.fault is not None:
                message = f"{mig_node.name} GPU {mig_gpu.index}: {mig_gpu.fault}: {mig_gpu.message}"
                yield problem(name, message, command)
        status = mig_node.agent_status
        for gpu in status.gpus if status else ():
            unfinished = [
                format_placement(SlicePlacement(mig_slice.start, mig_slice.profile))
                for mig_slice in gpu.slices
                if not mig_slice.uuid
            ]
            if unfinished:
                missing = first_names(unfinished, 5)
                message = f"{mig_node.name} GPU {gpu.index}: no MIG device on {missing}"
                fix = "tessera-node creates it where it may partition (chart value node.partition)"
                yield warning(name, message, fix)


async def _backend_faults(
    context: CheckContext, name: str, mig: Mig, mig_nodes: Sequence[MigNode]
) -> Sequence[Finding]:
    """Return the faults of the backend that partitions the pool's GPUs."""
    # A static pool without a layout is never repartitioned and needs no backend.
    if mig.mode == "Static" and not mig.layout:
        return ()
    match mig.backend:
        case "Agent":
            return list(_agent_faults(name, mig_nodes))
        case "MigManager":
            return await _mig_manager_faults(context, name, mig_nodes)


def _agent_faults(name: str, mig_nodes: Sequence[MigNode]) -> Iterator[Finding]:
    missing = [node.name for node in mig_nodes if node.agent_status is None]
    if missing:
        nodes = counted(len(missing), "node")
        message = f"tessera-node does not run on {nodes}: {first_names(missing, 5)}"
        yield problem(name, message, "helm upgrade --reuse-values --set node.enabled=true")
    for mig_node in mig_nodes:
        status = mig_node.agent_status
        if status is not None and status.problem:
            message = f"tessera-node on {mig_node.name} cannot report: {status.problem}"
            yield problem(name, message, f"kubectl get nodelayouts {mig_node.name} -o yaml")
    read_only = [node.name for node in mig_nodes if node.reports_pods and not node.can_partition]
    if read_only:
        nodes = counted(len(read_only), "node")
        message = f"tessera-node is read-only on {nodes}: {first_names(read_only, 5)}"
        yield problem(name, message, "helm upgrade --reuse-values --set node.partition=true")


async def _mig_manager_faults(
    context: CheckContext, name: str, mig_nodes: Sequence[MigNode]
) -> Sequence[Finding]:
    pods = await context.reader.list_objects(PODS, selector=_MANAGER_SELECTOR)
    manager_nodes = {pod.get("spec", {}).get("nodeName") for pod in pods}
    missing = [mig_node.name for mig_node in mig_nodes if mig_node.name not in manager_nodes]
    nodes = counted(len(missing), "node")
    message = f"mig-manager does not run on {nodes}: {first_names(missing, 5)}"
    fix = (
        "set migManager.enabled of the GPU operator and the label nvidia.com/mig.capable=true of "
        "the node, or spec.mig.backend: Agent"
    )
    policies = await context.reader.list_if_served(_CLUSTER_POLICIES) or []
    return [
        *([problem(name, message, fix)] if missing else []),
        *(_config_fault(name, policy) for policy in policies if _config_name(policy) != MIG_CONFIG),
    ]


def _config_fault(check: str, policy: Json) -> Finding:
    name = policy["metadata"]["name"]
    patch = {"spec": {"migManager": {"config": {"name": MIG_CONFIG}}}}
    current = _config_name(policy)
    config_map = f"ConfigMap/{current}" if current else "its default ConfigMap"
    return problem(
        check,
        f"ClusterPolicy/{name}: mig-manager reads {config_map} instead of ConfigMap/{MIG_CONFIG}",
        f"kubectl patch clusterpolicy {name} --type=merge -p '{json.dumps(patch)}'",
    )


def _config_name(policy: Json) -> str:
    return str(policy.get("spec", {}).get("migManager", {}).get("config", {}).get("name", ""))
