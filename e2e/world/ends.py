"""How a course of actions ended: its objects without what differs from run to run."""

from collections.abc import Iterable, Mapping
from typing import Any

from world.api import Json

VOLATILE = {
    "uid", "resourceVersion", "generation", "observedGeneration", "creationTimestamp",
    "managedFields", "lastTransitionTime", "lastUpdateTime", "time", "at", "clusterIP",
    "clusterIPs", "deployment.kubernetes.io/revision",
}  # fmt: skip
"""Names of single objects, moments, and counts of writes; a cluster IP names a Service's life."""


def comparable(node: Any, names: Mapping[str, str], dropped: Iterable[str] = ()) -> Any:
    """The same for two runs that ended equal; `names` are those of the run, and their stand-ins.

    Conditions are in the order of their types, since controllers move those that they renew.
    """
    without = VOLATILE | set(dropped)
    if isinstance(node, dict):
        return {
            key: comparable(value, names, dropped)
            for key, value in sorted(node.items())
            if key not in without
        }
    if isinstance(node, list):
        found = [comparable(item, names, dropped) for item in node]
        keyed = all(isinstance(item, dict) and "type" in item for item in found)
        return sorted(found, key=lambda item: item["type"]) if keyed else found
    if isinstance(node, str):
        for name, instead in names.items():
            node = node.replace(name, instead)
    return node


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two ends differ, a line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in sorted(one.keys() | other.keys())
            for line in differences(one.get(key), other.get(key), f"{path}/{key}")
        ]
    return [] if one == other else [f"{path}: {one} != {other}"]


def told(item: Json) -> str:
    """An object's kind and name."""
    return f"{item['kind']}/{item['metadata']['name']}"
