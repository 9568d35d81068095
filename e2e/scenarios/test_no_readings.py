"""Prometheus is gone: the numbers of replicas are held, the reason is said, and then it goes on."""

import asyncio
from typing import Any

import pytest

from demo.load import steady_load
from demo.stage import Json
from scenarios.actions import Place
from world.testing import eventually

SCALING = {
    "minReplicas": 1,
    "maxReplicas": 2,
    "queue": {"target": 2},
    "scaleUp": {"stabilizationWindow": "3s", "pods": 1, "period": "5s"},
    "scaleDown": {"stabilizationWindow": "8s"},
}
# Longer than the quiet period after which a replica would leave.
GONE_SECONDS = 20


@pytest.mark.full
async def test_without_prometheus_replicas_are_held_past_the_quiet_period(place: Place) -> None:
    async def scaling() -> Json:
        found: Json = (await place.status())["scaling"]
        return found

    async def until(**fields: Any) -> None:
        await eventually(scaling, lambda one: one.items() >= fields.items(), within=60)

    world = place.stage.world
    ref = await place.serve(scaling=SCALING)
    await place.until_ready()
    async with steady_load(await place.stage.address(ref), ref.name, clients=70, tokens=200):
        await until(desiredReplicas=2)
        world.end_program("prometheus")
        await until(desiredReplicas=2, reason="FailedGetMetrics")
    try:
        await asyncio.sleep(GONE_SECONDS)  # the fault itself, not a wait for a state
        assert (await scaling()).items() >= {
            "desiredReplicas": 2,
            "reason": "FailedGetMetrics",
        }.items()
    finally:
        world.start_program("prometheus")
    await until(desiredReplicas=1)
    assert (await scaling())["reason"] != "FailedGetMetrics"
