"""What a service attains of its SLO, as the engines and the gateway count it."""

import asyncio
import json
import re
from collections.abc import Iterator

import pytest

from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.lifecycle import write_fleet
from scenarios.replay import Target, poisson_trace, replay
from world import World, start
from world.testing import eventually

# Seconds of a step, which are about the gap between two tokens. The objective lies between two
# edges of the engines' buckets, and far enough above the steps for the delays of a busy machine.
_SECONDS_PER_STEP = {"fast": 0.1, "between": 0.52, "slow": 0.9}
_SLO = {"ttftP95": "10s", "itlP95": "740ms"}
# The load ends when all is said; a busy machine may take until its end.
_REQUESTS_PER_SECOND, _SECONDS = 2.0, 240


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@pytest.mark.full
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
        clients = [load.create_task(replay(target, trace)) for target in targets]
        fast = await namespace.wait_for_condition("fast", "SLOMet", "Met", within=_SECONDS)
        slow = await namespace.wait_for_condition("slow", "SLOMet", "Missed", within=_SECONDS)
        wide = await namespace.wait_for_condition(
            "between", "SLOMet", "BucketTooWide", within=_SECONDS
        )
        counted = await namespace.wait_for_condition("counted", "SLOMet", "Met", within=_SECONDS)
        for client in clients:
            client.cancel()
    for condition in (fast, slow, wide, counted):
        namespace.cluster.say(condition["message"])
    assert [condition["status"] for condition in (fast, slow, wide, counted)] == [
        "True",
        "False",
        "Unknown",
        "True",
    ]
    # A step that a busy machine delays is followed by a shorter gap.
    assert re.search(r"ITL within 740ms: (between )?\d\.\d % ", slow["message"])
    assert re.search(r"ITL within 740ms: between \d\d?.\d % and \d+.\d % of", wide["message"])
    assert "at the gateway" in counted["message"]

    async def shares_are_printed() -> None:
        names = (*_SECONDS_PER_STEP, "counted")
        shares = {name: (await namespace.service_status(name))["slo"]["attained"] for name in names}
        assert float(shares["slow"].removeprefix("~").removesuffix(" %")) < 10
        assert shares["between"].startswith("~")
        assert "~" not in shares["counted"]
        table = await namespace.cluster.run("kubectl", "--namespace", namespace.name, "get", "tsvc")
        heads, *rows = (line.split() for line in table.splitlines())
        assert heads[-2:] == ["SLO", "AGE"]
        assert {row[0]: " ".join(row[-3:-1]) for row in rows} == shares

    # A table and a status that are read one after the other may differ by an update.
    await eventually(shares_are_printed)


async def _serve(namespace: ScenarioNamespace, name: str, step_seconds: float) -> None:
    speed = {"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": step_seconds})}
    await namespace.apply_service(name, replicas=1, slo=_SLO, podTemplate={"env": [speed]})
