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
    labels = pod["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def _ready(pod: Json) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod["status"].get("conditions", [])
    return any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def _target(port: Json, pod: Json) -> int | None:
    """The port of the pod; a named one may differ from pod to pod."""
    target: int | str = port.get("targetPort") or port["port"]
    if not isinstance(target, str):
        return int(target)
    for container in pod["spec"]["containers"]:
        for container_port in container.get("ports", []):
            if container_port.get("name") == target:
                return int(container_port["containerPort"])
    return None
