"""`/v1/responses`: the newer form of a chat."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from tessera_lab.engine.requests import FinishReason
from tessera_lab.sim.asks import GenerationSpec, SampleSpec
from tessera_lab.sim.bodies import ChatBody, ChatMessage
from tessera_lab.sim.forms import Envelope, ResponseEncoder, TokenSpan, dump_json
from tessera_lab.sim.usage import Timing, TokenUsage


class ResponsesBody(BaseModel):
    """A request."""

    input: str | list[ChatMessage]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    priority: int = 0

    def chat(self) -> ChatBody:
        """The same as a chat."""
        given = self.input
        turns = [ChatMessage(role="user", content=given)] if isinstance(given, str) else given
        if self.instructions:
            turns = [ChatMessage(role="system", content=self.instructions), *turns]
        return ChatBody(
            model=self.model,
            messages=turns,
            max_tokens=self.max_output_tokens,
            stream=self.stream,
            temperature=self.temperature,
            top_p=self.top_p,
            priority=self.priority,
        )


def form_of(body: ResponsesBody) -> Callable[[Envelope, GenerationSpec], ResponseEncoder]:
    """The form of the answers to a request, which repeat much of it."""
    return lambda envelope, ask: ResponseForm(envelope, ask, body)


class ResponseForm:
    """Its answers; the events of a stream are numbered."""

    def __init__(self, envelope: Envelope, ask: GenerationSpec, body: ResponsesBody) -> None:
        self._id = envelope.id.replace("-", "_", 1)
        self._item = f"msg_{envelope.id.partition('-')[2]}"
        self._created = envelope.created
        self._ask = ask
        self._body = body
        self._sent = 0

    def opening(self, part: SampleSpec, usage: TokenUsage | None) -> bytes:  # noqa: ARG002  # as others
        begun = self._response([], None, "in_progress", None)
        item = {**self._message([]), "status": "in_progress"}
        part_body = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return b"".join(
            (
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event("response.output_item.added", item=item, output_index=0),
                self._event("response.content_part.added", **self._place(), part=part_body),
            )
        )

    def chunk(self, piece: TokenSpan, usage: TokenUsage | None) -> bytes:  # noqa: ARG002  # as others
        if not piece.text:
            return b""
        place = {**self._place(), "delta": piece.text, "logprobs": []}
        return self._event("response.output_text.delta", **place)

    def closing(
        self, pieces: Sequence[TokenSpan], usage: TokenUsage, timing: Timing | None
    ) -> bytes:
        shown = _content(pieces[0].text)
        place, done = self._place(), self.whole(pieces, usage, timing)
        said = {**place, "logprobs": [], "text": pieces[0].text}
        item = self._message([shown])
        return b"".join(
            (
                self._event("response.output_text.done", **said),
                self._event("response.content_part.done", **place, part=shown),
                self._event("response.output_item.done", item=item, output_index=0),
                self._event("response.completed", response=done),
            )
        )

    def whole(
        self,
        pieces: Sequence[TokenSpan],
        usage: TokenUsage,
        timing: Timing | None,  # noqa: ARG002
    ) -> dict[str, Any]:  # as others
        ending = pieces[0].ending
        cut = ending is not None and ending.reason is FinishReason.LENGTH
        output = [self._message([_content(pieces[0].text)])]
        return self._response(
            output,
            {"reason": "max_output_tokens"} if cut else None,
            "incomplete" if cut else "completed",
            _usage(usage),
        )

    def _response(
        self,
        output: list[dict[str, Any]],
        incomplete: dict[str, str] | None,
        status: str,
        usage: dict[str, Any] | None,
    ) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "created_at": self._created,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "metadata": body.metadata,
            "model": self._ask.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "background": False,
            "max_output_tokens": self._ask.samples[0].max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        told = {"id": self._item, "content": content, "role": "assistant"}
        return {**told, "status": "completed", "type": "message", "phase": None}

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._item, "output_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = {**fields, "sequence_number": self._sent, "type": kind}
        self._sent += 1
        return f"event: {kind}\ndata: {dump_json(told)}\n\n".encode()


def _content(shown: str) -> dict[str, Any]:
    return {"annotations": [], "text": shown, "type": "output_text", "logprobs": None}


def _usage(usage: TokenUsage) -> dict[str, Any]:
    nothing: list[int] = []
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": 0,
            "input_tokens_per_turn": nothing,
            "cached_tokens_per_turn": nothing,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": nothing,
            "tool_output_tokens_per_turn": nothing,
        },
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
