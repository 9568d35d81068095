"""By queue and activity, what few streams remain after a peak keep no replica above the floor."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from demo.load import steady_load
from demo.streams import streaming
from scenarios.actions import ScenarioNamespace
from scenarios.streams import wait_for_replicas
from world.testing import eventually

EXPORTER = "/apis/apps/v1/namespaces/gpu-operator/daemonsets/dcgm-exporter"
# The default stabilization window of 300 s, a drain, and the reads between them.
WITHIN_SECONDS = 480


@contextlib.asynccontextmanager
async def without_exporter(namespace: ScenarioNamespace) -> AsyncIterator[None]:
    """Run no DCGM exporter on any node for the time of the block."""

    async def select_node(label: str | None) -> None:
        selector = {"nodeSelector": {"no-such-node": label}}
        await namespace.cluster.api.patch(EXPORTER, {"spec": {"template": {"spec": selector}}})

    await select_node("true")
    try:
        yield
    finally:
        await select_node(None)


@pytest.mark.full
@pytest.mark.parametrize("has_exporter", [True, False])
async def test_two_streams_after_a_peak_leave_the_service_at_its_floor(
    namespace: ScenarioNamespace, has_exporter: bool
) -> None:
    ref = await namespace.apply_service(scaling={"policy": "QueueAndActivity", "minReplicas": 1})
    await namespace.wait_until_ready()
    base = await namespace.cluster.address(ref)
    async with contextlib.AsyncExitStack() as stack:
        if not has_exporter:
            await stack.enter_async_context(without_exporter(namespace))

        async def is_scaled_up() -> None:
            status = await namespace.service_status()
            assert status.get("readyReplicas", 0) > 1, status
            is_known = "activity unknown" not in status["scaling"]["message"]
            assert is_known == has_exporter, status["scaling"]

        async with steady_load(base, ref.name, clients=60, tokens=150) as load:
            await eventually(is_scaled_up)
            await asyncio.sleep(60)  # the peak itself, not a wait for a state
        assert not load.failures
        peak = (await namespace.service_status())["replicas"]
        begin = time.monotonic()
        async with (
            streaming({ref.name: base}, tokens=900) as first,
            streaming({ref.name: base}, tokens=900) as second,
        ):
            await wait_for_replicas(namespace, 1, within=WITHIN_SECONDS)
            seconds = time.monotonic() - begin
        whole, broken = first.whole + second.whole, first.broken + second.broken
        namespace.cluster.say(
            f"{peak} replicas to 1 after {seconds:.0f} s; {whole} streams whole, {broken} broken"
        )
        assert not broken
