"""Objects of a cluster without what differs from run to run, to compare two runs."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from world.api import Json

# Names of single objects, times, and counts of writes; a recreated Service has another cluster IP.
VOLATILE = {
    "uid", "resourceVersion", "generation", "observedGeneration", "creationTimestamp",
    "managedFields", "lastTransitionTime", "waitingSince", "lastUpdateTime", "time", "at",
    "clusterIP", "clusterIPs", "deployment.kubernetes.io/revision", "collisionCount",
}  # fmt: skip

# Fields that depend on what happened before; numbers of replicas are compared elsewhere. Speeds,
# attained shares, starts and prices of tokens are those that were measured meanwhile.
HISTORY: Mapping[str, Collection[str]] = {
    "InferenceService": {
        *("scaling", "speed", "slo", "start", "tokensPerSecond", "perMillionTokens", "assumedLoad"),
    },
    "TenantBudget": {"spend", "spent", "summary", "message"},
    "Deployment": {"conditions"},
}

# The conditions that depend on measurements alone.
MEASURED = ("SpeedAsPredicted", "SLOMet", "LoadBalanced")

_ADDRESS = re.compile(r"\b127(?:\.\d{1,3}){3}\b")
# How exactly a Service without endpoints fails to answer depends on the moment.
_NO_ANSWER = re.compile(r"(/v1/completions): .*")


def comparable_objects(
    objects: Iterable[Json], names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return objects by kind and name, equal for two runs that ended in the same state.

    `names` are those that only the run has, with what to put in their place.
    """
    return {
        comparable(f"{body['kind']}/{body['metadata']['name']}", names): comparable(
            body, names, HISTORY.get(body["kind"], ())
        )
        for body in objects
    }


def comparable(
    node: Any, names: Mapping[str, str] | None = None, dropped: Iterable[str] = ()
) -> Any:
    """Conditions are put in the order of their types: controllers move those that they renew."""
    without = VOLATILE | set(dropped)
    if isinstance(node, dict):
        if node.get("type") in MEASURED:
            return {"type": node["type"]}
        return {
            key: comparable(value, names, dropped)
            for key, value in sorted(node.items())
            if key not in without
        }
    if isinstance(node, list):
        items = [comparable(item, names, dropped) for item in node]
        keyed = all(isinstance(item, dict) and "type" in item for item in items)
        return sorted(items, key=lambda item: item["type"]) if keyed else items
    if isinstance(node, str):
        for name, instead in (names or {}).items():
            node = node.replace(name, instead)
        return _NO_ANSWER.sub(r"\1: <error>", _ADDRESS.sub("<address>", node))
    return node


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Return where two states differ, one line each."""
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            line
            for key in sorted(first.keys() | second.keys())
            for line in differences(first.get(key), second.get(key), f"{path}/{key}")
        ]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [
            line
            for index, (left, right) in pairs
            for line in differences(left, right, f"{path}/{index}")
        ]
    return [] if first == second else [f"{path}: {first} != {second}"]
