"""An upgrade of the engine is a rollout like any other, and one that cannot start is refused."""

from typing import Any

import pytest

from tests.memory_operator import CHAT, DEPLOYMENT, MemoryOperator, add_pool_and_node


@pytest.fixture
async def fleet() -> MemoryOperator:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve(engine={"version": "0.32.0", "extraArgs": ["--enable-hc-sp"]})
    await operator.reconcile()
    return operator


def engine(fleet: MemoryOperator) -> dict[str, Any]:
    container: dict[str, Any]
    (container,) = fleet.newest_deployment()["spec"]["template"]["spec"]["containers"]
    return container


def condition(fleet: MemoryOperator, name: str) -> dict[str, Any]:
    conditions = fleet.body(CHAT)["status"]["conditions"]
    by_type: dict[str, dict[str, Any]] = {entry["type"]: entry for entry in conditions}
    return by_type[name]


async def edit(fleet: MemoryOperator, **options: Any) -> None:
    fleet.serve(engine=options)
    await fleet.reconcile()


async def test_a_newer_version_rolls_the_service_with_its_image_and_arguments(
    fleet: MemoryOperator,
) -> None:
    old, argument = engine(fleet), "--enable-hc-sp"
    await edit(fleet, version="0.33.0", extraArgs=[argument, "--watchdog-config={}"])
    assert (old["image"], engine(fleet)["image"]) == (
        "vllm/vllm-openai:v0.32.0",
        "vllm/vllm-openai:v0.33.0",
    )
    assert engine(fleet)["args"] == [*old["args"], "--watchdog-config={}"]
    assert condition(fleet, "Accepted")["status"] == "True"
    (before,) = fleet.body(DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    assert before == old, "a Deployment keeps its template"


async def test_a_version_that_lacks_an_argument_is_refused_and_the_engines_stay(
    fleet: MemoryOperator,
) -> None:
    old = engine(fleet)
    await edit(fleet, version="0.31.0", extraArgs=["--enable-hc-sp"])
    accepted = condition(fleet, "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidFlag")
    assert "vllm serve 0.31.0 has no option --enable-hc-sp, but 0.33.0 has" in (accepted["message"])
    assert engine(fleet) == old
