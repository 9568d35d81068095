"""Patches of single replicas: the readiness gate, and the marks of those that leave."""

from datetime import datetime
from typing import Any

from tessera.domain.names import COST_ANNOTATION, DRAINING, LEAVING_LABEL, SERVING_GATE, TRIED
from tessera.domain.observed.snapshot import Pod
from tessera.domain.rollout.drain import DRAINED_DELETION_COST
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


def leaving_marks(pod: Pod, *, leaving: bool, drained: bool) -> ObjectManifest:
    """Return the label that disruption budgets exclude and the annotation that ReplicaSets read.

    Applying them without one removes it.
    """
    # What a gate asks is no load of the service, so monitors leave those that are tried out.
    value = TRIED if pod.service != pod.service.base else "true"
    labels = {"labels": {LEAVING_LABEL: value}} if leaving else {}
    annotations = {COST_ANNOTATION: str(DRAINED_DELETION_COST)} if drained else {}
    return partial_manifest(PODS, {**_metadata(pod), **labels, "annotations": annotations})


def _metadata(pod: Pod) -> dict[str, Any]:
    # The UID keeps the patch off a new pod of the same name, and from creating a deleted one.
    return {"name": pod.ref.name, "namespace": pod.ref.namespace, "uid": pod.uid}
