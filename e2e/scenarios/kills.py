"""Kills the operator."""

from demo.cluster import NAMESPACE, InstalledCluster, Json
from world.testing import eventually


async def read_operator_pod(cluster: InstalledCluster) -> Json:
    pods = await cluster.api.get(
        f"/api/v1/namespaces/{NAMESPACE}/pods",
        labelSelector="app.kubernetes.io/component=operator",
    )
    (pod,) = pods["items"]
    body: Json = pod
    return body


async def kill_operator(cluster: InstalledCluster) -> None:
    """Kill the operator with SIGKILL, and wait until its next process runs, leader or not."""
    pod = await read_operator_pod(cluster)
    name = pod["metadata"]["name"]
    restarts_before = pod["status"]["containerStatuses"][0]["restartCount"]
    cluster.world.kill(NAMESPACE, name, "operator")

    async def next_process_runs() -> None:
        status = (await read_operator_pod(cluster))["status"]["containerStatuses"][0]
        assert status["restartCount"] > restarts_before
        assert "running" in status["state"], status

    await eventually(next_process_runs)
