import asyncio
import itertools

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest, FinishReason
from tessera_lab.sim.meters import EngineMeters
from tessera_lab.sim.runner import EngineRunner, QueuedRequest, TokenStream
from tests.lab.sim.running import DEADLINE_SECONDS, FACTS

LIMITS = EngineLimits(max_model_len=100, max_num_seqs=4, max_num_batched_tokens=64, blocks=20)


async def test_a_machine_that_falls_behind_says_by_how_much(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moments = itertools.count()
    engine = EngineCore(LIMITS, StepTime(weights=1e-6, kv_token=0, token=0, sequence=0, fixed=0))
    runner = EngineRunner(engine, EngineMeters(FACTS.metrics), lambda: float(next(moments)))
    request = EngineRequest(id=runner.next_number(), prompt_tokens=5, output_tokens=3)
    news = asyncio.Event()
    stream = runner.submit(QueuedRequest(request, max_tokens=3), news, live=False)
    assert isinstance(stream, TokenStream)
    task = asyncio.create_task(runner.run())
    async with asyncio.timeout(DEADLINE_SECONDS):
        await news.wait()
    task.cancel()
    runner.log_lateness()
    assert (stream.tokens, stream.reason) == (3, FinishReason.LENGTH)
    assert caplog.records[-1].levelname == "WARNING"
    assert "late by at most" in caplog.text
