"""The paths on which a request reaches an engine, and what holds whatever happens there."""

import asyncio
import itertools
import json
import logging
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, TenantLimits
from tessera.domain.gateway.requests import RunningRequest
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.identify.authentication import Authenticator
from tests.gateway.harness import (
    COMPLETION,
    DONE,
    END,
    KEY,
    MODEL,
    ROLE,
    TENANT,
    USAGE,
    Answer,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
    no_tokens,
)
from tests.gateway.resumed import breaking, going_on

PATIENCE_SECONDS = 60
SERVICE = Ref(TENANT, MODEL)
# An engine that runs one request at a time gets another one ahead.
_PLACES = 2
ADDRESS = "127.0.0.1"
OTHER_KEY, OTHER_MODEL = "tsk-other", "other"
MAX_OUTPUT_TOKENS = 1000
# As honest engines count the prompt, and about as the gateway guesses.
PROMPT_TOKENS = 110
PROMPT = "word " * 48
BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": MAX_OUTPUT_TOKENS,
}
FIRST, HONEST = " one", " two"
USED = USAGE.replace(b'"prompt_tokens":7', b'"prompt_tokens":%d' % PROMPT_TOKENS)
# More than what is spent in a test; of it 10 tokens come back in a second.
_TOKENS_PER_DAY = 864_000
# That no stream is idle.
_ALIVE, _ALIVE_SECONDS = b": alive\n\n", 0.5
COUNTS_TOKENS = going_on(DONE, prompt=PROMPT_TOKENS, begun=PROMPT_TOKENS + 1)


class Point(StrEnum):
    """Where a client leaves."""

    QUEUE = "while its request waits in the queue"
    ENGINE = "before the first token"
    DECODE = "after it"
    JOINT = "while another engine counts its tokens"


_USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 3, "total_tokens": 0}


async def honest(call: EngineCall) -> None:
    """Answer as an engine should."""
    if call.json.get("stream"):
        await call.stream(ROLE, a_delta(HONEST), END, USED, DONE)
    else:
        message = {"role": "assistant", "content": HONEST}
        await call.whole({**COMPLETION, "choices": [{"message": message}], "usage": _USAGE})


async def silent(call: EngineCall) -> None:
    """Say nothing until the gateway leaves."""
    await call.gone.wait()


async def posts(scene: "Scene") -> Answer:
    """Send the request, and read the whole answer."""
    return await scene.stage.post(scene.body, scene.request_id, **scene.path.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What an engine answers to a request, or its client does."""

    answer: Script = honest
    """Of the engine that the path of the request leads to."""
    counts: Script = COUNTS_TOKENS
    """Its answer where it is to count tokens."""
    send: "Callable[[Scene], Coroutine[Any, Any, Answer | None]]" = posts
    """Sends the request, and returns what the client got; None where it left."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """What differs in it from an ordinary one."""
    text: str = HONEST
    """The most that a client may get of this engine's text."""
    leaves: Point | None = None
    """Where the client leaves."""
    lies: bool = False
    """Its counts of tokens are invented, so that all that was reserved may be charged."""
    reaches: bool = True
    """Its request reaches the engine."""
    status: int | None = None
    """Of the answer; None where any may be."""
    requests: int = 1
    """Those that are recorded."""
    shared: bool = False
    """Several tenants use the model."""
    rest: bool = False
    """Something may be left on the engine's connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPath:
    """How a request gets to the engine that attacks, or is attacked."""

    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    before: Callable[["Scene"], Script] | None = None
    """What the engine does that gets the request first; None where only one gets it."""
    run: "Callable[[Scene], Awaitable[Answer | None]] | None" = None
    """Lets the client send its request where something else has to happen beside it."""
    first_text: str = ""
    """What the client gets before."""
    places: int | None = None
    tls: bool = False
    points: tuple[Point, ...] = (Point.ENGINE, Point.DECODE)
    """Where clients may leave."""

    @property
    def resumes(self) -> bool:
        """Return whether a stream goes on, which no other answer can."""
        return bool(self.first_text)


@dataclass(kw_only=True)
class Scene:
    """One attack on one path."""

    stage: "Stage"
    attack: Attack
    request_id: str
    stream: bool
    reached: bool = False
    """The engine got what the path leads to it."""
    points: dict[Point, asyncio.Event] = field(
        default_factory=lambda: {point: asyncio.Event() for point in Point}
    )
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """The engines give up what keeps the request from going on."""
    had_first: bool = False

    @property
    def path(self) -> RequestPath:
        return self.stage.path

    @property
    def body(self) -> dict[str, Any]:
        return {**BODY, "stream": self.stream, **self.path.body, **self.attack.body}

    @property
    def running(self) -> list[RunningRequest]:
        """Return its requests that run."""
        requests, _ = self.stage.gateway.app.running(9)
        return [each for each in requests if each.request_id.startswith(self.request_id)]

    @property
    def output_tokens(self) -> int:
        """Return what its client was sent."""
        return sum(each.output_tokens for each in self.running)

    async def answer(self, call: EngineCall) -> None:
        """Answer what an engine of the model gets."""
        if call.path == "/tokenize":
            self.points[Point.JOINT].set()
            await self.attack.counts(call)
            if self.attack.counts is not COUNTS_TOKENS:
                self.freed.set()
        elif b'"occupant"' in call.body:
            await self.freed.wait()
            await call.whole(COMPLETION)
        elif self.path.before is not None and not self.had_first:
            self.had_first = True
            await self.path.before(self)(call)
        else:
            self.reached = True
            self.points[Point.ENGINE].set()
            await self.attack.answer(call)

    async def send(self) -> Answer | None:
        """Do what the client does."""
        if self.attack.leaves is None:
            return await self.attack.send(self)
        sending = asyncio.create_task(self.attack.send(self))
        if self.attack.leaves is Point.DECODE:
            before = bool(self.path.first_text)
            await soon(lambda: sending.done() or self.output_tokens > before)
        else:
            await _first_of(sending, self.points[self.attack.leaves].wait())
        sending.cancel()
        await asyncio.wait([sending])
        return None


@dataclass(kw_only=True)
class Stage:
    """A gateway with a model that is attacked, and one of a bystander."""

    path: RequestPath
    gateway: RunningGateway
    engines: Sequence[ScriptedEngine]
    other: ScriptedEngine
    session: aiohttp.ClientSession
    logged: list[logging.LogRecord]
    trusted: ssl.SSLContext | None
    """Where the gateway speaks TLS."""
    scene: Scene | None = None
    bystander: aiohttp.ClientResponse | None = None
    """The stream of another tenant, which goes on beside all attacks."""
    words: "asyncio.Queue[str | None]" = field(default_factory=asyncio.Queue)
    """What it is to have; None where it ends."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    uid: str = ""
    """Of the model that is attacked, which is another one in each scene."""

    @property
    def url(self) -> str:
        return self.gateway.url.replace("http:", "https:") if self.path.tls else self.gateway.url

    def request(
        self, body: Any, request_id: str, key: str = KEY, **headers: str
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request."""
        fields = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        return self.session.post(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body),
            headers={**fields, "x-request-id": request_id, **headers},
        )

    async def post(self, body: Any, request_id: str, **headers: str) -> Answer:
        """Send a request, and read the whole answer."""
        async with self.request(body, request_id, **headers) as response:
            return Answer(
                status=response.status, headers=response.headers, body=await response.read()
            )

    def renew(self, leaving: str = "") -> Directory:
        """Judge by new replicas, of which nothing is known, or by the same, of which one leaves."""
        if not leaving:
            self.uid = f"uid-{next(self.numbers)}"
        engines = self.engines if self.path.before else self.engines[:1]
        replicas = [
            a_replica(
                engine.address, name, uid=f"{self.uid}-{name}", leaving=name == leaving,
                max_num_seqs=self.path.places,
            )
            for index, engine in enumerate(engines)
            for name in [f"chat-{index}"]
        ]  # fmt: skip
        model = a_model(
            *replicas,
            uid=self.uid,
            moves_streams=self.path is PATHS["moved"],
            public=self.scene is not None and self.scene.attack.shared,
        )
        other = a_model(
            a_replica(self.other.address, "other-1"),
            service=Ref("team-b", "other"), uid="uid-other", names=(OTHER_MODEL,), tenant="team-b",
        )  # fmt: skip
        keys = (an_api_key(), an_api_key(OTHER_KEY, name="other", tenant="team-b"))
        # The places of one scene: what leaks leaves too few for the next.
        limits = RateLimitsSpec(
            concurrent_requests=3, total_tokens=PeriodLimits(per_day=_TOKENS_PER_DAY)
        )
        tenants = {TENANT: TenantLimits(name=TENANT, namespaces=(TENANT,), limits=limits)}
        directory = a_directory(model, other, keys=keys, tenants=tenants)
        self.gateway.admission.update(directory)
        return directory

    async def hear(self) -> bytes:
        """Let another tenant's engine say a word, and return what that tenant gets."""
        assert self.bystander is not None
        word = f" {next(self.numbers)}"
        self.words.put_nowait(word)
        while (event := await self.bystander.content.readuntil(b"\n\n")) == _ALIVE:
            pass
        return event.replace(a_delta(word), b"heard")

    async def hear_the_end(self) -> bytes:
        """End the stream of the bystander, and return what is left of it."""
        assert self.bystander is not None
        self.words.put_nowait(None)
        return (await self.bystander.content.read()).replace(_ALIVE, b"")

    def records_of(self, scene: Scene) -> list[UsageRecord]:
        """Return the records of its requests."""
        return [
            each for each in self.gateway.records if each.request_id.startswith(scene.request_id)
        ]

    def unaccounted_tokens(self) -> int:
        """Return how many tokens the limit lost beyond those that are recorded."""
        spent = sum(
            each.input_tokens + each.output_tokens
            for each in self.gateway.records
            if each.tenant == TENANT
        )
        (balance,) = self.gateway.admission.limits._balances.values()
        (account,) = self.gateway.accounts.accounts.values()
        left = account.level + balance.amount + balance.returned
        return round(_TOKENS_PER_DAY - left - spent)


@asynccontextmanager
async def a_stage(
    path: RequestPath, logged: list[logging.LogRecord], **options: Any
) -> AsyncIterator[Stage]:
    """Run a gateway, with engines of which two have the model that is attacked."""

    async def script(call: EngineCall) -> None:
        assert stage.scene is not None
        await stage.scene.answer(call)

    async def talk(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        word: str | None = ""
        while word is not None:
            try:
                word = await asyncio.wait_for(stage.words.get(), _ALIVE_SECONDS)
                await call.chunk(END + USED + DONE if word is None else a_delta(word))
            except TimeoutError:
                await call.chunk(_ALIVE)
        await call.finish()

    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(ScriptedEngine(script)) for _ in range(2)]
        other = await stack.enter_async_context(ScriptedEngine(talk))
        trusted = options.pop("trusted", None)
        gateway = await stack.enter_async_context(
            a_gateway(a_directory(), identifier=Authenticator(no_tokens), **options)
        )
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=trusted or True))
        )
        stage = Stage(
            path=path,
            gateway=gateway,
            engines=engines,
            other=other,
            session=session,
            logged=logged,
            trusted=trusted,
        )
        stage.renew()
        stage.words.put_nowait(HONEST)
        # Without protection, so that it holds nothing.
        body = {**BODY, "model": OTHER_MODEL, "stream": True, "logprobs": True}
        stage.bystander = await stack.enter_async_context(stage.request(body, "by", OTHER_KEY))
        assert await stage.bystander.content.readuntil(a_delta(HONEST)) == ROLE + a_delta(HONEST)
        yield stage


async def soon(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Return whether a condition holds, now or after a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - it is of the gateway, which tells no test
                await asyncio.sleep(0.001)
    return condition()


async def _first_of(sending: "asyncio.Task[Any]", other: Awaitable[Any]) -> None:
    waiting = asyncio.ensure_future(other)
    await asyncio.wait([sending, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


# --- the paths


async def _queue(scene: Scene) -> Answer | None:
    """Let others take all places of the engine, and leave once the request waits for one."""
    stage = scene.stage
    occupant = {**BODY, "user": "occupant"}
    occupants = [asyncio.create_task(stage.post(occupant, "occupant")) for _ in range(_PLACES)]
    demand = stage.gateway.admission.demand
    await soon(lambda: SERVICE in demand and demand[SERVICE].in_flight == _PLACES)
    sending = asyncio.create_task(scene.send())
    await soon(lambda: sending.done() or stage.gateway.queued_requests > 0)
    scene.points[Point.QUEUE].set()
    if scene.attack.leaves is Point.QUEUE:
        await sending
    scene.freed.set()
    await asyncio.gather(*occupants)
    return await sending


def _cut(_: Scene) -> Script:
    async def script(call: EngineCall) -> None:
        call.cut()

    return script


def _broken(_: Scene) -> Script:
    return breaking(ROLE, a_delta(FIRST))


def _left(scene: Scene) -> Script:
    """Send a stream until the gateway leaves, or the test wants no more."""

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta(FIRST))
        leaving = asyncio.create_task(call.gone.wait())
        await _first_of(leaving, scene.freed.wait())
        if not call.gone.is_set():
            leaving.cancel()
            await call.chunk(END + USED + DONE)
            await call.finish()

    return script


async def _move(scene: Scene) -> Answer | None:
    """Let the replica leave that has begun with the stream."""
    app, sending = scene.stage.gateway.app, asyncio.create_task(scene.send())

    await soon(lambda: sending.done() or scene.output_tokens > 0)
    for request in scene.running:
        if request.output_tokens:
            app.move_streams(scene.stage.renew(request.replica or "").moved_replicas())
    if scene.attack.counts is COUNTS_TOKENS and not scene.attack.reaches:
        # It has no protection, so it stays.
        scene.freed.set()
    return await sending


PATHS: Mapping[str, RequestPath] = {
    "direct": RequestPath(),
    "queued": RequestPath(run=_queue, places=1, points=(Point.QUEUE, Point.ENGINE, Point.DECODE)),
    "retried": RequestPath(before=_cut),
    "resumed": RequestPath(
        before=_broken, first_text=FIRST, points=(Point.JOINT, Point.ENGINE, Point.DECODE)
    ),
    "moved": RequestPath(
        before=_left,
        run=_move,
        first_text=FIRST,
        points=(Point.JOINT, Point.ENGINE, Point.DECODE),
    ),
    "sheddable": RequestPath(headers={"x-tessera-sheddable": "true"}),
    "batch": RequestPath(body={"priority": 1}),
    "TLS": RequestPath(tls=True),
}
