"""The labels by which Tessera stops components of the GPU operator on a node, and takes that back.

mig-manager stops the device plugin with the same label value, so every change is marked.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from tessera.api.text import parse_decimal
from tessera.domain.mig_backends.devices import (
    DEVICE_PLUGIN_LABEL,
    FEATURE_DISCOVERY_LABEL,
    PAUSED,
)
from tessera.domain.observed.snapshot import Node

# Where the agent partitions, mig-manager must not run: each would undo the other's layout.
MIG_MANAGER_LABEL = "nvidia.com/gpu.deploy.mig-manager"
# Node label: when Tessera stopped the device plugin and feature discovery, in seconds since 1970.
STOPPED_LABEL = "tessera.dev/device-plugin-stopped"
# Node label where Tessera took mig-manager off: the value of its label before.
MIG_MANAGER_OFF_LABEL = "tessera.dev/mig-manager-off"

# A stopped device plugin whose devices the node still offers then starts again.
STOP_TIMEOUT = timedelta(minutes=3)


def stop_device_plugin(at: datetime) -> Mapping[str, str]:
    """Return the labels that stop the device plugin and feature discovery."""
    return {
        DEVICE_PLUGIN_LABEL: PAUSED,
        FEATURE_DISCOVERY_LABEL: PAUSED,
        STOPPED_LABEL: str(int(at.timestamp())),
    }


def start_device_plugin(labels: Mapping[str, str]) -> Mapping[str, str | None]:
    """Return the labels that start what is stopped on a node with these labels."""
    stopped = (DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL)
    started = {key: "true" for key in stopped if labels.get(key) == PAUSED}
    return {**started, STOPPED_LABEL: None}


def restart_device_plugin(node: Node, at: datetime) -> Mapping[str, str | None]:
    """Return the labels that start again what Tessera stopped, as soon as that is away.

    Until then the plugin would not notice the stop, and offer its old devices.
    """
    since = parse_decimal(node.labels.get(STOPPED_LABEL, ""))
    if STOPPED_LABEL not in node.labels:
        return {}
    waited = at.timestamp() - (since or 0.0)
    offers = any(node.allocatable.values())
    if offers and 0 <= waited < STOP_TIMEOUT.total_seconds():
        return {}
    return start_device_plugin(node.labels)


def exclude_mig_manager(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return the labels that take mig-manager off a node with these labels."""
    before = labels.get(MIG_MANAGER_LABEL, "false")
    return {} if before == "false" else {MIG_MANAGER_LABEL: "false", MIG_MANAGER_OFF_LABEL: before}


def admit_mig_manager(labels: Mapping[str, str]) -> Mapping[str, str | None]:
    """Return the labels that bring mig-manager back to a node from which Tessera took it."""
    before = labels.get(MIG_MANAGER_OFF_LABEL)
    return {} if before is None else {MIG_MANAGER_LABEL: before, MIG_MANAGER_OFF_LABEL: None}
