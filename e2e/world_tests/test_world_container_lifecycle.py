"""How containers of a world are probed, restarted and ended."""

import contextlib
from functools import partial
from pathlib import Path

import pytest

import world as worlds
from world.api import PODS, Json
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    condition,
    container_status,
    eventually,
    http_get,
    is_ready,
    termination_message,
)

pytestmark = pytest.mark.world
NEVER: Json = {"restartPolicy": "Never"}
# A probe that fails where it has to, and not for the load of the machine.
PATIENT: Json = {"periodSeconds": 1, "timeoutSeconds": 20}


async def test_readiness_follows_an_http_probe(namespace: WorldNamespace) -> None:
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1}
    pod = await namespace.start_pod(
        a_pod("web", a_container(readinessProbe=probe | {"failureThreshold": 1}))
    )

    def pod_is_unready(pod: Json) -> None:
        assert condition(pod, "Ready") == "False", pod["status"]

    await http_get(pod, "/fail")
    await namespace.wait_for_pod("web", pod_is_unready)
    await http_get(pod, "/heal")
    pod = await namespace.wait_until_ready("web")

    assert container_status(pod)["restartCount"] == 0


async def test_a_failing_liveness_probe_restarts_the_container(namespace: WorldNamespace) -> None:
    probe = PATIENT | {"httpGet": {"path": "/health", "port": 8000}}
    pod = await namespace.start_pod(
        a_pod("web", a_container(livenessProbe=probe | {"failureThreshold": 2}))
    )

    await http_get(pod, "/fail")

    await namespace.wait_for_restart("web")


async def test_a_startup_probe_holds_back_the_others(namespace: WorldNamespace) -> None:
    probe = PATIENT | {"tcpSocket": {"port": 8000}}
    container = a_container(
        args=["--delay", "2"],
        startupProbe=probe | {"failureThreshold": 60},
        livenessProbe=probe | {"failureThreshold": 1},
    )

    pod = await namespace.start_pod(a_pod("slow", container))

    assert container_status(pod)["restartCount"] == 0
    assert container_status(pod)["started"]


async def test_a_startup_probe_that_never_passes_restarts_the_container(
    namespace: WorldNamespace,
) -> None:
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1, "failureThreshold": 1}
    await namespace.create(a_pod("slow", a_container(args=["--delay", "600"], startupProbe=probe)))

    def container_was_restarted(pod: Json) -> None:
        assert container_status(pod).get("restartCount", 0) >= 1, pod["status"]

    assert not is_ready(await namespace.wait_for_pod("slow", container_was_restarted))


async def test_an_exec_probe_runs_beside_the_container(namespace: WorldNamespace) -> None:
    mount = {"name": "state", "mountPath": "/state"}
    container = a_container(
        "sleep 1; touch /state/ready; sleep 1000",
        volumeMounts=[mount],
        readinessProbe={
            "exec": {"command": ["test", "-e", "/state/ready"]},
            "periodSeconds": 1,
        },
    )

    await namespace.start_pod(
        a_pod("worker", container, volumes=[{"name": "state", "emptyDir": {}}])
    )


async def test_a_readiness_gate_keeps_a_pod_unready_until_it_is_opened(
    namespace: WorldNamespace,
) -> None:
    gate = "tessera.dev/answers"
    await namespace.create(a_pod("web", readinessGates=[{"conditionType": gate}]))

    def containers_are_ready(pod: Json) -> None:
        assert condition(pod, "ContainersReady") == "True", pod["status"]

    await namespace.wait_for_pod("web", containers_are_ready)
    assert condition(await namespace.read_pod("web"), "Ready") == "False"

    status = {"status": {"conditions": [{"type": gate, "status": "True"}]}}
    path = PODS.path(namespace.name, "web", "status")
    await namespace.api.patch(path, status, "application/strategic-merge-patch+json")

    pod = await namespace.wait_until_ready("web")
    assert condition(pod, gate) == "True"


async def test_the_end_is_hook_then_term_then_the_rest_of_the_grace(
    namespace: WorldNamespace,
) -> None:
    mount = [{"name": "diary", "mountPath": "/diary"}]
    script = (
        "trap 'echo term >> /diary/log; exit 0' TERM; touch /diary/trapped;"
        "while true; do sleep 0.05; done"
    )
    wait = "until [ -e /diary/trapped ]; do sleep 0.05; done"
    hook = {"exec": {"command": ["sh", "-c", f"{wait}; echo hook >> /diary/log"]}}
    container = a_container(script, lifecycle={"preStop": hook}, volumeMounts=mount)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "diary"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    await namespace.create(claim)
    volumes = [{"name": "diary", "persistentVolumeClaim": {"claimName": "diary"}}]
    await namespace.start_pod(
        a_pod("writer", container, volumes=volumes, terminationGracePeriodSeconds=60)
    )

    await namespace.api.delete(PODS.path(namespace.name, "writer"))
    await namespace.wait_until_empty()

    reader = a_container("cat /diary/log > /dev/termination-log", volumeMounts=mount)
    pod = await namespace.run_pod(a_pod("reader", reader, volumes=volumes, **NEVER))
    assert termination_message(pod) == "hook\nterm\n"


@pytest.mark.smoke
async def test_what_ignores_term_is_killed_with_all_its_children(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    script = "trap '' TERM; sh -c 'trap \"\" TERM; sleep 1000' & sleep 1000; sleep 1000"
    await namespace.start_pod(
        a_pod("stubborn", a_container(script), terminationGracePeriodSeconds=1)
    )
    (pid,) = [
        container.pid for container in world.containers() if container.namespace == namespace.name
    ]
    assert pid is not None

    async def children_run() -> None:
        assert len(session_states(pid)) >= 3

    await eventually(children_run)
    await namespace.api.delete(PODS.path(namespace.name, "stubborn"))
    await namespace.wait_until_empty()

    async def no_process_remains() -> None:
        assert session_states(pid) == []

    await eventually(no_process_remains)


def session_states(leader: int) -> list[str]:
    """Return the states of the processes of a session that have not ended, as `ps` shows them."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, _, _, session, *_ = path.read_bytes().rpartition(b")")[2].split()
            if int(session) == leader and state != b"Z":
                states.append(state.decode())
    return states


async def test_a_process_is_paused_with_its_children_and_a_coroutine_cannot_be(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("sleeping", a_container("sleep 1000 & wait")))
    (pid,) = [
        container.pid for container in world.containers() if container.namespace == namespace.name
    ]
    assert pid is not None

    async def all_are(state: str) -> None:
        states = session_states(pid)
        assert len(states) > 1
        assert set(states) == {state}

    await eventually(partial(all_are, "S"))
    world.pause(namespace.name, "sleeping", "main")
    await eventually(partial(all_are, "T"))
    world.resume(namespace.name, "sleeping", "main")
    await eventually(partial(all_are, "S"))

    await namespace.start_pod(a_pod("web", a_container()))
    with pytest.raises(worlds.WorldError, match="takes no signal"):
        world.pause(namespace.name, "web", "main")


async def test_a_coroutine_gets_the_time_that_it_takes_to_drain(namespace: WorldNamespace) -> None:
    container = a_container(args=["--drain", "8"])
    pod = await namespace.start_pod(a_pod("web", container, terminationGracePeriodSeconds=60))
    await namespace.api.delete(PODS.path(namespace.name, "web"))
    await namespace.wait_until_terminating("web")

    assert (await http_get(pod, "/")).status == 200
    await namespace.wait_until_empty()


async def test_the_end_of_the_log_is_the_message_of_a_failed_container(
    namespace: WorldNamespace,
) -> None:
    script = "for i in $(seq 1 100); do echo line $i; done; exit 4"
    container = a_container(script, terminationMessagePolicy="FallbackToLogsOnError")

    pod = await namespace.run_pod(a_pod("wordy", container, **NEVER))

    lines = termination_message(pod).splitlines()
    assert (len(lines), lines[-1]) == (80, "line 100")


async def test_wrong_arguments_of_a_coroutine_end_in_its_message(namespace: WorldNamespace) -> None:
    container = a_container(args=["--nonsense"], terminationMessagePolicy="FallbackToLogsOnError")

    pod = await namespace.run_pod(a_pod("wrong", container, **NEVER))

    assert container_status(pod)["state"]["terminated"]["exitCode"] == 2
    assert "unrecognized arguments: --nonsense" in termination_message(pod)


async def test_a_killed_container_is_restarted(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("process", a_container("sleep 1000")))
    await namespace.start_pod(a_pod("coroutine"))

    for name in ("process", "coroutine"):
        world.kill(namespace.name, name, "main")
        pod = await namespace.wait_for_restart(name)
        assert container_status(pod)["lastState"]["terminated"]["exitCode"] == 137
