"""The status of a pod out of the states of its containers; the kubelet's rules, without a clock."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from world.api import Json
from world.clock import stamp
from world.kubelet.states import Running, State, Terminated, View, Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """All that the status of a pod follows from."""

    pod: Json
    init: Sequence[View]
    """In the order of the specification; sidecars are among them."""
    main: Sequence[View]
    started: datetime.datetime
    ip: str | None
    host_ip: str
    refused: tuple[str, str] | None = None
    """Reason and message of a pod that was not admitted."""
    deleted: bool = False
    """On its way out: what has ended stays ended."""
    since: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Status and time of the last change of each condition."""


def status(view: PodView, now: datetime.datetime) -> Json:
    """The part of `pod.status` that belongs to a kubelet."""
    pod_status: Json = {
        "observedGeneration": view.pod["metadata"].get("generation", 1),
        "phase": phase(view),
        "startTime": stamp(view.started),
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
    }
    if view.refused is not None:
        pod_status["reason"], pod_status["message"] = view.refused
        return pod_status
    pod_status["conditions"] = [
        _dated(condition, view.since, now) for condition in conditions(view)
    ]
    pod_status["containerStatuses"] = [container.wire() for container in view.main]
    if view.init:
        pod_status["initContainerStatuses"] = [container.wire() for container in view.init]
    if view.ip:
        pod_status |= {"podIP": view.ip, "podIPs": [{"ip": view.ip}]}
    return pod_status


def phase(view: PodView) -> str:
    if view.refused is not None:
        return "Failed"
    policy = _policy(view)
    if not initialized(view):
        failed = any(_failed(container.state) for container in _steps(view))
        return "Failed" if failed and (policy == "Never" or view.deleted) else "Pending"
    if any(
        isinstance(container.state, Waiting) and container.last is None for container in view.main
    ):
        return "Pending"
    again = policy == "Always" and not view.deleted
    living = [*view.main, *_sidecars(view)]
    if again or any(isinstance(container.state, Running) for container in living):
        return "Running"
    ended = [
        container.state if isinstance(container.state, Terminated) else container.last
        for container in view.main
    ]
    if not any(_failed(state) for state in ended):
        return "Succeeded"
    return "Failed" if policy == "Never" or view.deleted else "Running"


def initialized(view: PodView) -> bool:
    if any(
        container.container_id for container in view.main
    ):  # whatever becomes of a sidecar later
        return True
    steps = all(
        isinstance(container.state, Terminated) and container.state.code == 0
        for container in _steps(view)
    )
    return steps and all(sidecar.started for sidecar in _sidecars(view))


def conditions(view: PodView) -> Iterator[Json]:
    """Conditions without their times; those of others, readiness gates too, are left alone."""
    yield _condition("PodReadyToStartContainers", view.ip is not None)
    steps = [container.name for container in view.init if not _passed(container, view)]
    yield _condition("Initialized", initialized(view), *_incomplete("initialized", steps))
    done = phase(view) in ("Succeeded", "Failed")
    waiting = [
        container.name for container in [*_sidecars(view), *view.main] if not container.ready
    ]
    problem = ("PodCompleted", "") if done else _incomplete("ready", waiting)
    contained = not done and not waiting
    yield _condition("ContainersReady", contained, *problem)
    gates = "" if not contained else _closed_gate(view.pod)
    if gates:
        problem = ("ReadinessGatesNotReady", gates)
    yield _condition("Ready", contained and not gates, *problem)


def _dated(condition: Json, since: Mapping[str, tuple[str, str]], now: datetime.datetime) -> Json:
    previous, moment = since.get(condition["type"], ("", ""))
    changed = previous != condition["status"]
    return condition | {"lastTransitionTime": stamp(now) if changed else moment}


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Json:
    # A cleared reason has to be sent as null: the patch would leave the old one.
    cause = (None, None) if holds else (reason or None, message or None)
    status = "True" if holds else "False"
    return {"type": kind, "status": status, "reason": cause[0], "message": cause[1]}


def _incomplete(state: str, names: Sequence[str]) -> tuple[str, str]:
    word = {"initialized": "incomplete", "ready": "unready"}[state]
    return f"ContainersNot{state.title()}", f"containers with {word} status: [{' '.join(names)}]"


def _closed_gate(pod: Json) -> str:
    statuses = {
        condition["type"]: condition["status"]
        for condition in pod.get("status", {}).get("conditions", [])
    }
    for gate in pod["spec"].get("readinessGates", []):
        kind = gate["conditionType"]
        if kind not in statuses:
            return f'corresponding condition of pod readiness gate "{kind}" does not exist.'
        if statuses[kind] != "True":
            return f'the status of pod readiness gate "{kind}" is not "True", but {statuses[kind]}'
    return ""


def _policy(view: PodView) -> str:
    return str(view.pod["spec"].get("restartPolicy", "Always"))


def _sidecar_names(view: PodView) -> set[str]:
    init_containers = view.pod["spec"].get("initContainers", [])
    return {
        container["name"]
        for container in init_containers
        if container.get("restartPolicy") == "Always"
    }


def _steps(view: PodView) -> list[View]:
    return [container for container in view.init if container.name not in _sidecar_names(view)]


def _sidecars(view: PodView) -> list[View]:
    return [container for container in view.init if container.name in _sidecar_names(view)]


def _passed(container: View, view: PodView) -> bool:
    if container.name in _sidecar_names(view):
        return container.started
    return isinstance(container.state, Terminated) and container.state.code == 0


def _failed(state: State | None) -> bool:
    return isinstance(state, Terminated) and state.code != 0
