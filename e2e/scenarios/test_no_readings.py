"""Without Prometheus the replicas do not change and the reason says so; later scaling resumes."""

import asyncio
from functools import partial
from typing import Any

import pytest

from demo.cluster import Json
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from world.testing import eventually

SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 2,
    "queue": {"target": 2},
    "scaleUp": {"stabilizationWindow": "3s", "pods": 1, "period": "5s"},
    "scaleDown": {"stabilizationWindow": "8s"},
}
# Longer than the stabilization window after which a replica would be removed.
GONE_SECONDS = 20


@pytest.mark.full
async def test_without_prometheus_replicas_do_not_change_past_the_stabilization_window(
    namespace: ScenarioNamespace,
) -> None:
    async def check_scaling(**fields: Any) -> Json:
        scaling: Json = (await namespace.service_status()).get("scaling", {})
        assert scaling.items() >= fields.items()
        return scaling

    async def has_readings_again() -> None:
        scaling = await check_scaling(desiredReplicas=1)
        assert scaling["reason"] != "FailedGetMetrics"

    holds_without_readings = partial(check_scaling, desiredReplicas=2, reason="FailedGetMetrics")
    world = namespace.cluster.world
    ref = await namespace.apply_service(scaling=SCALING)
    await namespace.wait_until_ready()
    async with steady_load(await namespace.cluster.address(ref), ref.name, clients=70, tokens=200):
        await eventually(partial(check_scaling, desiredReplicas=2))
        world.end_program("prometheus")
        await eventually(holds_without_readings)
    try:
        await asyncio.sleep(GONE_SECONDS)  # the fault itself, not a wait for a state
        await holds_without_readings()
    finally:
        world.start_program("prometheus")
    await eventually(has_readings_again)
