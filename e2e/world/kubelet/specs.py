"""What the specification of a pod says about its containers."""

import datetime
from pathlib import Path

from world import clock
from world.api import Json
from world.kubelet.states import State, Terminated, View, Waiting

KILLED = 137


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
    return View(
        name=spec["name"],
        image=spec["image"],
        state=_lost_with_the_node(pod, previous) or _before_start(pod),
        restarts=previous.get("restartCount", 0),
        container_id=previous.get("containerID", ""),
    )


def _before_start(pod: Json) -> State:
    waits_for_init = bool(pod["spec"].get("initContainers"))
    return Waiting("PodInitializing" if waits_for_init else "ContainerCreating")


def _lost_with_the_node(pod: Json, previous: Json) -> State | None:
    """Return the end of a container that ran when its node died, if its pod is on its way out."""
    running = previous.get("state", {}).get("running")
    if running is None or "deletionTimestamp" not in pod["metadata"]:
        return None
    return Terminated(
        code=KILLED,
        reason="ContainerStatusUnknown",
        message="the container was not found when the node was back",
        started=datetime.datetime.fromisoformat(running["startedAt"]),
        finished=clock.now(),
        container_id=previous["containerID"],
    )


def log_folder(world: Path, pod: Json) -> Path:
    meta = pod["metadata"]
    return world / "logs" / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
