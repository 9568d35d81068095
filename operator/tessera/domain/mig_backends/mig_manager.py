"""NVIDIA's mig-manager: a name of a configuration as a label of the node, an answer as another.

It says nothing of which question it answers, takes one value of the label as one event, never
repeats what failed, and may stop half-way without a word. Hence a name for every content and
attempt, the neutral word beside it, and belief in what the node offers alone.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.domain.mig.layouts import Geometry, geometry
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

CONFIG_LABEL = "nvidia.com/mig.config"
STATE_LABEL = "nvidia.com/mig.config.state"
# The answer as we leave it with a new question: an older one would be read as the new one's.
STATE_REQUESTED = "asked"

_PREFIX = "tessera"
# When feature discovery wrote its labels last; it comes back together with the device plugin.
_DISCOVERY_TIME_LABEL = "nvidia.com/gfd.timestamp"
# Attempts whose names are known from the start: mig-manager sees the file a minute late, so that
# a repetition must not need another one.
_PREPARED_ATTEMPTS = 5
# Between a failure and the next attempt, times the attempt: together well over that minute.
_RETRY_DELAY = timedelta(seconds=30)
_RESPONSE_TIMEOUT = timedelta(minutes=3)
# It waits up to five minutes for each client of the GPUs to go, and they go at once.
_PARTITION_TIMEOUT = timedelta(minutes=10)
_REBOOT_TIMEOUT = timedelta(minutes=25)
# From the ask on, where nobody tells when the clients came back.
_CLIENTS_TIMEOUT = timedelta(minutes=5)
# From the clients' return until their devices are offered.
_DEVICES_TIMEOUT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class MigManagerBackend:
    """`GeometryBackend` over the labels of the node and one ConfigMap.

    Where nobody tells which GPU holds what, `wanted` has to name every GPU in MIG mode.
    """

    knows_pods: bool
    """A `tessera-node` that only looks runs on the nodes."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            pinned_starts=False,
            sibling_safe=False,
            knows_pods=self.knows_pods,
            pauses_node=True,
        )

    def request(self, node: MigNode, desired: LayoutsByGpu, attempt: int) -> BackendRequest:
        """First the GPUs of the unit alone, since all that are named may be touched; then all of
        the node, which is true by then, so that a reboot restores them."""
        contents = _contents(node, desired)
        attempts = range(1, max(_PREPARED_ATTEMPTS, attempt) + 1)
        name = _desired_config(node, desired, attempt)
        return BackendRequest(
            labels={}
            if node.labels.get(CONFIG_LABEL) == name
            else {CONFIG_LABEL: name, STATE_LABEL: STATE_REQUESTED},
            configs={_config_name(text, number): text for text in contents for number in attempts},
        )

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        unit, full = (_config_name(text, attempt) for text in _contents(node, desired))
        name, state = node.labels.get(CONFIG_LABEL), node.labels.get(STATE_LABEL, "")
        if name not in (unit, full):
            return BackendStatus()
        if name != unit:
            since += _PARTITION_TIMEOUT  # that of the unit came first
        if state == "success":
            ready = _is_partitioned(node, desired) and offers_layouts(node, desired)
            return BackendStatus(done=name == full) if ready else _missing_devices(node, since, at)
        limit = _LIMITS.get(state, _StateLimit(_RESPONSE_TIMEOUT, False, _silent_verdict))
        timeout = limit.timeout * (attempt if state == "failed" else 1)
        if at - since < timeout:
            return BackendStatus()
        return BackendStatus(retry=limit.retry, problem=limit.verdict(node, at - since))


def referenced_configs(nodes: Iterable[MigNode]) -> Mapping[str, str]:
    """The entries that labels of nodes name now: after a reboot they are read again."""
    configs = {}
    for node in nodes:
        name = node.labels.get(CONFIG_LABEL, "")
        if not node.gpus or not name.startswith(f"{_PREFIX}-"):
            continue
        _, full = _contents(node, {})
        if name.startswith(f"{_config_prefix(full)}-"):
            configs[name] = full
    return configs


def _contents(node: MigNode, desired: LayoutsByGpu) -> tuple[str, str]:
    """For the unit, and for all of the node; only GPUs in MIG mode are named, whose mode stays."""
    full = {gpu.index: gpu.layout for gpu in node.gpus} | dict(desired)
    unit = desired if node.reports_pods else full
    return _config_text(unit), _config_text(full)


def _config_text(layouts: LayoutsByGpu) -> str:
    """An entry as it stands in the file; GPUs of one geometry in one part."""

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
    """What the label should say now."""
    unit, full = (_config_name(text, attempt) for text in _contents(node, desired))
    name, state = node.labels.get(CONFIG_LABEL), node.labels.get(STATE_LABEL)
    at_work = name == unit and state not in ("success", "failed")
    return full if name == full or (_is_partitioned(node, desired) and not at_work) else unit


def _is_partitioned(node: MigNode, desired: LayoutsByGpu) -> bool:
    """By what is known of each GPU; places are not asked for."""
    current = {gpu.index: geometry(gpu.layout) for gpu in node.gpus}
    return not node.reports_pods or all(
        current.get(index) == geometry(layout) for index, layout in desired.items()
    )


def _missing_devices(node: MigNode, since: datetime, at: datetime) -> BackendStatus:
    """The answer comes before the device plugin: its devices get a moment."""
    text = node.labels.get(_DISCOVERY_TIME_LABEL, "")
    returned = datetime.fromtimestamp(int(text), UTC) if text.isdecimal() else since
    timeout = _DEVICES_TIMEOUT if returned > since else _CLIENTS_TIMEOUT
    if at - max(returned, since) < timeout:
        return BackendStatus()
    message = (
        f"mig-manager on {node.name} said success, and the node does not offer the slices; "
        f"kubectl get node {node.name} -o jsonpath='{{.status.allocatable}}' shows what it does, "
        "nvidia-smi mig -lgi on it what is cut; some drivers need the node rebooted"
    )
    return BackendStatus(retry=True, problem=StatusVerdict(LayoutReady.DEVICES_MISSING, message))


def _failed_verdict(node: MigNode, _: timedelta) -> StatusVerdict[LayoutReady]:
    return StatusVerdict(
        LayoutReady.BACKEND_FAILED,
        f"mig-manager on {node.name} said failed; the log of its pod there says why "
        "(kubectl logs -n gpu-operator -l app=nvidia-mig-manager), and its ClusterPolicy has to "
        "name the ConfigMap tessera-mig (migManager.config.name)",
    )


def _stuck_verdict(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    """It gives up without a word, and leaves what it paused."""
    paused = [
        key
        for key in (DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL)
        if node.labels.get(key) == PAUSED
    ]
    labels = "".join(f" {key}=true" for key in paused)
    fix = f"; kubectl label --overwrite node {node.name}{labels} brings them back" if labels else ""
    return StatusVerdict(
        LayoutReady.BACKEND_TIMEOUT,
        f"mig-manager on {node.name} says {node.labels.get(STATE_LABEL)} for {_minutes(waited)} "
        f"minutes: clients of the GPUs that do not go keep it{fix}",
    )


def _silent_verdict(node: MigNode, waited: timedelta) -> StatusVerdict[LayoutReady]:
    return StatusVerdict(
        LayoutReady.BACKEND_UNAVAILABLE,
        f"nobody on {node.name} reacts to {CONFIG_LABEL} for {_minutes(waited)} minutes: is "
        "mig-manager running there, and does the node carry nvidia.com/mig.capable=true? "
        "kubectl get pods -n gpu-operator -o wide -l app=nvidia-mig-manager",
    )


def _minutes(waited: timedelta) -> int:
    return int(waited.total_seconds() // 60)


class _StateLimit(NamedTuple):
    """For how long a word is believed, and what it means afterwards."""

    timeout: timedelta
    retry: bool
    verdict: Callable[[MigNode, timedelta], StatusVerdict[LayoutReady]]


_LIMITS = {
    "failed": _StateLimit(_RETRY_DELAY, True, _failed_verdict),
    "pending": _StateLimit(_PARTITION_TIMEOUT, True, _stuck_verdict),
    "rebooting": _StateLimit(_REBOOT_TIMEOUT, False, _stuck_verdict),
}
