"""Whether a pod could run on a node that is only described."""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from world.api import Json
from world.fleet import NodeGroup
from world.kubelet.quantities import number
from world.labels import basic_resources, labels, taints

Amounts = dict[str, Decimal]
HOSTNAME = "kubernetes.io/hostname"


def known_labels(group: NodeGroup) -> dict[str, str]:
    """Return the labels that an autoscaler expects on a node that does not exist.

    Those of feature discovery are among them only where the group declares them.
    """
    first_labels = labels(group.template, discovered=False)
    return {
        key: value
        for key, value in first_labels.items()
        if key in group.template.labels or not key.startswith(("nvidia.com/", HOSTNAME))
    }


def known_capacity(group: NodeGroup) -> Amounts:
    """Return the resources that an autoscaler expects, by the machine's type and what it was told.

    A GPU counts as a whole one, in MIG mode too: clouds list machines, not their partitions.
    """
    capacity = {
        resource: number(text) for resource, text in basic_resources(group.template).items()
    }
    if group.template.gpus:
        capacity["nvidia.com/gpu"] = Decimal(len(group.template.gpus))
    return capacity | {name: Decimal(count) for name, count in group.known_resources.items()}


def requests(pod: Json) -> Amounts:
    """Return what the scheduler counts: the containers together, or the largest init container."""
    spec = pod["spec"]
    init = spec.get("initContainers", [])
    sidecars = [container for container in init if container.get("restartPolicy") == "Always"]
    amounts = _sum(map(_container_requests, [*spec["containers"], *sidecars]))
    for container in init:
        for resource, amount in _container_requests(container).items():
            amounts[resource] = max(amounts.get(resource, Decimal(0)), amount)
    return amounts | {"pods": Decimal(1)}


def misfit(pod: Json, node_labels: Mapping[str, str], node_taints: Iterable[Json]) -> str | None:
    """Return why a pod does not go to a node, in the words of the scheduler."""
    if not _selects(pod["spec"], node_labels):
        return "node(s) didn't match Pod's node affinity/selector"
    tolerations = pod["spec"].get("tolerations", [])
    for taint in node_taints:
        if taint["effect"] != "PreferNoSchedule" and not tolerates(tolerations, taint):
            value = taint.get("value", "")
            return f"node(s) had untolerated taint {{{taint['key']}: {value}}}"
    return None


def shortage(wanted: Amounts, free: Amounts) -> str | None:
    """Return the first resource of which there is too little."""
    for resource, amount in sorted(wanted.items()):
        if amount > free.get(resource, Decimal(0)):
            return f"Insufficient {resource}"
    return None


def why_not(pod: Json, group: NodeGroup, free: Amounts) -> str | None:
    """Return why a pod does not fit on a node of a group of which so much is free."""
    group_taints = [taint.model_dump() for taint in taints(group.template)]
    return misfit(pod, known_labels(group), group_taints) or shortage(requests(pod), free)


def subtract(amounts: Amounts, taken: Amounts) -> Amounts:
    return {
        resource: amount - taken.get(resource, Decimal(0)) for resource, amount in amounts.items()
    }


def tolerates(tolerations: Iterable[Json], taint: Json) -> bool:
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        key, exists = toleration.get("key"), toleration.get("operator") == "Exists"
        if not key and exists:
            return True
        same_value = toleration.get("value", "") == taint.get("value", "")
        if key == taint["key"] and (exists or same_value):
            return True
    return False


def _selects(spec: Json, node_labels: Mapping[str, str]) -> bool:
    selector = spec.get("nodeSelector", {})
    if any(node_labels.get(key) != value for key, value in selector.items()):
        return False
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get(
        "nodeSelectorTerms"
    )
    return terms is None or any(
        all(_holds(entry, node_labels) for entry in term.get("matchExpressions", []))
        and not term.get("matchFields")
        for term in terms
    )


def _holds(expression: Json, node_labels: Mapping[str, str]) -> bool:
    value, values = node_labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case _:
            return value is not None and int(value) < int(values[0])


def _container_requests(container: Json) -> Amounts:
    resources = container.get("resources", {})
    texts = resources.get("limits", {}) | resources.get("requests", {})
    return {resource: number(str(text)) for resource, text in texts.items()}


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for resource, amount in part.items():
            total[resource] = total.get(resource, Decimal(0)) + amount
    return total
