"""The ControllerRevision of a version of a service."""

from kubernetes import client

from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import SERVICE_LABEL, VLLM
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.quality.names import PRECISIONS_ANNOTATION, READINESS_ANNOTATION
from tessera.resources.api_resources import CONTROLLER_REVISIONS
from tessera.resources.manifest import (
    ObjectManifest,
    Owner,
    labels,
    manifest,
    owner_reference,
    wire_format,
)


def revision_manifest(revision: ServiceRevision) -> ObjectManifest:
    """Return the revision: number, precisions that may serve and readiness alone change."""
    owner = Owner(INFERENCE_SERVICES, revision.service, revision.service_uid)
    annotations = {READINESS_ANNOTATION: str(revision.readiness)}
    if revision.tried is not None:
        annotations[PRECISIONS_ANNOTATION] = ",".join(sorted(revision.tried))
    metadata = client.V1ObjectMeta(
        name=revision.ref.name,
        namespace=revision.ref.namespace,
        labels=labels(VLLM, revision.service.name) | {SERVICE_LABEL: revision.service.name},
        annotations=annotations,
        owner_references=[owner_reference(owner, controller=True)],
    )
    data = {
        # As the user wrote it: a default that changes with Tessera is not part of a version.
        "spec": revision.spec.model_dump(by_alias=True, exclude_unset=True, mode="json"),
        "update": revision.update,
        "model": wire_format(revision.model) if revision.model is not None else None,
        "precisions": [wire_format(each) for each in revision.precisions],
        "builderVersion": revision.builder_version,
    }
    data = {name: value for name, value in data.items() if value not in (None, [])}
    return manifest(CONTROLLER_REVISIONS, metadata, data=data, revision=revision.number)
