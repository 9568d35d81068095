"""Patches of single replicas: the readiness gate and the pod deletion cost."""

from datetime import datetime

from tessera.domain.names import COST_ANNOTATION, DRAINING, SERVING_GATE
from tessera.domain.observed.snapshot import Pod
from tessera.domain.scaling.drain import DRAINED_DELETION_COST
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectManifest


def serving_gate(pod: Pod, at: datetime, *, serving: bool) -> ObjectManifest:
    """Return the readiness gate's condition for the status of a pod."""
    closed_reason = DRAINING if pod.serving else "NotNeeded"
    condition = {
        "type": SERVING_GATE,
        "status": "True" if serving else "False",
        "reason": "Serving" if serving else closed_reason,
        "lastTransitionTime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return _pod_manifest(pod, {"status": {"conditions": [condition]}})


def deletion_cost(pod: Pod, *, done: bool) -> ObjectManifest:
    """Return the annotation by which a ReplicaSet chooses; applying it empty removes it."""
    annotations = {COST_ANNOTATION: str(DRAINED_DELETION_COST)} if done else {}
    return _pod_manifest(pod, {"metadata": {"annotations": annotations}})


def _pod_manifest(pod: Pod, fields: dict[str, dict[str, object]]) -> ObjectManifest:
    """Return a patch with the pod's UID."""
    # The UID keeps the patch off a new pod of the same name, and from creating a deleted one.
    metadata = {"name": pod.ref.name, "namespace": pod.ref.namespace, "uid": pod.uid}
    body = {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        **fields,
        "metadata": metadata | fields.get("metadata", {}),
    }
    return ObjectManifest(kind=PODS, namespace=pod.ref.namespace, name=pod.ref.name, body=body)
