"""A complete desired object, ready for server-side apply."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kubernetes import client
from pydantic import BaseModel

from tessera.api.api_resource import ApiResource
from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain import names
from tessera.domain.kinds.kinds import USER_KINDS
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.observed.snapshot import ObservedService, Ref


class ObjectKey(NamedTuple):
    """Identity of an object: its kind's plural, namespace and name."""

    plural: str
    namespace: str
    name: str

    def describe(self) -> str:
        return f"{self.plural} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectManifest:
    """The fields that Tessera owns of one object."""

    kind: ApiResource
    namespace: str
    name: str
    body: Mapping[str, Any]

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind.plural, self.namespace, self.name)


def wire_format(model: BaseModel) -> dict[str, Any]:
    """Return a type of the API as the API server writes it, without unset fields."""
    return model.model_dump(by_alias=True, exclude_none=True, mode="json")


def manifest(kind: ApiResource, metadata: client.V1ObjectMeta, **fields: Any) -> ObjectManifest:
    """Return an object of typed fields, in wire format without unset ones."""
    body: dict[str, Any] = {"apiVersion": kind.api_version, "kind": kind.kind}
    for name, field in sorted({"metadata": metadata, **fields}.items()):
        body[name] = wire_format(field) if isinstance(field, BaseModel) else field
    return ObjectManifest(
        kind=kind, namespace=metadata.namespace or "", name=metadata.name or "", body=body
    )


def partial_manifest(kind: ApiResource, metadata: dict[str, Any], **fields: Any) -> ObjectManifest:
    """Return some fields of an object, in wire format; without a namespace it is cluster-scoped."""
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **fields}
    namespace = metadata.get("namespace", "")
    return ObjectManifest(kind=kind, namespace=namespace, name=metadata["name"], body=body)


def labels(
    name: str, instance: str, *, component: str = names.ENGINE, version: str | None = None
) -> dict[str, str]:
    """Return the recommended labels of a managed object.

    `version` is the version of vLLM; objects that run none have no version. Tessera's own version
    is on no object, since an upgrade of the operator would then restart pods.
    """
    versions = {} if version is None else {names.APP_VERSION: version}
    return {
        names.APP_NAME: name,
        names.APP_INSTANCE: instance,
        **versions,
        names.COMPONENT: component,
        names.PART_OF: names.TESSERA,
        names.MANAGED_BY: names.TESSERA,
    }


def service_labels(service: ObservedService, spec: InferenceServiceSpec) -> dict[str, str]:
    """Return the labels of objects of one service; `spec` has the version of its engines."""
    common = labels(names.VLLM, service.ref.name, version=spec.engine.version)
    return {**common, names.SERVICE_LABEL: service.ref.name}


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that owns others: they are deleted with it."""

    kind: ApiResource
    ref: Ref
    uid: str


_OWNER_KINDS = {kind.observed: kind for kind in USER_KINDS}


def owner_of(owner: ObservedService | Batch | ObservedGate) -> Owner:
    """Return a service, a batch or a gate as an owner."""
    return Owner(_OWNER_KINDS[type(owner)], owner.ref, owner.uid)


def owner_reference(owner: Owner, *, controller: bool) -> client.V1OwnerReference:
    """Return the owner reference by which the garbage collector deletes an object."""
    return client.V1OwnerReference(
        api_version=owner.kind.api_version,
        kind=owner.kind.kind,
        name=owner.ref.name,
        uid=owner.uid,
        controller=controller or None,
    )


def owned_manifest(
    kind: ApiResource,
    owner: ObservedService | Batch | ObservedGate,
    name: str,
    object_labels: dict[str, str],
    spec: BaseModel,
    *,
    annotations: dict[str, str] | None = None,
) -> ObjectManifest:
    """Return an object in the owner's namespace, which is deleted with its owner."""
    metadata = client.V1ObjectMeta(
        name=name,
        namespace=owner.ref.namespace,
        labels=object_labels,
        annotations=annotations,
        owner_references=[owner_reference(owner_of(owner), controller=True)],
    )
    return manifest(kind, metadata, spec=spec)
