"""The real HorizontalPodAutoscaler scales a service by /scale, to what Tessera recommends."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chart_tests.release import Release
from demo.cluster import CHART, NAMESPACE, InstalledCluster, install
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from scenarios.external_metrics import external_metrics
from scenarios.streams import kubectl_scale, wait_for_replicas
from tessera.resources.api_resources import HORIZONTAL_POD_AUTOSCALERS
from world.testing import eventually

# Short windows, so that the policy recommends within seconds.
SCALING = {
    "minReplicas": 1,
    "maxReplicas": 3,
    "policy": "QueueAndActivity",
    "queue": {"target": 1},
    "scaleUp": {"stabilizationWindow": "1s", "pods": 4, "period": "2s"},
    "scaleDown": {"stabilizationWindow": "5s"},
}


@pytest.fixture
async def autoscaling(cluster: InstalledCluster) -> AsyncIterator[None]:
    """The installed chart may write HorizontalPodAutoscalers, for the time of a test."""
    await cluster.run(
        *("helm", "upgrade", "tessera", str(CHART), "--namespace", NAMESPACE),
        *("--reuse-values", "--set", "hpa.enabled=true"),
    )
    await Release(cluster).wait_until_rolled_out()
    yield
    await install(cluster)
    await Release(cluster).wait_until_rolled_out()


async def list_autoscalers(namespace: ScenarioNamespace) -> list[str]:
    objects = await namespace.list_objects(HORIZONTAL_POD_AUTOSCALERS)
    return [body["metadata"]["name"] for body in objects]


@pytest.mark.usefixtures("autoscaling")
@pytest.mark.full
async def test_the_autoscaler_of_the_cluster_follows_the_recommendation(
    namespace: ScenarioNamespace, tmp_path: Path
) -> None:
    ref = await namespace.apply_service(scaling={"mode": "HPA", **SCALING})
    await namespace.wait_until_ready()

    async def is_scaled_externally() -> None:
        scaling = (await namespace.service_status())["scaling"]
        assert (scaling["desiredReplicas"], scaling["reason"]) == (1, "ScaledExternally")
        assert "kubectl -n" in scaling["message"]
        assert await list_autoscalers(namespace) == ["chat"]

    async def is_scaled_up() -> None:
        status = await namespace.service_status()
        assert (status.get("replicas"), status.get("readyReplicas")) == (3, 3)
        assert status["scaling"]["message"] == "spec.replicas is 3"

    await eventually(is_scaled_externally)
    async with external_metrics(namespace, tmp_path):
        await kubectl_scale(namespace.cluster, ref, 1)
        base = await namespace.cluster.address(ref)
        async with steady_load(base, ref.name, clients=120, tokens=150) as load:
            await eventually(is_scaled_up)
        assert not load.failures
        await wait_for_replicas(namespace, 1)

    await namespace.apply_service(scaling=SCALING)

    async def is_fixed() -> None:
        assert (await namespace.service_status())["scaling"]["reason"] == "SetByUser"
        assert await list_autoscalers(namespace) == []

    await eventually(is_fixed)
