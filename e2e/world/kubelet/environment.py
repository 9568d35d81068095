"""The environment of a container: values, references and $(VAR) in them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from world.api import Json
from world.kubelet.quantities import divided

# `ConfigMap` or `Secret`, and its name.
Named = tuple[str, str]


class MissingReferenceError(Exception):
    """Something that a container names does not exist (yet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a container may ask about its pod and node."""

    pod: Json
    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]
    sources: Mapping[Named, Mapping[str, str] | None]
    """Keys and values of the ConfigMaps and Secrets that are referred to; None does not exist."""


def referred(container: Json) -> Iterator[Named]:
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


def resolve(container: Json, facts: Facts) -> dict[str, str]:
    """All variables in order; later ones may use earlier ones as $(NAME)."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        prefix = source.get("prefix", "")
        found |= {prefix + key: value for key, value in _all_of(source, facts).items()}
    for variable in container.get("env", []):
        if "valueFrom" not in variable:
            found[variable["name"]] = expand(variable.get("value", ""), found)
        elif (value := _referred(variable["valueFrom"], container, facts)) is not None:
            found[variable["name"]] = value
    return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) becomes the value where there is one; $$ is a plain $."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", value, text)


def field(path: str, facts: Facts) -> str:
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
    wanted = reference.get("containerName") or containers[0]["name"]
    container = next(found for found in containers if found["name"] == wanted)
    asked = container.get("resources", {})
    quantity = asked.get(kind, {}).get(name)
    if quantity is None:
        quantity = allocatable.get(name, "0") if kind == "limits" else "0"
    return divided(str(quantity), str(reference.get("divisor") or "1"))


def _all_of(source: Json, facts: Facts) -> Mapping[str, str]:
    kind = "ConfigMap" if "configMapRef" in source else "Secret"
    reference = source.get("configMapRef") or source["secretRef"]
    found = facts.sources.get((kind, reference["name"]))
    if found is None and not reference.get("optional"):
        raise MissingReferenceError(f'{kind.lower()} "{reference["name"]}" not found')
    return found or {}


def _referred(reference: Json, container: Json, facts: Facts) -> str | None:
    if "fieldRef" in reference:
        return field(reference["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in reference:
        return resource(reference["resourceFieldRef"], [container], facts.allocatable)
    kind = "ConfigMap" if "configMapKeyRef" in reference else "Secret"
    wanted = reference.get("configMapKeyRef") or reference["secretKeyRef"]
    found = facts.sources.get((kind, wanted["name"]))
    value = None if found is None else found.get(wanted["key"])
    if value is None and not wanted.get("optional"):
        problem = "not found" if found is None else f"has no key {wanted['key']}"
        raise MissingReferenceError(f'{kind.lower()} "{wanted["name"]}" {problem}')
    return value


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
