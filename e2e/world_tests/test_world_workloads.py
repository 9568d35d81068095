"""Controllers of a real control plane find in a world what they expect of nodes."""

from functools import partial

import pytest

from world.api import ApiError, Json
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    a_workload,
    condition,
    container_status,
    eventually,
    is_ready,
)

pytestmark = pytest.mark.world
LOOPS = {"name": "main", "image": "world/sh:1", "args": ["exec sleep 1000"]}


async def test_a_deployment_becomes_available_and_scales(namespace: WorldNamespace) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/web"

    async def replicas_are_ready(count: int) -> None:
        status = (await namespace.api.get(path))["status"]
        assert status.get("readyReplicas") == count, status

    await namespace.create(a_workload("Deployment", "web", replicas=2))
    await eventually(partial(replicas_are_ready, 2))

    await namespace.api.patch(f"{path}/scale", {"spec": {"replicas": 4}})

    await eventually(partial(replicas_are_ready, 4))
    addresses = {pod["status"]["podIP"] for pod in await namespace.list_pods("app=web")}
    assert len(addresses) == 4


async def test_a_rollout_replaces_every_pod(namespace: WorldNamespace) -> None:
    manifest = a_workload("Deployment", "web", replicas=2)
    await namespace.create(manifest)
    before = {pod["metadata"]["uid"] for pod in await namespace.wait_for_ready_pods(2)}

    template = {"spec": {"template": {"metadata": {"annotations": {"edition": "2"}}}}}
    path = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/web"
    await namespace.api.patch(path, template)

    async def pods_are_replaced() -> None:
        uids = {pod["metadata"]["uid"] for pod in await namespace.list_pods("app=web")}
        assert len(uids) == 2
        assert before & uids == set()

    await eventually(pods_are_replaced)


async def test_a_daemon_set_runs_on_every_node_that_it_tolerates(namespace: WorldNamespace) -> None:
    spec = {"tolerations": [{"key": "for", "value": "victims"}]}
    await namespace.create(a_workload("DaemonSet", "agent", LOOPS, template=spec))

    pods = await namespace.wait_for_ready_pods(3, "app=agent")

    # Not on the spot node, whose taint it does not tolerate.
    assert {pod["spec"]["nodeName"] for pod in pods} == {"a100", "control", "victim"}


@pytest.mark.smoke
async def test_a_job_is_complete_when_its_pods_have_succeeded(namespace: WorldNamespace) -> None:
    spec = {"restartPolicy": "Never"}
    job = a_workload("Job", "sums", a_container("true"), completions=2, template=spec)
    await namespace.create(job)

    async def job_is_complete() -> None:
        status = await job_status(namespace, "Complete")
        assert status.get("succeeded") == 2, status

    await eventually(job_is_complete)


async def job_status(namespace: WorldNamespace, kind: str) -> Json:
    """Return the status of the Job `sums`, which must have a true condition of this kind."""
    body = await namespace.api.get(f"/apis/batch/v1/namespaces/{namespace.name}/jobs/sums")
    assert condition(body, kind) == "True", body["status"]
    status: Json = body["status"]
    return status


async def test_a_job_whose_pod_fails_has_failed(namespace: WorldNamespace) -> None:
    spec = {"restartPolicy": "Never"}
    job = a_workload("Job", "sums", a_container("exit 7"), backoffLimit=0, template=spec)
    await namespace.create(job)

    await eventually(partial(job_status, namespace, "Failed"))

    (pod,) = await namespace.list_pods("app=sums")
    assert container_status(pod)["state"]["terminated"]["exitCode"] == 7


async def test_an_eviction_waits_for_the_disruption_budget(namespace: WorldNamespace) -> None:
    await namespace.create(a_workload("Deployment", "web", replicas=2))
    pods = await namespace.wait_for_ready_pods(2)
    budget = {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}
    await namespace.create(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "web"},
            "spec": budget,
        }
    )
    path = f"/apis/policy/v1/namespaces/{namespace.name}/poddisruptionbudgets/web"

    async def budget_says(field: str, count: int) -> None:
        status = (await namespace.api.get(path))["status"]
        assert status.get(field) == count, status

    await eventually(partial(budget_says, "currentHealthy", 2))

    with pytest.raises(ApiError) as raised:
        await evict(namespace, pods[0])
    assert raised.value.status == 429

    await namespace.api.patch(path, {"spec": {"minAvailable": 1}})
    await eventually(partial(budget_says, "disruptionsAllowed", 1))
    await evict(namespace, pods[0])

    async def evicted_pod_is_replaced() -> None:
        present = await namespace.list_pods("app=web")
        assert [is_ready(pod) for pod in present] == [True, True]
        assert pods[0]["metadata"]["name"] not in {pod["metadata"]["name"] for pod in present}

    await eventually(evicted_pod_is_replaced)


async def evict(namespace: WorldNamespace, pod: Json) -> None:
    name = pod["metadata"]["name"]
    meta = {"name": name, "namespace": namespace.name}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    await namespace.api.create(f"/api/v1/namespaces/{namespace.name}/pods/{name}/eviction", body)


async def test_init_containers_run_in_order_before_the_others(namespace: WorldNamespace) -> None:
    volume = {"name": "shared", "emptyDir": {}}
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    steps = [
        a_container(f"echo {word} >> /shared/log", volumeMounts=mounts) | {"name": word}
        for word in ("first", "second")
    ]
    main = a_container("cat /shared/log > /dev/termination-log", volumeMounts=mounts)

    pod = await namespace.run_pod(
        a_pod("steps", main, initContainers=steps, volumes=[volume], restartPolicy="Never")
    )

    assert container_status(pod)["state"]["terminated"]["message"] == "first\nsecond\n"


async def test_a_sidecar_is_ended_after_the_main_container(namespace: WorldNamespace) -> None:
    sidecar = a_container(restartPolicy="Always") | {"name": "sidecar"}
    pod = await namespace.run_pod(
        a_pod("job", a_container("exit 0"), initContainers=[sidecar], restartPolicy="Never")
    )

    assert pod["status"]["phase"] == "Succeeded"
    sidecar_end = container_status(pod, "sidecar")["state"]["terminated"]
    assert sidecar_end["finishedAt"] >= container_status(pod)["state"]["terminated"]["finishedAt"]


async def test_a_failing_container_is_restarted_with_a_growing_pause(
    namespace: WorldNamespace,
) -> None:
    await namespace.create(a_pod("crash", a_container("exit 3")))

    def container_backs_off(pod: Json) -> None:
        status = container_status(pod)
        assert status.get("restartCount", 0) >= 2, status
        assert status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff", status
        assert status["lastState"]["terminated"]["exitCode"] == 3
        assert pod["status"]["phase"] == "Running"

    await namespace.wait_for_pod("crash", container_backs_off)


async def test_an_image_outside_the_table_is_named_with_the_table(
    namespace: WorldNamespace,
) -> None:
    await namespace.create(a_pod("strange", {"name": "main", "image": "example.org/nothing:1"}))

    def image_is_named(pod: Json) -> None:
        waiting = container_status(pod).get("state", {}).get("waiting", {})
        assert waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff"), pod["status"]
        assert "example.org/nothing:1" in waiting["message"]
        assert "kubelet/images.py" in waiting["message"]

    await namespace.wait_for_pod("strange", image_is_named)


async def test_a_forced_deletion_frees_the_name_at_once(namespace: WorldNamespace) -> None:
    stubborn = a_container("trap '' TERM; sleep 1000")
    await namespace.start_pod(a_pod("stubborn", stubborn, terminationGracePeriodSeconds=600))

    path = f"/api/v1/namespaces/{namespace.name}/pods/stubborn"
    await namespace.api.delete(path, {"gracePeriodSeconds": 0})
    await namespace.start_pod(a_pod("stubborn"))
