"""Which pods stand behind a Service."""

from collections.abc import Iterable, Iterator

from world.api import Json
from world.proxy.forward import Address


def endpoints(service: Json, port: Json, pods: Iterable[Json]) -> Iterator[Address]:
    """The addresses of the pods that are selected, ready and not on their way out."""
    selector = service["spec"].get("selector")
    if not selector:
        return
    namespace = service["metadata"]["namespace"]
    early = service["spec"].get("publishNotReadyAddresses", False)
    for pod in pods:
        if pod["metadata"]["namespace"] != namespace or not _selected(pod, selector):
            continue
        address = pod.get("status", {}).get("podIP")
        target = _target(port, pod)
        if address and target and (early or _ready(pod)):
            yield address, target


def _selected(pod: Json, selector: dict[str, str]) -> bool:
    found = pod["metadata"].get("labels", {})
    return all(found.get(key) == value for key, value in selector.items())


def _ready(pod: Json) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _target(port: Json, pod: Json) -> int | None:
    """The port of the pod; a named one may differ from pod to pod."""
    target: int | str = port.get("targetPort") or port["port"]
    if not isinstance(target, str):
        return int(target)
    for container in pod["spec"]["containers"]:
        for found in container.get("ports", []):
            if found.get("name") == target:
                return int(found["containerPort"])
    return None
