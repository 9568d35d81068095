"""A trace of requests, played at its own times whatever the answers take, and what clients see."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

# The simulator counts four characters as a token.
_WORD = "tile"
_NUMBER_TOKENS = 2
_MAX_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where clients send requests: a service's address or the gateway's."""

    base: str
    """URL with `/v1`."""
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    keeps_connections: bool = False
    """Whether a client uses a connection again; the Service assigns replicas by connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRequest:
    """One request of a trace."""

    second: float
    """When it is sent, from the beginning of the trace."""
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer as its client saw it."""

    second: float
    """When the request was due."""
    ttft: float | None
    replica: str = ""
    """Named by the gateway."""
    pieces: int = 0
    """Parts with text, one for each output token."""
    failure: str = ""

    def is_within(self, target_seconds: float) -> bool:
        return not self.failure and self.ttft is not None and self.ttft <= target_seconds


def poisson_trace(
    rate: Callable[[float], float],
    seconds: float,
    *,
    prompt_tokens: int,
    output_tokens: int,
    seed: int,
) -> tuple[TracedRequest, ...]:
    """Return requests that come at random, with log-normal lengths of these means."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    highest = max(map(rate, range(int(seconds))))
    requests, second = list[TracedRequest](), 0.0
    while (second := second + rng.expovariate(highest)) < seconds:
        prompt, output = rng.lognormvariate(-0.125, 0.5), rng.lognormvariate(-0.125, 0.5)
        if rng.random() * highest > rate(second):
            continue
        requests.append(
            TracedRequest(
                second=second,
                prompt_tokens=max(_NUMBER_TOKENS, round(prompt_tokens * prompt)),
                output_tokens=max(2, round(output_tokens * output)),
            )
        )
    return tuple(requests)


async def replay(target: Target, trace: Iterable[TracedRequest]) -> list[Answer]:
    """Send each request at its time, and return all answers once the last one has ended."""
    begin = time.monotonic()
    async with _session(target) as session, asyncio.TaskGroup() as group:
        tasks = []
        for number, request in enumerate(trace):
            await asyncio.sleep(begin + request.second - time.monotonic())
            tasks.append(group.create_task(_stream(session, target, request, number)))
    return [task.result() for task in tasks]


async def stream_until(target: Target, ended: asyncio.Event, output_tokens: int) -> list[Answer]:
    """Stream one long answer after the other on one connection, until the event is set."""
    answers, begin = list[Answer](), time.monotonic()
    async with _session(target) as session:
        while not ended.is_set():
            request = TracedRequest(
                second=time.monotonic() - begin, prompt_tokens=50, output_tokens=output_tokens
            )
            answers.append(await _stream(session, target, request, len(answers)))
    return answers


def shares_by_window(
    answers: Sequence[Answer], target_seconds: float, *, span: float, step: float
) -> list[tuple[float, float, int]]:
    """Return where each window begins, the share within the target, and the requests in it."""
    last = max(answer.second for answer in answers)
    windows, begin = list[tuple[float, float, int]](), 0.0
    while begin + span <= last:
        inside = [answer for answer in answers if begin <= answer.second < begin + span]
        if inside:
            windows.append((begin, share_within(inside, target_seconds), len(inside)))
        begin += step
    return windows


def share_within(answers: Sequence[Answer], target_seconds: float) -> float:
    """Return the share of the answers whose first token came within the target."""
    return sum(answer.is_within(target_seconds) for answer in answers) / len(answers)


def failures(answers: Iterable[Answer]) -> list[str]:
    return [f"{answer.second:.1f} s: {answer.failure}" for answer in answers if answer.failure]


def _session(target: Target) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, force_close=not target.keeps_connections)
    return aiohttp.ClientSession(
        connector=connector,
        headers=target.headers,
        timeout=aiohttp.ClientTimeout(total=_MAX_SECONDS),
    )


async def _stream(
    session: aiohttp.ClientSession, target: Target, request: TracedRequest, number: int
) -> Answer:
    """Stream one answer; every prompt begins with a number, so that no prefix cache helps."""
    body = {
        "model": target.model,
        "prompt": f"{number:>8}{_WORD * (request.prompt_tokens - _NUMBER_TOKENS)}",
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    began, ttft, pieces, is_done, error = time.monotonic(), None, 0, False, ""
    replica = ""
    try:
        async with session.post(f"{target.base}/completions", json=body) as response:
            replica = response.headers.get("x-tessera-replica", "")
            if response.status != 200:
                error = f"{response.status} {await response.text()}"
            async for line in response.content:
                if b'"text":' in line:
                    ttft = ttft or time.monotonic() - began
                    pieces += line.count(b'"text":')
                elif line.startswith(b"data: [DONE]"):
                    is_done = True
                elif line.startswith(b"data: ") and b'"error"' in line:
                    error = line.decode()
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        error = repr(failure)
    if not error and (not is_done or pieces < request.output_tokens):
        error = f"ended after {pieces} of {request.output_tokens} tokens"
    return Answer(second=request.second, ttft=ttft, replica=replica, pieces=pieces, failure=error)
