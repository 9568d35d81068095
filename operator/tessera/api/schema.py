"""Conversion of the pydantic models to CustomResourceDefinitions with structural schemas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tessera.api.accelerator_pool import AcceleratorPool
from tessera.api.batch_inference import BatchInference
from tessera.api.inference_service import InferenceService
from tessera.api.meta import GROUP, VERSION
from tessera.api.model_provider import ModelProvider
from tessera.api.model_route import ModelRoute
from tessera.api.node_layout import NodeLayout
from tessera.api.price_list import PriceList
from tessera.api.quality_gate import QualityGate
from tessera.api.tenant_budget import TenantBudget

_SCHEMA_KEYS = (
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
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrinterColumn:
    """Column of `kubectl get`; columns above priority 0 show with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomResourceType:
    """Resource type with what its CustomResourceDefinition needs."""

    model: type[BaseModel]
    namespaced: bool
    columns: tuple[PrinterColumn, ...]
    short_names: tuple[str, ...] = ()
    scale: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        return self.model.__name__

    @property
    def plural(self) -> str:
        return f"{self.name.lower()}s"


def _condition_path(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


def _accepted_columns(*columns: PrinterColumn) -> tuple[PrinterColumn, ...]:
    """Return the columns of a kind that is accepted or not, with its own in between."""
    return (
        PrinterColumn(name="Accepted", path=_condition_path("Accepted", "status")),
        PrinterColumn(name="Reason", path=_condition_path("Accepted", "reason")),
        *columns,
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Message", path=_condition_path("Accepted", "message"), priority=1),
    )


_ITL, _OUTPUT_RATE = ".status.speed.itlMs", ".status.speed.tokensPerSecond"

INFERENCE_SERVICE = CustomResourceType(
    model=InferenceService,
    short_names=("tsvc",),
    namespaced=True,
    columns=(
        PrinterColumn(name="Ready", path=_condition_path("Ready", "status")),
        PrinterColumn(name="Reason", path=_condition_path("Ready", "reason")),
        PrinterColumn(name="Replicas", type="integer", path=".status.readyReplicas"),
        PrinterColumn(name="Desired", type="integer", path=".status.scaling.desiredReplicas"),
        PrinterColumn(name="Instance", path=".status.instances"),
        PrinterColumn(name="$/h", path=".status.cost.perHour"),
        PrinterColumn(name="$/Mtok", path=".status.cost.perMillionTokens"),
        PrinterColumn(name="ITL-predicted", path=f"{_ITL}.predicted"),
        PrinterColumn(name="ITL", path=f"{_ITL}.measured"),
        PrinterColumn(name="SLO", path=".status.slo.attained"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Tok/s-predicted", path=f"{_OUTPUT_RATE}.predicted", priority=1),
        PrinterColumn(name="Tok/s", path=f"{_OUTPUT_RATE}.measured", priority=1),
        PrinterColumn(name="Capacity", path=".status.capacity", priority=1),
        PrinterColumn(name="Budget", path=".status.tenant.reason", priority=1),
        PrinterColumn(name="Scaling", path=".status.scaling.reason", priority=1),
        PrinterColumn(name="Update", path=_condition_path("UpdateAvailable", "status"), priority=1),
        PrinterColumn(name="Message", path=_condition_path("Ready", "message"), priority=1),
    ),
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)

ACCELERATOR_POOL = CustomResourceType(
    model=AcceleratorPool,
    short_names=("tpool",),
    namespaced=False,
    columns=(
        PrinterColumn(name="Accepted", path=_condition_path("Accepted", "status")),
        PrinterColumn(name="Discovered", path=_condition_path("Discovered", "status")),
        PrinterColumn(name="Product", path=".status.product"),
        PrinterColumn(name="Tier", path=".spec.tier"),
        PrinterColumn(name="Nodes", type="integer", path=".status.readyNodes"),
        PrinterColumn(name="Allocatable", path=".status.allocatable"),
        PrinterColumn(name="Layout", path=_condition_path("LayoutReady", "reason")),
        PrinterColumn(name="$/GPU-h", path=".status.perGPUHour"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Message", path=_condition_path("Discovered", "message"), priority=1),
    ),
)

NODE_LAYOUT = CustomResourceType(
    model=NodeLayout,
    namespaced=False,
    columns=(
        PrinterColumn(name="Partitioning", type="boolean", path=".status.partitioningEnabled"),
        PrinterColumn(name="Driver", path=".status.driverVersion"),
        PrinterColumn(name="Problem", path=".status.problem"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
    ),
)

TENANT_BUDGET = CustomResourceType(
    model=TenantBudget,
    short_names=("tbudget",),
    namespaced=False,
    columns=(
        PrinterColumn(name="WithinBudget", path=_condition_path("WithinBudget", "status")),
        PrinterColumn(name="Reason", path=_condition_path("WithinBudget", "reason")),
        PrinterColumn(name="Spent", path=".status.summary"),
        PrinterColumn(name="$/h", path=".status.perHour"),
        PrinterColumn(name="Services", type="integer", path=".status.services"),
        PrinterColumn(name="Owner", path=".spec.owner"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Accepted", path=_condition_path("Accepted", "reason"), priority=1),
        PrinterColumn(name="Message", path=_condition_path("WithinBudget", "message"), priority=1),
    ),
)

BATCH_INFERENCE = CustomResourceType(
    model=BatchInference,
    short_names=("tbatch",),
    namespaced=True,
    columns=(
        PrinterColumn(name="State", path=".status.state"),
        PrinterColumn(name="Completions", path=".status.done"),
        PrinterColumn(name="Instance", path=".status.attempt.variant"),
        PrinterColumn(name="Deadline", path=".status.deadline"),
        PrinterColumn(name="Reason", path=".status.reason"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Attempt", type="integer", path=".status.attempt.number", priority=1),
        PrinterColumn(name="Tier", path=".status.attempt.tier", priority=1),
        PrinterColumn(name="Message", path=".status.message", priority=1),
    ),
)

QUALITY_GATE = CustomResourceType(
    model=QualityGate,
    short_names=("tgate",),
    namespaced=True,
    columns=_accepted_columns(
        PrinterColumn(name="Service", path=".status.verdicts[0].service"),
        PrinterColumn(name="Verdict", path=".status.verdicts[0].reason"),
        PrinterColumn(name="Decided", type="date", path=".status.verdicts[0].decidedAt"),
    ),
)

MODEL_ROUTE = CustomResourceType(
    model=ModelRoute,
    short_names=("troute",),
    namespaced=True,
    columns=_accepted_columns(
        PrinterColumn(name="Targets", path=".status.summary"),
    ),
)

MODEL_PROVIDER = CustomResourceType(
    model=ModelProvider,
    short_names=("tprovider",),
    namespaced=False,
    columns=_accepted_columns(
        PrinterColumn(name="Region", path=".spec.region"),
        PrinterColumn(name="Models", path=".spec.models[*].name"),
    ),
)

PRICE_LIST = CustomResourceType(
    model=PriceList,
    namespaced=False,
    columns=(
        PrinterColumn(name="Currency", path=".spec.currency"),
        PrinterColumn(name="From", path=".spec.entries[*].from"),
        PrinterColumn(name="Models", path=".spec.entries[*].models"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
    ),
)

KINDS = (
    INFERENCE_SERVICE,
    BATCH_INFERENCE,
    ACCELERATOR_POOL,
    TENANT_BUDGET,
    QUALITY_GATE,
    MODEL_ROUTE,
    MODEL_PROVIDER,
    PRICE_LIST,
    NODE_LAYOUT,
)


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """Return the model's schema in the form Kubernetes accepts: no references, null types or
    titles."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    node = _resolved(node, definitions)
    schema = {key: node[key] for key in _SCHEMA_KEYS if key in node and node[key] is not None}
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "pattern" in schema and "x-kubernetes-validations" in schema:
        # The rule says it in words, and is not evaluated where the pattern refuses.
        for key in ("pattern", "minLength"):
            schema.pop(key, None)
    if node.get("type") == "integer":
        schema["format"] = "int32" if node.get("maximum", 2**63) < 2**31 else "int64"
    if "const" in node:
        schema["enum"] = [node["const"]]
    if "items" in node:
        schema["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        schema["properties"] = {
            name: _structural(child, definitions) for name, child in node["properties"].items()
        }
        if required := [name for name in node.get("required", ())]:
            schema["required"] = required
    elif values := _values(node):
        schema["additionalProperties"] = _structural(values, definitions)
    return dict(sorted(schema.items()))


def _values(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of a map's values; structural schemas cannot constrain keys."""
    by_pattern: Mapping[str, Any] = node.get("patternProperties", {})
    values_schema = next(iter(by_pattern.values()), node.get("additionalProperties"))
    return values_schema if isinstance(values_schema, Mapping) else None


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Follow `$ref` and take the branch that is not null; sibling keys win."""
    merged = dict(node)
    while "$ref" in merged or "anyOf" in merged:
        if "$ref" in merged:
            target = definitions[merged.pop("$ref").rsplit("/", 1)[-1]]
        else:
            target = _only_branch(merged.pop("anyOf"))
        merged = {**target, **merged}
    return merged


def _only_branch(branches: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    non_null = [branch for branch in branches if branch.get("type") != "null"]
    if len(non_null) != 1:
        raise ValueError(f"a structural schema has no unions, found {branches}")
    return non_null[0]


def crd(kind: CustomResourceType) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a resource type."""
    subresources: dict[str, Any] = {}
    schema = structural(kind.model)
    if (status := schema["properties"].get("status")) is not None:
        subresources["status"] = {}
        # A status says what was observed: defaults would add to it, and rules for people refuse it.
        _drop_defaults_and_rules(status)
    if kind.scale:
        subresources["scale"] = dict(kind.scale)
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
                **({"shortNames": list(kind.short_names)} if kind.short_names else {}),
                "categories": ["tessera"],
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": [
                        {"name": column.name, "type": column.type, "jsonPath": column.path}
                        | ({"priority": column.priority} if column.priority else {})
                        for column in kind.columns
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _drop_defaults_and_rules(node: dict[str, Any]) -> None:
    """Remove the defaults and CEL rules of a schema and of everything below it."""
    node.pop("default", None)
    node.pop("x-kubernetes-validations", None)
    for child in (*node.get("properties", {}).values(), node.get("items")):
        if child is not None:
            _drop_defaults_and_rules(child)
