import asyncio
import itertools

import pytest

from tessera.domain.engine import Engine
from tessera.domain.engine_requests import Limits, Reason, Request
from tessera.domain.perf import StepTime
from tessera.engine_sim.meters import Meters
from tessera.engine_sim.runner import Order, Runner, Stream
from tests.engine_sim.running import DEADLINE_SECONDS, FACTS

LIMITS = Limits(max_model_len=100, max_num_seqs=4, max_num_batched_tokens=64, blocks=20)


async def test_a_machine_that_falls_behind_says_by_how_much(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moments = itertools.count()
    engine = Engine(LIMITS, StepTime(weights=1e-6, kv_token=0, token=0, sequence=0, fixed=0))
    runner = Runner(engine, Meters(FACTS.metrics), lambda: float(next(moments)))
    request = Request(id=runner.next_number(), prompt_tokens=5, output_tokens=3)
    news = asyncio.Event()
    stream = runner.submit(Order(request, max_tokens=3), news, live=False)
    assert isinstance(stream, Stream)
    stepping = asyncio.create_task(runner.run())
    async with asyncio.timeout(DEADLINE_SECONDS):
        await news.wait()
    stepping.cancel()
    runner.told_speed()
    assert (stream.tokens, stream.reason) == (3, Reason.LENGTH)
    assert caplog.records[-1].levelname == "WARNING"
    assert "late by at most" in caplog.text
