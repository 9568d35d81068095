"""Submits generations to the engine and tracks them until their responses end."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable

from aiohttp import web

from tessera_lab.engine.requests import EngineRequest, RejectionReason
from tessera_lab.sim.bodies import ChatBody, CompletionBody
from tessera_lab.sim.encoders import Envelope, ResponseEncoder, WholeEncoder
from tessera_lab.sim.engine_state import EngineState
from tessera_lab.sim.errors import engine_dead, internal_error, queue_limit_error
from tessera_lab.sim.generation import ActiveGeneration, whole_response, write_stream
from tessera_lab.sim.generation_spec import GenerationSpec, SampleSpec, generation_spec
from tessera_lab.sim.launch.engine_config import VERSION, EngineConfig
from tessera_lab.sim.runner import EngineRunner, QueuedRequest, TokenStream

EncoderFactory = Callable[[Envelope, GenerationSpec], ResponseEncoder]
WholeEncoderFactory = Callable[[Envelope, GenerationSpec], WholeEncoder]

_ID = web.RequestKey("id", str)


class GenerationDispatcher:
    """The generations in progress."""

    def __init__(self, config: EngineConfig, runner: EngineRunner, state: EngineState) -> None:
        self.config = config
        self.state = state
        self.created = int(time.time())
        digest = hashlib.sha256(repr((config.names, config.limits)).encode()).hexdigest()
        self._fingerprint = f"vllm-{VERSION}-{digest[:8]}"
        self._runner = runner
        self._closing = False
        self._active: dict[ActiveGeneration, web.Request] = {}
        self._released = asyncio.Event()

    @property
    def active_count(self) -> int:
        """Return the number of generations in progress."""
        return len(self._active)

    def stop_accepting(self) -> None:
        """Accept no more generations: new ones hang until the others have ended, and then fail.

        Other routes still answer.
        """
        self._closing = True

    async def wait_idle(self) -> None:
        """Wait until no generation is in progress."""
        while self._active:
            self._released.clear()
            await self._released.wait()

    def close_connections(self) -> None:
        """Close the connections of all generations in progress."""
        for request in self._active.values():
            if request.transport is not None:
                request.transport.abort()

    def spec(self, body: ChatBody | CompletionBody) -> GenerationSpec:
        """Return what a body asks for; raise EngineApiError where the engine refuses it."""
        return generation_spec(body, self.config, self.state.adapter_paths)

    async def respond(
        self,
        request: web.Request,
        spec: GenerationSpec,
        prefix: str,
        encoder_factory: EncoderFactory,
    ) -> web.StreamResponse:
        """Generate and respond; a client that disconnects takes its request out of the engine."""
        if not spec.stream:
            return await self.respond_whole(request, spec, prefix, encoder_factory)
        encoder = encoder_factory(self._envelope(prefix, request, spec.model), spec)
        generation = await self._submit(request, spec)
        try:
            return await write_stream(request, generation, encoder)
        finally:
            self._release(generation)

    async def respond_whole(
        self,
        request: web.Request,
        spec: GenerationSpec,
        prefix: str,
        encoder_factory: WholeEncoderFactory,
    ) -> web.Response:
        """Respond in one piece, as `respond` does."""
        encoder = encoder_factory(self._envelope(prefix, request, spec.model), spec)
        generation = await self._submit(request, spec)
        try:
            return await whole_response(generation, encoder)
        finally:
            self._release(generation)

    async def _submit(self, request: web.Request, spec: GenerationSpec) -> ActiveGeneration:
        """Submit all samples of a request, or none when a limit rejects one of them."""
        if self._closing:
            await self.wait_idle()
            raise internal_error("cannot schedule new futures after shutdown")
        if not self.state.alive:
            raise engine_dead()
        changed, streams = asyncio.Event(), list[TokenStream]()
        for sample in spec.samples:
            stream = self._runner.submit(
                self._queued_request(spec, sample), changed, live=spec.stream
            )
            if isinstance(stream, RejectionReason):
                for submitted in streams:
                    self._runner.release(submitted)
                raise queue_limit_error(stream)
            streams.append(stream)
        arguments = self.config.arguments
        generation = ActiveGeneration(
            spec,
            streams,
            details=arguments.enable_prompt_tokens_details,
            timed=arguments.enable_per_request_metrics,
        )
        self._active[generation] = request
        return generation

    def _queued_request(self, spec: GenerationSpec, sample: SampleSpec) -> QueuedRequest:
        request = EngineRequest(
            id=self._runner.next_number(),
            prompt_tokens=sample.prompt.tokens,
            output_tokens=sample.output_tokens,
            finish_reason=sample.finish_reason,
            priority=spec.priority,
            shared_prefixes=sample.shared_prefixes,
        )
        adapter = spec.model if spec.model in self.state.adapter_paths else None
        return QueuedRequest(request, sample.max_tokens, spec.samples_per_prompt, adapter)

    def _release(self, generation: ActiveGeneration) -> None:
        for stream in generation.streams:
            self._runner.release(stream)
        del self._active[generation]
        self._released.set()

    def _envelope(self, prefix: str, request: web.Request, model: str) -> Envelope:
        return Envelope(
            id=f"{prefix}-{request_id(request)}",
            created=int(time.time()),
            model=model,
            fingerprint=self._fingerprint,
        )


def request_id(request: web.Request) -> str:
    """Return the client's id of the request, else a generated one that stays the same."""
    identifier = request.get(_ID)
    if identifier is None:
        identifier = request[_ID] = request.headers.get("X-Request-Id") or uuid.uuid4().hex[:16]
    return identifier
