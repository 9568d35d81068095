"""How the operator is killed."""

from demo.stage import NAMESPACE, Json, Stage
from world.testing import eventually


async def operator_pod(stage: Stage) -> Json:
    pods = await stage.api.get(
        f"/api/v1/namespaces/{NAMESPACE}/pods",
        labelSelector="app.kubernetes.io/component=operator",
    )
    (pod,) = pods["items"]
    found: Json = pod
    return found


async def kill_operator(stage: Stage) -> None:
    """SIGKILL, and wait until the next process runs; it need not lead yet."""
    pod = await operator_pod(stage)
    name = pod["metadata"]["name"]
    before = pod["status"]["containerStatuses"][0]["restartCount"]
    stage.world.kill(NAMESPACE, name, "operator")

    async def restarted() -> Json:
        status: Json = (await operator_pod(stage))["status"]["containerStatuses"][0]
        return status

    await eventually(
        restarted, lambda one: one["restartCount"] > before and one["state"].get("running"),
        within=60,
    )  # fmt: skip
