"""Engines that are twice as slow as predicted get replicas, by their devices or their steps."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.replay import Target, poisson_trace, replay
from scenarios.scaling import recording, write_fleet
from scenarios.streams import wait_for_replicas
from scenarios.test_scale_down import without_exporter
from tessera_lab.sim.launch.engine_speed import as_json
from tessera_lab.sim.launch.environment import SPEED
from tests.builders import a_service, a_snapshot, compute_service_plan
from world import World, start
from world.testing import eventually

_TIMES = 2.0
# A replica of the predicted speed carries it, and one that is twice as slow does not.
_REQUESTS_PER_SECOND = 7.5
# Two minutes of steps, and as long for the samples of an exporter that is gone.
_MEASURED_SECONDS = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@pytest.mark.full
async def test_slow_engines_get_replicas_by_their_devices_and_without_dcgm_by_their_steps(
    gateway: Gateway,
) -> None:
    namespace = gateway.namespace
    await _serve(namespace)
    await answered(gateway)
    headers = {"Authorization": f"Bearer {gateway.key}"}
    target = Target(base=gateway.base, model="chat", headers=headers)
    trace = poisson_trace(
        lambda _: _REQUESTS_PER_SECOND, 900, prompt_tokens=50, output_tokens=60, seed=3
    )
    async with recording(namespace, "chat") as recorder, asyncio.TaskGroup() as group:

        async def two_serve(source: str) -> None:
            status = await namespace.service_status()
            message = status["scaling"]["message"]
            slow = re.search(r"steps take (\d\.\d\d) times as long \((\w+)\)", message)
            assert slow is not None, message
            assert slow[2] == source
            assert float(slow[1]) == pytest.approx(_TIMES, rel=0.1)
            assert status["readyReplicas"] >= 2, status

        load = group.create_task(replay(target, trace))
        try:
            await eventually(lambda: two_serve("DeviceActivity"), within=_MEASURED_SECONDS)
            async with without_exporter(namespace):
                await eventually(lambda: two_serve("EngineSteps"), within=_MEASURED_SECONDS)
        finally:
            namespace.cluster.say(recorder.report("chat"))
            load.cancel()


async def _serve(namespace: ScenarioNamespace) -> None:
    """Apply a service on the smallest slices, whose engines take twice as long for all."""
    choice = compute_service_plan(a_snapshot(a_service())).choice
    assert choice is not None
    slow = choice.fit.step.scaled(_TIMES, "Measured", None)
    await namespace.apply_service(
        scaling={"policy": "Capacity", "minReplicas": 1, "maxReplicas": 3},
        slo={"itlP95": "200ms"},
        context={"maxModelLen": 1024, "typicalInputTokens": 50, "typicalOutputTokens": 60},
        engine={"maxNumSeqs": 12},
        podTemplate={"env": [{"name": SPEED, "value": as_json(slow)}]},
    )
    await wait_for_replicas(namespace, 1)
