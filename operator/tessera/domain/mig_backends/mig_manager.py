"""The backend over NVIDIA's mig-manager, which a node label gives the name of a configuration.

mig-manager reports its state in another label of the node. That state does not name the
configuration, a repeated label value is ignored, a failure is never retried, and it may stop
half-way without a report. Therefore every content and attempt has a configuration name of its own,
the state label is reset with every request, and only what the node offers to pods counts as done.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tessera.api.node_layout import NodeLayoutSpec
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted, parse_decimal
from tessera.domain.hardware.gpu_layouts import Geometry, geometry
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
from tessera.domain.mig_backends.gpu_clients import (
    MIG_MANAGER_LABEL,
    MIG_MANAGER_OFF_LABEL,
    STOPPED_LABEL,
    admit_mig_manager,
)
from tessera.domain.mig_backends.nodes import MigNode

CONFIG_LABEL = "nvidia.com/mig.config"
STATE_LABEL = "nvidia.com/mig.config.state"
# State that is written with a request, so that the state of an older one is not taken for its own.
STATE_REQUESTED = "requested"

_PREFIX = "tessera"
# When feature discovery wrote its labels last; it restarts together with the device plugin.
_DISCOVERY_TIME_LABEL = "nvidia.com/gfd.timestamp"
_MAX_DISCOVERY_TIME = 9_999_999_999
_MAX_CLOCK_SKEW = timedelta(minutes=1)
# Attempts whose configurations are written at once: mig-manager sees changes of the mounted
# ConfigMap up to a minute late, and a retry must not wait for that.
_PREPARED_ATTEMPTS = 5
# Delay between a failure and the next attempt, times the attempt: in sum well over that minute.
_RETRY_DELAY = timedelta(seconds=30)
_RESPONSE_TIMEOUT = timedelta(minutes=3)
# mig-manager waits up to 5 minutes for each of the GPU clients (device plugin, feature discovery)
# to stop, one after the other.
_PARTITION_TIMEOUT = timedelta(minutes=10)
_REBOOT_TIMEOUT = timedelta(minutes=25)
# From the request on, where it is not known when the clients restarted.
_CLIENTS_TIMEOUT = timedelta(minutes=5)
# From the restart of the clients until their devices are allocatable.
_DEVICES_TIMEOUT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class MigManagerBackend:
    """`GeometryBackend` over the labels of the node and one ConfigMap.

    Without `knows_pods`, `desired` has to name every GPU in MIG mode.
    """

    knows_pods: bool
    """A read-only tessera-node runs on the nodes and reports which pod holds which slice."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(pinned_starts=False, sibling_safe=False, knows_pods=self.knows_pods)

    def request(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
    ) -> BackendRequest:
        del at
        # Two configurations in turn: the GPUs of the unit alone, since mig-manager may touch every
        # GPU that is named; then all GPUs of the node, which changes nothing by then but lets a
        # reboot restore all of them.
        contents = _contents(node, desired)
        attempts = range(1, max(_PREPARED_ATTEMPTS, attempt) + 1)
        name = _desired_config(node, desired, attempt)
        labels: dict[str, str | None] = {}
        # mig-manager stops and starts the device plugin itself: it waits until that is back.
        if STOPPED_LABEL not in node.labels:
            labels |= admit_mig_manager(node.labels)
            if node.labels.get(CONFIG_LABEL) != name:
                labels |= {CONFIG_LABEL: name, STATE_LABEL: STATE_REQUESTED}
        return BackendRequest(
            labels=labels,
            layout_spec=NodeLayoutSpec() if _has_agent_layout(node) else None,
            configs={_config_name(text, number): text for text in contents for number in attempts},
        )

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        unit, full = (_config_name(text, attempt) for text in _contents(node, desired))
        name, state = node.labels.get(CONFIG_LABEL), node.labels.get(STATE_LABEL, "")
        marks = node.labels.keys() & {STOPPED_LABEL, MIG_MANAGER_OFF_LABEL}
        if name not in (unit, full) or marks or _has_agent_layout(node):
            return BackendStatus()
        if state == "success":
            ready = _is_partitioned(node, desired) and offers_layouts(node, desired)
            return BackendStatus(done=name == full) if ready else _missing_devices(node, since, at)
        limit = _LIMITS.get(state, _StateLimit(_RESPONSE_TIMEOUT, False, _silent_verdict))
        timeout = limit.timeout * (attempt if state == "failed" else 1)
        if at - since < timeout:
            return BackendStatus()
        return BackendStatus(retry=limit.retry, problem=limit.verdict(node, at - since))


def referenced_configs(nodes: Iterable[MigNode]) -> Mapping[str, str]:
    """Return the entries that node labels name now: mig-manager reads them after a reboot."""
    configs = {}
    for node in nodes:
        name = node.labels.get(CONFIG_LABEL, "")
        if not node.gpus or not name.startswith(f"{_PREFIX}-"):
            continue
        _, full = _contents(node, {})
        if name.startswith(f"{_config_prefix(full)}-"):
            configs[name] = full
    return configs


def _has_agent_layout(node: MigNode) -> bool:
    """Return whether the agent would undo the layouts of mig-manager."""
    return node.node_layout is not None and bool(node.node_layout.spec.gpus)


def _contents(node: MigNode, desired: LayoutsByGpu) -> tuple[str, str]:
    """Return the configurations for the unit and for all GPUs of the node.

    Only GPUs in MIG mode are named, so that no GPU's mode changes.
    """
    full = {gpu.index: gpu.layout for gpu in node.gpus} | dict(desired)
    unit = desired if node.reports_pods else full
    return _config_text(unit), _config_text(full)


def _config_text(layouts: LayoutsByGpu) -> str:
    """Return an entry of the configuration file, with one part for GPUs of one geometry."""

    def slices(counts: Geometry) -> str:
        return ", ".join(f'"{name}": {count}' for name, count in counts)

    gpus_by_counts: dict[Geometry, list[int]] = defaultdict(list)
    for index, layout in sorted(layouts.items()):
        gpus_by_counts[geometry(layout)].append(index)
    return "".join(
        f"- devices: [{', '.join(map(str, devices))}]\n"
        "  mig-enabled: true\n"
        f"  mig-devices: {{{slices(counts)}}}\n"
        for counts, devices in sorted(gpus_by_counts.items(), key=lambda item: item[1])
    )


def _config_prefix(text: str) -> str:
    return f"{_PREFIX}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _config_name(text: str, attempt: int) -> str:
    return f"{_config_prefix(text)}-{attempt}"


def _desired_config(node: MigNode, desired: LayoutsByGpu, attempt: int) -> str:
    """Return the configuration name that the node's label should have now."""
    unit, full = (_config_name(text, attempt) for text in _contents(node, desired))
    name, state = node.labels.get(CONFIG_LABEL), node.labels.get(STATE_LABEL)
    # The label is not changed under a mig-manager that works.
    in_progress = name == unit and state not in ("success", "failed")
    return full if name == full or (_is_partitioned(node, desired) and not in_progress) else unit


def _is_partitioned(node: MigNode, desired: LayoutsByGpu) -> bool:
    """Return whether the GPUs have the desired slices, wherever these start."""
    current = {gpu.index: geometry(gpu.layout) for gpu in node.gpus}
    return not node.reports_pods or all(
        current.get(index) == geometry(layout) for index, layout in desired.items()
    )


def _missing_devices(node: MigNode, since: datetime, at: datetime) -> BackendStatus:
    """Return a problem if the devices are still missing some time after mig-manager succeeded."""
    # mig-manager reports success before the device plugin has restarted.
    seconds = parse_decimal(node.labels.get(_DISCOVERY_TIME_LABEL, ""), _MAX_DISCOVERY_TIME)
    returned = datetime.fromtimestamp(seconds, UTC) if seconds is not None else since
    # A label far in the future would hide missing devices until then.
    returned = min(returned, at) if returned - at < _MAX_CLOCK_SKEW else since
    timeout = _DEVICES_TIMEOUT if returned > since else _CLIENTS_TIMEOUT
    if at - max(returned, since) < timeout:
        return BackendStatus()
    message = (
        f"mig-manager on Node/{node.name} reported success, but the node does not offer the "
        f"slices; compare kubectl get node {node.name} -o jsonpath='{{.status.allocatable}}' with "
        "nvidia-smi mig -lgi on the node, and reboot it if its driver needs that"
    )
    return BackendStatus(retry=True, problem=StatusVerdict(LayoutReady.DEVICES_MISSING, message))


def _failed_verdict(node: MigNode, _: timedelta) -> StatusVerdict[LayoutReady]:
    return StatusVerdict(
        LayoutReady.BACKEND_FAILED,
        f"mig-manager on Node/{node.name} reported failed; see its log (kubectl logs -n "
        "gpu-operator -l app=nvidia-mig-manager), and check that migManager.config.name of the "
        "ClusterPolicy is tessera-mig",
    )


def _stuck_verdict(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    # mig-manager gives up without a report and leaves the clients that it paused as they are.
    paused = [
        key
        for key in (DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL)
        if node.labels.get(key) == PAUSED
    ]
    labels = "".join(f" {key}=true" for key in paused)
    fix = (
        f"; restart them with: kubectl label --overwrite node {node.name}{labels}" if labels else ""
    )
    return StatusVerdict(
        LayoutReady.BACKEND_TIMEOUT,
        f"mig-manager on Node/{node.name} reports {node.labels.get(STATE_LABEL)} for "
        f"{_minutes(waited)}: GPU clients do not stop{fix}",
    )


def _silent_verdict(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    if node.labels.get(MIG_MANAGER_LABEL) == "false":
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"the label {MIG_MANAGER_LABEL} of Node/{node.name} is false, so mig-manager does not "
            f"run there; kubectl label --overwrite node {node.name} {MIG_MANAGER_LABEL}=true",
        )
    return StatusVerdict(
        LayoutReady.BACKEND_UNAVAILABLE,
        f"no response to the label {CONFIG_LABEL} of Node/{node.name} for {_minutes(waited)}; "
        "check that mig-manager runs there (kubectl get pods -n gpu-operator -o wide -l "
        "app=nvidia-mig-manager) and that the node has the label nvidia.com/mig.capable=true",
    )


def _minutes(waited: timedelta) -> str:
    return counted(int(waited.total_seconds() // 60), "minute")


class _StateLimit(NamedTuple):
    """How long a state of mig-manager may last, and the verdict after that."""

    timeout: timedelta
    retry: bool
    verdict: Callable[[MigNode, timedelta], StatusVerdict[LayoutReady]]


_LIMITS = {
    "failed": _StateLimit(_RETRY_DELAY, True, _failed_verdict),
    "pending": _StateLimit(_PARTITION_TIMEOUT, True, _stuck_verdict),
    "rebooting": _StateLimit(_REBOOT_TIMEOUT, False, _stuck_verdict),
}
