"""What the specification of a pod says about its containers."""

from pathlib import Path

from world.api import Json
from world.kubelet.states import View, Waiting


def is_sidecar(spec: Json) -> bool:
    """An init container that goes on beside the others."""
    return spec.get("restartPolicy") == "Always"


def policy(pod: Json, spec: Json, *, init: bool) -> str:
    """When a container is started again; init containers until they succeed, or never."""
    restart_policy = str(spec.get("restartPolicy") or pod["spec"].get("restartPolicy", "Always"))
    return (
        "OnFailure"
        if init and restart_policy == "Always" and not is_sidecar(spec)
        else restart_policy
    )


def first_view(pod: Json, spec: Json) -> View:
    """A container before its start here.

    One that ran before, on a node that was dead meanwhile, goes on counting its restarts.
    """
    status = pod.get("status", {})
    statuses = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    previous: Json = next(
        (
            container_status
            for container_status in statuses
            if container_status["name"] == spec["name"]
        ),
        {},
    )
    waits_for_init = bool(pod["spec"].get("initContainers"))
    return View(
        name=spec["name"],
        image=spec["image"],
        state=Waiting("PodInitializing" if waits_for_init else "ContainerCreating"),
        restarts=previous.get("restartCount", 0),
        container_id=previous.get("containerID", ""),
    )


def log_folder(world: Path, pod: Json) -> Path:
    meta = pod["metadata"]
    return world / "logs" / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
