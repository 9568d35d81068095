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
    found: Json = {
        "observedGeneration": view.pod["metadata"].get("generation", 1),
        "phase": phase(view),
        "startTime": stamp(view.started),
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
    }
    if view.refused is not None:
        found["reason"], found["message"] = view.refused
        return found
    found["conditions"] = [_dated(one, view.since, now) for one in conditions(view)]
    found["containerStatuses"] = [one.wire() for one in view.main]
    if view.init:
        found["initContainerStatuses"] = [one.wire() for one in view.init]
    if view.ip:
        found |= {"podIP": view.ip, "podIPs": [{"ip": view.ip}]}
    return found


def phase(view: PodView) -> str:
    if view.refused is not None:
        return "Failed"
    policy = _policy(view)
    if not initialized(view):
        failed = any(_failed(one.state) for one in _steps(view))
        return "Failed" if failed and (policy == "Never" or view.deleted) else "Pending"
    if any(isinstance(one.state, Waiting) and one.last is None for one in view.main):
        return "Pending"
    again = policy == "Always" and not view.deleted
    living = [*view.main, *_sidecars(view)]
    if again or any(isinstance(one.state, Running) for one in living):
        return "Running"
    ended = [one.state if isinstance(one.state, Terminated) else one.last for one in view.main]
    if not any(_failed(one) for one in ended):
        return "Succeeded"
    return "Failed" if policy == "Never" or view.deleted else "Running"


def initialized(view: PodView) -> bool:
    if any(one.container_id for one in view.main):  # whatever becomes of a sidecar later
        return True
    steps = all(isinstance(one.state, Terminated) and one.state.code == 0 for one in _steps(view))
    return steps and all(one.started for one in _sidecars(view))


def conditions(view: PodView) -> Iterator[Json]:
    """Conditions without their times; those of others, readiness gates too, are left alone."""
    yield _condition("PodReadyToStartContainers", view.ip is not None)
    steps = [one.name for one in view.init if not _passed(one, view)]
    yield _condition("Initialized", initialized(view), *_incomplete("initialized", steps))
    done = phase(view) in ("Succeeded", "Failed")
    waiting = [one.name for one in [*_sidecars(view), *view.main] if not one.ready]
    problem = ("PodCompleted", "") if done else _incomplete("ready", waiting)
    contained = not done and not waiting
    yield _condition("ContainersReady", contained, *problem)
    gates = "" if not contained else _closed_gate(view.pod)
    if gates:
        problem = ("ReadinessGatesNotReady", gates)
    yield _condition("Ready", contained and not gates, *problem)


def _dated(condition: Json, since: Mapping[str, tuple[str, str]], now: datetime.datetime) -> Json:
    was, moment = since.get(condition["type"], ("", ""))
    changed = was != condition["status"]
    return condition | {"lastTransitionTime": stamp(now) if changed else moment}


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Json:
    # A cleared reason has to be sent as null: the patch would leave the old one.
    why = (None, None) if holds else (reason or None, message or None)
    status = "True" if holds else "False"
    return {"type": kind, "status": status, "reason": why[0], "message": why[1]}


def _incomplete(state: str, names: Sequence[str]) -> tuple[str, str]:
    word = {"initialized": "incomplete", "ready": "unready"}[state]
    return f"ContainersNot{state.title()}", f"containers with {word} status: [{' '.join(names)}]"


def _closed_gate(pod: Json) -> str:
    held = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", [])}
    for gate in pod["spec"].get("readinessGates", []):
        kind = gate["conditionType"]
        if kind not in held:
            return f'corresponding condition of pod readiness gate "{kind}" does not exist.'
        if held[kind] != "True":
            return f'the status of pod readiness gate "{kind}" is not "True", but {held[kind]}'
    return ""


def _policy(view: PodView) -> str:
    return str(view.pod["spec"].get("restartPolicy", "Always"))


def _sidecar_names(view: PodView) -> set[str]:
    found = view.pod["spec"].get("initContainers", [])
    return {one["name"] for one in found if one.get("restartPolicy") == "Always"}


def _steps(view: PodView) -> list[View]:
    return [one for one in view.init if one.name not in _sidecar_names(view)]


def _sidecars(view: PodView) -> list[View]:
    return [one for one in view.init if one.name in _sidecar_names(view)]


def _passed(one: View, view: PodView) -> bool:
    if one.name in _sidecar_names(view):
        return one.started
    return isinstance(one.state, Terminated) and one.state.code == 0


def _failed(state: State | None) -> bool:
    return isinstance(state, Terminated) and state.code != 0
