"""The HTTP routes of one engine, with the engine's status codes and JSON."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tessera.domain.engine_requests import Refusal, Request
from tessera.engine_sim import forms, text
from tessera.engine_sim.asks import Ask, ask
from tessera.engine_sim.bodies import Chat, Completion, Tokenize, chat_prompt, parse
from tessera.engine_sim.errors import ApiError, refused, shutting_down, unknown_model
from tessera.engine_sim.forms import ChatForm, CompletionForm, Dialect, Envelope
from tessera.engine_sim.launch import VERSION, Launch
from tessera.engine_sim.runner import Runner, Stream
from tessera.engine_sim.streams import streamed, whole

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 256 * 2**20
_ID = web.RequestKey("id", str)


class Server:
    """Answers requests from the runner's tokens, and knows which are under way."""

    def __init__(self, launch: Launch, runner: Runner, registry: CollectorRegistry) -> None:
        self._launch = launch
        self._runner = runner
        self._registry = registry
        self._created = int(time.time())
        digest = hashlib.sha256(repr((launch.names, launch.limits)).encode()).hexdigest()
        self._fingerprint = f"vllm-{VERSION}-{digest[:8]}"
        self._closing = False
        self._under_way: dict[Stream, web.Request] = {}
        self._left = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._mannered], client_max_size=_LARGEST_BODY)
        app.on_response_prepare.append(self._echo_request_id)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._healthy)
        app.router.add_get("/ping", self._healthy)
        app.router.add_post("/ping", self._healthy)
        app.router.add_get("/load", self._load)
        app.router.add_get("/version", self._version)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/sim/busy", self._busy)
        app.router.add_post("/sim/freeze", self._freeze)
        return app

    def refuse(self) -> None:
        """From now on no generation is taken; everything else is still answered."""
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

    @web.middleware
    async def _mannered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keys, and errors in the engine's form."""
        if not self._allowed(request):
            return _json({"error": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except ApiError as error:
            return _json(error.body, error.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return _json({"detail": error.reason}, error.status)

    def _allowed(self, request: web.Request) -> bool:
        """Keys guard `/v1` alone."""
        keys = self._launch.api_keys
        if not keys or not request.path.startswith("/v1"):
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in keys

    async def _echo_request_id(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._launch.arguments.enable_request_id_headers:
            response.headers["X-Request-Id"] = _request_id(request)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = ask(parse(Chat, await request.read()), self._launch)
        form = ChatForm(self._envelope("chatcmpl", request, asked.model))
        return await self._generate(request, asked, form)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        asked = ask(parse(Completion, await request.read()), self._launch)
        form = CompletionForm(self._envelope("cmpl", request, asked.model))
        return await self._generate(request, asked, form)

    async def _generate(
        self, request: web.Request, asked: Ask, form: Dialect
    ) -> web.StreamResponse:
        """Submit and answer; who goes away early takes the request out of the engine."""
        stream = self._submit(asked)
        details = self._launch.arguments.enable_prompt_tokens_details
        self._under_way[stream] = request
        try:
            if asked.stream:
                return await streamed(request, asked, stream, form, details=details)
            return await whole(asked, stream, form, details=details)
        finally:
            self._runner.leave(stream)
            del self._under_way[stream]
            self._left.set()

    def _submit(self, asked: Ask) -> Stream:
        if self._closing:
            raise shutting_down()
        request = Request(
            id=self._runner.next_number(),
            prompt_tokens=asked.prompt_tokens,
            output_tokens=asked.output_tokens,
            ends=asked.ends,
            priority=asked.priority,
            shared=asked.shared,
        )
        stream = self._runner.submit(request, max_tokens=asked.max_tokens, live=asked.stream)
        if isinstance(stream, Refusal):
            raise refused(stream)
        return stream

    def _envelope(self, prefix: str, request: web.Request, model: str) -> Envelope:
        return Envelope(
            id=f"{prefix}-{_request_id(request)}",
            created=int(time.time()),
            model=model,
            fingerprint=self._fingerprint,
        )

    async def _models(self, _: web.Request) -> web.Response:
        return _json(forms.models(self._launch, self._created))

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _load(self, _: web.Request) -> web.Response:
        tracked = self._launch.arguments.enable_server_load_tracking
        return _json({"server_load": len(self._under_way) if tracked else 0})

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = parse(Tokenize, await request.read())
        if body.model is not None and body.model not in self._launch.known:
            raise unknown_model(body.model, self._launch.names)
        prompt = chat_prompt(body.messages).text if body.messages else body.prompt or ""
        tokens = text.ids(prompt)
        return _json(
            {
                "count": len(tokens),
                "max_model_len": self._launch.limits.max_model_len,
                "tokens": tokens,
                "token_strs": None,
            }
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        shown = generate_latest(self._registry)
        return web.Response(body=shown, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _busy(self, _: web.Request) -> web.Response:
        """No route of the engine: seconds of work so far, for simulated device metrics."""
        return _json({"busy_seconds": self._runner.busy_seconds()})

    async def _freeze(self, _: web.Request) -> web.Response:
        """No route of the engine: from now on it hangs, for trying out what becomes of it."""
        self._runner.freeze()
        return web.Response()


def _request_id(request: web.Request) -> str:
    """The client's id of the request, else one made for it; the same whenever it is asked for."""
    found = request.get(_ID)
    if found is None:
        found = request[_ID] = request.headers.get("X-Request-Id") or uuid.uuid4().hex[:16]
    return found


def _json(body: object, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, dumps=forms.dumps)
