"""Tessera's own agent: the NodeLayout says every slice with its place, and what came of it.

The device plugin knows only the slices that were there when it started, so it is sent away and
called back by the labels of the GPU operator; a label of our own says for which ask that was done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.api.node_layout import DesiredGpu, GpuFault, NodeLayoutSpec, PlacedSlice
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.domain.mig.layouts import Layout
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    Capabilities,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.devices import (
    DEVICE_PLUGIN_LABEL,
    FEATURE_DISCOVERY_LABEL,
    PAUSED,
    offers_layouts,
)
from tessera.domain.mig_backends.nodes import MigNode

# On a node: generation and attempt for which its device plugin was called back.
REFRESHED_LABEL = "tessera.dev/devices-refreshed"
# Two that cut one GPU undo each other's work: where the agent cuts, mig-manager goes.
MIG_MANAGER_LABEL = "nvidia.com/gpu.deploy.mig-manager"

_PARTITION_TIMEOUT = timedelta(minutes=10)
# From the ask on: it cuts in seconds, and the device plugin is back within a minute.
_DEVICE_PLUGIN_TIMEOUT = timedelta(minutes=3)
_FAULT_REASONS: Mapping[GpuFault, LayoutReady] = {
    "NeedsReset": LayoutReady.GPU_RESET_REQUIRED,
    "InUse": LayoutReady.GPU_IN_USE,
    "CannotCut": LayoutReady.BACKEND_FAILED,
    "Unreadable": LayoutReady.BACKEND_FAILED,
    "ProfileUnknown": LayoutReady.UNKNOWN_PROFILE,
}


@dataclass(frozen=True, slots=True)
class AgentBackend:
    """`GeometryBackend` over the node's NodeLayout."""

    @property
    def capabilities(self) -> Capabilities:
        """Cutting itself hurts nobody; the refresh of the device plugin pauses the node."""
        return Capabilities(
            pinned_starts=True, sibling_safe=True, knows_pods=True, pauses_node=True
        )

    def request(self, node: MigNode, desired: LayoutsByGpu, attempt: int) -> BackendRequest:
        """GPUs that were asked for before stay as they were asked for."""
        if not node.reports_pods or node.node_layout is None:
            return BackendRequest()
        return BackendRequest(
            labels={**_mig_manager_labels(node), **_refresh_labels(node, desired, attempt)},
            layout_spec=_layout_spec(node, desired),
        )

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        del attempt
        if problem := _agent_problem(node) or _gpu_fault(node, desired):
            return BackendStatus(problem=problem)
        waited = at - since
        if not _is_partitioned(node, desired):
            return (
                BackendStatus(problem=_stuck_verdict(node, waited))
                if waited >= _PARTITION_TIMEOUT
                else BackendStatus()
            )
        if offers_layouts(node, desired) and node.labels.get(DEVICE_PLUGIN_LABEL) != PAUSED:
            return BackendStatus(done=True)
        if waited < _DEVICE_PLUGIN_TIMEOUT:
            return BackendStatus()
        return BackendStatus(retry=True, problem=_missing_devices(node, waited))


def _layout_spec(node: MigNode, desired: LayoutsByGpu) -> NodeLayoutSpec:
    index_by_uuid = {mig_gpu.uuid: mig_gpu.index for mig_gpu in node.gpus}
    previous = node.node_layout.spec.gpus if node.node_layout else ()
    requested = {gpu.uuid: gpu for gpu in previous if gpu.uuid in index_by_uuid}
    requested |= {
        uuid: _gpu_spec(uuid, desired[index])
        for uuid, index in index_by_uuid.items()
        if index in desired
    }
    return NodeLayoutSpec(
        gpus=tuple(requested[uuid] for uuid in sorted(requested, key=index_by_uuid.__getitem__))
    )


def _gpu_spec(uuid: str, layout: Layout) -> DesiredGpu:
    return DesiredGpu(
        uuid=uuid,
        slices=tuple(
            PlacedSlice(profile=placement.profile, start=placement.start)
            for placement in sorted(layout)
        ),
    )


def _mig_manager_labels(node: MigNode) -> Mapping[str, str]:
    return (
        {MIG_MANAGER_LABEL: "false"}
        if node.labels.get(MIG_MANAGER_LABEL, "false") != "false"
        else {}
    )


def _refresh_labels(node: MigNode, desired: LayoutsByGpu, attempt: int) -> Mapping[str, str]:
    """Once for every ask, and only where pods are offered something else than there is."""
    if not _is_partitioned(node, desired):
        return {}
    paused = node.labels.get(DEVICE_PLUGIN_LABEL) == PAUSED
    token = f"{node.node_layout.generation if node.node_layout else 0}-{attempt}"
    if paused and not any(node.allocatable.values()):
        return {
            DEVICE_PLUGIN_LABEL: "true",
            FEATURE_DISCOVERY_LABEL: "true",
            REFRESHED_LABEL: token,
        }
    if paused or offers_layouts(node, desired) or node.labels.get(REFRESHED_LABEL) == token:
        return {}
    return {DEVICE_PLUGIN_LABEL: PAUSED, FEATURE_DISCOVERY_LABEL: PAUSED}


def _is_partitioned(node: MigNode, desired: LayoutsByGpu) -> bool:
    """Carried out, every slice in its place."""
    current = {gpu.index: gpu.layout for gpu in node.gpus}
    layout = node.node_layout
    return (
        layout is not None
        and layout.spec == _layout_spec(node, desired)
        and all(
            current.get(index) == tuple(sorted(placements)) for index, placements in desired.items()
        )
    )


def _agent_problem(node: MigNode) -> StatusVerdict[LayoutReady] | None:
    status = node.node_layout.status if node.node_layout else None
    if status is None:
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"tessera-node does not run on {node.name}: node.enabled of the chart, and "
            f"kubectl get nodelayouts {node.name}",
        )
    if status.problem:
        return StatusVerdict(
            LayoutReady.BACKEND_FAILED, f"tessera-node on {node.name}: {status.problem}"
        )
    if not status.cuts:
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"tessera-node on {node.name} only looks: set node.cut of the chart, or "
            "spec.mig.backend to migManager",
        )
    return None


def _gpu_fault(node: MigNode, desired: LayoutsByGpu) -> StatusVerdict[LayoutReady] | None:
    for gpu in node.gpus:
        for fault, reason in _FAULT_REASONS.items():
            if gpu.index in desired and gpu.fault == fault:
                message = f"GPU {gpu.index} of {node.name}: {gpu.message or fault}"
                return StatusVerdict(reason, message)
    return None


def _stuck_verdict(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    minutes = int(waited.total_seconds() // 60)
    return StatusVerdict(
        LayoutReady.BACKEND_TIMEOUT,
        f"tessera-node on {node.name} did not carry out its NodeLayout for {minutes} minutes; "
        f"kubectl get nodelayouts {node.name} -o yaml shows what it sees",
    )


def _missing_devices(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    minutes = int(waited.total_seconds() // 60)
    return StatusVerdict(
        LayoutReady.DEVICES_MISSING,
        f"the slices of {node.name} are cut, and after {minutes} minutes its device plugin does "
        f"not offer them; does it follow {DEVICE_PLUGIN_LABEL}? Restart its pod on the node",
    )
