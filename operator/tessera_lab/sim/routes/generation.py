"""Routes that generate text, and the one that counts their prompts."""

from typing import Any

from aiohttp import web

from tessera_lab.sim.bodies import (
    ChatBody,
    CompletionBody,
    ConversationBody,
    Prompt,
    chat_prompt,
    completion_prompts,
    read_body,
)
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.encoders import ChatEncoder, CompletionEncoder
from tessera_lab.sim.messages import MessagesBody, MessagesEncoder


class TokenizedConversation(ConversationBody):
    """`/tokenize` of a conversation."""

    return_token_strs: bool | None = None


class TokenizedText(CompletionBody):
    """`/tokenize` of a text."""

    return_token_strs: bool | None = None


def generation_routes(dispatcher: GenerationDispatcher) -> list[web.RouteDef]:
    """Return `/v1/chat/completions`, `/v1/completions`, `/v1/messages` and `/tokenize`."""

    async def chat(request: web.Request) -> web.StreamResponse:
        spec = dispatcher.spec(await read_body(ChatBody, request))
        return await dispatcher.respond(request, spec, "chatcmpl", ChatEncoder)

    async def completion(request: web.Request) -> web.StreamResponse:
        spec = dispatcher.spec(await read_body(CompletionBody, request))
        return await dispatcher.respond(request, spec, "cmpl", CompletionEncoder)

    async def message(request: web.Request) -> web.StreamResponse:
        spec = dispatcher.spec((await read_body(MessagesBody, request)).chat())
        return await dispatcher.respond(request, spec, "chatcmpl", MessagesEncoder)

    async def tokenize(request: web.Request) -> web.Response:
        if b'"messages"' in await request.read():
            of_chat = await read_body(TokenizedConversation, request)
            return tokenized(chat_prompt(of_chat), strings=of_chat.return_token_strs)
        of_text = await read_body(TokenizedText, request)
        (prompt,) = completion_prompts(of_text)
        return tokenized(prompt, strings=of_text.return_token_strs)

    def tokenized(prompt: Prompt, *, strings: bool | None) -> web.Response:
        body: dict[str, Any] = {
            "count": prompt.tokens,
            "max_model_len": dispatcher.config.limits.max_model_len,
            "tokens": prompt.ids(),
            "token_strs": prompt.pieces() if strings else None,
        }
        return web.json_response(body)

    return [
        web.post("/v1/chat/completions", chat),
        web.post("/v1/completions", completion),
        web.post("/v1/messages", message),
        web.post("/tokenize", tokenize),
    ]
