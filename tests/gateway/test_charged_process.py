"""The process of a gateway and its store: charges are kept, also by one that is killed."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.gateway.charging import INPUT, OUTPUT, paying
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_model,
    a_replica,
)
from tests.gateway.test_gateway_process import GatewayProcess, a_process
from world.testing import eventually

pytestmark = pytest.mark.anyio
CHARGE = 7 * INPUT + 3 * OUTPUT
BODY = {**CHAT, "max_tokens": 3}
# A token of its prompt a byte at most, and those of a template.
NEEDED = (len(json.dumps(BODY)) + 1024) * INPUT + 3 * OUTPUT


async def answering(call: EngineCall) -> None:
    await call.whole(COMPLETION)


async def spend(gateway: GatewayProcess, most: int) -> int:
    """Send requests until one is refused; return how many were answered."""
    for number in range(most):
        async with gateway.post(BODY) as response:
            if response.status == 429:
                return number
            assert response.status == 200, await response.text()
    return most


async def test_a_limit_holds_over_gateways_that_are_killed(tmp_path: Path) -> None:
    limit = NEEDED + 20 * CHARGE
    async with ScriptedEngine(answering) as engine:
        directory = a_directory(a_model(a_replica(engine.address)), **paying(limit))
        async with a_process(tmp_path, directory) as gateway:
            before = await asyncio.gather(*(spend(gateway, 3) for _ in range(3)))

            async def are_recorded() -> None:
                assert len(gateway.records()) >= 9

            # Of one that is not, a killed gateway charges what its journal knows.
            await eventually(are_recorded, within=30)
            gateway.process.kill()
            await gateway.process.wait()
        async with a_process(tmp_path, directory) as gateway:
            after = await spend(gateway, 40)
            async with gateway.client.get(f"{gateway.url}/v1/budget") as response:
                [left] = (await response.json())["data"]
        # A journal has records that the store may have as well.
        records = {record.record_id: record for record in gateway.records()}
    charged = sum(record.charge_nanos or 0 for record in records.values())
    assert sum(before) == 9
    # What the first one was lent and did not use is free once its records are read.
    assert after == 12
    assert charged == 21 * CHARGE <= limit
    assert left["spent"] == "0.000777"
