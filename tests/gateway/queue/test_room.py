"""How many requests a gateway sends to an engine before the first one is answered."""

import asyncio

import pytest

from tessera.domain.perf.step import StepTime
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
# A prompt takes 20 ms, and two of them are room for no third.
STEP = StepTime(weights=0.01, token=5e-6, kv_token=0)
# No two of them begin alike.
PROMPTS = [
    {**CHAT, "messages": [{"role": "user", "content": f"{number} " * 4000}]} for number in range(6)
]


async def test_prompts_whose_answers_come_as_a_whole_leave_room_once_they_are_read() -> None:
    """Such an engine says nothing until its answer is complete, which takes far longer."""
    sent, answering = asyncio.Semaphore(0), asyncio.Event()

    async def script(call: EngineCall) -> None:
        sent.release()
        await answering.wait()
        await call.whole(COMPLETION)

    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(script) as engine:
        model = a_model(a_replica(engine.address, step_time=STEP))
        async with a_gateway(a_directory(model)) as gateway, asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(gateway.post(prompt)) for prompt in PROMPTS]
            for _ in answers:
                await sent.acquire()
            answering.set()
    assert {answer.result().status for answer in answers} == {200}
