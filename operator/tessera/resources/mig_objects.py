"""Build the API objects that MIG backends request."""

from collections.abc import Iterable, Mapping
from textwrap import indent
from typing import Any

from tessera.api.node_layout import NodeLayoutSpec
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.domain.names import MIG_CONFIG
from tessera.resources.api_resources import CONFIG_MAPS
from tessera.resources.manifest import ObjectManifest, labels, partial_manifest, wire_format

_LABELS = labels(MIG_CONFIG, MIG_CONFIG, component="mig")
# Configurations that the GPU operator itself may name in node labels.
_ENTRIES: Mapping[str, str] = {
    "all-disabled": '- devices: "all"\n  mig-enabled: false\n',
    "all-enabled": '- devices: "all"\n  mig-enabled: true\n  mig-devices: {}\n',
}


def configuration(
    namespace: str, requests: Iterable[BackendRequest], referenced: Mapping[str, str]
) -> ObjectManifest:
    """Return mig-manager's ConfigMap: requested and `referenced` configurations."""
    entries = {**_ENTRIES, **referenced}
    for request in requests:
        entries |= request.configs
    parts = (f"  {name}:\n{indent(entry, '    ')}" for name, entry in sorted(entries.items()))
    metadata = {"name": MIG_CONFIG, "namespace": namespace, "labels": _LABELS}
    data = {"config.yaml": "version: v1\nmig-configs:\n" + "".join(parts)}
    return partial_manifest(CONFIG_MAPS, metadata, data=data)


def node_layout(node: str, spec: NodeLayoutSpec) -> ObjectManifest:
    """Return the fields of a NodeLayout that the operator owns."""
    return partial_manifest(NODE_LAYOUTS, {"name": node}, spec=wire_format(spec))


def node_patch(
    body: Mapping[str, Any],
    labels: Mapping[str, str | None],
    taints: Mapping[str, bool],
    annotations: Mapping[str, str | None],
) -> Mapping[str, Any] | None:
    """Return the merge patch that sets these fields on a node; None if it has them.

    Taints are one list, so the patch carries the resourceVersion: after a concurrent change it
    fails with a conflict.
    """
    meta = body["metadata"]
    changes = {
        kind: {key: value for key, value in values.items() if meta.get(kind, {}).get(key) != value}
        for kind, values in (("labels", labels), ("annotations", annotations))
    }
    before = body.get("spec", {}).get("taints", [])
    after = [taint for taint in before if taints.get(taint["key"], True)]
    existing_keys = {taint["key"] for taint in after}
    wanted = sorted(key for key, present in taints.items() if present and key not in existing_keys)
    after += [{"key": key, "effect": "NoSchedule"} for key in wanted]
    metadata = {kind: values for kind, values in changes.items() if values}
    patch: dict[str, Any] = {"metadata": metadata} if metadata else {}
    if after != before:
        version = {"resourceVersion": meta["resourceVersion"]}
        patch = {"metadata": patch.get("metadata", {}) | version, "spec": {"taints": after}}
    return patch or None
