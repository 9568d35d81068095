"""Scenarios under load and at shutdown, as facts that must be equal for both engines."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.conformance.cases import COMPLETION
from tests.conformance.configurations import QUEUE_LIMIT, Configuration
from tests.conformance.engines import EngineProcess, key, members
from tests.conformance.observed_facts import Facts
from world.testing import eventually

DEADLINE_SECONDS = 240
# Requests that keep an engine busy.
_MANY = 12
# Rounds of the event loop, many more than the longest stream needs to be read from its socket.
_ROUNDS = 1000
# How long a client waits for an engine that has done all its work.
_CLIENT_TIMEOUT_SECONDS = 20
# Requests beyond the queue limit.
_OVER = 12
# A prompt in tokens, so that both engines count it alike.
_TEXT = list(range(10, 310))


@dataclass(slots=True)
class StreamResult:
    """The part of a stream that a client received."""

    status: int = 0
    tokens: int = 0
    first: float | None = None
    end: str | None = None
    done: bool = False
    failed: bool = False
    """Whether an event was an error."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the first token."""


@dataclass(frozen=True, slots=True)
class Client:
    """Sends requests to one engine."""

    engine: EngineProcess
    configuration: Configuration

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.engine.http.post(path, json=body, headers=key(self.configuration))

    async def ask(self, tokens: int, **body: Any) -> httpx.Response:
        request_body = {"prompt": _TEXT[:20], "max_tokens": tokens, "ignore_eos": True, **body}
        return await self.post(COMPLETION, request_body)

    async def stream(
        self, tokens: int, result: StreamResult | None = None, **body: Any
    ) -> StreamResult:
        """Stream a completion of the requested length."""
        stream = result or StreamResult()
        request_body = {
            "prompt": _TEXT[:20],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        request_body |= {"temperature": 0, **body}
        async with self.engine.http.stream(
            "POST", COMPLETION, json=request_body, headers=key(self.configuration)
        ) as answer:
            stream.status = answer.status_code
            async for line in answer.aiter_lines():
                _record_event(stream, line.removeprefix("data: "))
        return stream

    async def metrics(self) -> dict[str, float]:
        """Return samples by name and the values of their own labels."""
        shown = (await self.engine.http.get("/metrics")).text
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(shown):
            for sample in family.samples:
                own = sorted(sample.labels.keys() - {"engine", "model_name", "le"})
                name = sample.name.removeprefix("vllm:")
                samples[" ".join([name, *(sample.labels[label] for label in own)])] = sample.value
        return samples


def _record_event(result: StreamResult, data: str) -> None:
    if data == "[DONE]":
        result.done = True
    elif data:
        event = json.loads(data)
        result.failed |= "error" in event
        for choice in event.get("choices", ()):
            result.first = result.first or asyncio.get_running_loop().time()
            result.tokens += 1
            result.begun.set()
            result.end = choice["finish_reason"] or result.end


CompletionTasks = list["asyncio.Task[httpx.Response]"]


def _end(answer: httpx.Response) -> str:
    """Return the finish reason of a response, or its error status."""
    if answer.status_code != 200:
        return str(answer.status_code)
    return str(answer.json()["choices"][0]["finish_reason"])


async def prefix_hits(client: Client) -> Facts:
    """Count cached tokens: of a new prompt, of the same, of a longer one, of another."""
    prompts = (_TEXT, _TEXT, [*_TEXT, *range(10, 110)], _TEXT[1:])
    await client.post("/reset_prefix_cache")
    usages = [(await client.ask(2, prompt=prompt)).json()["usage"] for prompt in prompts]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    return {"cached": cached, "prompts": [usage["prompt_tokens"] for usage in usages]}


async def priorities(client: Client) -> Facts:
    """Check that urgent requests are scheduled first although they arrived last."""
    await client.post("/pause")
    later = [asyncio.create_task(client.stream(100, priority=10)) for _ in range(8)]
    await _wait_for_load(client, 8)
    urgent = [asyncio.create_task(client.stream(100, priority=-10)) for _ in range(4)]
    await _wait_for_load(client, 12)
    await client.post("/resume")
    served = max(stream.first or 0 for stream in await asyncio.gather(*urgent))
    after = [stream for stream in await asyncio.gather(*later) if (stream.first or 0) > served]
    return {"waiting urgent ones first": len(after) >= len(later) - 4}


async def queue_limit(client: Client) -> Facts:
    """Send more than the queue limit to a stopped engine, resume it, and count the refusals."""
    before = await client.metrics()
    client.engine.stop()
    sent = client.engine.sent.count
    tasks = [asyncio.create_task(client.ask(200)) for _ in range(QUEUE_LIMIT + _OVER)]
    await client.engine.sent.wait_until_sent(sent + len(tasks))
    client.engine.resume()
    answers = await asyncio.gather(*tasks)
    after = await client.metrics()
    refused = [answer for answer in answers if answer.status_code != 200]
    name = "admission_rejections_total max_num_queued_reqs"
    return {
        "answered": len(answers) - len(refused),
        "statuses": sorted({answer.status_code for answer in refused}),
        "types": sorted({answer.json()["error"]["type"] for answer in refused}),
        "retry after": any("retry-after" in answer.headers for answer in refused),
        "counted": after[name] - before[name],
    }


async def asleep(client: Client) -> Facts:
    """A request to a sleeping engine waits uncounted, and is answered once the engine wakes."""
    slept = (await client.post("/sleep?level=1")).status_code
    states = await client.metrics()
    task = asyncio.create_task(client.ask(5))
    load = await _wait_for_load(client, 1)
    seen = await client.metrics()
    health = (await client.engine.http.get("/health")).status_code
    waits = not task.done()
    woken = (await client.post("/wake_up")).status_code
    return {
        "statuses": [slept, woken, (await task).status_code],
        "awake": [states["engine_sleep_state awake"], states["engine_sleep_state discard_all"]],
        "waits": waits,
        "load": load,
        "seen waiting": seen["num_requests_waiting"],
        "health": health,
    }


async def paused(client: Client) -> Facts:
    """Requests continue after a pause that keeps them, and end at a pause that aborts them."""
    facts: Facts = {}
    for mode in ("keep", "abort"):
        stream, tasks = await _stop_at_work(client)
        sent = client.engine.sent.count
        pause = asyncio.create_task(client.post(f"/pause?mode={mode}"))
        await client.engine.sent.wait_until_sent(sent + 1)
        client.engine.resume()
        stopped = (await pause).status_code
        state = (await client.engine.http.get("/is_paused")).json()
        resumed = (await client.post("/resume")).status_code
        ends = {_end(answer) for answer in await asyncio.gather(*tasks)}
        facts[mode] = [stopped, state, resumed, (await stream).done, *sorted(ends)]
    return facts


async def preemption(client: Client) -> Facts:
    """With too few KV blocks some requests are preempted, and all get their whole answer."""
    before = (await client.metrics())["num_preemptions_total"]
    answers = await asyncio.gather(*(client.ask(800) for _ in range(8)))
    after = (await client.metrics())["num_preemptions_total"]
    counts = [answer.json()["usage"]["completion_tokens"] for answer in answers]
    return {"tokens": counts, "preempted": after > before}


async def drain(client: Client) -> Facts:
    """After SIGTERM running requests complete, new ones are refused, and health does not change."""
    engine = client.engine
    stream, tasks = await _stop_at_work(client)
    engine.terminate()  # it is delivered once the engine resumes
    before = engine.sent.count
    late = asyncio.create_task(_refused(client))
    health = asyncio.create_task(engine.http.get("/health"))
    await engine.sent.wait_until_sent(before + 2)
    engine.resume()
    status = (await health).status_code
    engine.stop()
    await _everything_read()
    refused_early = late.done() and not all(task.done() for task in (stream, *tasks))
    engine.resume()
    answers = await asyncio.gather(*tasks)
    result = await stream
    served = await _served(late)
    code = await engine.wait_for_exit(DEADLINE_SECONDS)
    return {
        "stream": [result.end, result.done, result.tokens],
        "ends": sorted({_end(answer) for answer in answers}),
        "tokens": [answer.json()["usage"]["completion_tokens"] for answer in answers],
        "late one served": served,
        "refused early": refused_early,
        "health": status,
        "exit": code,
    }


async def crash(client: Client) -> Facts:
    """The engine behind the API server dies: all requests end, and the process exits."""
    await client.post("/pause?mode=keep")
    stream, tasks = await _queue_on_paused_engine(client)
    if (await client.engine.http.post("/sim/crash")).status_code != 200:
        _kill_engine_process(client.engine)
    answers = await asyncio.gather(*tasks)
    result = await stream
    code = await client.engine.wait_for_exit(DEADLINE_SECONDS)
    return {
        "stream": [result.end, result.done, result.failed],
        "ends": sorted({_end(answer) for answer in answers}),
        "exit": code,
    }


Scenario = Callable[[Client], Awaitable[Facts]]
# By configuration; the last one may end the engine.
SCENARIOS: dict[str, tuple[Scenario, ...]] = {
    "plain": (drain,),
    "rich": (prefix_hits, priorities, queue_limit, asleep, paused),
    "tight": (preemption, crash),
}


async def play(engine: EngineProcess, configuration: Configuration) -> dict[str, Facts]:
    """Run all scenarios of a configuration in order."""
    client, observed = Client(engine, configuration), dict[str, Facts]()
    for scenario in SCENARIOS[configuration.name]:
        facts = await scenario(client)
        observed[f"{configuration.name}/scenario {scenario.__name__.replace('_', ' ')}"] = facts
    return observed


async def _stop_at_work(client: Client) -> "tuple[asyncio.Task[StreamResult], CompletionTasks]":
    """Return a stopped engine's unfinished stream and requests, after the first token.

    Only signals decide how far it is, so it does not matter how slow the machine is: the requests
    reach it all at once, and where it was faster than this client it gets the same again.
    """
    engine = client.engine
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            engine.stop()
            before, result = engine.sent.count, StreamResult()
            stream = asyncio.create_task(client.stream(900, result))
            tasks = [asyncio.create_task(client.ask(900)) for _ in range(_MANY)]
            await engine.sent.wait_until_sent(before + 1 + _MANY)
            engine.resume()
            await result.begun.wait()
            engine.stop()
            await _everything_read()
            if not any(task.done() for task in (stream, *tasks)):
                return stream, tasks
            engine.resume()
            await asyncio.gather(stream, *tasks)


async def _everything_read() -> None:
    """Let all tasks run until they wait for the stopped engine.

    Rounds of the loop are counted, not seconds: each reads whatever has arrived.
    """
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)


async def _queue_on_paused_engine(
    client: Client,
) -> "tuple[asyncio.Task[StreamResult], CompletionTasks]":
    """Send a stream and other requests to a paused engine, where all of them wait."""
    stream = asyncio.create_task(client.stream(900))
    tasks = [asyncio.create_task(client.ask(900)) for _ in range(_MANY)]
    await _wait_for_load(client, 1 + _MANY)
    return stream, tasks


async def _wait_for_load(client: Client, requests: int) -> int:
    """Wait until `requests` requests have arrived."""

    async def have_arrived() -> int:
        load: int = (await client.engine.http.get("/load")).json()["server_load"]
        assert load >= requests
        return load

    return await eventually(have_arrived, within=DEADLINE_SECONDS)


async def _served(late: "asyncio.Task[int]") -> bool:
    """Return whether the late request was served: vLLM refuses it at its end, or drops it."""
    try:
        async with asyncio.timeout(_CLIENT_TIMEOUT_SECONDS):
            return await late == 200
    except (TimeoutError, httpx.TransportError):
        return False


async def _refused(client: Client) -> int:
    """Send requests until one is refused, and return its status."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (answer := await client.ask(1)).status_code == 200:
            pass
    return answer.status_code


def _kill_engine_process(engine: EngineProcess) -> None:
    """Kill the engine process, as the kernel does when memory runs out."""
    for number in members(engine.process.pid):
        with open(f"/proc/{number}/cmdline", "rb") as read:  # noqa: PTH123
            if b"EngineCore" in read.read():
                os.kill(number, signal.SIGKILL)
