"""Conversion of the pydantic models to CustomResourceDefinitions with structural schemas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from typing_extensions import override

from tessera.api.api_resource import READ, ApiResource
from tessera.api.meta import GROUP, VERSION

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CustomResource(ApiResource):
    """A kind of Tessera's own, with what its CustomResourceDefinition needs."""

    group: str = GROUP
    version: str = VERSION
    kind: str = field(init=False)
    verbs: tuple[str, ...] = READ
    model: type[BaseModel]
    columns: tuple[PrinterColumn, ...]
    short_names: tuple[str, ...] = ()
    scale: tuple[tuple[str, str], ...] = ()
    """The paths of the subresource `scale`."""

    @override
    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.model.__name__)
        ApiResource.__post_init__(self)

    @property
    def short_name(self) -> str:
        """Return the name that `kubectl` takes and that is shortest."""
        return next(iter(self.short_names), self.kind.lower())


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


def crd(kind: CustomResource) -> dict[str, Any]:
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
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
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
