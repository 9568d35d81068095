"""Routes that generate: chats, completions, and the two other vendors' forms of them."""

import time
from typing import Any

from aiohttp import web

from tessera.engine_sim import messages, responses
from tessera.engine_sim.asks import Ask, ask
from tessera.engine_sim.bodies import Chat, ChatBatch, Completion, fit, missing, parse, parse_json
from tessera.engine_sim.desk import Desk, request_id
from tessera.engine_sim.errors import ApiError
from tessera.engine_sim.forms import ChatForm, CompletionForm
from tessera.engine_sim.replies import reply


class Generation:
    """All ways to ask for text."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/chat/completions/batch", self._batch),
            web.post("/v1/completions", self._completion),
            web.post("/invocations", self._either),
            web.post("/v1/responses", self._response),
            web.get("/v1/responses/{response_id}", self._no_response, allow_head=False),
            web.post("/v1/responses/{response_id}/cancel", self._no_response),
            web.post("/v1/messages", self._message),
            web.post("/v1/messages/count_tokens", self._count),
            web.post("/generative_scoring", self._scores),
        ]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer_chat(request, await self._read(request))

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        body = fit(ChatBatch, await self._read(request))
        return await self._desk.answer(request, self._ask(body), "chatcmpl", ChatForm)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer_completion(request, await self._read(request))

    async def _either(self, request: web.Request) -> web.StreamResponse:
        """A chat if there are messages."""
        body = await self._read(request)
        if isinstance(body, dict) and "messages" in body:
            return await self._answer_chat(request, body)
        return await self._answer_completion(request, body)

    async def _response(self, request: web.Request) -> web.StreamResponse:
        body = parse(responses.Body, await request.read(), request.content_type)
        form = responses.form_of(body)
        return await self._desk.answer(request, self._ask(body.chat()), "resp", form)

    async def _no_response(self, request: web.Request) -> web.StreamResponse:
        """Responses are not kept, as without the engine's variable for it."""
        told = f"Response with id '{request.match_info['response_id']}' not found."
        raise ApiError(404, told, "invalid_request_error", "response_id")

    async def _message(self, request: web.Request) -> web.StreamResponse:
        body = parse(messages.Body, await request.read(), request.content_type)
        try:
            asked = self._ask(body.chat())
            return await self._desk.answer(request, asked, "chatcmpl", messages.MessageForm)
        except ApiError as error:
            return reply(messages.refusal(error), error.status)

    async def _count(self, request: web.Request) -> web.StreamResponse:
        body = parse(messages.Counted, await request.read(), request.content_type)
        try:
            tokens = self._ask(body.chat()).prompt_tokens
        except ApiError as error:
            return reply(messages.refusal(error), error.status)
        return reply(
            {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
        )

    async def _scores(self, request: web.Request) -> web.StreamResponse:
        """How likely a label is after each item: as likely as not, at the price of its prompts."""
        body = await self._read(request)
        absent = [name for name in ("query", "items", "label_token_ids") if name not in body]
        if absent:
            raise missing(*absent)
        prompts = [f"{body['query']}{item}" for item in body["items"]]
        asked = self._ask(Completion(model=body.get("model"), prompt=prompts, max_tokens=1))
        going = await self._desk.generated(request, asked)
        return reply(
            {
                "id": f"generative-scoring-{request_id(request)}",
                "object": "list",
                "created": int(time.time()),
                "model": asked.model,
                "data": [
                    {"index": place, "object": "score", "score": 0.5}
                    for place in range(len(prompts))
                ],
                "usage": going.usage().whole(created=None),
            }
        )

    async def _answer_chat(self, request: web.Request, body: Any) -> web.StreamResponse:
        asked = self._ask(fit(Chat, body))
        return await self._desk.answer(request, asked, "chatcmpl", ChatForm)

    async def _answer_completion(self, request: web.Request, body: Any) -> web.StreamResponse:
        asked = self._ask(fit(Completion, body))
        return await self._desk.answer(request, asked, "cmpl", CompletionForm)

    def _ask(self, body: Chat | Completion) -> Ask:
        return ask(body, self._desk.launch, self._desk.condition.loaded)

    async def _read(self, request: web.Request) -> Any:
        return parse_json(await request.read(), request.content_type)
