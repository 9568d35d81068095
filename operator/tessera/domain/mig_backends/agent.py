"""The backend over Tessera's own agent, which partitions GPUs by the spec of a NodeLayout.

The NVIDIA device plugin lists slices only when it starts. After every new layout it is therefore
stopped and started again through the GPU operator's node labels; `tessera.dev/devices-refreshed`
records for which devices and attempt that was done, and when.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.api.node_layout import DesiredGpu, GpuFault, NodeLayoutSpec, PlacedSlice
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted, parse_decimal
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    Capabilities,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED, offers_layouts
from tessera.domain.mig_backends.discovery import mig_node_of
from tessera.domain.mig_backends.gpu_clients import (
    STOPPED_LABEL,
    exclude_mig_manager,
    start_device_plugin,
    stop_device_plugin,
)
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Node

# Node label: digest of the devices and attempt for which the device plugin was restarted, and when,
# in seconds since 1970.
REFRESHED_LABEL = "tessera.dev/devices-refreshed"

_PARTITION_TIMEOUT = timedelta(minutes=10)
# From the request on: partitioning takes seconds, and the device plugin restarts within a minute.
_DEVICE_PLUGIN_TIMEOUT = timedelta(minutes=3)
# Devices may keep their UUIDs when they are created again, so a restart is repeated after this.
_REFRESH_INTERVAL = timedelta(minutes=15)
_FAULT_REASONS: Mapping[GpuFault, LayoutReady] = {
    "ResetRequired": LayoutReady.GPU_RESET_REQUIRED,
    "InUse": LayoutReady.GPU_IN_USE,
    "PartitionFailed": LayoutReady.BACKEND_FAILED,
    "QueryFailed": LayoutReady.BACKEND_FAILED,
    "UnknownProfile": LayoutReady.UNKNOWN_PROFILE,
}


@dataclass(frozen=True, slots=True)
class AgentBackend:
    """`GeometryBackend` over the node's NodeLayout."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(pinned_starts=True, sibling_safe=True, knows_pods=True)

    def request(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
    ) -> BackendRequest:
        if not node.reports_pods or node.node_layout is None:
            return BackendRequest()
        labels = {**exclude_mig_manager(node.labels), **_refresh_labels(node, desired, attempt, at)}
        return BackendRequest(labels=labels, layout_spec=_layout_spec(node, desired))

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        del attempt
        if problem := _agent_problem(node) or _gpu_fault(node, desired):
            return BackendStatus(problem=problem)
        waited = at - since
        if not _is_partitioned(node, desired):
            stuck = _stuck_verdict(node, waited) if waited >= _PARTITION_TIMEOUT else None
            return BackendStatus(problem=stuck)
        if offers_layouts(node, desired) and node.labels.get(DEVICE_PLUGIN_LABEL) != PAUSED:
            return BackendStatus(done=True)
        if waited < _DEVICE_PLUGIN_TIMEOUT:
            return BackendStatus()
        return BackendStatus(retry=True, problem=_missing_devices(node, waited))


def _layout_spec(node: MigNode, desired: LayoutsByGpu) -> NodeLayoutSpec:
    index_by_uuid = {mig_gpu.uuid: mig_gpu.index for mig_gpu in node.gpus}
    # Other GPUs of the node keep the layout that was requested for them before.
    previous = node.node_layout.spec.gpus if node.node_layout else ()
    requested = {gpu.uuid: gpu for gpu in previous if gpu.uuid in index_by_uuid}
    requested |= {
        uuid: DesiredGpu(
            uuid=uuid,
            slices=tuple(
                PlacedSlice(profile=placement.profile, start=placement.start)
                for placement in sorted(desired[index])
            ),
        )
        for uuid, index in index_by_uuid.items()
        if index in desired
    }
    gpus = tuple(requested[uuid] for uuid in sorted(requested, key=index_by_uuid.__getitem__))
    return NodeLayoutSpec(gpus=gpus)


def _refresh_labels(
    node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
) -> Mapping[str, str | None]:
    """Return the labels that stop, then start the device plugin where it offers other devices.

    That is done once for the same devices and attempt, and again after `_REFRESH_INTERVAL`.
    """
    if not _is_partitioned(node, desired):
        return {}
    paused = node.labels.get(DEVICE_PLUGIN_LABEL) == PAUSED
    # Without allocatable devices the kubelet has noticed that the plugin is away: start it again.
    starts = paused and not any(node.allocatable.values())
    if not starts and (paused or offers_layouts(node, desired)):
        return {}
    token = f"{_devices_digest(node.node_layout)}-{attempt}"
    refreshed = {REFRESHED_LABEL: f"{token}-{int(at.timestamp())}"}
    if starts:
        return {**start_device_plugin(node.labels), **refreshed}
    previous, elapsed = _last_refresh(node.labels, at)
    recent = previous == token and 0 <= elapsed < _REFRESH_INTERVAL.total_seconds()
    return {} if recent else {**stop_device_plugin(at), **refreshed}


def stale_devices(node: Node, layout: ObservedNodeLayout) -> str | None:
    """Return the digest of the slices that the agent made and the device plugin does not offer.

    None where the plugin offers them, or where the agent has not carried out its NodeLayout.
    """
    mig_node = mig_node_of(node.name, None, node, layout, None)
    if mig_node is None or mig_node.unavailable or not mig_node.can_partition:
        return None
    layouts = {gpu.uuid: (gpu.index, gpu.layout) for gpu in mig_node.gpus}
    requested = {
        gpu.uuid: tuple(sorted(SlicePlacement(part.start, part.profile) for part in gpu.slices))
        for gpu in layout.spec.gpus
        if gpu.uuid in layouts
    }
    carried_out = all(layouts[uuid][1] == placements for uuid, placements in requested.items())
    if not (requested and carried_out) or offers_layouts(mig_node, {}):
        return None
    return _devices_digest(layout)


def refresh_device_plugin(
    labels: Mapping[str, str], digest: str, at: datetime
) -> Mapping[str, str | None]:
    """Return the labels that stop a device plugin that does not offer these devices.

    It starts again as every plugin that Tessera stopped. One that is off already stays off.
    """
    previous, elapsed = _last_refresh(labels, at)
    recent = previous.startswith(digest) and 0 <= elapsed < _REFRESH_INTERVAL.total_seconds()
    if labels.get(DEVICE_PLUGIN_LABEL) != "true" or STOPPED_LABEL in labels or recent:
        return {}
    return {**stop_device_plugin(at), REFRESHED_LABEL: f"{digest}-1-{int(at.timestamp())}"}


def _last_refresh(labels: Mapping[str, str], at: datetime) -> tuple[str, float]:
    """Return the token of the last refresh, and the seconds since then."""
    token, _, time = labels.get(REFRESHED_LABEL, "").rpartition("-")
    return token, at.timestamp() - (parse_decimal(time) or 0)


def _devices_digest(layout: ObservedNodeLayout | None) -> str:
    status = layout.status if layout else None
    uuids = sorted(part.uuid for gpu in (status.gpus if status else ()) for part in gpu.slices)
    return hashlib.sha256(" ".join(uuids).encode()).hexdigest()[:12]


def _is_partitioned(node: MigNode, desired: LayoutsByGpu) -> bool:
    """Return whether the agent has carried out the spec, with every slice at its start."""
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
    status = node.agent_status
    if status is None:
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"tessera-node does not report from Node/{node.name}; set the chart value "
            f"node.enabled=true and check kubectl get nodelayouts {node.name}",
        )
    if node.unavailable:
        return StatusVerdict(LayoutReady.NODE_NOT_READY, f"Node/{node.name}: {node.unavailable}")
    if not status.partitioning_enabled:
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"tessera-node on Node/{node.name} is read-only; set the chart value "
            "node.partition=true, or "
            "spec.mig.backend to MigManager",
        )
    return None


def _gpu_fault(node: MigNode, desired: LayoutsByGpu) -> StatusVerdict[LayoutReady] | None:
    for gpu in node.gpus:
        for fault, reason in _FAULT_REASONS.items():
            if gpu.index in desired and gpu.fault == fault:
                message = f"GPU {gpu.index} of Node/{node.name}: {gpu.message or fault}"
                return StatusVerdict(reason, message)
    return None


def _stuck_verdict(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    minutes = int(waited.total_seconds() // 60)
    return StatusVerdict(
        LayoutReady.BACKEND_TIMEOUT,
        f"tessera-node on Node/{node.name} has not carried out its NodeLayout after "
        f"{counted(minutes, 'minute')}; kubectl get nodelayouts {node.name} -o yaml shows what it "
        "observes",
    )


def _missing_devices(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    minutes = int(waited.total_seconds() // 60)
    return StatusVerdict(
        LayoutReady.DEVICES_MISSING,
        f"Node/{node.name} is partitioned, but after {counted(minutes, 'minute')} its device "
        "plugin does not offer the slices; restart its pod on the node, and check that it is "
        f"deployed by {DEVICE_PLUGIN_LABEL}",
    )
