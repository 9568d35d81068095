"""An engine that does not run: paused, asleep, stalled, dead."""

import asyncio

from tests.lab.sim.running import DEADLINE_SECONDS, SLOW, running

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
TRACKED = "--enable-server-load-tracking"
SHORT = {"prompt": "x", "max_tokens": 5, "ignore_eos": True}
# Long enough to be seen running on a busy machine.
VISIBLE = {"prompt": "x", "max_tokens": 60, "ignore_eos": True}
LONG = {"prompt": "x" * 400, "max_tokens": 3000, "ignore_eos": True}


async def test_routes_of_development_are_closed_without_its_variable() -> None:
    async with running() as engine:
        response = await engine.post("/sleep")
    assert response.status_code == 404


async def test_a_sleeping_engine_holds_requests_unseen_until_it_wakes() -> None:
    async with running(TRACKED, **DEVELOPMENT) as engine:
        await engine.post("/sleep?level=2")
        task = asyncio.create_task(engine.post("/v1/completions", **SHORT))
        await engine.wait_for_load(1)
        seen = await engine.metrics()
        half = (await engine.post("/wake_up?tags=weights")).json()["status"]
        asleep = (await engine.http.get("/is_sleeping")).json()
        await engine.post("/wake_up")
        answer = await task
        after = await engine.metrics()
    assert [seen[f"engine_sleep_state {state}"] for state in ("awake", "discard_all")] == [0, 1]
    assert (seen["num_requests_running"], seen["num_requests_waiting"]) == (0, 0)
    assert (half, asleep) == ("sleeping", {"is_sleeping": True})
    assert answer.json()["usage"]["completion_tokens"] == 5
    assert after["engine_sleep_state awake"] == 1
    assert after["sleep_mode_operation_duration_seconds_count wake"] == 2


async def test_sleep_empties_the_prefix_cache() -> None:
    long = {"prompt": "x" * 400, "max_tokens": 1}
    async with running("--enable-prompt-tokens-details", **DEVELOPMENT) as engine:
        cached = []
        for path in ("/resume", "/sleep", "/reset_prefix_cache"):
            await engine.post("/v1/completions", **long)
            await engine.post(path)
            await engine.post("/wake_up")
            usage = (await engine.post("/v1/completions", **long)).json()["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            await engine.post("/reset_prefix_cache")
    assert cached == [96, 0, 0]


async def test_a_pause_waits_for_running_requests_and_queues_new_ones() -> None:
    async with running(*SLOW, TRACKED, **DEVELOPMENT) as engine:
        first = asyncio.create_task(engine.post("/v1/completions", **VISIBLE))
        await engine.wait_for_metrics(num_requests_running=1)
        pause = asyncio.create_task(engine.post("/pause?mode=wait"))
        assert (await first).json()["usage"]["completion_tokens"] == VISIBLE["max_tokens"]
        await pause
        second = asyncio.create_task(engine.post("/v1/completions", **SHORT))
        await engine.wait_for_load(1)
        waits = not second.done()
        await engine.post("/resume")
        assert (await second).status_code == 200
    assert waits


async def test_a_frozen_engine_continues_once_it_thaws() -> None:
    async with running(*SLOW, TRACKED) as engine:
        first = asyncio.create_task(engine.stream("/v1/completions", **VISIBLE))
        await engine.wait_for_metrics(num_requests_running=1)
        await engine.post("/sim/freeze")
        before = await engine.metrics()
        late = asyncio.create_task(engine.post("/v1/completions", **SHORT))
        await engine.wait_for_load(2)
        during = await engine.metrics()
        await engine.post("/sim/thaw")
        events = await first
        answer = await late
    name = "iteration_tokens_total_count"
    assert during[name] == before[name]
    assert during["num_requests_waiting"] == 0
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert answer.status_code == 200


async def test_a_stall_ends_by_itself() -> None:
    async with running() as engine:
        await engine.http.post("/sim/stall", params={"seconds": "0.1"})
        response = await engine.post("/v1/completions", **SHORT)
    assert response.json()["usage"]["completion_tokens"] == 5


async def test_a_stall_needs_its_seconds() -> None:
    async with running() as engine:
        response = await engine.post("/sim/stall")
    assert response.status_code == 400
    assert "number of seconds" in response.json()["error"]["message"]


async def test_a_dead_engine_ends_its_streams_with_an_error_answers_503_and_exits() -> None:
    async with running(*SLOW) as engine:
        stream = asyncio.create_task(engine.stream("/v1/completions", **LONG))
        plain = asyncio.create_task(engine.post("/v1/completions", **LONG))
        await engine.wait_for_metrics(num_requests_running=2)
        await engine.post("/sim/crash")
        health = (await engine.http.get("/health")).status_code
        events, failed = await stream, await plain
        async with asyncio.timeout(DEADLINE_SECONDS):
            engine_exit = await engine.process
    assert engine_exit is not None
    assert (health, failed.status_code, engine_exit.code) == (503, 500, 0)
    assert "error" in events[-2]
    assert events[-1] == "[DONE]"
