"""Speculation is switched off while so many requests run that it makes engines slower."""

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from scenarios.actions import ScenarioNamespace
from scenarios.commands import explain
from scenarios.lifecycle import write_fleet
from scenarios.replay import Target, stream_until
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import DEPLOYMENTS
from world import World, start
from world.clock import now, stamp
from world.testing import eventually

# Objectives that let more requests run at once than the break-even, which is near 70.
_SPEC: dict[str, Any] = {
    "engine": {"speculation": {"method": "NGram", "tokens": 8}},
    "slo": {"ttftP95": "5s", "itlP95": "200ms"},
    "context": {"maxModelLen": 1024, "typicalInputTokens": 100, "typicalOutputTokens": 200},
    "replicas": 1,
}
# Steps of a second, since each token of a stream costs this machine some time.
_ENGINE = {"TESSERA_SIM_ACCEPTANCE": "0.65", "TESSERA_SIM_SPEED": json.dumps({"weights": 1.0})}
_FEW, _MANY = 4, 120
_OUTPUT_TOKENS = 400


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@pytest.mark.full
async def test_rising_load_switches_speculation_off_by_a_rollout_and_the_status_says_why(
    namespace: ScenarioNamespace,
) -> None:
    env = [{"name": name, "value": value} for name, value in _ENGINE.items()]
    service = await namespace.apply_service(**_SPEC, podTemplate={"env": env})
    await namespace.wait_until_ready()
    assert await _speculating_variants(namespace)
    target = Target(base=f"{await namespace.cluster.address(service)}/v1", model="chat")
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as clients:

        def send(streams: int) -> None:
            for _ in range(streams):
                clients.create_task(stream_until(target, ended, _OUTPUT_TOKENS))

        send(_FEW)
        faster = await namespace.wait_for_condition("chat", "Speculating", "FasterDecoding")
        send(_MANY - _FEW)
        losing = await namespace.wait_for_condition("chat", "Speculating", "Losing", within=600)
        await _let_a_quarter_of_an_hour_pass(namespace)
        off = await namespace.wait_for_condition("chat", "Speculating", "HighConcurrency")
        ended.set()
    for condition in (faster, losing, off):
        namespace.cluster.say(condition["message"])
    assert [each["status"] for each in (faster, losing, off)] == ["True", "True", "False"]
    assert re.search(r"with \d+ running requests it decodes 0\.\d+ times as fast", off["message"])
    assert "Switched off; it is on again after 24 hours" in off["message"]

    async def is_off() -> None:
        status = (await namespace.service_status())["speculation"]
        assert not status["enabled"]
        assert float(status["acceptance"]) == pytest.approx(0.65, abs=0.03)
        assert await _speculating_variants(namespace) == []
        decision = (await explain(namespace))["speculation"]
        assert (decision["reason"], decision["message"]) == ("HighConcurrency", off["message"])

    await eventually(is_off)


async def _speculating_variants(namespace: ScenarioNamespace) -> list[str]:
    """Return the Deployments whose engines speculate."""
    return [
        deployment["metadata"]["name"]
        for deployment in await namespace.list_objects(DEPLOYMENTS)
        if any(
            argument.startswith("--speculative-config=")
            for argument in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        )
    ]


async def _let_a_quarter_of_an_hour_pass(namespace: ScenarioNamespace) -> None:
    """Write into the status, which is the operator's only memory, that it has lost for so long."""
    path = f"{INFERENCE_SERVICES.path(namespace.name, 'chat')}/status"
    since = stamp(now() - timedelta(minutes=15))
    patch: dict[str, Any] = {"status": {"speculation": {"losingSince": since}}}
    await namespace.cluster.api.patch(path, patch)
