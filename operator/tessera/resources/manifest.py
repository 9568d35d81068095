"""A complete desired object, ready for server-side apply."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tessera.domain.batch.facts import Batch
from tessera.domain.names import COMPONENT, ENGINE, MANAGED_BY, PART_OF, SERVICE_LABEL, TESSERA
from tessera.domain.snapshot import Service
from tessera.resources.kinds import BATCH_INFERENCES, INFERENCE_SERVICES, Kind


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which object: its kind's plural, namespace and name."""

    plural: str
    namespace: str
    name: str

    def told(self) -> str:
        return f"{self.plural} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The fields that Tessera owns of one object."""

    kind: Kind
    namespace: str
    name: str
    body: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return Key(self.kind.plural, self.namespace, self.name)


def manifest(kind: Kind, namespace: str, name: str, model: BaseModel) -> Manifest:
    """A typed object as it goes over the wire, without what is not set."""
    body = model.model_dump(by_alias=True, exclude_none=True, mode="json")
    return Manifest(
        kind=kind,
        namespace=namespace,
        name=name,
        body={"apiVersion": kind.api_version, "kind": kind.kind, **body},
    )


def labels(service: str | None = None) -> dict[str, str]:
    """What every object carries; those of one service carry its name too."""
    common = {PART_OF: TESSERA, MANAGED_BY: TESSERA, COMPONENT: ENGINE}
    return common if service is None else {**common, SERVICE_LABEL: service}


def owner(one: Service | Batch, *, controller: bool) -> dict[str, Any]:
    """The reference by which the garbage collector removes objects with their owner."""
    kind = INFERENCE_SERVICES if isinstance(one, Service) else BATCH_INFERENCES
    reference: dict[str, Any] = {
        "api_version": kind.api_version,
        "kind": kind.kind,
        "name": one.ref.name,
        "uid": one.uid,
    }
    return reference | {"controller": True} if controller else reference
