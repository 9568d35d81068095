"""Takes generations to the engine and keeps them until they are answered."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Container

from aiohttp import web

from tessera.domain.engine_requests import Refusal, Request
from tessera.engine_sim.asks import Ask, Part
from tessera.engine_sim.condition import Condition
from tessera.engine_sim.errors import engine_dead, refused, shutting_down
from tessera.engine_sim.forms import Dialect, Envelope
from tessera.engine_sim.launch import VERSION, Launch
from tessera.engine_sim.runner import Order, Runner, Stream
from tessera.engine_sim.streams import Going, streamed, whole

Form = Callable[[Envelope, Ask], Dialect]

_ID = web.RequestKey("id", str)


class Desk:
    """Knows which generations are under way."""

    def __init__(self, launch: Launch, runner: Runner, condition: Condition) -> None:
        self.launch = launch
        self.condition = condition
        self.created = int(time.time())
        digest = hashlib.sha256(repr((launch.names, launch.limits)).encode()).hexdigest()
        self._fingerprint = f"vllm-{VERSION}-{digest[:8]}"
        self._runner = runner
        self._closing = False
        self._under_way: dict[Going, web.Request] = {}
        self._left = asyncio.Event()

    @property
    def load(self) -> int:
        """Generations under way."""
        return len(self._under_way)

    def abort(self, request_ids: Container[str]) -> int:
        """End the generations of these requests as aborted: how many there were."""
        found = [
            going for going, asked in self._under_way.items() if request_id(asked) in request_ids
        ]
        for going in found:
            for stream in going.streams:
                self._runner.abort(stream)
        return len(found)

    def refuse(self) -> None:
        """From now on no generation is taken: who comes hangs until the others have ended, and is
        refused then. Everything else is still answered."""
        self._closing = True

    async def quiet(self) -> None:
        """Wait until no generation is under way."""
        while self._under_way:
            self._left.clear()
            await self._left.wait()

    def cut(self) -> None:
        """Break the connections of all generations under way."""
        for request in self._under_way.values():
            if request.transport is not None:
                request.transport.abort()

    async def answer(
        self, request: web.Request, asked: Ask, prefix: str, form: Form
    ) -> web.StreamResponse:
        """Generate and answer; who goes away early takes the request out of the engine."""
        spoken = form(self._envelope(prefix, request, asked.model), asked)
        going = await self._submit(request, asked)
        try:
            if asked.stream:
                return await streamed(request, going, spoken)
            return await whole(going, spoken)
        finally:
            self._leave(going)

    async def generated(self, request: web.Request, asked: Ask) -> Going:
        """Generate everything, for who makes an answer of its own of it."""
        going = await self._submit(request, asked)
        try:
            while not going.over:
                await going.more()
        finally:
            self._leave(going)
        return going

    async def _submit(self, request: web.Request, asked: Ask) -> Going:
        """All answers of a request, or none when a limit refuses one of them."""
        if self._closing:
            await self.quiet()
            raise shutting_down()
        if not self.condition.alive:
            raise engine_dead()
        news, streams = asyncio.Event(), list[Stream]()
        for part in asked.parts:
            stream = self._runner.submit(self._order(asked, part), news, live=asked.stream)
            if isinstance(stream, Refusal):
                for taken in streams:
                    self._runner.leave(taken)
                raise refused(stream)
            streams.append(stream)
        given = self.launch.arguments
        going = Going(
            asked,
            streams,
            details=given.enable_prompt_tokens_details,
            timed=given.enable_per_request_metrics,
        )
        self._under_way[going] = request
        return going

    def _order(self, asked: Ask, part: Part) -> Order:
        request = Request(
            id=self._runner.next_number(),
            prompt_tokens=part.prompt.tokens,
            output_tokens=part.output_tokens,
            ends=part.ends,
            priority=asked.priority,
            shared=part.shared,
        )
        adapter = asked.model if asked.model in self.condition.loaded else None
        return Order(request, part.max_tokens, asked.answers, adapter)

    def _leave(self, going: Going) -> None:
        for stream in going.streams:
            self._runner.leave(stream)
        del self._under_way[going]
        self._left.set()

    def _envelope(self, prefix: str, request: web.Request, model: str) -> Envelope:
        return Envelope(
            id=f"{prefix}-{request_id(request)}",
            created=int(time.time()),
            model=model,
            fingerprint=self._fingerprint,
        )


def request_id(request: web.Request) -> str:
    """The client's id of the request, else one made for it; the same whenever it is asked for."""
    found = request.get(_ID)
    if found is None:
        found = request[_ID] = request.headers.get("X-Request-Id") or uuid.uuid4().hex[:16]
    return found
