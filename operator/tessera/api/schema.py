"""pydantic models -> CustomResourceDefinitions with structural schemas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tessera.api.accelerator_pool import AcceleratorPool
from tessera.api.batch_inference import BatchInference
from tessera.api.inference_service import InferenceService
from tessera.api.meta import GROUP, VERSION
from tessera.api.node_layout import NodeLayout
from tessera.api.tenant_budget import TenantBudget

_KEPT = (
    "default",
    "description",
    "enum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "pattern",
    "type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-validations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of `kubectl get`; those above priority 0 show with `-o wide`."""

    name: str
    type: str
    path: str
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A resource type as the API server needs to know it."""

    model: type[BaseModel]
    plural: str
    namespaced: bool
    columns: tuple[Column, ...]
    scale: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        return self.model.__name__


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_GAP, _RATE = ".status.speed.interTokenMs", ".status.speed.tokensPerSecond"

INFERENCE_SERVICE = Kind(
    model=InferenceService,
    plural="inferenceservices",
    namespaced=True,
    columns=(
        Column(name="Ready", type="string", path=_condition("Ready", "status")),
        Column(name="Reason", type="string", path=_condition("Ready", "reason")),
        Column(name="Replicas", type="integer", path=".status.readyReplicas"),
        Column(name="Wanted", type="integer", path=".status.scaling.desiredReplicas"),
        Column(name="Where", type="string", path=".status.variant.name"),
        Column(name="$/h", type="string", path=".status.cost.perHour"),
        Column(name="$/Mtok", type="string", path=".status.cost.perMillionTokens"),
        Column(name="~ms/tok", type="string", path=f"{_GAP}.predicted"),
        Column(name="ms/tok", type="string", path=f"{_GAP}.measured"),
        Column(name="Age", type="date", path=".metadata.creationTimestamp"),
        Column(name="~tok/s", type="string", path=f"{_RATE}.predicted", priority=1),
        Column(name="tok/s", type="string", path=f"{_RATE}.measured", priority=1),
        Column(name="Budget", type="string", path=".status.tenant.state", priority=1),
        Column(name="Scaling", type="string", path=".status.scaling.reason", priority=1),
        Column(
            name="Update", type="string", path=_condition("UpdateAvailable", "status"), priority=1
        ),
        Column(name="Why", type="string", path=_condition("Ready", "message"), priority=1),
    ),
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)

ACCELERATOR_POOL = Kind(
    model=AcceleratorPool,
    plural="acceleratorpools",
    namespaced=False,
    columns=(
        Column(name="Accepted", type="string", path=_condition("Accepted", "status")),
        Column(name="Discovered", type="string", path=_condition("Discovered", "status")),
        Column(name="Product", type="string", path=".status.product"),
        Column(name="Tier", type="string", path=".spec.tier"),
        Column(name="Nodes", type="integer", path=".status.readyNodes"),
        Column(name="Offer", type="string", path=".status.offer"),
        Column(name="Laid out", type="string", path=_condition("LaidOut", "reason")),
        Column(name="$/GPU-h", type="string", path=".status.perGPUHour"),
        Column(name="Age", type="date", path=".metadata.creationTimestamp"),
        Column(name="Why", type="string", path=_condition("Discovered", "message"), priority=1),
    ),
)

NODE_LAYOUT = Kind(
    model=NodeLayout,
    plural="nodelayouts",
    namespaced=False,
    columns=(
        Column(name="Cuts", type="boolean", path=".status.cuts"),
        Column(name="Driver", type="string", path=".status.driver"),
        Column(name="Problem", type="string", path=".status.problem"),
        Column(name="Age", type="date", path=".metadata.creationTimestamp"),
    ),
)

TENANT_BUDGET = Kind(
    model=TenantBudget,
    plural="tenantbudgets",
    namespaced=False,
    columns=(
        Column(name="Funded", type="string", path=_condition("Funded", "status")),
        Column(name="Reason", type="string", path=_condition("Funded", "reason")),
        Column(name="Spent", type="string", path=".status.summary"),
        Column(name="$/h", type="string", path=".status.perHour"),
        Column(name="Services", type="integer", path=".status.services"),
        Column(name="Owner", type="string", path=".spec.owner"),
        Column(name="Age", type="date", path=".metadata.creationTimestamp"),
        Column(name="Accepted", type="string", path=_condition("Accepted", "reason"), priority=1),
        Column(name="Why", type="string", path=_condition("Funded", "message"), priority=1),
    ),
)

BATCH_INFERENCE = Kind(
    model=BatchInference,
    plural="batchinferences",
    namespaced=True,
    columns=(
        Column(name="State", type="string", path=".status.state"),
        Column(name="Done", type="string", path=".status.done"),
        Column(name="Where", type="string", path=".status.attempt.variant"),
        Column(name="Deadline", type="string", path=".status.deadline"),
        Column(name="Reason", type="string", path=".status.reason"),
        Column(name="Age", type="date", path=".metadata.creationTimestamp"),
        Column(name="Attempt", type="integer", path=".status.attempt.number", priority=1),
        Column(name="Tier", type="string", path=".status.attempt.tier", priority=1),
        Column(name="Why", type="string", path=".status.message", priority=1),
    ),
)

KINDS = (INFERENCE_SERVICE, BATCH_INFERENCE, ACCELERATOR_POOL, TENANT_BUDGET, NODE_LAYOUT)


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The model's schema as Kubernetes accepts it: no references, no null types, no titles."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    node = _resolved(node, definitions)
    told = {key: node[key] for key in _KEPT if key in node and node[key] is not None}
    if "description" in told:
        told["description"] = " ".join(told["description"].split())
    if node.get("type") == "integer":
        told["format"] = "int32" if node.get("maximum", 2**63) < 2**31 else "int64"
    if "const" in node:
        told["enum"] = [node["const"]]
    if "items" in node:
        told["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        told["properties"] = {
            name: _structural(child, definitions) for name, child in node["properties"].items()
        }
        if required := [name for name in node.get("required", ())]:
            told["required"] = required
    elif values := _values(node):
        told["additionalProperties"] = _structural(values, definitions)
    return dict(sorted(told.items()))


def _values(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the values of a map are; Kubernetes knows no pattern of keys."""
    by_pattern: Mapping[str, Any] = node.get("patternProperties", {})
    found = next(iter(by_pattern.values()), node.get("additionalProperties"))
    return found if isinstance(found, Mapping) else None


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Follow `$ref`, and take the branch that is not null; what stands beside them wins."""
    merged = dict(node)
    while "$ref" in merged or "anyOf" in merged:
        if "$ref" in merged:
            target = definitions[merged.pop("$ref").rsplit("/", 1)[-1]]
        else:
            target = _only_branch(merged.pop("anyOf"))
        merged = {**target, **merged}
    return merged


def _only_branch(branches: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    told = [branch for branch in branches if branch.get("type") != "null"]
    if len(told) != 1:
        raise ValueError(f"a structural schema has no unions, found {branches}")
    return told[0]


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition; conditions and lists are bounded, so that CEL cost is too."""
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        subresources["scale"] = dict(kind.scale)
    schema = structural(kind.model)
    _drop_defaults(schema["properties"]["status"])
    schema["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        **schema["properties"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "categories": ["tessera"],
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _drop_defaults(node: dict[str, Any]) -> None:
    """A status says what was observed; the API server must not add to it."""
    node.pop("default", None)
    for child in (*node.get("properties", {}).values(), node.get("items")):
        if child is not None:
            _drop_defaults(child)


def _column(column: Column) -> dict[str, Any]:
    told: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return told | {"priority": column.priority} if column.priority else told
