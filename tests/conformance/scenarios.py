"""What engines do under load and at their end, as facts that must be the same for both."""

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
from tests.conformance.engines import Running, key, members
from tests.conformance.seen import Facts

DEADLINE_SECONDS = 240
# Requests that keep an engine busy.
_MANY = 12
# Rounds of the event loop, many times what the longest stream takes to be read from its socket.
_ROUNDS = 1000
# For so long a client waits for an engine that has done all its work.
_PATIENCE_SECONDS = 20
# Requests beyond the queue limit.
_OVER = 12
# A prompt in tokens, so that both engines count it alike.
_TEXT = list(range(10, 310))


@dataclass(slots=True)
class Heard:
    """What a client heard of its stream."""

    status: int = 0
    tokens: int = 0
    first: float | None = None
    end: str | None = None
    done: bool = False
    failed: bool = False
    """An event told an error."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """It has had a token."""


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one engine."""

    engine: Running
    given: Configuration

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.engine.http.post(path, json=body, headers=key(self.given))

    async def ask(self, tokens: int, **body: Any) -> httpx.Response:
        asked = {"prompt": _TEXT[:20], "max_tokens": tokens, "ignore_eos": True, **body}
        return await self.post(COMPLETION, asked)

    async def stream(self, tokens: int, heard: Heard | None = None, **body: Any) -> Heard:
        """A stream as long as asked for."""
        stream = heard or Heard()
        asked = {"prompt": _TEXT[:20], "max_tokens": tokens, "ignore_eos": True, "stream": True}
        asked |= {"temperature": 0, **body}
        async with self.engine.http.stream(
            "POST", COMPLETION, json=asked, headers=key(self.given)
        ) as answer:
            stream.status = answer.status_code
            async for line in answer.aiter_lines():
                _listen(stream, line.removeprefix("data: "))
        return stream

    async def metrics(self) -> dict[str, float]:
        """Samples by name and value of the label that is theirs alone."""
        shown = (await self.engine.http.get("/metrics")).text
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(shown):
            for sample in family.samples:
                own = sorted(sample.labels.keys() - {"engine", "model_name", "le"})
                name = sample.name.removeprefix("vllm:")
                samples[" ".join([name, *(sample.labels[label] for label in own)])] = sample.value
        return samples


def _listen(heard: Heard, data: str) -> None:
    if data == "[DONE]":
        heard.done = True
    elif data:
        event = json.loads(data)
        heard.failed |= "error" in event
        for choice in event.get("choices", ()):
            heard.first = heard.first or asyncio.get_running_loop().time()
            heard.tokens += 1
            heard.begun.set()
            heard.end = choice["finish_reason"] or heard.end


Asked = list["asyncio.Task[httpx.Response]"]


def _end(answer: httpx.Response) -> str:
    """How an answer ended that is no stream."""
    if answer.status_code != 200:
        return str(answer.status_code)
    return str(answer.json()["choices"][0]["finish_reason"])


async def prefix_hits(client: Client) -> Facts:
    """Tokens that came from the cache: of a new prompt, again, of a longer one, of another."""
    prompts = (_TEXT, _TEXT, [*_TEXT, *range(10, 110)], _TEXT[1:])
    await client.post("/reset_prefix_cache")
    usages = [(await client.ask(2, prompt=prompt)).json()["usage"] for prompt in prompts]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    return {"cached": cached, "prompts": [usage["prompt_tokens"] for usage in usages]}


async def priorities(client: Client) -> Facts:
    """Four seats are taken at once; of those that wait the urgent ones, who came last, are next."""
    await client.post("/pause")
    later = [asyncio.create_task(client.stream(100, priority=10)) for _ in range(8)]
    await _loaded(client, 8)
    urgent = [asyncio.create_task(client.stream(100, priority=-10)) for _ in range(4)]
    await _loaded(client, 12)
    await client.post("/resume")
    served = max(stream.first or 0 for stream in await asyncio.gather(*urgent))
    after = [stream for stream in await asyncio.gather(*later) if (stream.first or 0) > served]
    return {"waiting urgent ones first": len(after) >= len(later) - 4}


async def queue_limit(client: Client) -> Facts:
    """More than the queue takes, all at once: how many are refused, and what counts them."""
    before = await client.metrics()
    tasks = [asyncio.create_task(client.ask(200)) for _ in range(QUEUE_LIMIT + _OVER)]
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
    """A request to a sleeping engine waits unseen, and is answered once it wakes."""
    slept = (await client.post("/sleep?level=1")).status_code
    states = await client.metrics()
    task = asyncio.create_task(client.ask(5))
    load = await _loaded(client, 1)
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
    """Who is kept over a pause goes on after it; who is aborted ends."""
    facts: Facts = {}
    for mode in ("keep", "abort"):
        await client.post("/pause?mode=keep")
        stream, tasks = await _held(client)
        await client.post("/resume")
        stopped = (await client.post(f"/pause?mode={mode}")).status_code
        state = (await client.engine.http.get("/is_paused")).json()
        resumed = (await client.post("/resume")).status_code
        ends = {_end(answer) for answer in await asyncio.gather(*tasks)}
        done = (await stream).done
        facts[mode] = [stopped, state, resumed, done, *sorted(ends)]
    return facts


async def preemption(client: Client) -> Facts:
    """More than the KV blocks hold: some lose their place, and all get their whole answer."""
    before = (await client.metrics())["num_preemptions_total"]
    answers = await asyncio.gather(*(client.ask(800) for _ in range(8)))
    after = (await client.metrics())["num_preemptions_total"]
    counts = [answer.json()["usage"]["completion_tokens"] for answer in answers]
    return {"tokens": counts, "preempted": after > before}


async def drain(client: Client) -> Facts:
    """SIGTERM with work to do: all of it is done, nothing new is taken, health says nothing."""
    engine = client.engine
    stream, tasks = await _stopped_at_work(client)
    engine.terminate()  # it arrives once the engine goes on
    before = engine.sent.count
    late = asyncio.create_task(_refused(client))
    health = asyncio.create_task(engine.http.get("/health"))
    await engine.sent.until(before + 2)
    engine.resume()
    status = (await health).status_code
    engine.stop()
    await _everything_read()
    refused_early = late.done() and not all(task.done() for task in (stream, *tasks))
    engine.resume()
    answers = await asyncio.gather(*tasks)
    heard = await stream
    served = await _served(late)
    code = await engine.ended(DEADLINE_SECONDS)
    return {
        "stream": [heard.end, heard.done, heard.tokens],
        "ends": sorted({_end(answer) for answer in answers}),
        "tokens": [answer.json()["usage"]["completion_tokens"] for answer in answers],
        "late one served": served,
        "refused early": refused_early,
        "health": status,
        "exit": code,
    }


async def crash(client: Client) -> Facts:
    """The engine behind the API server dies: everybody is told, and the whole process ends."""
    await client.post("/pause?mode=keep")
    stream, tasks = await _held(client)
    if (await client.engine.http.post("/sim/crash")).status_code != 200:
        _kill_engine_process(client.engine)
    answers = await asyncio.gather(*tasks)
    heard = await stream
    code = await client.engine.ended(DEADLINE_SECONDS)
    return {
        "stream": [heard.end, heard.done, heard.failed],
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


async def play(engine: Running, given: Configuration) -> dict[str, Facts]:
    """All scenarios of a configuration, one after the other."""
    client, observed = Client(engine, given), dict[str, Facts]()
    for scenario in SCENARIOS[given.name]:
        facts = await scenario(client)
        observed[f"{given.name}/scenario {scenario.__name__.replace('_', ' ')}"] = facts
    return observed


async def _stopped_at_work(client: Client) -> "tuple[asyncio.Task[Heard], Asked]":
    """A stopped engine that has begun a stream and other requests, and has answered none of them.

    Only signals decide how far it is, so it does not matter how slow the machine is: the requests
    reach it all at once, and where it was faster than this client it is given the same again.
    """
    engine = client.engine
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            engine.stop()
            before, heard = engine.sent.count, Heard()
            stream = asyncio.create_task(client.stream(900, heard))
            tasks = [asyncio.create_task(client.ask(900)) for _ in range(_MANY)]
            await engine.sent.until(before + 1 + _MANY)
            engine.resume()
            await heard.begun.wait()
            engine.stop()
            await _everything_read()
            if not any(task.done() for task in (stream, *tasks)):
                return stream, tasks
            engine.resume()
            await asyncio.gather(stream, *tasks)


async def _everything_read() -> None:
    """Let all tasks go on until they wait for an engine that is stopped.

    Rounds of the loop are counted, not seconds: each reads whatever has arrived.
    """
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)


async def _held(client: Client) -> "tuple[asyncio.Task[Heard], Asked]":
    """A stream and other requests before a paused engine, where nothing is too late."""
    stream = asyncio.create_task(client.stream(900))
    tasks = [asyncio.create_task(client.ask(900)) for _ in range(_MANY)]
    await _loaded(client, 1 + _MANY)
    return stream, tasks


async def _loaded(client: Client, requests: int) -> int:
    """Wait until so many requests have arrived."""
    load = 0
    async with asyncio.timeout(DEADLINE_SECONDS):
        while load < requests:
            load = (await client.engine.http.get("/load")).json()["server_load"]
    return load


async def _served(late: "asyncio.Task[int]") -> bool:
    """Whether the late request was: a real engine refuses it when it ends, or forgets it."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await late == 200
    except (TimeoutError, httpx.TransportError):
        return False


async def _refused(client: Client) -> int:
    """The status of the first request that is taken no more."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (answer := await client.ask(1)).status_code == 200:
            pass
    return answer.status_code


def _kill_engine_process(engine: Running) -> None:
    """As the kernel does when memory runs out."""
    for number in members(engine.process.pid):
        with open(f"/proc/{number}/cmdline", "rb") as read:  # noqa: PTH123
            if b"EngineCore" in read.read():
                os.kill(number, signal.SIGKILL)
