"""Patches of single replicas: the readiness gate and the pod deletion cost."""

from datetime import datetime
from typing import Any

from tessera.domain.names import COST_ANNOTATION, DRAINING, SERVING_GATE
from tessera.domain.observed.snapshot import Pod
from tessera.domain.scaling.drain import DRAINED_DELETION_COST
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectManifest, partial_manifest


def serving_gate(pod: Pod, at: datetime, *, serving: bool) -> ObjectManifest:
    """Return the readiness gate's condition for the status of a pod."""
    closed_reason = DRAINING if pod.serving else "NotNeeded"
    condition = {
        "type": SERVING_GATE,
        "status": "True" if serving else "False",
        "reason": "Serving" if serving else closed_reason,
        "lastTransitionTime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return partial_manifest(PODS, _metadata(pod), status={"conditions": [condition]})


def deletion_cost(pod: Pod, *, done: bool) -> ObjectManifest:
    """Return the annotation by which a ReplicaSet chooses; applying it empty removes it."""
    annotations = {COST_ANNOTATION: str(DRAINED_DELETION_COST)} if done else {}
    return partial_manifest(PODS, {**_metadata(pod), "annotations": annotations})


def _metadata(pod: Pod) -> dict[str, Any]:
    # The UID keeps the patch off a new pod of the same name, and from creating a deleted one.
    return {"name": pod.ref.name, "namespace": pod.ref.namespace, "uid": pod.uid}
