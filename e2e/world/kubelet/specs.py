"""What the specification of a pod says about its containers."""

from pathlib import Path

from world.api import Json
from world.kubelet.states import View, Waiting


def is_sidecar(spec: Json) -> bool:
    """An init container that goes on beside the others."""
    return spec.get("restartPolicy") == "Always"


def policy(pod: Json, spec: Json, *, init: bool) -> str:
    """When a container is started again; init containers until they succeed, or never."""
    found = str(spec.get("restartPolicy") or pod["spec"].get("restartPolicy", "Always"))
    return "OnFailure" if init and found == "Always" and not is_sidecar(spec) else found


def first_view(pod: Json, spec: Json) -> View:
    """A container before its start here.

    One that ran before, on a node that was dead meanwhile, goes on counting its restarts.
    """
    status = pod.get("status", {})
    told = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    before: Json = next((one for one in told if one["name"] == spec["name"]), {})
    waits_for_init = bool(pod["spec"].get("initContainers"))
    return View(
        name=spec["name"],
        image=spec["image"],
        state=Waiting("PodInitializing" if waits_for_init else "ContainerCreating"),
        restarts=before.get("restartCount", 0),
        container_id=before.get("containerID", ""),
    )


def log_folder(world: Path, pod: Json) -> Path:
    meta = pod["metadata"]
    return world / "logs" / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
