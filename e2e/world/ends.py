"""How a course of actions ended: its objects without what differs from run to run."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from world.api import Json

# Names of single objects, moments, and counts of writes; a cluster IP names a Service's life.
VOLATILE = {
    "uid", "resourceVersion", "generation", "observedGeneration", "creationTimestamp",
    "managedFields", "lastTransitionTime", "lastUpdateTime", "time", "at", "clusterIP",
    "clusterIPs", "deployment.kubernetes.io/revision", "collisionCount",
}  # fmt: skip

# What a status tells of the way and not of the end; numbers of replicas stand beside it. Speeds
# and prices of tokens are those that were measured on it.
HISTORY: Mapping[str, Collection[str]] = {
    "InferenceService": {"scaling", "speed", "tokensPerSecond", "perMillionTokens", "assumedLoad"},
    "TenantBudget": {"spend", "summary", "message"},
    "Deployment": {"conditions"},
}

# The condition that tells of measurements alone.
MEASURED = "SpeedAsPredicted"

_ADDRESS = re.compile(r"\b127(?:\.\d{1,3}){3}\b")
# How exactly a Service without endpoints does not answer is a matter of moments.
_NO_ANSWER = re.compile(r"(/v1/completions): .*")


def ends(items: Iterable[Json], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Objects by kind and name, the same for two runs that ended equal.

    `names` are those that only the run has, with what to put in their place.
    """
    return {
        comparable(f"{one['kind']}/{one['metadata']['name']}", names): comparable(
            one, names, HISTORY.get(one["kind"], ())
        )
        for one in items
    }


def comparable(
    node: Any, names: Mapping[str, str] | None = None, dropped: Iterable[str] = ()
) -> Any:
    """Conditions are put in the order of their types: controllers move those that they renew."""
    without = VOLATILE | set(dropped)
    if isinstance(node, dict):
        if node.get("type") == MEASURED:
            return {"type": MEASURED}
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
        for name, instead in (names or {}).items():
            node = node.replace(name, instead)
        return _NO_ANSWER.sub(r"\1: <error>", _ADDRESS.sub("<address>", node))
    return node


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two ends differ, a line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in sorted(one.keys() | other.keys())
            for line in differences(one.get(key), other.get(key), f"{path}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [
            line
            for index, (left, right) in pairs
            for line in differences(left, right, f"{path}/{index}")
        ]
    return [] if one == other else [f"{path}: {one} != {other}"]
