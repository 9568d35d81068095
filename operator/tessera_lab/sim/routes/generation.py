"""Routes that generate text: chats and completions."""

from aiohttp import web

from tessera_lab.sim.bodies import ChatBody, CompletionBody, parse_body
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.encoders import ChatEncoder, CompletionEncoder
from tessera_lab.sim.generation_spec import GenerationSpec, generation_spec


class GenerationRoutes:
    """`/v1/chat/completions` and `/v1/completions`."""

    def __init__(self, dispatcher: GenerationDispatcher) -> None:
        self._dispatcher = dispatcher

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completion),
        ]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = parse_body(ChatBody, await request.read(), request.content_type)
        return await self._dispatcher.respond(request, self._spec(body), "chatcmpl", ChatEncoder)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = parse_body(CompletionBody, await request.read(), request.content_type)
        return await self._dispatcher.respond(request, self._spec(body), "cmpl", CompletionEncoder)

    def _spec(self, body: ChatBody | CompletionBody) -> GenerationSpec:
        return generation_spec(body, self._dispatcher.config, self._dispatcher.state.adapter_paths)
