"""The gateway of the chart: a service without replicas, and the first request for it."""

import json
import time
from http import HTTPStatus

import httpx
import pytest

from chart_tests.release import Release
from demo.cluster import NAMESPACE, Json, fund
from tessera.resources.api_resources import INFERENCE_SERVICES
from world.testing import eventually

GATEWAY = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tessera-gateway"
SERVICE = f"/api/v1/namespaces/{NAMESPACE}/services/tessera-gateway"


@pytest.mark.full
async def test_a_request_at_the_gateway_wakes_a_service_that_sleeps(release: Release) -> None:
    small = {"requests": {"cpu": "100m", "memory": "64Mi"}}
    await release.install(gateway={"enabled": True, "resources": small})

    async def available() -> int:
        status = (await release.cluster.api.get(GATEWAY)).get("status", {})
        return int(status.get("availableReplicas", 0))

    await eventually(available, lambda count: count == 1, within=120)
    namespace = await release.namespace()
    await fund(release.cluster, "sleepers", namespace)
    scaling = {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "30s"}}
    await release.apply(namespace, "chat", scaling=scaling)

    async def service() -> Json:
        return await release.cluster.api.get(INFERENCE_SERVICES.path(namespace, "chat"))

    def asleep(body: Json) -> bool:
        status = body.get("status", {})
        reason = status.get("scaling", {}).get("reason")
        return bool(reason == "ScaledToZero" and not status.get("replicas"))

    await release.wait_for_reason(namespace, "chat", "Ready", "CompletionSucceeded", within=120)
    await eventually(service, asleep, within=180)
    created = json.loads(
        await release.cluster.tessera("key", "create", "--tenant", "sleepers", "-o", "json")
    )
    host = (await release.cluster.api.get(SERVICE))["spec"]["clusterIP"]
    body = {"model": "chat", "prompt": "A tile of a mosaic", "max_tokens": 4}
    started = time.monotonic()
    async with httpx.AsyncClient(timeout=120) as client:
        response = await client.post(
            f"http://{host}/v1/completions",
            json=body,
            headers={"Authorization": f"Bearer {created['key']}"},
        )
    seconds = time.monotonic() - started
    print(f"woke in {seconds:.1f} s: {dict(response.headers)}")
    assert response.status_code == HTTPStatus.OK, response.text
    changes = (await service())["status"]["scaling"]["recentChanges"]
    assert [change["replicas"] for change in changes][-2:] == [0, 1]
