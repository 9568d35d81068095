"""Routes that generate: chats, completions, and the two other vendors' forms of them."""

import time
from typing import Any

from aiohttp import web

from tessera_lab.sim import messages, responses
from tessera_lab.sim.asks import GenerationSpec, generation_spec
from tessera_lab.sim.bodies import (
    ChatBatchBody,
    ChatBody,
    CompletionBody,
    missing_fields,
    parse_body,
    parse_json,
    validate_body,
)
from tessera_lab.sim.desk import GenerationDispatcher, request_id
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.forms import ChatEncoder, CompletionEncoder
from tessera_lab.sim.replies import json_reply


class GenerationRoutes:
    """All ways to ask for text."""

    def __init__(self, dispatcher: GenerationDispatcher) -> None:
        self._dispatcher = dispatcher

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/chat/completions/batch", self._batch),
            web.post("/v1/completions", self._completion),
            web.post("/invocations", self._invocation),
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
        body = validate_body(ChatBatchBody, await self._read(request))
        return await self._dispatcher.respond(request, self._spec(body), "chatcmpl", ChatEncoder)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer_completion(request, await self._read(request))

    async def _invocation(self, request: web.Request) -> web.StreamResponse:
        """A chat if there are messages."""
        body = await self._read(request)
        if isinstance(body, dict) and "messages" in body:
            return await self._answer_chat(request, body)
        return await self._answer_completion(request, body)

    async def _response(self, request: web.Request) -> web.StreamResponse:
        body = parse_body(responses.ResponsesBody, await request.read(), request.content_type)
        encoder_factory = responses.form_of(body)
        return await self._dispatcher.respond(
            request, self._spec(body.chat()), "resp", encoder_factory
        )

    async def _no_response(self, request: web.Request) -> web.StreamResponse:
        """Responses are not kept, as without the engine's variable for it."""
        message = f"Response with id '{request.match_info['response_id']}' not found."
        raise EngineApiError(404, message, "invalid_request_error", "response_id")

    async def _message(self, request: web.Request) -> web.StreamResponse:
        body = parse_body(messages.MessagesBody, await request.read(), request.content_type)
        try:
            spec = self._spec(body.chat())
            return await self._dispatcher.respond(request, spec, "chatcmpl", messages.MessageForm)
        except EngineApiError as error:
            return json_reply(messages.refusal(error), error.status)

    async def _count(self, request: web.Request) -> web.StreamResponse:
        body = parse_body(messages.Counted, await request.read(), request.content_type)
        try:
            tokens = self._spec(body.chat()).prompt_tokens
        except EngineApiError as error:
            return json_reply(messages.refusal(error), error.status)
        return json_reply(
            {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
        )

    async def _scores(self, request: web.Request) -> web.StreamResponse:
        """How likely a label is after each item: as likely as not, at the price of its prompts."""
        body = await self._read(request)
        missing_names = [name for name in ("query", "items", "label_token_ids") if name not in body]
        if missing_names:
            raise missing_fields(*missing_names)
        prompts = [f"{body['query']}{item}" for item in body["items"]]
        spec = self._spec(CompletionBody(model=body.get("model"), prompt=prompts, max_tokens=1))
        generation = await self._dispatcher.generate(request, spec)
        return json_reply(
            {
                "id": f"generative-scoring-{request_id(request)}",
                "object": "list",
                "created": int(time.time()),
                "model": spec.model,
                "data": [
                    {"index": index, "object": "score", "score": 0.5}
                    for index in range(len(prompts))
                ],
                "usage": generation.usage().full(created=None),
            }
        )

    async def _answer_chat(self, request: web.Request, body: Any) -> web.StreamResponse:
        spec = self._spec(validate_body(ChatBody, body))
        return await self._dispatcher.respond(request, spec, "chatcmpl", ChatEncoder)

    async def _answer_completion(self, request: web.Request, body: Any) -> web.StreamResponse:
        spec = self._spec(validate_body(CompletionBody, body))
        return await self._dispatcher.respond(request, spec, "cmpl", CompletionEncoder)

    def _spec(self, body: ChatBody | CompletionBody) -> GenerationSpec:
        return generation_spec(body, self._dispatcher.config, self._dispatcher.state.adapter_paths)

    async def _read(self, request: web.Request) -> Any:
        return parse_json(await request.read(), request.content_type)
