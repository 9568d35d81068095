import asyncio
from typing import Any

import httpx
import pytest

from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.main import serve
from tests.lab.sim.running import DEADLINE_SECONDS, SHAPE, SLOW, SimulatedEngine, running

LONG = {"prompt": "x" * 400, "max_tokens": 3000, "ignore_eos": True}
ASKED = [{"role": "user", "content": "go on"}]
TWO_SEQUENCES = ("--max-num-seqs", "2")

# Metrics by which the operator judges an engine.
LOAD_METRICS = ("iteration_tokens_total_count", "num_requests_running", "num_requests_waiting")

Streams = list["asyncio.Task[list[Any]]"]


async def _start_streams(engine: SimulatedEngine, **body: Any) -> Streams:
    """Start two streams that have a token, and three that wait."""
    wanted = {**LONG, **body}
    tasks = [asyncio.create_task(engine.stream("/v1/completions", **wanted)) for _ in range(5)]
    await engine.wait_for_metrics(
        num_requests_running=2, num_requests_waiting=3, time_to_first_token_seconds_count=2
    )
    return tasks


async def _wait_for_exit(engine: SimulatedEngine) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await engine.process


async def test_without_a_timeout_running_streams_end_aborted_and_waiting_ones_empty() -> None:
    async with running(*SLOW, *TWO_SEQUENCES) as engine:
        tasks = await _start_streams(engine)
        engine.stop.set()
        streams = await asyncio.gather(*tasks)
        await _wait_for_exit(engine)
    sorted_streams = sorted(streams, key=len)
    assert sorted_streams[:3] == [["[DONE]"]] * 3
    for events in sorted_streams[3:]:
        assert events[-2]["choices"][0]["finish_reason"] == "abort"
        assert events[-1] == "[DONE]"


async def test_an_answer_that_is_no_stream_ends_aborted_as_well() -> None:
    async with running(*SLOW) as engine:
        task = asyncio.create_task(engine.post("/v1/chat/completions", messages=ASKED, **LONG))
        await engine.wait_for_metrics(num_requests_running=1)
        engine.stop.set()
        body = (await task).json()
    assert body["choices"][0]["finish_reason"] == "abort"


async def test_with_a_timeout_running_and_waiting_streams_complete() -> None:
    async with running(*TWO_SEQUENCES, "--shutdown-timeout", "60") as engine:
        tasks = await _start_streams(engine, max_tokens=800)
        engine.stop.set()
        late = asyncio.create_task(engine.post("/v1/completions", prompt="a", max_tokens=1))
        health = await engine.http.get("/health")
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert not late.done()
        streams = await asyncio.gather(*tasks)
        refused = await late
        await _wait_for_exit(engine)
    assert [len(events) for events in streams] == [801] * 5
    assert refused.status_code == 500
    assert refused.json()["error"]["message"] == "cannot schedule new futures after shutdown"
    assert health.status_code == 200


async def test_at_the_deadline_connections_are_closed() -> None:
    async with running(*SLOW, *TWO_SEQUENCES, "--shutdown-timeout", "1") as engine:
        tasks = await _start_streams(engine)
        engine.stop.set()
        streams = await asyncio.gather(*tasks, return_exceptions=True)
        await _wait_for_exit(engine)
    assert all(isinstance(end, httpx.RemoteProtocolError | httpx.ReadError) for end in streams)


async def test_an_idle_engine_ends_at_once_whatever_the_timeout() -> None:
    async with running("--shutdown-timeout", "3600") as engine:
        await engine.http.get("/health")
        engine.stop.set()
        await _wait_for_exit(engine)
        with pytest.raises(httpx.ConnectError):
            await engine.http.get("/health")


async def test_a_client_that_disconnects_takes_its_request_out_of_the_engine() -> None:
    async with running(*SLOW) as engine:
        async with engine.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}):
            await engine.wait_for_metrics(num_requests_running=1)
        await engine.wait_for_metrics(num_requests_running=0)
        waits = asyncio.create_task(engine.post("/v1/completions", **LONG))
        await engine.wait_for_metrics(num_requests_running=1)
        waits.cancel()
        await engine.wait_for_metrics(num_requests_running=0, kv_cache_usage_perc=0)


async def test_a_cancelled_engine_leaves_no_task_and_no_port_behind() -> None:
    before = asyncio.all_tasks()
    async with running(*SLOW, *TWO_SEQUENCES) as engine:
        tasks = await _start_streams(engine)
        engine.process.cancel()
        await asyncio.gather(*tasks, engine.process, return_exceptions=True)
        with pytest.raises(httpx.ConnectError):
            await engine.http.get("/health")
    assert engine.process.cancelled()
    assert asyncio.all_tasks() == before


async def test_a_stop_during_the_start_ends_it_before_the_port_opens() -> None:
    stop = asyncio.Event()
    env = {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_START_SECONDS": "3600"}
    engine = asyncio.create_task(serve(["tiny"], host="127.0.0.1", env=env, stop=stop))
    stop.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await engine


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["tiny", "--swap-space", "4"], 2, "unrecognized arguments: --swap-space"),
        (["tiny", "--port", "http"], 2, "--port http"),
        (["tiny", "--gpu-memory-utilization", "1.5"], 1, "at most 1"),
        (["meta-llama/Llama-3.1-70B-Instruct"], 1, "CUDA out of memory"),
    ],
)
async def test_an_engine_that_cannot_start_exits_as_its_process_would(
    argv: list[str], code: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineExit, match=message) as end:
        await serve(argv, host="127.0.0.1", env={"TESSERA_SIM_SHAPE": SHAPE})
    assert end.value.code == code
    assert caplog.messages[-1] == end.value.message


async def test_a_port_that_is_taken_ends_the_second_engine() -> None:
    async with running() as engine:
        port = str(httpx.URL(engine.url).port)
        env = {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_START_SECONDS": "0"}
        with pytest.raises(EngineExit, match=f"127.0.0.1:{port}"):
            await serve(["tiny", "--port", port], host="127.0.0.1", env=env)


async def test_a_frozen_engine_looks_healthy_while_its_requests_hang() -> None:
    async with running(*SLOW, "--enable-server-load-tracking", "--shutdown-timeout", "1") as engine:
        first = asyncio.create_task(engine.stream("/v1/completions", **LONG))
        await engine.wait_for_metrics(num_requests_running=1, time_to_first_token_seconds_count=1)
        await engine.post("/sim/freeze")
        before = await engine.metrics()
        later = asyncio.create_task(engine.stream("/v1/completions", **LONG))
        await engine.wait_for_load(2)
        assert (await engine.http.get("/health")).status_code == 200
        after = await engine.metrics()
        vllm = [name for name in before if name.split()[0] in LOAD_METRICS]
        assert {name: after[name] for name in vllm} == {name: before[name] for name in vllm}
        assert after["num_requests_waiting"] == 0
        engine.stop.set()
        await _wait_for_exit(engine)
        ends = await asyncio.gather(first, later, return_exceptions=True)
    assert all(isinstance(end, httpx.HTTPError) for end in ends)
