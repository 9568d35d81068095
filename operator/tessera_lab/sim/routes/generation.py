"""Routes that generate text: chats and completions."""

from aiohttp import web

from tessera_lab.sim.bodies import ChatBody, CompletionBody, read_body
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.encoders import ChatEncoder, CompletionEncoder


def generation_routes(dispatcher: GenerationDispatcher) -> list[web.RouteDef]:
    """Return `/v1/chat/completions` and `/v1/completions`."""

    async def chat(request: web.Request) -> web.StreamResponse:
        spec = dispatcher.spec(await read_body(ChatBody, request))
        return await dispatcher.respond(request, spec, "chatcmpl", ChatEncoder)

    async def completion(request: web.Request) -> web.StreamResponse:
        spec = dispatcher.spec(await read_body(CompletionBody, request))
        return await dispatcher.respond(request, spec, "cmpl", CompletionEncoder)

    return [
        web.post("/v1/chat/completions", chat),
        web.post("/v1/completions", completion),
    ]
