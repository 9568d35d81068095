"""The environment of a container: values, references and $(VAR) in them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from world.api import Json
from world.kubelet.quantities import divided

# `ConfigMap` or `Secret`, and its name.
SourceRef = tuple[str, str]


class MissingReferenceError(Exception):
    """Something that a container names does not exist (yet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What a container may ask about its pod and node."""

    pod: Json
    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]
    sources: Mapping[SourceRef, Mapping[str, str] | None]
    """Keys and values of the ConfigMaps and Secrets that are referred to; None does not exist."""


def references(container: Json) -> Iterator[SourceRef]:
    """The ConfigMaps and Secrets that the environment comes from."""
    for source in container.get("envFrom", []):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source:
                yield kind, source[field]["name"]
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {})
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if field in reference:
                yield kind, reference[field]["name"]


def resolve(container: Json, facts: PodFacts) -> dict[str, str]:
    """All variables in order; later ones may use earlier ones as $(NAME)."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        prefix = source.get("prefix", "")
        variables |= {prefix + key: value for key, value in _all_values(source, facts).items()}
    for variable in container.get("env", []):
        if "valueFrom" not in variable:
            variables[variable["name"]] = expand(variable.get("value", ""), variables)
        elif (value := _referenced_value(variable["valueFrom"], container, facts)) is not None:
            variables[variable["name"]] = value
    return variables


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) becomes the value where there is one; $$ is a plain $."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", value, text)


def field(path: str, facts: PodFacts) -> str:
    """A `fieldRef` of the downward API."""
    meta, spec = facts.pod["metadata"], facts.pod["spec"]
    if chosen := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str(meta.get(chosen[1], {}).get(chosen[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = meta.get(path.removeprefix("metadata."), {})
        return "".join(f'{key}="{_escaped(value)}"\n' for key, value in sorted(pairs.items()))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path not in known:
        raise MissingReferenceError(f"fieldRef {path} is not known here")
    return str(known[path])


def resource(reference: Json, containers: list[Json], allocatable: Mapping[str, str]) -> str:
    """A `resourceFieldRef`; a limit that is not set is what the node has."""
    kind, _, name = reference["resource"].partition(".")
    name_of_container = reference.get("containerName") or containers[0]["name"]
    container = next(spec for spec in containers if spec["name"] == name_of_container)
    resources = container.get("resources", {})
    quantity = resources.get(kind, {}).get(name)
    if quantity is None:
        quantity = allocatable.get(name, "0") if kind == "limits" else "0"
    return divided(str(quantity), str(reference.get("divisor") or "1"))


def _all_values(source: Json, facts: PodFacts) -> Mapping[str, str]:
    kind = "ConfigMap" if "configMapRef" in source else "Secret"
    reference = source.get("configMapRef") or source["secretRef"]
    values = facts.sources.get((kind, reference["name"]))
    if values is None and not reference.get("optional"):
        raise MissingReferenceError(f'{kind.lower()} "{reference["name"]}" not found')
    return values or {}


def _referenced_value(reference: Json, container: Json, facts: PodFacts) -> str | None:
    if "fieldRef" in reference:
        return field(reference["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in reference:
        return resource(reference["resourceFieldRef"], [container], facts.allocatable)
    kind = "ConfigMap" if "configMapKeyRef" in reference else "Secret"
    key_ref = reference.get("configMapKeyRef") or reference["secretKeyRef"]
    values = facts.sources.get((kind, key_ref["name"]))
    value = None if values is None else values.get(key_ref["key"])
    if value is None and not key_ref.get("optional"):
        problem = "not found" if values is None else f"has no key {key_ref['key']}"
        raise MissingReferenceError(f'{kind.lower()} "{key_ref["name"]}" {problem}')
    return value


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
