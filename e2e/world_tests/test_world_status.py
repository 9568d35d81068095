"""The status of a pod follows from its containers."""

import datetime
from dataclasses import replace
from typing import Any

import pytest

from world.kubelet.states import Running, Terminated, View, Waiting
from world.kubelet.status import PodView, phase, status
from world.testing import a_pod, condition

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(minutes=1)


def terminated(code: int) -> Terminated:
    return Terminated(
        code=code, reason="", message="", started=NOW, finished=NOW, container_id="world://1"
    )


def a_view(state: Any, *, last: Terminated | None = None, **fields: Any) -> View:
    common = {"name": "main", "image": "i", "state": state, "last": last}
    identity = "" if isinstance(state, Waiting) and last is None else "world://1"
    return View(**common, container_id=identity, **fields)


def pod_view(
    *main: View, init: tuple[View, ...] = (), deleted: bool = False, **spec: Any
) -> PodView:
    specs = [{"name": view.name, "image": "i"} for view in init]
    pod = a_pod("p", initContainers=specs, **spec)
    return PodView(
        pod=pod, init=init, main=main, started=NOW, ip="127.10.1.1", host_ip="127.10.0.2",
        deleted=deleted,
    )  # fmt: skip


RUNS = Running(NOW)
CRASHED = Waiting("CrashLoopBackOff")
CREATED = Waiting("ContainerCreating")


@pytest.mark.parametrize(
    ("states", "policy", "expected"),
    [
        ([(CREATED, None)], "Always", "Pending"),
        ([(RUNS, None), (CREATED, None)], "Always", "Pending"),
        ([(RUNS, None)], "Always", "Running"),
        ([(RUNS, None), (terminated(1), None)], "Never", "Running"),
        ([(CRASHED, terminated(1))], "Always", "Running"),
        ([(terminated(0), None)], "Always", "Running"),
        ([(terminated(0), None), (terminated(0), None)], "Never", "Succeeded"),
        ([(terminated(0), None), (terminated(1), None)], "Never", "Failed"),
        ([(terminated(1), None)], "OnFailure", "Running"),
        ([(terminated(0), None)], "OnFailure", "Succeeded"),
    ],
)
def test_the_phase_follows_from_the_containers(
    states: list[tuple[Any, Terminated | None]], policy: str, expected: str
) -> None:
    main = [a_view(state, last=last) for state, last in states]

    assert phase(pod_view(*main, restartPolicy=policy)) == expected


def test_a_pod_has_not_ended_while_a_sidecar_runs() -> None:
    sidecar = a_view(RUNS)

    view = pod_view(a_view(terminated(0)), init=(sidecar,), restartPolicy="Never")
    view.pod["spec"]["initContainers"][0]["restartPolicy"] = "Always"

    assert phase(view) == "Running"


def test_a_deleted_pod_ends_in_a_final_phase() -> None:
    assert phase(pod_view(a_view(terminated(0)), deleted=True)) == "Succeeded"
    assert phase(pod_view(a_view(terminated(143)), deleted=True)) == "Failed"


def test_a_pod_is_pending_until_its_init_containers_have_succeeded() -> None:
    step = a_view(RUNS)

    view = pod_view(a_view(Waiting("PodInitializing")), init=(step,))

    assert phase(view) == "Pending"
    assert condition({"status": status(view, NOW)}, "Initialized") == "False"


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    first = status(pod_view(a_view(RUNS, ready=False)), NOW)
    since = {
        entry["type"]: (entry["status"], entry["lastTransitionTime"])
        for entry in first["conditions"]
    }

    later = status(replace(pod_view(a_view(RUNS, ready=True)), since=since), LATER)

    times = {entry["type"]: entry["lastTransitionTime"] for entry in later["conditions"]}
    assert times["Initialized"] == "2026-01-01T00:00:00Z"
    assert times["Ready"] == "2026-01-01T00:01:00Z"
