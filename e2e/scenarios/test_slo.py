"""What a service attains of its SLO, as the engines and the gateway count it."""

import asyncio
import json
import re
from collections.abc import Iterator

import pytest

from demo.cluster import Json
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.lifecycle import write_fleet
from scenarios.replay import Target, poisson_trace, replay
from world import World, start

# Seconds of a step, which are about the gap between two tokens. The objective lies between two
# edges of the engines' buckets, and far enough above the steps for the delays of a busy machine.
_SECONDS_PER_STEP = {"fast": 0.1, "between": 0.52, "slow": 0.9}
_SLO = {"ttftP95": "10s", "itlP95": "740ms"}
_REQUESTS_PER_SECOND, _SECONDS = 2.0, 75


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


async def test_a_service_says_whether_it_meets_its_slo_by_engines_and_by_the_gateway(
    gateway: Gateway,
) -> None:
    namespace = gateway.namespace
    for name, seconds in _SECONDS_PER_STEP.items():
        await _serve(namespace, name, seconds)
    await _serve(namespace, "counted", _SECONDS_PER_STEP["between"])
    for name in (*_SECONDS_PER_STEP, "counted"):
        await namespace.wait_until_ready(name)
    await answered(gateway, "counted")
    targets = [
        Target(base=f"{await namespace.cluster.address(namespace.ref(name))}/v1", model=name)
        for name in _SECONDS_PER_STEP
    ]
    headers = {"Authorization": f"Bearer {gateway.key}"}
    targets.append(Target(base=gateway.base, model="counted", headers=headers))
    trace = poisson_trace(
        lambda _: _REQUESTS_PER_SECOND, _SECONDS, prompt_tokens=50, output_tokens=8, seed=1
    )
    async with asyncio.TaskGroup() as load:
        for target in targets:
            load.create_task(replay(target, trace))
        fast = await namespace.wait_for_condition("fast", "SLOMet", "Met", within=_SECONDS)
        slow = await namespace.wait_for_condition("slow", "SLOMet", "Missed", within=_SECONDS)
        wide = await namespace.wait_for_condition(
            "between", "SLOMet", "BucketTooWide", within=_SECONDS
        )
        counted = await namespace.wait_for_condition("counted", "SLOMet", "Met", within=_SECONDS)
    for condition in (fast, slow, wide, counted):
        namespace.cluster.say(condition["message"])
    assert [condition["status"] for condition in (fast, slow, wide, counted)] == [
        "True",
        "False",
        "Unknown",
        "True",
    ]
    assert "ITL within 740ms: 0.0 % of" in slow["message"]
    assert re.search(r"ITL within 740ms: between \d\d?.\d % and \d+.\d % of", wide["message"])
    assert "at the gateway" in counted["message"]

    table = await namespace.cluster.run("kubectl", "--namespace", namespace.name, "get", "tsvc")
    namespace.cluster.say(table)
    heads, *rows = (line.split() for line in table.splitlines())
    assert heads[-2:] == ["SLO", "AGE"]
    shares = {row[0]: row[-3:-1] for row in rows}
    for name, share in shares.items():
        status: Json = (await namespace.service_status(name))["slo"]
        assert " ".join(share) == status["attained"]
    assert shares["slow"] == ["0.0", "%"]
    assert shares["between"][0].startswith("~")
    assert "~" not in shares["counted"][0]


async def _serve(namespace: ScenarioNamespace, name: str, step_seconds: float) -> None:
    speed = {"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": step_seconds})}
    await namespace.apply_service(name, replicas=1, slo=_SLO, podTemplate={"env": [speed]})
